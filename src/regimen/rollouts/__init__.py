"""What an episode is: rollout rows, their outcomes, their tokens; reading, writing, grouping, measuring."""

"""Where episodes are played: environments, the agent that plays them, and the collection of rollouts."""

"""What is wrong with a set of rollouts, and what to do with it next."""

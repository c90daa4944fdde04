"""What computes log-probabilities and takes gradient steps; knows no algorithm."""

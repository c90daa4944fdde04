"""What is optimised: reward shaping, advantages, losses, and one module for each algorithm that joins them."""

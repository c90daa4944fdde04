"""Converted folders as other trainers take them."""

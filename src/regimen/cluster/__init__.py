"""Machines that work together: starting the processes of a run on them."""

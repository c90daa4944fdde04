"""Stages joined: each pipeline is one verb of the command line."""

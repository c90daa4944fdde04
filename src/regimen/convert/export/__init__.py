"""Training sets and configurations as other trainers take them: one module and one registry line each."""

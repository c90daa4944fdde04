"""HTTP servers: an environment, the agent that plays it, a model; and the guard in front of all of them."""

"""How good a model is, how sure that is, and whether it is better than another: scores, comparisons, reports."""

"""What `benchmarks/convert.py` is made of."""

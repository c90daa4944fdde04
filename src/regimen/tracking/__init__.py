"""Where a run's numbers go while it runs: metrics.jsonl, TensorBoard, or both."""

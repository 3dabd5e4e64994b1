"""What we claim, measured: one script a claim, run as `python -m benchmarks.<name>`."""

"""Side-by-side measurements; their results lie in `results/`."""

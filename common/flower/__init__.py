"""Flower's own processes, and an in-process grid without them."""

"""Flower's own processes, and a grid without any."""

"""Baselines in which every client ends with a network of its own."""

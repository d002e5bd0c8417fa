"""A model's state as flat vectors, and the reproducible sum of many."""

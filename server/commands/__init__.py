"""The verbs of `python -m server`."""

"""The verbs of `python -m server`, a module each."""

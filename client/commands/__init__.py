"""The verbs of `python -m client`, a module each."""

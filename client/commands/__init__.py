"""The verbs of `python -m client`."""

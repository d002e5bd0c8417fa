"""Files on disk: atomic writes, clients' states, stored models."""

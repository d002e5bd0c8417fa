"""What is kept on disk: atomic files, clients' states, finished models."""

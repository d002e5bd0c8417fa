"""The server's frame: one round loop that every method shares."""

"""How students learn: on a server that has data, and federated."""

"""Training of the students: on a server with data of its own, or federated."""

"""The ServerApp and the commands of the server."""

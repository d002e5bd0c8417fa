"""Shared by server and client: networks, exits, objectives, data, messages. Imports nothing from the other packages."""

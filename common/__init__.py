"""What both sides need: networks, exits, objectives, data, protocol. Imports nothing from the other packages."""

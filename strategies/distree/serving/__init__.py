"""Students on several devices that answer together."""

"""Client-side entry points."""

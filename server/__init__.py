"""Server-side entry points."""

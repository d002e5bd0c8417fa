"""Where a sample leaves its student, and how that is chosen."""

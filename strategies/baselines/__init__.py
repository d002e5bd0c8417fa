"""Methods that others are measured against: one global early-exit network."""

"""Hetero-SplitEE: split training of early-exit networks that are cut at a depth of each device's own."""

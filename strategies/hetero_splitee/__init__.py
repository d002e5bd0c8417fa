"""Hetero-SplitEE: split training with early exits, each device with its own cut (Oda et al., arXiv 2512.09313)."""

"""Exits: their classifier, the policies that decide where a sample leaves, and how the thresholds are calibrated."""

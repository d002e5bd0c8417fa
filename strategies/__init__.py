"""Federated early-exit methods as Flower strategies."""

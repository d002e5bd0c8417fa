"""DarkDistill: difficulty-aligned federated early-exit training on heterogeneous devices (Qu et al., KDD 2025)."""

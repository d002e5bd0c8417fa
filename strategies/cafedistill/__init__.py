"""CAFEDistill: personalised early-exit networks by federated distillation (Liu et al., arXiv 2601.10015, 2026)."""

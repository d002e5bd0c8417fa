"""CAFEDistill: personalised early-exit networks by cross-client distillation (Liu et al., arXiv 2601.10015)."""

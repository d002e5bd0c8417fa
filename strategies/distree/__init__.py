"""DistrEE: students of one teacher on several devices, each with its own exits (Peng et al., arXiv 2502.15735)."""

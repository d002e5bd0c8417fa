"""DarkDistill: difficulty-aligned federated early-exit training on heterogeneous devices (Qu et al., KDD 2025)."""

from strategies.darkdistill.client import DarkDistillTraining
from strategies.darkdistill.strategy import DarkDistill
from strategies.registry import Method

METHOD = Method(DarkDistill, DarkDistillTraining)

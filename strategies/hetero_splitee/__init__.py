"""Hetero-SplitEE: split training with early exits, each device with its own cut (Oda et al., arXiv 2512.09313)."""

from strategies.hetero_splitee.client import SplitTraining
from strategies.hetero_splitee.cut import CUTS
from strategies.hetero_splitee.strategy import HeteroSplitEE, travels
from strategies.registry import Method

METHOD = Method(
    HeteroSplitEE,
    SplitTraining,
    ensemble=lambda config: 0.0,
    travels=travels,
    parts=CUTS,
    measure="entropy",
    exits=False,
    robust=False,
)

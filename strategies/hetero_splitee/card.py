"""Hetero-SplitEE: split training with early exits, each device with its own cut (Oda et al., arXiv 2512.09313)."""

from common.sections.stream import StreamSettings
from strategies.hetero_splitee.client import SplitTraining
from strategies.hetero_splitee.cut import CUTS
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.hetero_splitee.strategy import HeteroSplitEE, apart, travels
from strategies.method import Method

METHOD = Method(
    "hetero_splitee",
    HeteroSplitEE,
    SplitTraining,
    (SplitEESettings, StreamSettings),
    parts=CUTS,
    travels=travels,
    apart=apart,
    ensemble=lambda config: 0.0,
    measure="entropy",
    exits=False,
    nested=False,  # exits stand at the cuts
    personal=True,
    robust=False,
    interleaved=True,
)

"""DarkDistill: difficulty-aligned federated early-exit training on heterogeneous devices (Qu et al., KDD 2025)."""

from strategies.darkdistill.client import DarkDistillTraining
from strategies.darkdistill.settings import DarkDistillSettings, DifficultySettings
from strategies.darkdistill.strategy import DarkDistill
from strategies.method import Method

METHOD = Method("darkdistill", DarkDistill, DarkDistillTraining, (DarkDistillSettings, DifficultySettings))

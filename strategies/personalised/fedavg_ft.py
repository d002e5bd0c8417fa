"""Fine-tuned FedAvg: the global early-exit network, trained some more on each client before it is used.

The rounds are EEFL's; `personal.finetune-epochs` of the local objective follow on each client's own samples. The
plainest of all personalised methods, and a strong one (Cheng et al., arXiv 2108.07313).
"""

from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Method
from strategies.personalised.base import FineTuning
from strategies.personalised.settings import PersonalSettings


class FineTunedFedAvg(EarlyExitStrategy):
    """Average everything."""


METHOD = Method("fedavg_ft", FineTunedFedAvg, FineTuning, (PersonalSettings,), personal=True)

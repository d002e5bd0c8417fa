"""FedPer (Arivazhagan et al., arXiv 1912.00818): the backbone is averaged, the heads are personal.

1. A client puts its own exit heads on the server's backbone and trains both together on all exits.
2. The server averages the backbones, weighted by samples; the heads never leave the client.
"""

from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Method
from strategies.personalised.base import PersonalTraining, backbone
from strategies.personalised.settings import PersonalSettings


class FedPer(EarlyExitStrategy):
    """Average the backbone."""


METHOD = Method("fedper", FedPer, PersonalTraining, (PersonalSettings,), personal=True, travels=backbone)

"""Local training alone: nothing travels. What a client gains by taking part is measured against this."""

from common.errors import UserError
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Method, Setup
from strategies.personalised.base import PersonalTraining
from strategies.personalised.settings import PersonalSettings


class LocalOnly(EarlyExitStrategy):
    """Clients train when they are sampled, as in every other method, and share nothing."""

    def __init__(self, method: Method, setup: Setup) -> None:
        if setup.config.network.pretrained:
            raise UserError("run.strategy 'local' sends no weights to the devices: leave network.pretrained empty")
        super().__init__(method, setup)


METHOD = Method(
    "local", LocalOnly, PersonalTraining, (PersonalSettings,),
    travels=lambda config, key: False, personal=True, robust=False,
)  # fmt: skip

"""Local training alone: nothing travels. What a client gains by taking part is measured against this."""

from typing import Any

from common.errors import UserError
from strategies.personalised.base import PersonalStrategy, PersonalTraining
from strategies.registry import Method


class Standalone(PersonalStrategy):
    """Clients train when they are sampled, as in every other method, and share nothing."""

    name = "local"

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        if config.network.pretrained:
            raise UserError("run.strategy 'local' sends no weights to the devices: leave network.pretrained empty")
        super().__init__(config, *args, **kwargs)


METHOD = Method(Standalone, PersonalTraining, travels=lambda config, key: False, robust=False)

"""FedRep (Collins et al., ICML 2021): a shared representation under personal heads, trained in turn.

1. A client trains its own heads for several epochs on the server's backbone, which is fixed meanwhile.
2. It then trains the backbone for `train.epochs` under those heads, fixed in their turn.
3. The server averages the backbones, weighted by samples.
"""

from dataclasses import dataclass

from common.objectives.base import Objective
from common.settings import Settings, at_least
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Job, Method
from strategies.personalised.base import PersonalSettings, PersonalTraining, backbone, is_head


@dataclass(frozen=True)
class FedRepSettings(Settings):
    """Hyper-parameters of FedRep."""

    SECTION = "fedrep"

    head_epochs: int = 5  # epochs of the heads before the backbone's

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        return at_least(self, head_epochs=0)


class FedRep(EarlyExitStrategy):
    """Average the backbone."""


class FedRepLocal(PersonalTraining):
    """Heads first, then the backbone."""

    def local_epochs(self, job: Job, objective: Objective) -> float | None:
        """Train the two parts one after the other; return the loss of the second phase."""
        settings = job.config.of(FedRepSettings)
        self.fit(job, objective, job.model.leaf(is_head), settings.head_epochs, "heads")
        return self.fit(job, objective, job.model.leaf(lambda key: not is_head(key)), job.config.train.epochs)


METHOD = Method("fedrep", FedRep, FedRepLocal, (FedRepSettings, PersonalSettings), personal=True, travels=backbone)

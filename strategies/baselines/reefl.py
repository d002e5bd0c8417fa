"""ReeFL (Lee et al., ICML 2024, arXiv 2405.14791): recurrent early exits, the best of which teaches the others.

1. All exits share one classifier, a transformer block over a meta token and the tokens of the exits so far
   (`common.networks.recurrent`); every client holds all of it, whatever its depth.
2. Clients train prefixes of unequal depth. Local loss over their E exits, p_e = softmax(z_e / T):

       sum_e CE(z_e, y)  +  weight * sum_{e != t} T^2 * KL(stopgrad(p_t) || p_e),   t = argmin_e of r_e

   where r_e is the running mean of exit e's cross-entropy in this round: decay * r_e + (1 - decay) * CE(z_e, y).
3. The server averages each layer, and the shared classifier, over the clients that hold it.

Ours: an exit's token is a linear function of its pooled feature, so that stages of unequal width share a classifier,
and the history holds the exits' tokens, where the paper's holds every block's class token. The mean and its decay of
0.8, and the ramp, are those of the authors' code. DarkDistill compares with ReeFL at lr 0.005: attention wants a
smaller `train.lr` than the default.

Left out: feature modulation, which writes the block's output back into the backbone's class token.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.networks.base import EarlyExitNetwork
from common.objectives import Loss, Objective, exit_losses
from common.objectives.base import StatelessObjective
from strategies.baselines.settings import ReeFLSettings
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Job, Method
from strategies.node.local_training import LocalTraining


def distillation(logits: Sequence[Tensor], teacher: Tensor, temperature: float) -> Tensor:
    """Return `sum_{e != t} mean_b T^2 KL(p_t || p_e)`, a scalar; 0 for a single exit.

    Args:
        logits: one `(B, C)` per exit.
        teacher: index of exit t, which gets no gradient; a scalar on the logits' device, which is not read.
        temperature: T of the softmax.
    """
    chosen = torch.stack([z.detach() for z in logits]).index_select(0, teacher.reshape(1)).squeeze(0)
    target = F.log_softmax(chosen / temperature, dim=1)
    total = torch.zeros((), device=target.device)
    for e, z in enumerate(logits):
        student = F.log_softmax(z / temperature, dim=1)
        total = total + (teacher != e) * F.kl_div(student, target, reduction="batchmean", log_target=True)
    return total * temperature**2


class BestExitTeaches(StatelessObjective):
    """Cross-entropies of all exits, and distillation from the exit whose running cross-entropy is the lowest."""

    def __init__(self, weight: float, temperature: float, decay: float) -> None:
        self.weight, self.temperature, self.decay = weight, temperature, decay
        self.running: Tensor | None = None  # (E,), of this round

    def loss(self, network: EarlyExitNetwork, x: Tensor, y: Tensor) -> Loss:
        """Return the loss of images `(B, C, H, W)` with labels `(B,)`."""
        logits = network(x)
        losses = exit_losses(logits, y)
        now = losses.detach().mean(1)
        self.running = now if self.running is None else self.decay * self.running + (1 - self.decay) * now
        taught = distillation(logits, self.running.argmin(), self.temperature)
        return Loss(losses.mean(1).sum() + self.weight * taught, losses.detach())


class ReeFL(EarlyExitStrategy):
    """Average each layer over the clients that train it, weighted by their samples."""


class ReeFLLocal(LocalTraining):
    """E local epochs of SGD on the exits' losses, with distillation from the client's best exit."""

    def objective(self, job: Job, exits: int) -> Objective:
        """Return this round's objective; the run's `objective` section does not apply."""
        settings = job.config.of(ReeFLSettings)
        return BestExitTeaches(settings.weight(job.round), settings.temperature, settings.decay)


METHOD = Method(
    "reefl", ReeFL, ReeFLLocal, (ReeFLSettings,),
    ensemble=lambda config: 0.0, recurrent=lambda config: config.of(ReeFLSettings).width,
)  # fmt: skip

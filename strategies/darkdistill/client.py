"""DarkDistill's client half: local training that measures each sample's difficulty, too (KDD 2025)."""

import secrets

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.objectives import Loss
from strategies.darkdistill.difficulty import DifficultyPairs, DifficultySketch
from strategies.darkdistill.settings import DifficultySettings
from strategies.method import Job, Outcome
from strategies.node.local_training import LocalTraining

DIFFICULTY, LABELS, SKETCH = "difficulty", "labels", "sketch"  # names of the uploaded arrays


class DarkDistillTraining(LocalTraining):
    """Records (difficulty, label) of every sample during the last local epoch, just before each step.

    For a noisy sketch it measures them before the first step instead, see `received_difficulties`.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def train(self, job: Job) -> Outcome:
        """Train one client for one round."""
        # also after a client that failed in the middle
        self.pairs = received_difficulties(job) if job.config.of(DifficultySettings).epsilon > 0 else []
        return super().train(job)

    def observe(self, job: Job, batch: Tensor, loss: Loss, last_epoch: bool) -> None:
        """Keep delta = CE(F_1(x), y) of the current batch, in train mode."""
        if last_epoch and job.config.of(DifficultySettings).epsilon == 0:
            self.pairs.append((loss.per_exit[0].float(), job.y[batch]))

    def finish(self, job: Job, outcome: Outcome) -> Outcome:
        """Upload the pairs, or a histogram of them per label."""
        settings = job.config.of(DifficultySettings)
        if not self.pairs:
            return outcome
        pairs = DifficultyPairs.pool([DifficultyPairs(*pair) for pair in self.pairs]).to(torch.device("cpu"))
        if settings.epsilon == 0:  # an exact mean would tell what the noise hides
            outcome.metrics["difficulty"] = float(pairs.difficulty.mean())
        if settings.upload == "pairs":
            outcome.client_arrays |= {DIFFICULTY: pairs.difficulty.numpy(), LABELS: pairs.labels.numpy()}
            return outcome
        # noise that protects must not follow from the run's seed, which the server knows
        noise = torch.Generator().manual_seed(secrets.randbits(63))
        sketch = DifficultySketch.build(
            pairs,
            job.network.num_classes,
            bins=settings.bins,
            clip=settings.clip,
            epsilon=settings.epsilon,
            rng=noise,
        )
        outcome.client_arrays[SKETCH] = np.asarray(sketch.to_array())
        return outcome


@torch.no_grad()
def received_difficulties(job: Job) -> list[tuple[Tensor, Tensor]]:
    """Return (difficulty (1,), label (1,)) of every sample under the job's weights as they are, in eval mode.

    A difficulty that is recorded in training depends on the samples trained on before and on those beside it in the
    batch. Here it depends on its own sample alone, as the noise of a sketch requires. Samples pass one by one: in a
    batch its size and order may change a loss's last bits, and with them its bin.
    """
    network = job.network.eval()  # training sets its own mode
    first = network.exit_positions[0]
    pairs = []
    for x, y in zip(job.x.split(1), job.y.split(1), strict=True):
        logits = network.exit_at(first, network.features_at(x, first)).logits
        pairs.append((F.cross_entropy(logits, y, reduction="none"), y))
    return pairs

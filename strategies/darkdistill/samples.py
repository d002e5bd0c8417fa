"""What the server distils on: generated samples, as published (DarkDistill, KDD 2025), or real validation samples.

Real ones are a diagnostic (ours): a server that has such samples needs no generator. They bound what better generators
could bring.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.data.images import Normalizer, SampleSet
from strategies.darkdistill.difficulty import DifficultyPairs
from strategies.darkdistill.generator import Generator
from strategies.darkdistill.runtime import Runtime


@dataclass(frozen=True)
class Samples:
    """A batch to distil on."""

    x: Tensor  # (B, ...)
    labels: Tensor  # (B,) int64
    requested: Tensor | None  # difficulties (B,), nats, drawn with the labels; None: real samples
    follows: bool  # the samples were made to have the requested difficulties
    latent: bool  # x enters after the stem


@dataclass(frozen=True)
class RealSamples:
    """The server's validation samples."""

    source: SampleSet
    normalize: Normalizer  # for batches on the runtime's device

    def draw(self, count: int, rng: torch.Generator, device: torch.device) -> Samples:
        """Return `count` samples, uniformly with replacement, as the network takes them."""
        rows = torch.randint(len(self.source), (count,), generator=rng, device=rng.device).cpu()
        chosen = self.source.subset(rows).to(device)
        return Samples(self.normalize(chosen.inputs), chosen.labels, None, follows=False, latent=False)


def generate(generator: Generator, conditions: DifficultyPairs, runtime: Runtime, *, latent: bool) -> Samples:
    """Return what a generator, in eval mode, makes for the conditions."""
    _, generated = runtime.generate(generator.eval(), conditions)
    return Samples(generated, conditions.labels, conditions.difficulty, generator.conditional, latent)

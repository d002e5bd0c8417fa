"""What the server's training steps run on: device, precision, random numbers, optimisers, and each tier's state."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, Optimizer

from common.devices import channels_last
from common.networks.base import EarlyExitNetwork, ExitOutputs, Rescale
from strategies.darkdistill.difficulty import DifficultyPairs, DifficultyPool
from strategies.darkdistill.generator import Generator
from strategies.darkdistill.matching import LearnedDistance
from strategies.darkdistill.settings import DarkDistillSettings


@dataclass(frozen=True)
class Tier:
    """The server's state of one depth that has clients this round."""

    model: EarlyExitNetwork  # W_k, the average of the clients of this depth; distillation changes it in place
    samples: int  # n_k: training samples of this round's clients of this depth
    pool: DifficultyPool  # P_k: their difficulties and labels


@dataclass(frozen=True)
class Runtime:
    """Device, precision and random numbers. Everything random derives from `rng`, on every device."""

    device: torch.device
    rng: torch.Generator
    autocast: bool = False  # networks run in bfloat16; losses stay in float32
    rescale: Rescale = "none"  # of gradients where exits branch off, see `EarlyExitNetwork.forward_exits`

    def forward(self, network: EarlyExitNetwork, x: Tensor, *, latent: bool) -> ExitOutputs:
        """Run a network in the configured precision; logits and features come back as float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = network.forward_exits(x, latent=latent, rescale=self.rescale)
        logits, features = ([t.float() for t in tensors] for tensors in (outputs.logits, outputs.features))
        return ExitOutputs(logits, features, outputs.trunk)

    def generate(self, generator: Generator, conditions: DifficultyPairs) -> tuple[Tensor, Tensor]:
        """Draw noise (B, q) and generate samples (B, ...) for the conditions; return both."""
        shape = (len(conditions), generator.noise_dim)
        noise = torch.rand(shape, generator=self.rng, device=self.rng.device).to(self.device)
        difficulty = conditions.difficulty if generator.conditional else None
        return noise, channels_last(generator(noise, conditions.labels, difficulty))

    @contextmanager
    def seeded_dropout(self) -> Iterator[None]:
        """Seed dropout from `rng` inside the block; dropout uses the global random state, which is restored after."""
        seed = int(torch.randint(2**62, (), generator=self.rng, device=self.rng.device))
        if self.device.type == "cpu":
            with torch.random.fork_rng(devices=[]):
                # Not torch.manual_seed: that would also reseed the accelerators.
                torch.default_generator.manual_seed(seed)
                yield
            return
        count = torch.get_device_module(self.device).device_count()
        with torch.random.fork_rng(devices=list(range(count)), device_type=self.device.type):
            torch.manual_seed(seed)
            yield


@dataclass(frozen=True)
class Optimizers:
    """The server's optimisers."""

    generators: dict[int, Optimizer]  # by the generator's key
    distillation: list[Optimizer]  # of reverse KD

    @classmethod
    def create(
        cls,
        models: Iterable[EarlyExitNetwork],
        generators: Mapping[int, Generator],
        settings: DarkDistillSettings,
        matcher: LearnedDistance | None = None,
    ) -> "Optimizers":
        """Return Adam per generator, plain SGD over all `models` and, with a learned matcher, its Adam.

        SGD skips parameters without gradients: a tier without clients, or one that only teaches, is not decayed
        either.
        """
        trainable = [p for model in models for p in model.parameters() if p.requires_grad]
        distillation: list[Optimizer] = [
            SGD(trainable, settings.distill_lr, weight_decay=settings.distill_weight_decay)
        ]
        if matcher is not None:
            distillation.append(Adam(matcher.parameters(), settings.matcher_lr))
        adams: dict[int, Optimizer] = {
            key: Adam(generator.parameters(), settings.generator_lr) for key, generator in generators.items()
        }
        return cls(adams, distillation)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments of all optimisers as flat tensors, `optimizer.<which>.<parameter>.<name>`."""
        return {
            f"optimizer.{which}.{index}.{name}": torch.as_tensor(value).clone()
            for which, optimizer in self._named()
            for index, moments in optimizer.state_dict()["state"].items()
            for name, value in moments.items()
            if value is not None
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of `state_dict`, which may be mixed with other tensors."""
        for which, optimizer in self._named():
            prefix = f"optimizer.{which}."
            state: dict[int, dict[str, Tensor]] = {}
            for key in (k for k in tensors if k.startswith(prefix)):
                index, name = key.removeprefix(prefix).split(".")
                state.setdefault(int(index), {})[name] = tensors[key].clone()
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _named(self) -> Iterator[tuple[str, Optimizer]]:
        yield from ((f"generator-{key}", optimizer) for key, optimizer in sorted(self.generators.items()))
        yield from ((f"distillation-{index}", optimizer) for index, optimizer in enumerate(self.distillation))

    def decay(self, server_round: int, factor: float) -> None:
        """Set every learning rate to its first value times factor^server_round (rounds count from 0)."""
        for _, optimizer in self._named():
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor**server_round


@contextmanager
def training_without_statistics(models: Iterable[EarlyExitNetwork]) -> Iterator[None]:
    """Train, but leave batch norm in eval mode: generated samples never touch running statistics."""
    with _modes_restored(models) as modules:
        for module in modules:
            module.training = not isinstance(module, _BatchNorm)
        yield


@contextmanager
def evaluating(models: Iterable[EarlyExitNetwork]) -> Iterator[None]:
    """Put models in eval mode."""
    with _modes_restored(models) as modules:
        for module in modules:
            module.training = False
        yield


@contextmanager
def _modes_restored(models: Iterable[EarlyExitNetwork]) -> Iterator[list[nn.Module]]:
    modules = [module for model in models for module in model.modules()]
    before = [module.training for module in modules]
    try:
        yield modules
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training

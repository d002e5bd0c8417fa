"""Central training on a server that has data of its own."""

import math
import time
from collections.abc import Callable, Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

from common.data.augment import crop_and_flip
from common.data.batches import batch_count, batches
from common.data.images import Normalizer, SampleSet
from common.devices import autocast
from common.seeding import derive_seed, generator, seed_global
from common.settings import Settings
from strategies.distree.training.checkpoint import Checkpoint, Progress

LossFunction = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W) normalised, labels (B,)) -> the loss, a scalar


class Schedule(Settings):
    """SGD with a linear warm-up and a cosine decay.

    Published: 200 epochs with steps of 0.2 (NoNN, arXiv 1907.11804, released code); a cosine is better for few epochs.
    """

    SECTION = "schedule"

    epochs: int = Field(30, ge=1)
    """passes over the images"""
    batch_size: int = Field(128, ge=2)
    """images per batch"""
    lr: float = Field(0.1, ge=1e-9)
    """peak learning rate"""
    momentum: float = Field(0.9, ge=0)
    """Nesterov's, above 0"""
    weight_decay: float = Field(5e-4, ge=0)
    """of all parameters"""
    warmup: float = Field(0.15, ge=0)
    """share of all steps"""
    augment: bool = True
    """random crops and flips"""
    autocast: bool = False
    """bf16 where torch's autocast uses it"""

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on `lr` at step `step` (from 0) of `steps`."""
        first = max(1, round(self.warmup * steps))
        if step < first:
            return (step + 1) / first
        return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, steps - first)))


def train(
    modules: nn.Module,
    loss: LossFunction,
    images: SampleSet,
    normalize: Normalizer,
    schedule: Schedule,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[int, float, float], None] = lambda epoch, loss, seconds: None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train every parameter of `modules` that requires a gradient, on `device`, in place; end in eval mode.

    `on_epoch` receives the epoch from 1, its mean loss and its seconds. The same seed gives the same weights, also when
    a training that was killed continues from its checkpoint, which is written after every epoch.

    Raises:
        UserError: the checkpoint is damaged or of another training.
    """
    images = images.resident(device)
    modules.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    parameters = [p for p in modules.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, schedule.lr, schedule.momentum, weight_decay=schedule.weight_decay, nesterov=schedule.momentum > 0
    )
    steps = schedule.epochs * batch_count(len(images), schedule.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, steps))
    order, crops = generator(seed, "central batches"), generator(seed, "central crops")
    seed_global(device, derive_seed(seed, "central dropout"))
    progress = Progress(modules, optimizer, scheduler, (order, crops), device)
    done = checkpoint.restore(progress) if checkpoint else 0
    for epoch in range(done + 1, schedule.epochs + 1):
        started, total = time.perf_counter(), torch.zeros((), device=device)
        for batch in batches(len(images), schedule.batch_size, order, images.inputs.device):
            x = normalize(images.inputs[batch].to(device))
            if schedule.augment:
                x = crop_and_flip(x, crops, padding=x.shape[-1] // 8)  # the usual 4 of 32 pixels
            x = x.contiguous(memory_format=torch.channels_last)
            with autocast(device, schedule.autocast):
                value = loss(x, images.labels[batch].to(device))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            scheduler.step()
            total += value.detach() * len(batch)
        if checkpoint:
            checkpoint.write(progress, epoch)
        on_epoch(epoch, float(total) / len(images), time.perf_counter() - started)
    modules.eval()


def image_batches(
    images: SampleSet, normalize: Normalizer, device: torch.device, size: int = 256
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield normalised images (B, C, H, W) and labels (B,) in order, on `device`."""
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        yield normalize(images.inputs[rows].to(device)), images.labels[rows].to(device)

"""Difficulty-conditional data generators and their losses (DarkDistill, KDD 2025; built on FedGen, ICML 2021).

From noise, a label and a requested difficulty, a generator makes latents (the tensor after a network's stem or patch
embedding) or normalised images. Noise is uniform in [0, 1)^q.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.networks.base import EarlyExitNetwork
from strategies.darkdistill.settings import DarkDistillSettings


class Conditions(nn.Module):
    """Joins noise (B, q), an embedding of the label and, if conditional, of the difficulty: (B, 3q), else (B, 2q)."""

    def __init__(self, num_classes: int, noise_dim: int, conditional: bool) -> None:
        super().__init__()
        self.label = nn.Embedding(num_classes, noise_dim)
        self.difficulty = nn.Linear(1, noise_dim) if conditional else None
        self.width = (3 if conditional else 2) * noise_dim

    def forward(self, noise: Tensor, labels: Tensor, difficulty: Tensor | None) -> Tensor:
        """Return (B, width); raises ValueError if a difficulty is missing, or passed without being conditional."""
        if (difficulty is None) != (self.difficulty is None):
            raise ValueError("a conditional generator needs a difficulty, and an unconditional one takes none")
        parts = [noise, self.label(labels)]
        if self.difficulty is not None and difficulty is not None:
            parts.append(self.difficulty(difficulty.unsqueeze(1)))
        return torch.cat(parts, dim=1)


class Generator(nn.Module):
    """Base of both generators: `forward(noise (B, q), labels (B,), difficulty (B,) or None) -> (B, *shape)`."""

    def __init__(self, num_classes: int, noise_dim: int, conditional: bool) -> None:
        super().__init__()
        self.conditions = Conditions(num_classes, noise_dim, conditional)
        self.noise_dim = noise_dim
        self.conditional = conditional

    @property
    def parameter_count(self) -> int:
        """Return the number of trainable values; they never leave the server."""
        return sum(p.numel() for p in self.parameters())


class TokenGenerator(Generator):
    """Token matrices (tokens, width) for transformers, through one hidden layer.

    With `rms`, tokens are bounded (ours): each is normalised to mean 0 and this root mean square. Published tokens have
    no bound. The diversity loss then makes them grow without end, and in a transformer whose blocks normalise their
    input first, large tokens drown what the blocks add: teacher and student agree, and nothing remains to distil.
    """

    rms: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        noise_dim: int,
        hidden: int,
        *,
        conditional: bool = True,
        rms: Tensor | None = None,
    ) -> None:
        """`rms`: (tokens, 1), root mean square of each token over its width; None: unbounded, as published."""
        super().__init__(num_classes, noise_dim, conditional)
        self.register_buffer("rms", rms, persistent=False)  # it follows from the network, see `follow_stem`
        self.layers = nn.Sequential(
            nn.Linear(self.conditions.width, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, torch.Size(shape).numel()),
            nn.Unflatten(1, shape),
        )

    def forward(self, noise: Tensor, labels: Tensor, difficulty: Tensor | None = None) -> Tensor:
        """Return tokens (B, tokens, width)."""
        tokens: Tensor = self.layers(self.conditions(noise, labels, difficulty))
        return tokens if self.rms is None else F.layer_norm(tokens, tokens.shape[-1:]) * self.rms


class ConvGenerator(Generator):
    """Feature maps or images (C, H, W): a projection to a quarter of the resolution, then two upsampling blocks.

    `head` fits the last layer to the range of the values that it imitates: "non-negative" (batch norm + ReLU, like a
    stem that ends in them), "signed" (batch norm alone) or "pixels" (tanh times `pixel_range`).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        noise_dim: int,
        channels: int,
        *,
        head: str,
        pixel_range: float = 2.5,
        conditional: bool = True,
    ) -> None:
        super().__init__(num_classes, noise_dim, conditional)
        out_channels, height, width = shape
        quarter = (2 * channels, max(1, height // 4), max(1, width // 4))
        half = (max(1, height // 2), max(1, width // 2))
        self.layers = nn.Sequential(
            nn.Linear(self.conditions.width, torch.Size(quarter).numel()),
            nn.Unflatten(1, quarter),
            nn.BatchNorm2d(2 * channels),
            *_upsample(2 * channels, 2 * channels, half),
            *_upsample(2 * channels, channels, (height, width)),
            nn.Conv2d(channels, out_channels, 3, padding=1),
        )
        self.head = {
            "non-negative": nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU()),
            "signed": nn.BatchNorm2d(out_channels),
            "pixels": nn.Tanh(),
        }[head]
        self.scale = pixel_range if head == "pixels" else 1.0

    def forward(self, noise: Tensor, labels: Tensor, difficulty: Tensor | None = None) -> Tensor:
        """Return maps (B, C, H, W)."""
        return self.scale * self.head(self.layers(self.conditions(noise, labels, difficulty)))


def _upsample(in_channels: int, out_channels: int, size: tuple[int, int]) -> list[nn.Module]:
    return [
        nn.Upsample(size=size, mode="nearest"),
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.2),
    ]


def makes_pixels(network: EarlyExitNetwork, settings: DarkDistillSettings) -> bool:
    """Return whether generated samples enter as images rather than after the stem."""
    return settings.generator_output == "pixels" or network.latent_unit == 0


def make_generator(network: EarlyExitNetwork, settings: DarkDistillSettings, seed: int) -> Generator:
    """Build the generator that fits a network's latent; the same seed gives the same weights.

    Feature maps get a ConvGenerator, token matrices a TokenGenerator. The parallel variant's generators take no
    difficulty. Raises `UserError` if a network that takes texts is to get pixels.
    """
    classes, noise_dim = network.num_classes, settings.noise_width(network.num_classes)
    conditional = settings.difficulty_condition and settings.variant == "progressive"
    pixels = makes_pixels(network, settings)
    if pixels and network.vocabulary:
        raise UserError("darkdistill.generator-output is 'pixels', but texts have no pixels: choose 'latent'")
    shape = tuple(network.input_shape if pixels else network.latent_shape)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the accelerators.
        torch.default_generator.manual_seed(seed)
        if len(shape) == 2:
            rms = latent_rms(network).cpu() if settings.generator_bounded else None
            hidden = settings.generator_hidden
            return TokenGenerator(shape, classes, noise_dim, hidden, conditional=conditional, rms=rms)
        head = "pixels" if pixels else "non-negative" if _stem_is_non_negative(network) else "signed"
        return ConvGenerator(
            (shape[0], shape[1], shape[2]),
            classes,
            noise_dim,
            settings.generator_channels,
            head=head,
            pixel_range=settings.pixel_range,
            conditional=conditional,
        )


def follow_stem(generators: Iterable[Generator], network: EarlyExitNetwork) -> None:
    """Give bounded token generators the root mean square that the network's stem has by now."""
    for generator in generators:
        if isinstance(generator, TokenGenerator) and generator.rms is not None:
            generator.rms.copy_(latent_rms(network))


def latent_rms(network: EarlyExitNetwork) -> Tensor:
    """Return the root mean square (tokens, 1) of each token (tokens, width) after the stem, over normalised noise."""
    return _latents(network, 32).square().mean(dim=(0, 2)).sqrt().unsqueeze(1)


def _stem_is_non_negative(network: EarlyExitNetwork) -> bool:
    """Return whether the stem maps noise to values >= 0 alone, as one that ends in ReLU does."""
    return bool(_latents(network, 2).min() >= 0)


@torch.no_grad()
def _latents(network: EarlyExitNetwork, count: int) -> Tensor:
    """Return what a copy of the stem makes of normalised noise, or of random token ids: (count, *latent_shape)."""
    stem = network.prefix_units(network.latent_unit, exit_head=False).eval()
    shape, rng = (count, *network.input_shape), torch.Generator().manual_seed(0)
    vocabulary = network.vocabulary
    probe = torch.randint(vocabulary, shape, generator=rng) if vocabulary else torch.randn(shape, generator=rng)
    return stem.features_at(probe.to(next(stem.parameters()).device), network.latent_unit)


def label_loss(logits: Sequence[Tensor], labels: Tensor, exit_sets: Sequence[Tensor]) -> Tensor:
    """Return L_y, which asks for each generated sample to be classified right at the exit where it would leave.

    Args:
        logits: one (B, classes) per exit.
        labels: (B,).
        exit_sets: the batch's indices per exit, possibly empty.

    Returns:
        (1/B) * sum over exits e of |S_e| * mean cross-entropy of exit e over S_e.
    """
    sums = [
        F.cross_entropy(z[indices].float(), labels[indices], reduction="sum")
        for z, indices in zip(logits, exit_sets, strict=True)
    ]
    return torch.stack(sums).sum() / len(labels)


def difficulty_loss(measured: Tensor, requested: Tensor) -> Tensor:
    """Return L_diff: the mean squared error between measured and requested difficulties (B,), in nats."""
    return F.mse_loss(measured, requested)


def diversity_loss(generated: Tensor, noise: Tensor) -> Tensor:
    """Return L_div, which asks samples (B, ...) of different noise (B, q) to differ (FedGen's diversity loss).

    Returns:
        exp(- mean over all B x B pairs of [mean |G_a - G_b| * mean (noise_a - noise_b)^2]), in (0, 1].
    """
    flat = generated.flatten(1).float()
    apart = torch.cdist(flat, flat, p=1) / flat.shape[1]
    noise_apart = (noise.unsqueeze(0) - noise.unsqueeze(1)).square().mean(dim=2)
    return torch.exp(-(apart * noise_apart).mean())

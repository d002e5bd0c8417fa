"""Hyper-parameters of DarkDistill's server half (Qu et al., KDD 2025; values of the authors' published code)."""

from dataclasses import dataclass, fields

from common.settings import Settings

CHOICES = {
    "variant": ("progressive", "parallel"),
    "matcher": ("distance", "learned", "hard"),
    "generator_output": ("latent", "pixels"),
}
UPLOADS = ("pairs", "sketch")
POSITIVE = (
    "batch",
    "distill_steps",
    "distill_lr",
    "exit_spread",
    "generator_channels",
    "generator_hidden",
    "generator_lr",
    "generator_steps",
    "matcher_hidden",
    "matcher_lr",
    "pixel_range",
    "server_epochs",
    "server_lr_decay",
    "temperature",
)
NOT_NEGATIVE = (
    "difficulty_weight",
    "distill_weight_decay",
    "diversity_weight",
    "gap_weight",
    "label_weight",
    "noise_dim",
    "rkd_angle",
    "rkd_distance",
)


@dataclass(frozen=True)
class DarkDistillSettings(Settings):
    """All choices of the server's data-free transfer; the defaults are the progressive variant's."""

    SECTION = "darkdistill"

    variant: str = "progressive"  # progressive: reverse KD along the tiers; parallel: one generator per exit (-PL)
    distillation: bool = True  # False: averaging only, which is EEFL with the same local objective
    difficulty_condition: bool = True  # False: the ablation "w/o DC"
    exit_spread: float = 30.0  # p of the exit assignment: exit e's share of a batch is proportional to (p/20)^e

    # The server's loop of a round
    server_epochs: int = 2  # S: how often conditions are drawn anew
    generator_steps: int = 1  # per tier and server epoch
    distill_steps: int = 5  # R: reverse-KD iterations per server epoch
    batch: int = 32  # generated samples per generator and step (parallel: 16)
    server_lr_decay: float = 1.0  # s_gamma: every server learning rate is times s_gamma^round (parallel: 0.99)
    keep_optimizers: bool = False  # False, as published: Adam's moments start anew each round

    # Generators
    generator_output: str = "latent"  # what enters after the stem / patch embedding; "pixels": normalised images
    generator_hidden: int = 1000  # units of the token generator's only hidden layer
    generator_channels: int = 64  # channels of the convolutional generator at full resolution (CNNs; ours)
    pixel_range: float = 2.5  # generated pixels lie in +/- this many standard deviations (ours)
    noise_dim: int = 0  # q, also the width of each condition's embedding; 0: the number of classes
    generator_lr: float = 1e-2  # Adam
    label_weight: float = 1.0  # L_y
    difficulty_weight: float = 1.0  # L_diff
    diversity_weight: float = 1.0  # L_div
    gap_weight: float = 1.0  # parallel only: the difficulty increase (DI) from exit to exit; 0: "w/o DI"

    # Reverse knowledge distillation
    distill_lr: float = 0.05  # SGD without momentum, over all tiers' models
    distill_weight_decay: float = 1e-3
    rkd_distance: float = 5.0  # weight of the relational distance loss
    rkd_angle: float = 10.0  # weight of the relational angle loss
    matcher: str = "distance"  # parameter-free; "learned": an MLP; "hard": the nearest exit alone
    matcher_hidden: int = 100
    matcher_lr: float = 1e-3  # Adam
    temperature: float = 0.1  # of the softmax over exits, in units of the normalised mean distance (ours)

    def noise_width(self, num_classes: int) -> int:
        """Return q, the width of the noise and of each condition's embedding."""
        return self.noise_dim or num_classes

    def problems(self) -> list[str]:
        """Return a line for every mistake, none for a sound configuration."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        found = [
            f"{name} is {values[name]!r}, must be one of {', '.join(choices)}"
            for name, choices in CHOICES.items()
            if values[name] not in choices
        ]
        found += [f"{name} is {values[name]}, must be above 0" for name in POSITIVE if not values[name] > 0]
        found += [f"{name} is {values[name]}, must not be negative" for name in NOT_NEGATIVE if not values[name] >= 0]
        if self.batch == 1:
            found.append("batch is 1, must be at least 2: generators normalise over the batch")
        if self.server_lr_decay > 1:
            found.append(f"server_lr_decay is {self.server_lr_decay}, must not exceed 1")
        return found


@dataclass(frozen=True)
class DifficultySettings(Settings):
    """What clients tell of their difficulties. Pairs show a client's labels; a noisy sketch bounds what they show."""

    SECTION = "difficulty"

    upload: str = "pairs"  # (difficulty, label) per sample, as published; "sketch": a histogram per label
    bins: int = 16  # loss bins per label
    clip: float = 10.0  # nats; greater losses count in the last bin
    epsilon: float = 0.0  # privacy loss of one sketch; 0: no noise

    def problems(self) -> list[str]:
        """Return a line for every mistake, none for a sound configuration."""
        found = []
        if self.upload not in UPLOADS:
            found.append(f"difficulty.upload is {self.upload!r}, must be one of {', '.join(UPLOADS)}")
        if self.bins < 1 or not self.clip > 0:
            found.append("difficulty.bins and difficulty.clip must be above 0")
        if not self.epsilon >= 0:
            found.append(f"difficulty.epsilon is {self.epsilon}, must not be negative")
        if self.epsilon > 0 and self.upload != "sketch":
            found.append('difficulty.epsilon needs difficulty.upload = "sketch": pairs are sent without noise')
        return found

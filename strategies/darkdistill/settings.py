"""Hyper-parameters of DarkDistill's server half (Qu et al., KDD 2025; values of the authors' published code)."""

from dataclasses import dataclass

from common.settings import Settings, above_zero, at_least, at_most, one_of


@dataclass(frozen=True)
class DarkDistillSettings(Settings):
    """All choices of the server's data-free transfer; the defaults are the progressive variant's."""

    SECTION = "darkdistill"

    variant: str = "progressive"  # progressive: reverse KD along the tiers; parallel: one generator per exit (-PL)
    distillation: bool = True  # False: averaging only, which is EEFL with the same local objective
    difficulty_condition: bool = True  # False: the ablation "w/o DC"
    exit_spread: float = 30.0  # p of the exit assignment: exit e's share of a batch is proportional to (p/20)^e

    # The server's loop of a round
    server_epochs: int = 2  # S: in each one, conditions are drawn again
    generator_steps: int = 1  # per tier and server epoch
    distill_steps: int = 5  # R: reverse-KD iterations per server epoch
    batch: int = 32  # generated samples per generator and step (parallel: 16)
    server_lr_decay: float = 1.0  # s_gamma: every server learning rate is times s_gamma^round (parallel: 0.99)
    keep_optimizers: bool = False  # False, as published: Adam's moments are reset each round

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
        """Return every mistake as a sentence."""
        found = one_of(
            self,
            variant=("progressive", "parallel"),
            matcher=("distance", "learned", "hard"),
            generator_output=("latent", "pixels"),
        )
        found += above_zero(self, "exit_spread", "server_lr_decay", "pixel_range", "generator_lr")
        found += above_zero(self, "distill_lr", "matcher_lr", "temperature")
        found += at_least(self, server_epochs=1, generator_steps=1, distill_steps=1)
        found += at_least(self, batch=2)  # generators normalise over the batch
        found += at_least(self, generator_hidden=1, generator_channels=1, noise_dim=0, matcher_hidden=1)
        found += at_least(self, label_weight=0.0, difficulty_weight=0.0, diversity_weight=0.0, gap_weight=0.0)
        found += at_least(self, distill_weight_decay=0.0, rkd_distance=0.0, rkd_angle=0.0)
        return found + at_most(self, server_lr_decay=1.0)


@dataclass(frozen=True)
class DifficultySettings(Settings):
    """How clients report difficulties. Pairs reveal a client's labels; a noisy sketch bounds what it reveals."""

    SECTION = "difficulty"

    upload: str = "pairs"  # (difficulty, label) per sample, as published; "sketch": a histogram per label
    bins: int = 16  # loss bins per label
    clip: float = 10.0  # nats; greater losses count in the last bin
    epsilon: float = 0.0  # privacy loss of one sketch; 0: no noise

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        found = one_of(self, upload=("pairs", "sketch"))
        found += at_least(self, bins=1, epsilon=0.0) + above_zero(self, "clip")
        if self.epsilon > 0 and self.upload != "sketch":
            found.append(f'difficulty.epsilon is {self.epsilon}, needs difficulty.upload "sketch": pairs get no noise')
        return found

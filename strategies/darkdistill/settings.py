"""Hyper-parameters of DarkDistill's server half (Qu et al., KDD 2025; values of the authors' published code).

Two defaults are ours: no weight decay on the server, and token generators that are bounded. The preset
`darkdistill-published` has the published ones.
"""

from typing import Literal

from pydantic import Field

from common.settings import Settings, key, shown

Rescale = Literal["none", "boost", "legacy"]  # as the networks take it; this module imports no torch
# Its generators take no difficulty, and its exits learn from their neighbours
NOT_PARALLEL = ("difficulty_condition", "exit_spread", "difficulty_weight", "matcher", "temperature")


class DarkDistillSettings(Settings):
    """All choices of the server's data-free transfer; the defaults are the progressive variant's."""

    SECTION = "darkdistill"

    variant: Literal["progressive", "parallel"] = "progressive"
    """progressive: reverse KD along the tiers; parallel: one generator per exit (-PL)"""
    distillation: bool = True
    """false: averaging only, which is EEFL with the same local objective"""
    difficulty_condition: bool = True
    """false: the ablation without difficulty condition, "w/o DC", is run"""
    source: Literal["generated", "validation"] = "generated"
    """validation: a diagnostic (ours) that distils on the server's real validation samples and trains no generators"""
    exit_spread: float = Field(30.0, gt=0)
    """p of the exit assignment: exit e's share of a batch is proportional to (p/20)^e"""

    # The server's loop of a round
    server_epochs: int = Field(2, ge=1)
    """S: in each one, conditions are drawn again"""
    generator_steps: int = Field(1, ge=1)
    """steps of a generator per tier and server epoch"""
    distill_steps: int = Field(5, ge=1)
    """R: reverse-KD iterations per server epoch"""
    batch: int = Field(0, ge=0)
    """generated samples per generator and step; 0: the variant's, 32, of the parallel one 16"""
    server_lr_decay: float = Field(0.0, ge=0, le=1)
    """s_gamma: every server learning rate is times s_gamma^round; 0: the variant's, 1, of the parallel one 0.99"""
    keep_optimizers: bool = False
    """false, as published: Adam's moments are reset each round"""

    # Generators
    generator_output: Literal["latent", "pixels"] = "latent"
    """latent: what enters after the stem / patch embedding; pixels: normalised images"""
    generator_bounded: bool = True
    """tokens have the stem's root mean square (ours); false: no bound, as published (transformers)"""
    generator_hidden: int = Field(1000, ge=1)
    """units of the token generator's only hidden layer"""
    generator_channels: int = Field(64, ge=1)
    """channels of the convolutional generator at full resolution (CNNs; ours)"""
    pixel_range: float = Field(2.5, gt=0)
    """generated pixels lie in +/- this many standard deviations (ours)"""
    noise_dim: int = Field(0, ge=0)
    """q, also the width of each condition's embedding; 0: the number of classes"""
    generator_lr: float = Field(1e-2, gt=0)
    """Adam learning rate of the generators"""
    label_weight: float = Field(1.0, ge=0)
    """weight of L_y"""
    difficulty_weight: float = Field(1.0, ge=0)
    """weight of L_diff"""
    diversity_weight: float = Field(1.0, ge=0)
    """weight of L_div"""
    gap_weight: float = Field(1.0, ge=0)
    """parallel: weight of the difficulty increase (DI) from exit to exit; 0 is "w/o DI" of the paper"""

    # Reverse knowledge distillation
    distill_lr: float = Field(0.05, gt=0)
    """learning rate of SGD without momentum, over all tiers' models"""
    distill_weight_decay: float = Field(0.0, ge=0)
    """weight decay of the same SGD; published: 0.001, which shrinks the weights whatever is distilled"""
    distill_clip: float = Field(0.1, ge=0)
    """parallel: greatest norm of a distillation step's gradient, 0: no bound (ours)"""
    rkd_distance: float = Field(5.0, ge=0)
    """weight of the relational distance loss"""
    rkd_angle: float = Field(10.0, ge=0)
    """weight of the relational angle loss"""
    rescale: Rescale = "none"
    """gradients where exits branch off: boost: as BoostNet does; legacy: as the authors' server passes do"""
    matcher: Literal["distance", "learned", "hard"] = "distance"
    """distance: parameter-free; learned: an MLP; hard: the nearest exit alone"""
    matcher_hidden: int = Field(100, ge=1)
    """hidden units of the learned matcher"""
    matcher_lr: float = Field(1e-3, gt=0)
    """Adam learning rate of the learned matcher"""
    temperature: float = Field(0.1, gt=0)
    """of the softmax over exits, in units of the normalised mean distance (ours)"""

    @property
    def batch_size(self) -> int:
        """Generated samples per generator and step."""
        return self.batch or (32 if self.variant == "progressive" else 16)

    @property
    def lr_decay(self) -> float:
        """The factor of every server learning rate from round to round."""
        return self.server_lr_decay or (1.0 if self.variant == "progressive" else 0.99)

    def other_mistakes(self) -> list[str]:
        """Check the batch, over which generators normalise, and what the parallel variant cannot do."""
        mistakes = []
        if self.batch == 1:
            mistakes.append("darkdistill.batch is 1, must be at least 2, or 0 for the variant's own")
        if self.variant == "parallel" and self.source != "generated":
            mistakes.append(
                f"darkdistill.source is {self.source!r}, but the parallel variant has generated samples only: "
                "choose 'generated', or darkdistill.variant 'progressive'"
            )
        for name in NOT_PARALLEL if self.variant == "parallel" else ():
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                mistakes.append(
                    f"{key(self.SECTION, name)} is {shown(value)}, but the parallel variant does not use it: leave it "
                    f"at {shown(default)}, or choose darkdistill.variant 'progressive'"
                )
        return mistakes

    def noise_width(self, num_classes: int) -> int:
        """Return q, the width of the noise and of each condition's embedding."""
        return self.noise_dim or num_classes


class DifficultySettings(Settings):
    """How clients report difficulties. Pairs reveal a client's labels; a noisy sketch bounds what it reveals."""

    SECTION = "difficulty"

    upload: Literal["pairs", "sketch"] = "pairs"
    """pairs: (difficulty, label) per sample, as published; sketch: a histogram per label"""
    bins: int = Field(16, ge=1)
    """loss bins per label"""
    clip: float = Field(10.0, gt=0)
    """nats; greater losses count in the last bin"""
    epsilon: float = Field(0.0, ge=0)
    """privacy loss of one sketch, measured on the received weights before training; 0: no noise"""

    def other_mistakes(self) -> list[str]:
        """Check that noise has something to go on."""
        if self.epsilon > 0 and self.upload != "sketch":
            return [f'difficulty.epsilon is {self.epsilon}, needs difficulty.upload "sketch": pairs get no noise']
        return []

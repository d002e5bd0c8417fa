"""Hyper-parameters of the baselines."""

import math

from pydantic import Field

from common.settings import Settings


class DistillationSettings(Settings):
    """Hyper-parameters of distillation among a client's exits."""

    kd_weight: float = Field(1.0, ge=0)
    """weight of the distillation against the cross-entropies"""
    temperature: float = Field(1.0, gt=0)
    """T of the softmax"""
    ramp_up: int = Field(0, ge=0)
    """rounds until the weight is full, as exp(-5 (1 - t / ramp-up)^2); published code: 300 of 1000"""

    def weight(self, round_: int) -> float:
        """Return the distillation's weight in a round, counted from 1."""
        if round_ >= self.ramp_up:
            return self.kd_weight
        return self.kd_weight * math.exp(-5 * (1 - round_ / self.ramp_up) ** 2)


class DepthFLSettings(DistillationSettings):
    """Hyper-parameters of DepthFL's self-distillation."""

    SECTION = "depthfl"


class EEFLSettings(Settings):
    """Hyper-parameters of EEFL, a control for DarkDistill (ours)."""

    SECTION = "eefl"

    server_decay: float = Field(0.0, ge=0, lt=1)
    """share by which a round shrinks the trunks of all tiers but the shallowest; DarkDistill as published: 0.0005"""


class FedProxSettings(Settings):
    """Hyper-parameters of FedProx."""

    SECTION = "fedprox"

    mu: float = Field(0.05, ge=0)
    """weight of the proximal term"""


class InclusiveFLSettings(Settings):
    """Hyper-parameters of InclusiveFL's momentum distillation."""

    SECTION = "inclusivefl"

    beta: float = Field(0.2, ge=0, le=1)
    """share of the larger model's gradient in the last unit of a smaller one"""


class ReeFLSettings(DistillationSettings):
    """Hyper-parameters of ReeFL's recurrent exits and of their distillation."""

    SECTION = "reefl"

    decay: float = Field(0.8, ge=0, lt=1)
    """share of its past in an exit's running loss, by which the teacher is chosen"""
    width: int = Field(64, ge=4)
    """length of an exit's token, a multiple of 4; the paper's is the transformer's embedding length"""

    def other_mistakes(self) -> list[str]:
        """Check that the attention heads divide the width."""
        return [f"reefl.width is {self.width}, must be a multiple of 4"] if self.width % 4 else []

"""The section `robust` of the configuration."""

from typing import Literal

from pydantic import Field

from common.settings import Settings


class RobustSettings(Settings):
    """How updates are combined inside a tier, and which are left out."""

    SECTION = "robust"

    aggregation: Literal["mean", "trimmed-mean", "median"] = "mean"
    """mean weighted by samples, trimmed-mean or median"""
    trim: float = Field(0.1, ge=0, lt=0.5)
    """share of a tier's clients cut off at each end of every coordinate, rounded up"""
    reject: float = Field(0.0, ge=0)
    """times the median norm beyond which an update is rejected; 0: none is"""

    def other_mistakes(self) -> list[str]:
        """Check that half of the updates stay."""
        if 0 < self.reject <= 1:
            return [f"robust.reject is {self.reject}, must be 0 (off) or above 1"]
        return []

    @property
    def active(self) -> bool:
        """Whether every model is needed by itself."""
        return self.aggregation != "mean" or self.reject > 0

    def unguarded(self, strategy: str, robust: bool) -> str:
        """Return the sentence for a method that robust aggregation cannot guard; empty if it can, or is off."""
        if robust or not self.active:
            return ""
        return (
            f"run.strategy {strategy!r} learns from more than averaged models, which robust aggregation cannot guard: "
            "set robust.aggregation to mean and robust.reject to 0"
        )

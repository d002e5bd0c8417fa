"""Hyper-parameters of CAFEDistill (Liu et al., arXiv 2601.10015; values of the authors' published code)."""

from dataclasses import dataclass

from common.settings import Settings, above_zero, at_least, one_of


@dataclass(frozen=True)
class CAFEDistillSettings(Settings):
    """All choices of the method. Values for text (AGNews) were alpha 0.15 and kd_weight 0.2."""

    SECTION = "cafedistill"

    alpha: float = 0.6  # mu of the paper: small, a client is its own teacher; large, all clients teach it equally
    kd_weight: float = 1.0  # lambda; not divided by the number of exits, unlike the cross-entropies
    ce_weight: float = 1.0
    temperature: float = 2.0  # T of both softmaxes
    similarity: str = "updates"  # cosine of what a round changed in the last heads; "parameters": of the heads
    across_depths: bool = False  # ours: clients of other depths are teachers too, by their logits
    conflict_penalty: bool = False  # published code: negative similarities delay the students
    # Published code: the deepest unlocked student gets no cross-entropy, and exit 1 is always distilled
    legacy_offset: bool = False

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        found = at_least(self, kd_weight=0.0, ce_weight=0.0) + above_zero(self, "alpha", "temperature")
        return found + one_of(self, similarity=("updates", "parameters"))

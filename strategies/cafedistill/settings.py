"""Hyper-parameters of CAFEDistill (Liu et al., arXiv 2601.10015). Defaults were chosen on validation data."""

from typing import Literal

from pydantic import Field

from common.settings import Settings


class CAFEDistillSettings(Settings):
    """All choices of the method.

    The published code has alpha 0.6, kd_weight 1 and admitted_by 0.5 (preset `cafedistill-published`); for text
    (AGNews) alpha 0.15 and kd_weight 0.2.
    """

    SECTION = "cafedistill"

    alpha: float = Field(0.15, gt=0)
    """mu of the paper: small, a client is its own teacher; large, all clients teach it equally"""
    kd_weight: float = Field(0.1, ge=0)
    """lambda; not divided by the number of exits, unlike the cross-entropies. From 1 on features die"""
    ce_weight: float = Field(1.0, ge=0)
    """weight of the cross-entropies"""
    ce_division: Literal["admitted", "all"] = "all"
    """what their sum is divided by: the number of exits that learn, or of all exits as in the published code"""
    temperature: float = Field(2.0, gt=0)
    """T of both softmaxes"""
    admitted_by: float = Field(0.1, gt=0, le=1)
    """share of the rounds after which all students learn"""
    similarity: Literal["updates", "parameters"] = "updates"
    """cosine of what a round changed in the last heads; parameters: of the heads"""
    across_depths: bool = False
    """ours: clients of other depths are teachers too, by their logits"""
    conflict_penalty: bool = False
    """published code: negative similarities delay the students"""
    legacy_offset: bool = False
    """published code: the deepest unlocked student gets no cross-entropy, and exit 1 is always distilled"""

"""Exits: assignment of samples in training, exit policy at inference, calibration, evaluation."""

from typing import TYPE_CHECKING

from common.exits.policy import MEASURES, ThresholdPolicy, confidence, entropy_gate
from common.lazy import lazily

if TYPE_CHECKING:
    from common.exits.assignment import assign_exits, exit_counts, exit_fractions
    from common.exits.calibration import (
        BUDGET_SWEEP,
        budget_fractions,
        calibrate,
        exit_predictions,
        fit_scores,
        fit_thresholds,
    )
    from common.exits.evaluation import (
        BudgetPoint,
        anytime_accuracy,
        budgeted_curve,
        collect_logits,
        correct_counts,
    )

__all__ = [
    "BUDGET_SWEEP",
    "MEASURES",
    "BudgetPoint",
    "ThresholdPolicy",
    "anytime_accuracy",
    "assign_exits",
    "budget_fractions",
    "budgeted_curve",
    "calibrate",
    "collect_logits",
    "confidence",
    "correct_counts",
    "entropy_gate",
    "exit_counts",
    "exit_fractions",
    "exit_predictions",
    "fit_scores",
    "fit_thresholds",
]

# these modules import torch, which a device that infers with ONNX does not have
__getattr__ = lazily(__name__, ("assignment", "calibration", "evaluation"), __all__)

"""CAFEDistill: personalised early-exit networks by cross-client distillation (Liu et al., arXiv 2601.10015)."""

from strategies.cafedistill.client import CAFEDistillTraining
from strategies.cafedistill.strategy import CAFEDistill
from strategies.personalised.base import backbone
from strategies.registry import Method

METHOD = Method(CAFEDistill, CAFEDistillTraining, ensemble=lambda config: 0.0, travels=backbone, robust=False)

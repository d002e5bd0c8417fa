"""CAFEDistill: personalised early-exit networks by cross-client distillation (Liu et al., arXiv 2601.10015)."""

from strategies.cafedistill.client import CAFEDistillTraining
from strategies.cafedistill.settings import CAFEDistillSettings
from strategies.cafedistill.strategy import CAFEDistill
from strategies.method import Method
from strategies.personalised.base import backbone
from strategies.personalised.settings import PersonalSettings

METHOD = Method(
    "cafedistill",
    CAFEDistill,
    CAFEDistillTraining,
    (CAFEDistillSettings, PersonalSettings),
    travels=backbone,
    ensemble=lambda config: 0.0,
    personal=True,
    robust=False,
)

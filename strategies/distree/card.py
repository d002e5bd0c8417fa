"""DistrEE: students of one teacher on several devices, each with its own exits (Peng et al., arXiv 2502.15735)."""

from strategies.distree.model.parts import STUDENTS
from strategies.distree.settings import DistrEESettings
from strategies.distree.strategy import DistrEE
from strategies.distree.training.client import DistrEELocal
from strategies.method import Method

METHOD = Method(
    "distree",
    DistrEE,
    DistrEELocal,
    (DistrEESettings,),
    parts=STUDENTS,
    ensemble=lambda config: 0.0,
    nested=False,  # a student is no part of another
)

"""DistrEE: students of one teacher on several devices, each with its own exits (Peng et al., arXiv 2502.15735)."""

from strategies.distree.model.parts import STUDENTS
from strategies.distree.strategy import DistrEE
from strategies.distree.training.client import DistrEELocal
from strategies.registry import Method

METHOD = Method(DistrEE, DistrEELocal, ensemble=lambda config: 0.0, parts=STUDENTS)

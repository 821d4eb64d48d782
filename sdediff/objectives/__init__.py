"""Training objectives: ``loss(model, x_0) -> (B,)``."""

from sdediff.objectives.denoising import DenoisingScoreMatching, FlowMatching
from sdediff.objectives.objective import Objective
from sdediff.objectives.times import TIMES, LogitNormal, LogNormal, TimeLaw
from sdediff.objectives.weightings import WEIGHTINGS, MinSNR

__all__ = [
    "TIMES",
    "WEIGHTINGS",
    "DenoisingScoreMatching",
    "FlowMatching",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "TimeLaw",
]

"""Training objectives: ``loss(model, x_0) -> (B,)``."""

from sdediff.objectives.bins import Bins
from sdediff.objectives.coupled import ConditionDropout, Coupled, reflow
from sdediff.objectives.denoising import DenoisingScoreMatching, FlowMatching
from sdediff.objectives.matching import ImplicitScoreMatching, SlicedScoreMatching
from sdediff.objectives.objective import Objective
from sdediff.objectives.times import TIMES, LogitNormal, LogNormal, TimeLaw
from sdediff.objectives.variational import VariationalDiffusion
from sdediff.objectives.weightings import WEIGHTINGS, MinSNR

__all__ = [
    "TIMES",
    "WEIGHTINGS",
    "Bins",
    "ConditionDropout",
    "Coupled",
    "DenoisingScoreMatching",
    "FlowMatching",
    "ImplicitScoreMatching",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "SlicedScoreMatching",
    "TimeLaw",
    "VariationalDiffusion",
    "reflow",
]

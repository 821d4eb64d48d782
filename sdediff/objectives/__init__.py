"""Training objectives: ``loss(model, x_0) -> (B,)``."""

from sdediff.objectives.autoencoding import Autoencoding, Encoded
from sdediff.objectives.denoising import (
    ConditionDropout,
    Coupled,
    DenoisingScoreMatching,
    FlowMatching,
    reflow,
)
from sdediff.objectives.matching import ImplicitScoreMatching, SlicedScoreMatching
from sdediff.objectives.objective import WEIGHTINGS, MinSNR, Objective
from sdediff.objectives.straight import straightness
from sdediff.objectives.times import TIMES, LogitNormal, LogNormal, StepTimes, TimeLaw
from sdediff.objectives.variational import Bins, VariationalDiffusion

__all__ = [
    "TIMES",
    "WEIGHTINGS",
    "Autoencoding",
    "Bins",
    "ConditionDropout",
    "Coupled",
    "DenoisingScoreMatching",
    "Encoded",
    "FlowMatching",
    "ImplicitScoreMatching",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "SlicedScoreMatching",
    "StepTimes",
    "TimeLaw",
    "VariationalDiffusion",
    "reflow",
    "straightness",
]

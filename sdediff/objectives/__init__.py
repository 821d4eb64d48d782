"""Training objectives: ``loss(model, x_0) -> (B,)``."""

from sdediff.objectives.denoising import TIMES, WEIGHTINGS, DenoisingScoreMatching
from sdediff.objectives.objective import Objective

__all__ = ["TIMES", "WEIGHTINGS", "DenoisingScoreMatching", "Objective"]

"""Training objectives: ``loss(model, x_0) -> (B,)``."""

from sdediff.objectives.denoising import TIMES, WEIGHTINGS, DenoisingScoreMatching

__all__ = ["TIMES", "WEIGHTINGS", "DenoisingScoreMatching"]

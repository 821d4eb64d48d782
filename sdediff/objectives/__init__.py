"""Training objectives: ``loss(model, x_0) -> (B,)``."""

from sdediff.objectives.denoising import WEIGHTINGS, DenoisingScoreMatching

__all__ = ["WEIGHTINGS", "DenoisingScoreMatching"]

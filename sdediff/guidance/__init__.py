"""Guidance: models made of a model, which lead samples to a condition.

Each is a function of the state and the time, so that every solver, `log_prob` and every SDE take it
as they take a network.
"""

from sdediff.guidance.base import Guidance, NoiseLevels
from sdediff.guidance.classifier import Classifier
from sdediff.guidance.clip import clip_loss
from sdediff.guidance.control import Control
from sdediff.guidance.corrected import APG, Corrected, Rescale
from sdediff.guidance.losses import Loss
from sdediff.guidance.pairs import Auto, ClassifierFree, Pair, Pairing

__all__ = [
    "APG",
    "Auto",
    "Classifier",
    "ClassifierFree",
    "Control",
    "Corrected",
    "Guidance",
    "Loss",
    "NoiseLevels",
    "Pair",
    "Pairing",
    "Rescale",
    "clip_loss",
]

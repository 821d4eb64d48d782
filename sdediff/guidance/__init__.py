"""Guidance: models made of a model, which lead samples to a condition.

Each is a function of the state and the time, so that every solver, `log_prob` and every SDE take it
as they take a network.
"""

from sdediff.guidance.base import Guidance, NoiseLevels
from sdediff.guidance.pairs import ClassifierFree, Pair, Pairing

__all__ = ["ClassifierFree", "Guidance", "NoiseLevels", "Pair", "Pairing"]

"""Forward SDEs: the protocol, the derivation of what is not given, and the families that ship."""

from sdediff.sde.base import SDE, Prior
from sdediff.sde.families import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from sdediff.sde.interpolated import InterpolatedVE, InterpolatedVP
from sdediff.sde.learned import LearnedVP, MonotoneSchedule
from sdediff.sde.linear import LinearSDE
from sdediff.sde.scaled import Scaled

__all__ = [
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Cosine",
    "InterpolatedVE",
    "InterpolatedVP",
    "LearnedVP",
    "LinearSDE",
    "MonotoneSchedule",
    "Prior",
    "RectifiedFlow",
    "Scaled",
    "SubVP",
]

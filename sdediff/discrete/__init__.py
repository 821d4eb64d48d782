"""Discrete-time models as exact discretizations of SDEs."""

from sdediff.discrete.bound import VariationalBound, variational_bound
from sdediff.discrete.chain import Chain, Levels
from sdediff.discrete.ddpm import DDPM
from sdediff.discrete.losses import DDPMLoss, LossAware
from sdediff.discrete.ncsn import NCSN, NCSNLoss
from sdediff.discrete.schedules import SCHEDULES, ScheduleOptions

__all__ = [
    "DDPM",
    "NCSN",
    "SCHEDULES",
    "Chain",
    "DDPMLoss",
    "Levels",
    "LossAware",
    "NCSNLoss",
    "ScheduleOptions",
    "VariationalBound",
    "variational_bound",
]

"""Discrete-time models as exact discretizations of SDEs."""

from sdediff.discrete.chain import Chain, Levels
from sdediff.discrete.ddpm import DDPM
from sdediff.discrete.schedules import SCHEDULES

__all__ = ["DDPM", "SCHEDULES", "Chain", "Levels"]

"""Discrete-time models as exact discretizations of SDEs."""

from sdediff.discrete.ddpm import DDPM

__all__ = ["DDPM"]

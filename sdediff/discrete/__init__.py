"""Discrete-time models as exact discretizations of SDEs."""

from sdediff.discrete.bound import VariationalBound, variational_bound
from sdediff.discrete.chain import Chain, Levels
from sdediff.discrete.ddpm import DDPM
from sdediff.discrete.kernels import BinomialChain, GammaChain, KernelChain, MixtureChain
from sdediff.discrete.laws import Law
from sdediff.discrete.losses import ChainLoss, DDPMLoss, LossAware
from sdediff.discrete.ncsn import NCSN, NCSNLoss
from sdediff.discrete.schedules import SCHEDULES, ScheduleOptions

__all__ = [
    "DDPM",
    "NCSN",
    "SCHEDULES",
    "BinomialChain",
    "Chain",
    "ChainLoss",
    "DDPMLoss",
    "GammaChain",
    "KernelChain",
    "Law",
    "Levels",
    "LossAware",
    "MixtureChain",
    "NCSNLoss",
    "ScheduleOptions",
    "VariationalBound",
    "variational_bound",
]

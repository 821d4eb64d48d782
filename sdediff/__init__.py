"""sdediff: diffusion models as stochastic differential equations."""

from sdediff import exact
from sdediff.discrete import DDPM
from sdediff.model import ScoreModel
from sdediff.objectives import DenoisingScoreMatching
from sdediff.sampling import sample
from sdediff.sde import SDE, VE, VP, LinearSDE, SubVP
from solvers import (
    DDIM,
    RK23,
    RK45,
    Ancestral,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    Midpoint,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta4,
    Solution,
    SolveError,
    Status,
    White,
    seeds,
)

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "DDPM",
    "RK23",
    "RK45",
    "SDE",
    "VE",
    "VP",
    "Ancestral",
    "DenoisingScoreMatching",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Langevin",
    "LinearSDE",
    "Midpoint",
    "PredictorCorrector",
    "ReverseDiffusion",
    "RungeKutta4",
    "ScoreModel",
    "Solution",
    "SolveError",
    "Status",
    "SubVP",
    "White",
    "exact",
    "sample",
    "seeds",
]

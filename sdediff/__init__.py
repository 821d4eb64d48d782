"""sdediff: diffusion models as stochastic differential equations."""

from typing import TYPE_CHECKING, Any

from sdediff import exact
from sdediff.clocks import Timesteps
from sdediff.diagnosis import diagnose
from sdediff.discrete import DDPM
from sdediff.model import ScoreModel
from sdediff.objectives import DenoisingScoreMatching
from sdediff.sampling import sample
from sdediff.sde import EDM, SDE, VE, VP, Cosine, LinearSDE, Prior, RectifiedFlow, SubVP
from sdediff.simulation import simulate
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

if TYPE_CHECKING:
    from sdediff.checkpoint import load
    from sdediff.training import fit

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "RK23",
    "RK45",
    "SDE",
    "VE",
    "VP",
    "Ancestral",
    "Cosine",
    "DenoisingScoreMatching",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Langevin",
    "LinearSDE",
    "Midpoint",
    "PredictorCorrector",
    "Prior",
    "RectifiedFlow",
    "ReverseDiffusion",
    "RungeKutta4",
    "ScoreModel",
    "Solution",
    "SolveError",
    "Status",
    "SubVP",
    "Timesteps",
    "White",
    "diagnose",
    "exact",
    "fit",
    "load",
    "sample",
    "seeds",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """Training and checkpoints are imported when they are first used: they belong to the extra ``train``."""
    if name == "fit":
        from sdediff.training import fit

        return fit
    if name == "load":
        from sdediff.checkpoint import load

        return load
    raise AttributeError(f"module 'sdediff' has no attribute {name!r}")

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
    DOP853,
    RK23,
    RK45,
    Ancestral,
    DormandPrince,
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
    Tsit5,
    White,
    seeds,
)

if TYPE_CHECKING:
    from sdediff import testing
    from sdediff.checkpoint import load
    from sdediff.training import fit

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "DDPM",
    "DOP853",
    "EDM",
    "RK23",
    "RK45",
    "SDE",
    "VE",
    "VP",
    "Ancestral",
    "Cosine",
    "DenoisingScoreMatching",
    "DormandPrince",
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
    "Tsit5",
    "White",
    "diagnose",
    "exact",
    "fit",
    "load",
    "sample",
    "seeds",
    "simulate",
    "testing",
]


def __getattr__(name: str) -> Any:
    """Training, checkpoints and checks are imported when they are first used; the first two belong to the extra ``train``."""
    if name == "fit":
        from sdediff.training import fit

        return fit
    if name == "load":
        from sdediff.checkpoint import load

        return load
    if name == "testing":
        from importlib import import_module

        return import_module("sdediff.testing")
    raise AttributeError(f"module 'sdediff' has no attribute {name!r}")

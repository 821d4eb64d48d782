"""sdediff: diffusion models as stochastic differential equations."""

from typing import TYPE_CHECKING, Any

from sdediff import exact, mcmc, metrics
from sdediff.clocks import Timesteps
from sdediff.constraints import Clip, DynamicThreshold
from sdediff.diagnosis import diagnose
from sdediff.discrete import DDPM, NCSN, DDPMLoss, LossAware, NCSNLoss, variational_bound
from sdediff.encoding import decode, encode
from sdediff.likelihood import BitsPerDim, LogProb, bits_per_dim, log_prob
from sdediff.model import ScoreModel
from sdediff.normalizer import Normalizer
from sdediff.objectives import (
    Bins,
    ConditionDropout,
    Coupled,
    DenoisingScoreMatching,
    FlowMatching,
    ImplicitScoreMatching,
    LogitNormal,
    LogNormal,
    MinSNR,
    SlicedScoreMatching,
    VariationalDiffusion,
    reflow,
)
from sdediff.operator import Operator
from sdediff.protocols import Model, Output, Rows
from sdediff.sampling import sample
from sdediff.sde import (
    EDM,
    SDE,
    VE,
    VP,
    Cosine,
    InterpolatedVE,
    InterpolatedVP,
    LearnedVP,
    LinearSDE,
    MonotoneSchedule,
    Prior,
    RectifiedFlow,
    SubVP,
)
from sdediff.simulation import simulate
from sdediff.solvers import (
    DDIM,
    DEIS,
    DOP853,
    ERSDE,
    IPNDM,
    LMS,
    RK23,
    RK45,
    SEEDS,
    SRA1,
    SRA3,
    AdaptiveSDE,
    Ancestral,
    BrownianPath,
    Churn,
    DormandPrince,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPPSinglestep,
    Euler,
    EulerMaruyama,
    EulerTrapezoid,
    ExponentialMultistep,
    ExponentialPair,
    ExponentialSinglestep,
    Heun,
    InverseDDIM,
    Langevin,
    MetropolisLangevin,
    Midpoint,
    PredictorCorrector,
    Renoise,
    Restart,
    ReverseDiffusion,
    RungeKutta4,
    SASolver,
    SciPy,
    SDEDPMSolverPP,
    Solution,
    SolveError,
    Status,
    StochasticHeun,
    Straight,
    TorchDiffEq,
    TorchSDE,
    Tsit5,
    UniPC,
    White,
    seeds,
)
from sdediff.solvers.given import nearest

if TYPE_CHECKING:
    from sdediff import testing
    from sdediff.checkpoint import load
    from sdediff.training import fit

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "DOP853",
    "EDM",
    "ERSDE",
    "IPNDM",
    "LMS",
    "NCSN",
    "RK23",
    "RK45",
    "SDE",
    "SEEDS",
    "SRA1",
    "SRA3",
    "VE",
    "VP",
    "AdaptiveSDE",
    "Ancestral",
    "Bins",
    "BitsPerDim",
    "BrownianPath",
    "Churn",
    "Clip",
    "ConditionDropout",
    "Cosine",
    "Coupled",
    "DDPMLoss",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverPPSinglestep",
    "DenoisingScoreMatching",
    "DormandPrince",
    "DynamicThreshold",
    "Euler",
    "EulerMaruyama",
    "EulerTrapezoid",
    "ExponentialMultistep",
    "ExponentialPair",
    "ExponentialSinglestep",
    "FlowMatching",
    "Heun",
    "ImplicitScoreMatching",
    "InterpolatedVE",
    "InterpolatedVP",
    "InverseDDIM",
    "Langevin",
    "LearnedVP",
    "LinearSDE",
    "LogNormal",
    "LogProb",
    "LogitNormal",
    "LossAware",
    "MetropolisLangevin",
    "Midpoint",
    "MinSNR",
    "Model",
    "MonotoneSchedule",
    "NCSNLoss",
    "Normalizer",
    "Operator",
    "Output",
    "PredictorCorrector",
    "Prior",
    "RectifiedFlow",
    "Renoise",
    "Restart",
    "ReverseDiffusion",
    "Rows",
    "RungeKutta4",
    "SASolver",
    "SDEDPMSolverPP",
    "SciPy",
    "ScoreModel",
    "SlicedScoreMatching",
    "Solution",
    "SolveError",
    "Status",
    "StochasticHeun",
    "Straight",
    "SubVP",
    "Timesteps",
    "TorchDiffEq",
    "TorchSDE",
    "Tsit5",
    "UniPC",
    "VariationalDiffusion",
    "White",
    "bits_per_dim",
    "decode",
    "diagnose",
    "encode",
    "exact",
    "fit",
    "load",
    "log_prob",
    "mcmc",
    "metrics",
    "reflow",
    "sample",
    "seeds",
    "simulate",
    "testing",
    "variational_bound",
]


def __dir__() -> list[str]:
    """Every public name, imported yet or not."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Training, checkpoints and checks are imported when they are first used; the first two belong
    to the extra ``train``.
    """
    if name == "fit":
        from sdediff.training import fit

        return fit
    if name == "load":
        from sdediff.checkpoint import load

        return load
    if name == "testing":
        from importlib import import_module

        return import_module("sdediff.testing")
    raise AttributeError(f"module 'sdediff' has no attribute {name!r}{nearest(name, __all__)}")

"""sdediff: diffusion models as stochastic differential equations.

Here is what most programs use. The rest is in packages: `solvers` (all solvers), `sde` (all
families), `comparison`, `objectives`, `discrete`, `degradation`, `likelihood`, `exact`, `guidance`,
`posterior`, `mcmc`, `metrics`, `networks`, `plots`, `interop`, `testing`, `tuning`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from sdediff import _threads as _threads
from sdediff import comparison as comparison
from sdediff import constraints as constraints
from sdediff import degradation as degradation
from sdediff import discrete as discrete
from sdediff import exact as exact
from sdediff import guidance as guidance
from sdediff import likelihood as likelihood
from sdediff import mcmc as mcmc
from sdediff import metrics as metrics
from sdediff import network_time as network_time
from sdediff import objectives as objectives
from sdediff import posterior as posterior
from sdediff import sde as sde
from sdediff import solvers as solvers
from sdediff.comparison import compare
from sdediff.constraints import Clip
from sdediff.diagnosis import diagnose
from sdediff.discrete import DDPM, NCSN
from sdediff.encoding import decode, encode, slerp
from sdediff.latent import Latent
from sdediff.likelihood import bits_per_dim, log_prob
from sdediff.model import ScoreModel
from sdediff.normalizer import Normalizer
from sdediff.objectives import DenoisingScoreMatching
from sdediff.operator import Operator
from sdediff.options import SolveOptions
from sdediff.protocols import Model, Output, Rows
from sdediff.sampling import sample
from sdediff.sde import EDM, SDE, VE, VP, Cosine, LinearSDE, Prior, RectifiedFlow, SubVP
from sdediff.simulation import simulate
from sdediff.solvers import (
    DDIM,
    RK45,
    AdaptiveSDE,
    EulerMaruyama,
    ExponentialMultistep,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    Solution,
    SolveError,
    Solver,
    Status,
    Step,
    White,
    seeds,
)
from sdediff.solvers.given import nearest

if TYPE_CHECKING:
    from sdediff import interop as interop
    from sdediff import testing as testing
    from sdediff import tuning as tuning
    from sdediff.checkpoint import load
    from sdediff.interop.pretrained import from_diffusers
    from sdediff.training import fit
    from sdediff.tuning import tune

__version__ = "0.2.0"

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "NCSN",
    "RK45",
    "SDE",
    "VE",
    "VP",
    "AdaptiveSDE",
    "Clip",
    "Cosine",
    "DenoisingScoreMatching",
    "EulerMaruyama",
    "ExponentialMultistep",
    "Heun",
    "Langevin",
    "Latent",
    "LinearSDE",
    "Model",
    "Normalizer",
    "Operator",
    "Output",
    "PredictorCorrector",
    "Prior",
    "RectifiedFlow",
    "ReverseDiffusion",
    "Rows",
    "ScoreModel",
    "Solution",
    "SolveError",
    "SolveOptions",
    "Solver",
    "Status",
    "Step",
    "SubVP",
    "White",
    "bits_per_dim",
    "compare",
    "decode",
    "diagnose",
    "encode",
    "fit",
    "from_diffusers",
    "load",
    "log_prob",
    "sample",
    "seeds",
    "simulate",
    "slerp",
    "tune",
]

_LATE: Final = {
    "fit": "sdediff.training",
    "from_diffusers": "sdediff.interop.pretrained",
    "load": "sdediff.checkpoint",
    "tune": "sdediff.tuning",
}
"""Imported when they are first used; most belong to the extras ``train`` and ``diffusers``."""
_HOMES: Final = (
    "solvers",
    "comparison",
    "sde",
    "objectives",
    "discrete",
    "degradation",
    "likelihood",
    "network_time",
    "constraints",
    "exact",
    "guidance",
    "mcmc",
    "metrics",
    "posterior",
    "testing",
    "tuning",
    "interop",
)
"""Where the names are that are not here."""


def __dir__() -> list[str]:
    """Every public name, imported yet or not."""
    return sorted([*__all__, *_HOMES, "interop", "plots", "__version__"])


def __getattr__(name: str) -> Any:
    """What is imported late; an AttributeError that says where any other public name is."""
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    if name in ("interop", "plots", "testing", "tuning"):
        return import_module(f"sdediff.{name}")
    public = {} if name.startswith("_") else dict.fromkeys(__all__, "")
    for home in _HOMES if public else ():
        for each in import_module(f"sdediff.{home}").__all__:
            public.setdefault(each, home)
    if name in public:
        raise AttributeError(f"sdediff.{name} is now sdediff.{public[name]}.{name}")
    hint = nearest(name, _HOMES) or nearest(name, public)
    raise AttributeError(f"module 'sdediff' has no attribute {name!r}{hint}")

"""Checks for what users bring: `check_sde` an SDE, `check_solver` a solver, `check_equivalence` two
of one kind, `calibrate` whatever draws from posteriors.

They need no test library. `strategies` are for Hypothesis, of the extra ``testing``, imported when
they are first used.
"""

from typing import TYPE_CHECKING, Any

from sdediff.testing.agreement import check_equivalence, check_equivalences
from sdediff.testing.calibration import calibrate, posterior_draws
from sdediff.testing.check import check_sde
from sdediff.testing.equivalences import EQUIVALENCES, Case, evaluate
from sdediff.testing.orders import check_solver
from sdediff.testing.ranks import Calibrated, Calibration
from sdediff.testing.report import EquivalenceError, Finding, Report, SDEError, SolverError
from sdediff.testing.steps import Equation

if TYPE_CHECKING:
    from sdediff.testing import strategies

__all__ = [
    "EQUIVALENCES",
    "Calibrated",
    "Calibration",
    "Case",
    "Equation",
    "EquivalenceError",
    "Finding",
    "Report",
    "SDEError",
    "SolverError",
    "calibrate",
    "check_equivalence",
    "check_equivalences",
    "check_sde",
    "check_solver",
    "evaluate",
    "posterior_draws",
    "strategies",
]


def __getattr__(name: str) -> Any:
    if name == "strategies":
        from importlib import import_module

        return import_module("sdediff.testing.strategies")
    raise AttributeError(f"module 'sdediff.testing' has no attribute {name!r}")

"""Checks for what users bring: `check_sde` an SDE, `check_solver` a solver. They need no test library."""

from sdediff.testing.check import check_sde
from sdediff.testing.report import Finding, Report, SDEError
from sdediff.testing.solvers import SolverError, check_solver

__all__ = ["Finding", "Report", "SDEError", "SolverError", "check_sde", "check_solver"]

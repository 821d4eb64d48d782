"""Whether a solver keeps what it promises."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sdediff.solvers import Solver
from sdediff.solvers.portable import Portable

# Importing the orders enters them into the table, after the form.
from sdediff.testing import orders  # noqa: F401
from sdediff.testing.contracts import CONTRACTS, Contract
from sdediff.testing.identity import Comparison, Skip
from sdediff.testing.report import Finding, Report

__all__ = ["SolverError", "SolverReport", "check_solver"]


@dataclass(frozen=True)
class SolverReport(Report):
    """The findings of `check_solver`, one for each contract; ``sde`` holds the solver's repr."""

    kind = "contract"


class SolverError(Portable, ValueError):
    """A solver breaks at least one contract; ``report`` has them all."""

    def __init__(self, report: Report) -> None:
        self.report = report
        count = "a contract" if len(report.failures) == 1 else f"{len(report.failures)} contracts"
        super().__init__("\n".join([f"{report.sde} breaks {count}:", *report.lines()]))


def check_solver(solver: Solver, *, verbose: bool = True) -> Report:
    """Check what every solver promises, and raise `SolverError` naming the contracts that fail.

    - form: a frozen, hashable value that a solve leaves as it is; ``needs`` are known; as many
      ``evaluations`` a step as it says;
    - noise: seeds matter if and only if it is ``stochastic``; torch's global generator is not
      touched;
    - samples: alone, permuted or interleaved with another solve the same; no evaluation outside the
      grid;
    - states: any rank, the dtype kept, finite in 1 to 5 steps; gradients flow, and checkpointed
      they are the same;
    - order: that of the probability flow at stochasticity 0 (``order`` if deterministic;
      ``deterministic_order``, else 1, if stochastic), the weak ``order`` by exact moments of
      Gaussian data, and, where it declares one, ``strong_order`` along a path. Measured orders may
      fall short by 0.25; deterministic ones above 4 are checked as 4.

    What does not apply is skipped, by name: correctors and solvers that move samples nowhere have
    no order, adaptive ones are held against the flow by their tolerances. Prints a table unless
    ``verbose`` is false and returns it as a `Report`. Takes about a second. Raises TypeError for
    what is no solver, and ValueError for a discrete model with a grid of its own.
    """
    if isinstance(solver, type) or not isinstance(solver, Solver):
        hint = f"; write {solver.__name__}()" if isinstance(solver, type) else ""
        raise TypeError(f"check_solver takes a solver value, got {solver!r}{hint}")
    if solver.times is not None:
        raise ValueError(
            f"{solver!r} is a discrete model with a grid of its own: hold its moments against "
            "the law by Gaussian.chain"
        )
    with torch.inference_mode(False), torch.no_grad():
        report = SolverReport(
            repr(solver), tuple(_evaluate(name, check, solver) for name, check in CONTRACTS.items())
        )
    if verbose:
        print(report)
    if not report.passed:
        raise SolverError(report) from next(
            (f.error for f in report.failures if f.error is not None), None
        )
    return report


def _evaluate(name: str, check: Contract, solver: Solver) -> Finding:
    """Check one contract. Whatever the solver raises makes it fail."""
    compared: list[Comparison] = []
    try:
        compared.extend(check(solver))
    except Skip as reason:
        return Finding(name, "skipped", detail=str(reason))
    except Exception as error:
        return Finding(
            name,
            "fail",
            math.inf,
            detail=f"{type(error).__name__}: {' '.join(str(error).split())}",
            error=error,
        )
    if not compared:
        return Finding(name, "skipped", detail="nothing to compare")
    worst = max(compared, key=lambda item: (not item.deviation <= item.bound, item.deviation))
    if not worst.deviation <= worst.bound:
        return Finding(
            name, "fail", worst.deviation, worst.bound, worst.where, worst.detail, worst.hint
        )
    return Finding(
        name,
        "ok",
        worst.deviation,
        worst.bound,
        worst.where,
        "; ".join(dict.fromkeys(item.note for item in compared if item.note)),
    )

"""The solver of a call: what it has to be, and which it is where none is given."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from torch import Tensor

from sdediff import solvers
from sdediff.sde import SDE
from sdediff.solvers import (
    RK45,
    AdaptiveSDE,
    EulerMaruyama,
    ExponentialMultistep,
    ExponentialSinglestep,
    Renoise,
    Solver,
    Straight,
)
from sdediff.solvers.given import integer

__all__ = ["Grid", "check_solver", "default_solver", "intervals"]

Grid = str | Callable[[int], Tensor] | Tensor | Sequence[float]


def check_solver(solver: Solver) -> Solver:
    """A TypeError unless it is a solver value."""
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, type):
        raise TypeError(f"solver must be a value, not a class: write {solver.__name__}()")
    names = [
        name
        for name in solvers.__all__
        if isinstance(getattr(solvers, name), type) and issubclass(getattr(solvers, name), Solver)
    ]
    spelled = {name.lower(): name for name in names}
    given = str(solver).lower().replace("-", "").replace("_", "").replace("+", "p")
    close = difflib.get_close_matches(given, spelled, n=1, cutoff=0.3) or ["eulermaruyama"]
    raise TypeError(
        f"solver must be a solver value, got {solver!r}; did you mean "
        f"sdediff.solvers.{spelled[close[0]]}()?"
    )


def default_solver(sde: SDE, steps: int | None, *, stochastic: bool) -> Solver:
    """The rule of docs/solvers.md: by the number of steps, and by whether noise is asked for; RK45
    where there are no steps.

    Without noise: the equation in the form that is straight while data and noise do not change, at
    the scale of details, polynomials in the angle arctan(sigma / alpha), the first steps of lower
    orders: an evaluation a step, and none more to start. With noise: single steps of order 2, from
    12 of them on of order 3, and exact noise: so many evaluations a step; AdaptiveSDE where there
    are no steps.
    """
    if steps is None:
        return AdaptiveSDE() if stochastic else RK45()
    if "kernel" not in sde.offers:
        return EulerMaruyama()
    if stochastic:
        few = not isinstance(steps, int) or steps < 12
        return Renoise(ExponentialSinglestep(2, form=0.3) if few else ExponentialSinglestep(3))
    order = next(
        (order for least, order in _BY_STEPS if isinstance(steps, int) and steps >= least), 2
    )
    return ExponentialMultistep(
        order, form=Straight(0.1), variable="angle", corrector=None, startup="published"
    )


_BY_STEPS: Final = ((20, 4), (8, 3))
"""The order, from so many steps on; with fewer, 2."""


def intervals(steps: int | None, grid: Grid | None) -> int | None:
    """How many steps there will be; None where the solver is to choose."""
    if grid is None or isinstance(grid, str) or callable(grid):
        return None if steps is None else integer("steps", steps, 1)
    shape = grid.shape if isinstance(grid, Tensor) else np.shape(grid)
    return shape[0] - 1 if shape else None

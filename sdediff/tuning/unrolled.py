"""A solver with fixed steps as what it does to its start and to the model's answers: sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.protocols import Like, Rows
from sdediff.reverse import Reverse
from sdediff.sde import LinearSDE
from sdediff.solvers import Problem, Solver, Tuned
from sdediff.solvers.integrate import require
from sdediff.solvers.noise import Silence

__all__ = ["Scheme", "follow", "tabled", "unrolled"]


class Scheme(NamedTuple):
    """y_k = rows[k, 0] x + the sum over j < k of rows[k, 1 + j] d_j, with d_j the data prediction
    at the state y_j and the time ``times[j]``; y_K is the result.
    """

    times: Tensor  # (K,), float64
    rows: Tensor  # (K + 1, K + 1), float64; the first is (1, 0, ..., 0)


class _Basis:
    """A model whose answers are unit vectors, so that every state is the vector of its
    coefficients.
    """

    predicts = "data"
    declared_data_std = 1.0

    def __init__(self, sde: LinearSDE, width: int, count: int) -> None:
        self.sde = sde
        self.unit = torch.eye(width, dtype=torch.float64)[:, None].expand(-1, count, -1)
        self.asked: list[tuple[Tensor, Tensor]] = []

    def at(self, times: Tensor, like: Like, piece: object) -> Sequence[Tensor]:
        """The times themselves."""
        return times.unbind()

    def evaluate(self, x: Tensor, at: Tensor, rows: Rows) -> Tensor:
        """The next unit vector, for all rows."""
        self.asked.append((at, x))
        if len(self.asked) == len(self.unit):
            raise ValueError("the solver makes more evaluations than its `evaluations` says")
        return self.unit[len(self.asked)]


def unrolled(solver: Solver, sde: LinearSDE, times: Tensor, *, denoise: bool) -> Scheme:
    """The sums that ``solver`` makes along ``times`` (N + 1,), differentiable in them; along
    several grids (N + 1, n) the scheme has the times (K, n) and the rows (K + 1, n, K + 1).

    ``denoise``: the result is E[x_0 | x] at the last time, by one more evaluation. ``sde`` is that
    in units of the data's standard deviation. The solver is deterministic, has fixed steps, and is
    linear in the state and in the model's predictions.
    """
    count = times.shape[1] if times.ndim > 1 else 1
    most = solver.evaluations * len(times) + solver.init_evaluations
    most += getattr(solver, "startup_evaluations", 0)
    basis = _Basis(sde, 2 + most, count)
    problem = Reverse(basis, count)
    require(problem, solver)
    x, quiet = basis.unit[0], Silence(solver)
    memory = solver.init(problem, x, times[0])
    for plan in solver.plan(problem, times):
        taken = solver.step(problem, x, plan, quiet, memory)
        x, memory = taken.x, taken.state
    if denoise:
        x = problem.evaluate(x, problem.at(times[-1:], "data")[0])
    rows = torch.stack([*(row for _, row in basis.asked), x])[..., : len(basis.asked) + 1]
    asked = torch.stack([t for t, _ in basis.asked])
    return Scheme(asked, rows if times.ndim > 1 else rows[:, 0])


def follow(problem: Problem, scheme: Scheme, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """([x, d_0, ..., d_{K-1}], [y_0, ..., y_K]) of a scheme from states x (rows, *event)."""
    known, states = [x], []
    entries = problem.at(scheme.times, "data")
    for k, row in enumerate(scheme.rows):
        numbers = row.to(x)
        y = torch.stack([numbers[j] * each for j, each in enumerate(known)]).sum(dim=0)
        states.append(y)
        if k < len(entries):
            known.append(problem.evaluate(y, entries[k]))
    return known, states


def tabled(scheme: Scheme, sde: LinearSDE, end: float, made: Mapping[str, Any]) -> Tuned:
    """The scheme as a solver, whose result is that of the time ``end``.

    keep_k and weights_kj are those of z_{k+1} = keep_k z_k + the sum over j <= k of weights_kj d_j,
    z = y / hypot(alpha, sigma).
    """
    times = torch.cat([scheme.times, torch.tensor([end], dtype=torch.float64)])
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    rows = scheme.rows / torch.hypot(alpha, sigma)[:, None]
    keep = (rows[1:, 0] / rows[:-1, 0]).tolist()
    steps = range(len(keep))
    weights = [(rows[k + 1] - keep[k] * rows[k])[1 : k + 2].tolist() for k in steps]
    angles = torch.atan2(sigma, alpha).tolist()
    return Tuned(
        tuple(times.tolist()), tuple(angles), tuple(keep), tuple(map(tuple, weights)), made
    )

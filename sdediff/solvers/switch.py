"""Several solvers, one after another along a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.given import integer, real
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver, Step

__all__ = ["Switch"]


class _Plan(NamedTuple):
    part: int  # which of the solvers
    inner: Any  # its plan
    begins: Tensor | None  # the time at which it takes over


@dataclass(frozen=True)
class Switch(Solver):
    """A solver made of several: each takes a part of the grid's intervals, one after another.

    ``Switch((EulerMaruyama(), UniPC(2)), log_snr=(0.0,))`` takes steps of Euler and Maruyama as
    long as log(alpha^2 / sigma^2) is below 0, and steps of UniPC from there on: split sampling.
    Exactly one of the two fields says where a solver hands over to the next, with one entry less
    than there are solvers. ``steps`` has the numbers of intervals that the first solvers take,
    counted from the start of the grid; the last takes the rest, and on a grid that is too short the
    last ones take none. ``log_snr`` has rising levels, in the units of the data: an interval
    belongs to a solver by log-SNR at its start.

    Every solver plans its own part of the grid, and starts as if that were all of it: a multistep
    method begins anew. A solver that does not solve the reverse SDE sees the probability flow,
    whatever the ``stochasticity`` of the others. Step i draws the noise of step i, whoever takes
    it. Evaluations are those of the parts; ``order`` is the least of theirs, and ``spacing`` is the
    last one's. Solvers that choose their own steps or have a grid of their own are refused.
    """

    solvers: tuple[Solver, ...]
    steps: tuple[int, ...] | None = None
    log_snr: tuple[float, ...] | None = None

    has_memory = True

    def __post_init__(self) -> None:
        self._check_solvers()
        if (self.steps is None) == (self.log_snr is None):
            raise ValueError(
                "Switch: give either steps, the numbers of intervals of the first solvers, or "
                "log_snr, the levels at which the next one takes over"
            )
        name = "log_snr" if self.steps is None else "steps"
        given = getattr(self, name)
        if not isinstance(given, tuple) or len(given) != len(self.solvers) - 1:
            raise ValueError(
                f"Switch: {name} must have one entry less than there are solvers, "
                f"{len(self.solvers) - 1}; got {given!r}"
            )
        if self.steps is not None:
            counts = tuple(integer("Switch: each of steps", n, 1) for n in given)
            object.__setattr__(self, "steps", counts)
            return
        levels = tuple(real("Switch: each of log_snr", level) for level in given)
        if not all(a < b for a, b in pairwise((-math.inf, *levels, math.inf))):
            raise ValueError(
                f"Switch: log_snr must be finite levels that rise, from noise to data; got "
                f"{given!r}"
            )
        object.__setattr__(self, "log_snr", levels)

    def _check_solvers(self) -> None:
        if not isinstance(self.solvers, tuple) or len(self.solvers) < 2:
            raise ValueError(
                f"Switch: solvers must be a tuple of two solvers or more; got {self.solvers!r}"
            )
        for part in self.solvers:
            if not isinstance(part, Solver):
                raise TypeError(
                    f"Switch: each of solvers must be a solver such as Heun(), got {part!r}"
                )
            if part.adaptive or part.times is not None or part.external:
                raise ValueError(
                    f"Switch: {part!r} chooses its own steps; take solvers with fixed steps"
                )
        groups = {part.group for part in self.solvers} - {1}
        if len(groups) > 1:
            raise ValueError(
                f"Switch: the solvers have groups of {sorted(groups)} rows; take one number"
            )

    @property
    def needs(self) -> frozenset[str]:
        """What any of them needs, and log-SNR where that says who takes a step."""
        own = frozenset() if self.log_snr is None else frozenset({"marginal"})
        return own.union(*(part.needs for part in self.solvers))

    @property
    def order(self) -> float:
        return min(part.order for part in self.solvers)

    @property
    def deterministic_order(self) -> float:
        return min(part.deterministic_order for part in self.solvers)

    @property
    def weak_order(self) -> float:
        return min(part.weak_order for part in self.solvers)

    @property
    def stochastic(self) -> bool:
        """Whether any of them draws noise."""
        return any(part.stochastic for part in self.solvers)

    @property
    def solves_sde(self) -> bool:
        """Whether any of them solves the reverse SDE."""
        return any(part.solves_sde for part in self.solvers)

    @property
    def spacing(self) -> str:
        return self.solvers[-1].spacing

    @property
    def group(self) -> int:
        return max(part.group for part in self.solvers)

    @property
    def evaluations(self) -> int:
        """The most that a step of any of them makes."""
        return max(part.evaluations for part in self.solvers)

    def cost(self, plan: _Plan) -> int:
        """That of the part, which may evaluate once more where it begins."""
        part = self.solvers[plan.part]
        return part.cost(plan.inner) + (part.init_evaluations if plan.begins is not None else 0)

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The plans of the parts, one after another."""
        whole = times if problem.grid is None else problem.grid
        plans, first = list[_Plan](), 0
        for part, run in groupby(self._parts(problem, times, whole)):
            last = first + len(list(run))
            seen = self._seen(part, problem).within(problem.piece, whole)
            inner = self.solvers[part].plan(seen, times[first : last + 1])
            begins = [times[first], *[None] * (len(inner) - 1)]
            plans += [_Plan(part, *each) for each in zip(inner, begins, strict=True)]
            first = last
        return plans

    def _parts(self, problem: Problem, times: Tensor, whole: Tensor) -> list[int]:
        """Which solver takes each interval."""
        if self.log_snr is not None:
            bounds = torch.tensor(self.log_snr, dtype=torch.float64) + 2 * math.log(problem.unit)
            found = torch.bucketize(problem.log_snr(times[:-1]), bounds, right=True)
            if found.ndim > 1 and not bool((found == found[:, :1]).all()):
                raise ValueError(
                    "Switch: samples with grids of their own pass log_snr at different steps; "
                    "give steps, or one grid for all samples"
                )
            parts: list[int] = found.reshape(len(found), -1)[:, 0].tolist()
            return parts
        # this may be a piece of the whole grid
        here = (whole == times[0]).reshape(len(whole), -1)[:, 0]
        before = int(torch.nonzero(here)[0])
        ends = torch.tensor(self.steps).cumsum(0)
        numbers = before + torch.arange(len(times) - 1)
        return torch.bucketize(numbers, ends, right=True).tolist()

    def _seen(self, part: int, problem: Problem) -> Problem:
        """The problem as a part sees it."""
        return problem if self.solvers[part].solves_sde else problem.without_noise()

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        solver, seen = self.solvers[plan.part], self._seen(plan.part, problem)
        if plan.begins is not None:
            state = solver.init(seen, x, plan.begins)
        return solver.step(seen, x, plan.inner, noise, state)

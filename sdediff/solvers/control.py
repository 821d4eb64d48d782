"""Per-sample adaptive stepping. For a shared grid see `integrate.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdediff.solvers.arithmetic import rowwise, vanishing, weighted
from sdediff.solvers.clock import Clock, slope
from sdediff.solvers.noise import Noise, Silence, StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solution import Failure, Status
from sdediff.solvers.solver import Solver, Step, checked, tolerances
from sdediff.solvers.stepping import Control, Reached, Stepped

__all__ = ["PerSample"]

_SAFETY = 0.9
_SHRINK = 0.2
_GROW = 10.0
_ROUNDING: Final = 16  # in units of the state's own, below which a step does not move it


class PerSample(Control):
    """Every sample has its own time, step size and error; who has arrived or failed leaves the
    batch.

    PI control (Hairer and Wanner, Solving Ordinary Differential Equations II, IV.2): h_next = h
    (goal / e)^(0.7 / q) (e_before / goal)^(0.4 / q), with e the norm of the error, at most 1 where
    a step is accepted, and q the order of its estimate. A goal of a tenth of that was cheapest on
    flows of mixtures at a given error of the result (docs/solvers.md): few steps are rejected, and
    no single one makes most of the error. Samples land on every time of the grid.
    Steps have their lengths in the variable of the solver's `clock`.
    """

    goal = 0.1
    columns: tuple[str, ...] = ("rows", "t", "u", "h", "target", "before", "retry", "moved")
    """What there is one of for each row."""
    rows: Tensor

    def __init__(
        self, problem: Problem, solver: Solver, x: Tensor, times: Tensor, noise: Noise | None
    ) -> None:
        self.problem = problem
        self.solver = solver
        self.x = x
        self.times = times
        self.samples = len(x)
        self.accepted, self.rejected = torch.zeros(2, len(x), dtype=torch.int64)
        self.failures = []
        problem.monitor.watch = True
        self.whole = problem
        self.final = x.clone()
        self.rows = torch.arange(self.samples)
        self.t = times[0].expand(self.samples).clone()
        self.target = torch.ones(self.samples, dtype=torch.int64)
        self.before = torch.ones(self.samples, dtype=torch.float64)
        self.retry, self.moved = torch.zeros(2, self.samples, dtype=torch.bool)
        self.rtol, self.atol = tolerances(solver, problem, x.dtype)
        self.q = float(solver.error_order)  # type: ignore[attr-defined]
        self.dt_min = float(getattr(solver, "dt_min", 0.0))
        self.clock = self._clock()
        marks = self.clock.value(times)
        if len(lost := times[~torch.isfinite(marks)]):
            where = f"{float(lost[0]):g}: start and end inside, or take variable='angle'"
            raise ValueError(f"{solver!r} steps in a variable that is not finite at t = {where}")
        self.u = marks[0].expand(self.samples).clone()
        self.sign = 1.0 if len(times) < 2 or bool((marks[-1] > marks[0]).all()) else -1.0
        # Times of the grid and u there, (K, samples).
        self.grid, self.marks = (
            each if each.ndim > 1 else each[:, None].expand(-1, self.samples)
            for each in (times, marks)
        )
        if bool((short := self.dt_min > (self.grid[0] - self.grid[-1]).detach().abs()).any()):
            start, end = (float(each[short][0]) for each in (self.grid[0], self.grid[-1]))
            raise ValueError(
                f"{solver!r}: dt_min exceeds the whole way from {start:g} to {end:g}; give less"
            )
        if self.active:
            self.state = solver.init(problem, x, times[0])  # all begin together
            begun = problem.monitor.bad.clone()
            self.h = self._first_step().detach()
            # the probe of the step size may have gone where no step will go
            problem.monitor.bad[:] = begun

    @property
    def active(self) -> bool:  # type: ignore[override]
        """Whether a row is left."""
        return len(self.rows) > 0 and len(self.times) > 1

    @property
    def done(self) -> float:
        if len(self.times) < 2:
            return 1.0
        start, end = self.grid[0, self.rows], self.grid[-1, self.rows]
        missing = float(((self.t - end) / (start - end)).abs().sum())
        return 1.0 - missing / max(1, self.samples)

    @property
    def noise(self) -> StepNoise:
        """Noise of the step that comes next."""
        return Silence(self.solver)

    def _clock(self) -> Clock:
        return self.solver.clock(self.problem)

    def _norm(self, error: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The norm (rows,) of an error on the way from x to y, in tolerances: the root mean square
        over coordinates.

        A coordinate that is exactly 0 in x, in y and in the error is padding, and does not count.
        """
        error = error.detach()
        x = x.detach()
        y = y.detach()
        size = torch.maximum(x.abs(), y.abs())
        padding = vanishing(error, size)
        scale = size.mul_(self.rtol).add_(self.atol)
        scaled = rowwise(error / scale)
        parts = self.problem.parts or ((scaled.shape[1], 1.0),)
        sizes = [size for size, _ in parts]
        norms = [
            torch.linalg.vector_norm(piece, dim=1) / (math.sqrt(size) / weight)
            for piece, (size, weight) in zip(scaled.split(sizes, dim=1), parts, strict=True)
        ]
        if padding is not None:
            counts = [
                (~piece).sum(dim=1).clamp(min=1) for piece in rowwise(padding).split(sizes, dim=1)
            ]
            norms = [
                norm * (size / count.to(norm)).sqrt()
                for norm, size, count in zip(norms, sizes, counts, strict=True)
            ]
        return (
            (norms[0] if len(norms) == 1 else torch.stack(norms).amax(dim=0))
            .cpu()
            .to(torch.float64)
        )

    def _first_step(self) -> Tensor:
        """Step sizes (rows,) by the rule of Hairer et al. I, II.4: two evaluations, one of them
        already in ``state``.
        """
        x, t = self.x, self.times[0]
        here = self.clock.scale(t)
        # of x / c, as of x
        k = weighted(
            (1.0 if here is None else here, self.solver.slope(self.problem, x, t, self.state))
        )
        size, steep = self._norm(x, x, x), self._norm(k, x, x)
        span = (self.marks[1] - self.marks[0]).abs()
        # A step in time has the unit of time, which is that of the row's own grid; one in another
        # variable is a number.
        length = self.grid.detach().abs().amax(dim=0) if here is None else torch.ones_like(span)
        guess = torch.where(
            (size < 1e-5) | (length * steep < 1e-5), 1e-6 * length, 0.01 * size / steep
        ).clamp(max=0.1 * span)
        # a network that failed here is found by the first attempt
        guess = torch.where(torch.isfinite(guess), guess, 1e-6 * length)
        t = self.clock.time(self.u + self.sign * guess)
        there = self.clock.scale(t)
        ratio = 1.0 if here is None or there is None else there / here
        trial = slope(
            self.problem, self.clock, weighted((ratio, x), (ratio * self.sign * guess, k)), t
        )
        bend = self._norm(weighted((-1.0, k), (1.0 if here is None else here, trial)), x, x) / guess
        steep = torch.maximum(steep, length * bend)
        wide = length * (self.goal / (length * steep)) ** (1.0 / self.q)
        step = torch.minimum(
            100 * guess,
            torch.where(length * steep <= 1e-15, (guess * 1e-3).clamp(min=1e-6 * length), wide),
        )
        # Where the network failed already, take any step: the next attempt finds and reports it.
        return torch.where(torch.isfinite(step) & (step > 0), step, guess).clamp(max=span)

    def attempt(self, stepped: Stepped) -> Reached:
        plan = self.propose()
        return self.accept(
            checked(
                stepped(self.problem, self.x, plan, self.noise, self.state), self.solver, self.x
            )
        )

    def propose(self) -> Any:
        """The plan of the step that comes next."""
        self._begin()
        mark, self.floor = self.marks[self.target, self.rows], self._floor()
        h = np.maximum(self.h.numpy(), self.floor.numpy())
        left = (mark - self.u).detach().abs().numpy()
        landing = h >= left * (1 - 1e-10)
        # What is left for less than two steps is shared by two, so that the last is never tiny.
        size = np.where(left < 2 * h, np.maximum(0.5 * left, self.floor.numpy()), h)
        self.landing = torch.from_numpy(landing)
        self.v = torch.where(self.landing, mark, self.u + self.sign * torch.from_numpy(size))
        there = self.landing, self.grid[self.target, self.rows]
        self.s, plan = self.solver.plan_to(
            self.problem, self.clock, (self.t, self.u), self.v, there
        )
        return plan

    def _begin(self) -> None:
        """Evaluate what a step begins with, of the rows that have moved since it was."""
        if not (self.solver.begins and bool(self.moved.any())):
            return
        some = torch.nonzero(self.moved).flatten()
        there, whole = some.to(self.x.device), len(some) == len(self.rows)
        problem, t = (self.problem, self.t) if whole else (self.problem.take(some), self.t[some])
        x = self.x if whole else self.x[there]

        def init(x: Tensor) -> tuple[Tensor, ...]:
            return self.solver.init(problem, x, t)

        found = checkpoint(init, x, use_reentrant=False) if self.recompute else init(x)
        self.state = (
            found
            if whole
            else tuple(
                old.index_copy(0, there, new) for old, new in zip(self.state, found, strict=True)
            )
        )
        self.moved = torch.zeros_like(self.moved)

    def accept(self, step: Step) -> Reached:
        """Judge a step."""
        if step.error is None:
            raise ValueError(f"{self.solver!r} is adaptive but its step gave no error estimate")
        norm = self._norm(step.error, self.x, step.x)
        good = norm <= 1
        used = (self.v - self.u).detach().abs()
        self.h = self._resize(norm, good, used)
        self.retry, rows = ~good, self.rows.numpy()
        self.accepted.numpy()[rows] += good.numpy()
        state, self.moved = self.state if self.solver.begins else step.state, good
        if whole := bool(good.all()):
            self.x = step.x
            self.state = state
            self.t = self.s
            self.u = self.v
        else:
            self.rejected.numpy()[rows] += self.retry.numpy()
            mask = good.to(self.x.device)
            self.x = _choose(mask, step.x, self.x)
            self.state = tuple(
                _choose(mask, new, old) for new, old in zip(state, self.state, strict=True)
            )
            self.t = torch.where(good, self.s, self.t)
            self.u = torch.where(good, self.v, self.u)
        arrived = good & self.landing
        if whole and not self.problem.monitor.troubled and not bool(arrived.any()):
            return []
        reached = self._reached(arrived)
        # A rejected step of the least size cannot be taken again with less.
        self._leave(
            arrived & (self.target == len(self.times)), ~good & (used <= self.floor * (1 + 1e-10))
        )
        return reached

    def _floor(self) -> Tensor:
        """The least step sizes (rows,): ``dt_min``, and what rounding lets pass."""
        span = (self.marks[-1, self.rows] - self.marks[0, self.rows]).detach().abs()
        least = (
            _ROUNDING * torch.finfo(self.x.dtype).eps * self.u.detach().abs().clamp(min=1e-3 * span)
        )
        if not self.dt_min:
            return least
        start, end = (self.grid[k, self.rows].detach() for k in (0, -1))
        later = self.t.detach() + (end - start).sign() * self.dt_min
        later = torch.maximum(
            torch.minimum(later, torch.maximum(start, end)), torch.minimum(start, end)
        )
        return torch.maximum(least, (self.clock.value(later) - self.u.detach()).abs())

    def _factor(self, norm: Tensor, good: Tensor) -> NDArray[np.float64]:
        """The ratio (rows,) of the next step sizes to those that had these error norms."""
        # fmin of NaN and a number is the number
        excess = np.maximum(np.fmin(norm.numpy(), 1e10), 1e-10) / self.goal
        before, ok = self.before.numpy(), good.numpy()
        factor = excess ** (-0.7 / self.q) * before ** (0.4 / self.q)
        again = np.minimum(_SAFETY * (self.goal * excess) ** (-1 / self.q), factor)
        self.before = torch.from_numpy(np.where(ok, excess.clip(0.01), before))
        found: NDArray[np.float64] = np.where(
            ok, np.minimum(factor, np.where(self.retry.numpy(), 1.0, _GROW)), again
        )
        return found.clip(_SHRINK, _GROW)

    def _resize(self, norm: Tensor, good: Tensor, used: Tensor) -> Tensor:
        """The next step sizes (rows,), from the error norms of steps of size ``used``."""
        factor, ok = self._factor(norm, good), good.numpy()
        # A step cut short to land on the grid says nothing against the longer one that was planned.
        least = np.where(ok & self.landing.numpy(), self.h.numpy(), 0.0)
        return torch.from_numpy(np.maximum(used.numpy() * factor, least))

    def _reached(self, arrived: Tensor) -> Reached:
        """(k, state, rows) for the times of the grid where rows ``arrived``; their next targets are
        set.
        """
        before, self.target = self.target, self.target + arrived
        return _frames(arrived, before, self.x, self.rows)

    def _leave(self, finished: Tensor, stuck: Tensor) -> None:
        """Let go who has arrived at the end, and who failed."""
        bad = (
            self.problem.monitor.bad[self.rows if self.problem.rows is None else self.problem.rows]
            & ~finished
        )
        gone = finished | bad | stuck
        if bool(gone.any()):
            if not bool(finished[gone].all()):
                self._fail(bad, Status.NETWORK_NOT_FINITE)
                self._fail(stuck & ~bad, Status.STEP_TOO_SMALL)
            self._drop(gone)

    def _fail(self, mask: Tensor, status: Status) -> None:
        self.failures += [
            Failure(sample, status, t)
            for sample, t in zip(self.rows[mask].tolist(), self.t[mask].tolist(), strict=True)
        ]

    def _drop(self, mask: Tensor) -> None:
        """Take the rows of ``mask`` out of the batch, their states into the result."""
        if not bool(mask.any()):
            return
        gone, stay = torch.nonzero(mask).flatten(), torch.nonzero(~mask).flatten()
        self.final[self.rows[gone].to(self.final.device)] = self.x[gone.to(self.x.device)]
        there = stay.to(self.x.device)
        self.x, self.state = self.x[there], tuple(part[there] for part in self.state)
        for name in self.columns:
            setattr(self, name, getattr(self, name)[stay])
        self.problem = self.whole.take(self.rows)

    def cap(self, max_nfe: int) -> None:
        if (
            self.problem.monitor.evaluations.most + self.solver.evaluations * self.problem.cost
            <= max_nfe
        ):
            return
        seen = self.rows if self.problem.rows is None else self.problem.rows
        cost = self.solver.evaluations - (1 - self.moved.long() if self.solver.begins else 0)
        over = self.problem.monitor.evaluations.total[seen] + cost * self.problem.cost > max_nfe
        self._fail(over, Status.MAX_NFE)
        self._drop(over)


def _frames(
    arrived: Tensor, target: Tensor, x: Tensor, rows: Tensor
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    for k in target[arrived].unique().tolist():
        here = torch.nonzero(arrived & (target == k)).flatten()
        yield k, x[here.to(x.device)], rows[here]


def _choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

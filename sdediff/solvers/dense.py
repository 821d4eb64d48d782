"""The states of a solve between its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import along, expand
from sdediff.solvers.given import reals
from sdediff.solvers.noise import Noise, Silence
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver

__all__ = ["Cubic", "Dense", "Segments", "Shortened", "Within"]


class Segments(NamedTuple):
    """Accepted steps, one a row: whose they are, from (t, x) to (s, y), with the solver's state at
    t.
    """

    sample: Tensor
    t: Tensor
    s: Tensor
    x: Tensor
    y: Tensor
    state: tuple[Tensor, ...] = ()

    def take(self, rows: Tensor) -> Segments:
        """Some of them, int64 (k,) on the host."""
        there = rows.to(self.x.device)
        state = tuple(part[there] for part in self.state)
        return Segments(
            self.sample[rows], self.t[rows], self.s[rows], self.x[there], self.y[there], state
        )


def joined(steps: Sequence[Segments]) -> Segments:
    """Steps, one after another, as one."""
    sample, t, s, x, y, states = zip(*steps, strict=True)
    state = tuple(torch.cat(parts) for parts in zip(*states, strict=True))
    return Segments(
        torch.cat(sample), torch.cat(t), torch.cat(s), torch.cat(x), torch.cat(y), state
    )


class Within(Protocol):
    """How the states within steps are found."""

    @property
    def order(self) -> float:
        """Their error falls as this power of the step, without noise."""

    def __call__(self, part: Segments) -> Callable[[Tensor], Tensor]:
        """The states (rows, *event) at times (rows,), each within its own step."""


class Shortened:
    """The solver's own step, from the start of the step to the time asked for: of its order, for
    its evaluations at each time.
    """

    def __init__(self, problem: Problem, solver: Solver, noise: Noise | None) -> None:
        self.problem, self.solver, self.noise = problem, solver, noise

    @property
    def order(self) -> float:
        """That of the solver."""
        return self.solver.deterministic_order

    def __call__(self, part: Segments) -> Callable[[Tensor], Tensor]:
        problem, solver = self.problem.take(part.sample), self.solver
        noise = self.noise
        own = Silence(solver) if noise is None else noise.take(part.sample).at(0)

        def at(t: Tensor) -> Tensor:
            plan = solver.plan(problem, torch.stack([part.t, t]))[0]
            found = solver.step(problem, part.x, plan, own, part.state).x
            return _ends(part, t, found)

        return at


class Cubic:
    """The cubic polynomial with the states and the slopes at both ends (Hermite's), for drivers
    that have no step of ours: its error is O(h^4), for two evaluations a step.
    """

    order = 4.0

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __call__(self, part: Segments) -> Callable[[Tensor], Tensor]:
        problem = self.problem.take(part.sample)
        h = part.s - part.t
        length = expand(h, part.x)
        first = length * problem.drift(part.x, part.t)
        last = length * problem.drift(part.y, part.s)

        def at(t: Tensor) -> Tensor:
            r = expand((t - part.t) / h, part.x)
            rise = part.y - part.x
            bend = (1 - r) * (first - rise) + r * (rise - last)
            return _ends(part, t, part.x + r * rise + r * (1 - r) * bend)

        return at


def _ends(part: Segments, t: Tensor, found: Tensor) -> Tensor:
    """The states ``found`` at t, but those that are known at the ends."""
    found = torch.where(along(t == part.s, found), part.y, found)
    return torch.where(along(t == part.t, found), part.x, found)


class Dense:
    """The states of a solve at any times between its ends: a function of times.

    `order` is the power of the step that their error falls with. Where a sample has ended, by an
    event or a failure, its last state stays. Evaluations are counted in no result.
    """

    def __init__(
        self, steps: Sequence[Segments], within: Within, x: Tensor, times: Tensor, *, grad: bool
    ) -> None:
        self._start, self._within, self._grad = x, within, grad
        self.times = times
        self._sign = -1.0 if len(times) > 1 and bool((times[-1] < times[0]).all()) else 1.0
        self._steps: Segments | None = None
        self._counts = torch.zeros(len(x), dtype=torch.int64)
        if steps and len(x):
            found = joined(steps)
            self._steps = found.take(found.sample.argsort(stable=True))
            self._counts = torch.bincount(found.sample, minlength=len(x))
            self._first = self._counts.cumsum(0) - self._counts
            most = torch.arange(int(self._counts.max()))
            self._ends = torch.full((len(x), len(most)), torch.inf, dtype=torch.float64)
            there = most < self._counts[:, None]
            self._ends[there] = self._sign * self._steps.s.detach()

    @property
    def order(self) -> float:
        """The error of the states falls as the step to this power, without noise."""
        return self._within.order

    def __call__(self, t: float | Sequence[float] | Tensor) -> Tensor:
        """The states at ``t``: (B, *event) at a number, (K, B, *event) at times (K,), or (K, B)
        where every sample has its own.

        Raises a ValueError for times that are not between the ends of the grid.
        """
        given = reals("t", t).cpu()
        samples = len(self._start)
        if given.ndim > 2 or (given.ndim == 2 and given.shape[1] != samples):
            raise ValueError(
                f"times must be a number, (K,) or (K, {samples}); got {tuple(given.shape)}"
            )
        asked = given.reshape(-1, 1) if given.ndim < 2 else given
        asked = asked.expand(-1, samples)
        low, high = self.times[[0, -1]].detach().sort(dim=0).values
        # float32 of an end, as torch.linspace(0, 0.1, 5) has it, is that end
        kind = t.dtype if isinstance(t, Tensor) and t.is_floating_point() else torch.float64
        wrong = ~((asked >= low.to(kind)) & (asked <= high.to(kind)))
        if bool(wrong.any()):
            raise ValueError(
                f"the solve goes from {float(self.times[0].min()):g} to "
                f"{float(self.times[-1].max()):g}, and t = {float(asked[wrong][0]):g} is not "
                "between them"
            )
        with torch.set_grad_enabled(self._grad):
            out = self._found(asked.clamp(low, high))
        return out if given.ndim else out[0]

    def _found(self, asked: Tensor) -> Tensor:
        out = self._start.expand(len(asked), *self._start.shape)
        if self._steps is None or not asked.numel():
            return out.clone()
        number = torch.searchsorted(self._ends, (self._sign * asked).T.contiguous()).T
        number = torch.minimum(number, self._counts - 1)
        rows = (self._first + number).reshape(-1)
        there = (self._counts > 0).expand(len(asked), -1).reshape(-1).nonzero().flatten()
        part = self._steps.take(rows[there])
        time = self._sign * torch.minimum(
            self._sign * asked.reshape(-1)[there], self._sign * part.s.detach()
        )
        flat = out.reshape(-1, *self._start.shape[1:])
        return flat.index_copy(0, there.to(flat.device), self._within(part)(time)).reshape(
            out.shape
        )

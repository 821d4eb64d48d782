"""Grids by dynamic programming over measured local errors, and grids that gradients can move."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.modules import evaluating
from sdediff.sde import LinearSDE
from sdediff.solvers import DDIM, Problem, Solver, White, expand, rowwise, seeds
from sdediff.tuning.trials import Trials
from sdediff.tuning.unrolled import unrolled

__all__ = ["LocalErrors", "Moving", "cheapest", "fine_grid"]

_FARTHEST: Final = 20.0
_SMALL: Final = 1e-4
"""Of a difference of states, relative to them."""
_ROUNDINGS: Final = 500.0
"""Of this difference at least, in units of the rounding of the network: of one in half precision it
is larger.
"""
_ROWS: Final = 128
"""At most so many trajectories are looked at for the grid."""


class Moving:
    """Grids (N + 1,) as a function of N numbers, 0 for the one given.

    The times are taken in p = 1 / (1 + exp(-(l - c) / w)), l the log-SNR, as the grid ``"central"``
    has them. The softmax of the logarithms of the intervals plus the numbers keeps them in order,
    whatever the numbers are. The first time stays where it is; the last one too, unless it may fall
    short of there (``short``), by one more number that has no effect below 0: for a result that is
    denoised.
    """

    def __init__(self, sde: LinearSDE, times: Tensor, *, short: bool) -> None:
        self.sde = sde
        self.times = times
        self.short = short
        steps = len(times) - 1
        self.centre, self.width = min(0.75, 15 / steps), 3 + 2 / steps
        levels = sde.log_snr(times).nan_to_num(posinf=_FARTHEST, neginf=-_FARTHEST)
        self.places = torch.sigmoid((levels - self.centre) / self.width)
        self.logs = self.places.diff().log()
        moved = slice(1, None) if short else slice(1, -1)
        self._offset = times[moved] - self._at(self.places[moved])

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self.times) - 1 + self.short

    def __call__(self, numbers: Tensor) -> Tensor:
        """The grid, differentiable in ``numbers`` (size,)."""
        steps = len(self.times) - 1
        whole = self.places[-1] - self.places[0]
        if self.short:
            whole = whole * torch.exp(-numbers[-1].clamp(min=0))
        shares = torch.softmax(self.logs + numbers[:steps], dim=0).cumsum(dim=0)
        inner = self.places[0] + whole * (shares if self.short else shares[:-1])
        ends = [] if self.short else [self.times[-1:]]
        return torch.cat([self.times[:1], self._at(inner) + self._offset, *ends])

    def _at(self, places: Tensor) -> Tensor:
        if not len(places):
            return places
        return self.sde.time_of(self.centre + self.width * torch.logit(places))


def fine_grid(sde: LinearSDE, times: Tensor, count: int) -> Tensor:
    """``count`` times between the first and the last of ``times``, at equal distances in the place
    that they have along the grid, so that all of its intervals are divided alike; the ends are
    exact.
    """
    moving = Moving(sde, times, short=False)
    steps = len(times) - 1
    at = torch.linspace(0, steps, count, dtype=torch.float64)[1:-1]
    low = at.floor().long().clamp(max=steps - 1)
    places = moving.places[low] + (at - low) * moving.places.diff()[low]
    inner = moving._at(places)
    return torch.cat([times[:1], inner, times[-1:]])


@dataclass(frozen=True, eq=False)
class LocalErrors:
    """What is known along exact trajectories, from which the local errors of any solver follow
    without another evaluation.

    ``products`` (rows, 2n - 1, 2n - 1): the mean over the event of the products of all pairs of the
    states at the n ``times`` and of the data predictions at all but the last of them.
    ``growth`` (n, rows): of a small difference, from each of the times to the end.
    """

    sde: LinearSDE
    times: Tensor
    products: Tensor
    growth: Tensor

    @classmethod
    def measured(cls, trials: Trials, sde: LinearSDE) -> LocalErrors:
        """By 2 (n - 1) evaluations at the exact states of at most 128 of the trials."""
        few = trials.part(slice(0, _ROWS))
        states, times = few.states, few.times
        if states is None or times is None:
            raise ValueError("the trials have no states along a grid")
        problem = few.problem(torch.arange(len(few)))
        steps = torch.stack([times[:-1], times[1:]])
        neighbours = unrolled(DDIM(), sde, steps, denoise=False).rows[1].tolist()
        with torch.no_grad(), evaluating(few.solving.model):
            entries = problem.at(times[:-1], "data")
            data = [problem.evaluate(states[i], each) for i, each in enumerate(entries)]
            growth = _growth(problem, entries, states, data, neighbours)
        products = []
        for row in range(len(few)):
            known = (each[row].flatten() for each in (*states, *data))
            flat = torch.stack([each.cpu().double() for each in known])
            products.append(flat @ flat.T / flat.shape[1])
        return cls(sde, times, torch.stack(products), growth.cpu().double())

    def of(self, solver: Solver) -> Tensor:
        """(n, n, n): what two steps of ``solver``, from the exact state at time i by time j to time
        k, i < j < k, contribute to the error at the end: the mean over rows of the error at k
        times the growth from there.

        With two steps a multistep method has a history, and a corrector its effect. At i = j = 0
        the first step alone, from time 0 to time k. Infinite for other i, j, k; all of it where two
        steps make other than two evaluations.
        """
        count = len(self.times)
        cost = torch.full((count, count, count), torch.inf, dtype=torch.float64)
        i, j, k = torch.combinations(torch.arange(count), 3).T
        scheme = unrolled(solver, self.sde, self.times[torch.stack([i, j, k])], denoise=False)
        if len(scheme.times) != 2:
            return cost
        cost[i, j, k] = self._error(scheme.rows[2], torch.stack([i, count + i, count + j, k]))
        ends = torch.arange(1, count)
        begin = torch.zeros_like(ends)
        first = unrolled(solver, self.sde, self.times[torch.stack([begin, ends])], denoise=False)
        cost[0, 0, ends] = self._error(first.rows[1], torch.stack([begin, count + begin, ends]))
        return cost

    def _error(self, numbers: Tensor, places: Tensor) -> Tensor:
        """Of sums with ``numbers`` (m, p) of what is at the first p of ``places`` (p + 1, m), less
        the state at the last of them.
        """
        weights = torch.cat([numbers, -torch.ones_like(numbers[:, :1])], dim=1)
        square = torch.zeros(len(self.products), len(weights), dtype=torch.float64)
        for p, q in itertools.product(range(len(places)), repeat=2):
            weight = weights[:, p] * weights[:, q]
            square += weight * self.products[:, places[p], places[q]]
        return (square.clamp(min=0).sqrt() * self.growth[places[-1]].T).mean(dim=0)


def _growth(
    problem: Problem,
    entries: Sequence[Any],
    states: Tensor,
    data: list[Tensor],
    steps: list[list[float]],
) -> Tensor:
    """(n, rows): how much larger a small difference of ``states`` (n, rows, *event) at each of the
    times is at the end, root mean square over the event and over directions.

    That of J z for random z, J the Jacobian of the flow from there to the end, is that of J^T z. A
    step x -> a x + b D(x) has the Jacobian a + b D'. D' is symmetric where D is E[x_0 | x], whose
    slope is a covariance, and nearly so for networks; so J^T z follows from a difference of D at
    each of the times.

    ``data``: D of all states but the last. ``steps``: a and b of the steps from them to the next.
    """
    ends = states[-1]
    noise = White(seeds(0, len(ends)), ends.shape[1:], dtype=ends.dtype, device=ends.device)
    w = noise.at(0).normal("prior")
    found = [_size(w)]
    known = zip(steps, states[:-1], data, entries, strict=True)
    small = max(_SMALL, _ROUNDINGS * problem.rounding)
    for (a, b), x, answer, entry in reversed(list(known)):
        share = small * expand(_size(x) / found[-1], w)
        w = a * w + b * (problem.evaluate(x + share * w, entry) - answer) / share
        found.append(_size(w))
    return torch.stack(found[::-1]) / found[0]


def _size(x: Tensor) -> Tensor:
    """The root mean square over the event, (rows,); not 0."""
    return rowwise(x).square().mean(dim=1).sqrt().clamp(min=torch.finfo(x.dtype).tiny)


def cheapest(cost: Tensor, steps: int) -> list[int]:
    """The places 0 = i_0 < i_1 < ... < i_steps = n - 1 with the least sum of ``cost`` (n, n, n)
    over (0, 0, i_1) and all neighbours (i_m, i_{m+1}, i_{m+2}), by dynamic programming in O(steps
    n^3).
    """
    count = len(cost)
    if not 1 <= steps < count:
        raise ValueError(f"steps must be from 1 to {count - 1}, for {count} places; got {steps}")
    i, j, k = (torch.arange(count).reshape(shape) for shape in ((-1, 1, 1), (-1, 1), (-1,)))
    allowed = torch.where((i < j) & (j < k), cost, torch.inf)
    best = torch.full((count, count), torch.inf, dtype=cost.dtype)  # of the last two places
    best[0, 1:] = cost[0, 0, 1:]
    before = []
    for _ in range(steps - 1):
        best, place = (best[:, :, None] + allowed).min(dim=0)
        before.append(place)
    path = [count - 1, int(best[:, -1].argmin())]
    for place in reversed(before):
        path.append(int(place[path[-1], path[-2]]))
    return path[::-1]

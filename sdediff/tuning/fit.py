"""A scheme whose times and numbers are moved down the gradient of its errors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.nn import functional

from sdediff.modules import evaluating
from sdediff.processes import current, part_size
from sdediff.sde import LinearSDE
from sdediff.solvers import Solver
from sdediff.tuning.grids import Moving
from sdediff.tuning.guard import bounds
from sdediff.tuning.trials import Trials
from sdediff.tuning.unrolled import Scheme, follow, unrolled

__all__ = ["Adjusted", "Best", "Descent", "before", "has_gradients", "score"]

_STEP: Final = 0.02
"""What a unit of a number moves a state by, in standard deviations of the data."""
_RIDGE: Final = 1e-6
"""Directions in which states hardly differ take larger numbers than others, but not without end."""
_LOW, _HIGH = 0.5, 2.0
_RESAMPLES: Final = 500
"""Of a look at the starts that are held out for choosing."""
_ROUND: Final = 10
"""Iterations between two looks at the starts that are held out for choosing; fewer where the time
that is left is not enough for so many.
"""
_MOST: Final = 50
"""Rounds at most."""
_PATIENCE: Final = 12
"""Rounds without a better choice after which there is no more to gain."""


class Adjusted:
    """The schemes near that of a solver: its times, and with ``all`` also each coefficient of each
    state, are numbers that are 0 for the solver itself.
    """

    def __init__(
        self, solver: Solver, sde: LinearSDE, times: Tensor, trials: Trials, *, every: bool
    ) -> None:
        self.solver = solver
        self.sde = sde
        self.denoise = trials.denoise
        self.moving = Moving(sde, times, short=self.denoise)
        self.places = torch.zeros(self.moving.size, dtype=torch.float64, requires_grad=True)
        self.rows: list[Tensor] = []
        self._directions: list[Tensor] = []
        if every:
            with torch.no_grad(), evaluating(trials.solving.model):
                self._directions = current().once(lambda: self._whitened(trials))
            self.rows = [
                torch.zeros(len(each), dtype=torch.float64, requires_grad=True)
                for each in self._directions
            ]

    @property
    def numbers(self) -> list[Tensor]:
        """All that can be moved."""
        return [self.places, *self.rows]

    def scheme(self) -> Scheme:
        """The scheme of the numbers as they are, differentiable in them."""
        times, rows = unrolled(
            self.solver, self.sde, self.moving(self.places), denoise=self.denoise
        )
        shifts = [
            functional.pad(_STEP * directions @ numbers, (0, len(rows) - len(numbers)))
            for directions, numbers in zip(self._directions, self.rows, strict=True)
        ]
        if shifts:
            rows = rows + torch.stack([torch.zeros_like(rows[0]), *shifts])
        return Scheme(times, rows)

    def _whitened(self, trials: Trials) -> list[Tensor]:
        """For each state after the first, directions of its coefficients that move it by 1 each,
        root mean square over the trials' first batch, and independently.
        """
        scheme = self.scheme()
        places = torch.arange(part_size(len(trials), trials.solving.batch_size))
        x = trials.x[places.to(trials.x.device)]
        known, _ = follow(trials.problem(places), scheme, x)
        flat = torch.stack([each.reshape(-1).cpu().double() for each in known])
        flat = flat[:, torch.isfinite(flat).all(dim=0)]
        products = flat @ flat.T / max(flat.shape[1], 1)
        found = []
        for k in range(1, len(scheme.rows)):
            own = products[: k + 1, : k + 1]
            size = own.diagonal().sqrt().clamp(min=torch.finfo(torch.float32).eps)
            own = own / size / size[:, None] + _RIDGE * torch.eye(k + 1, dtype=torch.float64)
            root = torch.linalg.cholesky(own)
            found.append(torch.linalg.inv(root).T / size[:, None])
        return found


@dataclass(frozen=True)
class Best:
    """The scheme that is best on the starts held out for choosing."""

    scheme: Scheme
    score: float


def score(errors: Tensor, of_start: Tensor) -> float:
    """The sum of the logs of the ratios of medians and of 90th percentiles, and much more where
    either is not surely below 1: the least is chosen.
    """
    if not bool(torch.isfinite(errors.quantile(0.9))):
        return math.inf
    median, high = bounds(errors, of_start, resamples=_RESAMPLES).values()
    unsure = sum(max(math.log(each.upper), 0.0) for each in (median, high) if each.upper > 0)
    tiny = torch.finfo(torch.float64).tiny
    return math.log(max(median.ratio, tiny)) + math.log(max(high.ratio, tiny)) + 10 * unsure


def loss(squares: Tensor, tail: float) -> Tensor:
    """The logarithms of two means of the errors by power: one of a low power, for the median, and
    ``tail`` times one of the second, for the 90th percentile.
    """
    squares = squares + torch.finfo(torch.float32).tiny
    low = squares.pow(_LOW / 2).mean().log() / _LOW
    return low + tail * squares.pow(_HIGH / 2).mean().log() / _HIGH


class _NotFiniteError(Exception):
    """A gradient is not finite, in the middle of a round."""


class Descent:
    """`loss` over ``trials`` minimised by L-BFGS, a while at a time.

    ``best``: the best by ``judge``, at the beginning the scheme that it begins with.
    ``over``: ``judge`` found nothing better for long, or ``lost``, a gradient is not finite.
    ``takes``: the seconds that an iteration takes, once known.
    """

    def __init__(
        self,
        adjusted: Adjusted,
        trials: Trials,
        judge: Callable[[Scheme], float],
        best: Best,
        *,
        tail: float,
        takes: float | None = None,
    ) -> None:
        self.adjusted = adjusted
        self.trials = trials
        self.judge = judge
        self.best = best
        self.tail = tail
        self.takes = takes
        self.over = self.lost = False
        self._rounds = self._waited = 0
        self._optimizer = torch.optim.LBFGS(
            adjusted.numbers,
            max_iter=_ROUND,
            history_size=50,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

    def go_on(self, deadline: float, show: Callable[[str], None]) -> None:
        """Until it is over, or another iteration would not end before ``deadline``, as
        `time.monotonic` has it.
        """
        with torch.enable_grad(), evaluating(self.trials.solving.model):
            while not self.over and (count := current().once(lambda: self._fitting(deadline))):
                began = time.monotonic()
                self._round(count)
                self.takes = (time.monotonic() - began) / count
                show(f"{len(self.best.scheme.times)} evaluations, score {self.best.score:.3f}")

    def _fitting(self, deadline: float) -> int:
        """How many iterations the next round has: one if it is not known how long that takes."""
        left = deadline - time.monotonic()
        if left <= 0 or self.takes is None:
            return int(left > 0)
        return min(_ROUND, int(left / max(self.takes, 1e-9)))

    def _round(self, count: int) -> None:
        self._optimizer.param_groups[0]["max_iter"] = count
        try:
            self._optimizer.step(self._closure)
        except _NotFiniteError:
            self.over = self.lost = True
            return
        self._rounds += 1
        self._waited += 1
        now = _fixed(self.adjusted.scheme())
        found = self.judge(now)
        if found < self.best.score:
            self._waited = 0 if found < self.best.score - 1e-3 else self._waited
            self.best = Best(now, found)
        self.over = self._waited >= _PATIENCE or self._rounds >= _MOST

    def _closure(self) -> Tensor:
        value = _with_gradients(self.adjusted, self.trials, self.tail)
        gradients = torch.cat([cast(Tensor, each.grad) for each in self.adjusted.numbers])
        if not bool(torch.isfinite(gradients).all()):
            raise _NotFiniteError
        return value


def before(deadline: float) -> bool:
    """Whether it is earlier, by the clock of the first process."""
    return current().once(lambda: time.monotonic() < deadline)


def _with_gradients(adjusted: Adjusted, trials: Trials, tail: float) -> Tensor:
    """The loss, with its gradients beside the numbers; by batches where there are several, so that
    the graph of one alone is kept.
    """
    numbers = adjusted.numbers
    scheme = adjusted.scheme()
    if current().count == 1 and len(trials) <= trials.solving.batch_size:
        value = loss(trials.squares(scheme), tail)
        found = torch.autograd.grad(value, numbers, allow_unused=True)
    else:
        with torch.no_grad():
            squares = torch.cat(trials.in_batches(lambda rows: trials.squares(scheme, rows)))
        squares = squares.requires_grad_()
        value = loss(squares, tail)
        (slopes,) = torch.autograd.grad(value, squares)
        leaves = [each.detach().requires_grad_() for each in scheme]

        def pulled(rows: Tensor) -> tuple[Tensor, ...]:
            part = trials.squares(Scheme(*leaves), rows) @ slopes[rows.to(slopes.device)]
            return torch.autograd.grad(part, leaves)

        parts = trials.in_batches(pulled)
        sums = [torch.stack(each).sum(dim=0) for each in zip(*parts, strict=True)]
        found = torch.autograd.grad(list(scheme), numbers, sums, allow_unused=True)
    for number, gradient in zip(numbers, found, strict=True):
        number.grad = torch.zeros_like(number) if gradient is None else gradient
    return value.detach()


def _fixed(scheme: Scheme) -> Scheme:
    return Scheme(*(each.detach().clone() for each in scheme))


def has_gradients(trials: Trials, scheme: Scheme) -> bool:
    """Whether the model's own answer has a gradient to its state: of two rows, by one
    evaluation.
    """
    places = torch.arange(min(2, len(trials)))
    problem = trials.problem(places)
    x = trials.x[places.to(trials.x.device)].clone().requires_grad_()
    with torch.enable_grad(), evaluating(trials.solving.model):
        said: Any = problem.outputs(x, problem.at(scheme.times[:1], "data")[0])
        answer: Tensor = said.raw
        if not answer.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(answer.sum(), x, allow_unused=True)
    return gradient is not None

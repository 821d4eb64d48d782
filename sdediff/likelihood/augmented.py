"""The probability flow with the log-density as a part of its state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

import torch
from torch import Tensor

from sdediff.likelihood.divergence import Divergence, Products
from sdediff.reverse import Reverse
from sdediff.solvers import Problem, rowwise
from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.coefficients import Coef
from sdediff.solvers.masked import kept
from sdediff.solvers.variable import slopes, variable_of

__all__ = ["Augmented"]


_WEIGHT: Final = 10.0
"""Of the error of l, beside that of y. A step is accepted with an error up to the tolerance, and
errors add up: with weight 1 the log-density of 8 of 18 mixtures by DOP853 was off by more than the
tolerance times d (by 5 times at most), with 10 that of none, for a fifth more evaluations.
"""


class _At(NamedTuple):
    flow: Any  # the flow's entry for dy / du
    scale: Coef  # x / y
    keep: Coef
    push: Coef


class Augmented(Problem):
    """dy / du of the flow in a `Variable`, dl / du = tr(d(dy / du) / dy) / d: states (rows, d + k)
    of y = x / c, flat, and of k estimates of l.

    d log p_t(x_t) / dt = -div drift along the path (Chen et al. 2018, arXiv 1806.07366, Theorem 1;
    Song et al. 2021, arXiv 2011.13456, eq. 39). With c = sqrt((r alpha)^2 + sigma^2), y and its
    log-density stay of the size of 1 where those of x do not, and in the angle u = arctan(sigma /
    (r alpha)), which takes the place of time, the flow is smooth: dy / du is 0 for data from N(0,
    r^2). So log p at the start is log p at the end plus d (l + log c_end - log c_start). Without a
    Gaussian kernel u = t, c = 1, and the drift is dy / du. One evaluation of the network serves
    both equations. Solvers keep the error of y below their tolerance and that of l below a tenth of
    it. Under a mask d counts what exists.
    """

    offers = frozenset({"drift"})

    def __init__(
        self, flow: Reverse, divergence: Divergence, event: torch.Size, times: Tensor
    ) -> None:
        self.monitor = flow.monitor
        self.flow = flow
        self.divergence = divergence
        self.event = event
        self.d = event.numel()
        self.mask = flow.mask
        self.unit = flow.unit
        self.rounding = flow.rounding
        self.cost = flow.cost
        self.variable = variable_of(flow, "angle" if flow.linear else "t")
        self.times, self.u = times, self.variable.value(times)
        passed = torch.tensor(
            [t for t in flow.breaks if times[0] < t < times[-1]], dtype=torch.float64
        )
        self._passed = dict(zip(self.variable.value(passed).tolist(), passed.tolist(), strict=True))
        self.breaks = tuple(self._passed)  # in u
        self.parts = ((self.d, 1.0), (divergence.channels, _WEIGHT))
        self.single: list[bool] = []
        self.known: list[bool] = []  # that the network's output has a gradient
        size = self.d + divergence.channels
        self.like = None if flow.like is None else flow.like._replace(event=torch.Size((size,)))

    def time(self, u: Tensor) -> Tensor:
        """t at u, between the ends of ``times``."""
        return self.variable.time(u).clamp(min=float(self.times[0]), max=float(self.times[-1]))

    def start(self, x: Tensor) -> Tensor:
        """The state at x (rows, *event) and the first of ``times``, l = 0."""
        return torch.cat(
            [
                rowwise(x) / self._scale(self.times[0]),
                x.new_zeros(len(x), self.divergence.channels),
            ],
            dim=1,
        )

    def end(self, y: Tensor) -> Tensor:
        """x at the last of ``times``, flat, and log p at the first less log p at the last: (rows, d
        + k).
        """
        first, last = self._scale(self.times[0]), self._scale(self.times[-1])
        scaled = math.log(last / first)
        found = self._existing * (y[:, self.d :] + scaled)
        estimated = self.divergence.of_identity
        if estimated is not None:
            found = found + (estimated - self._existing) * scaled
        return torch.cat([last * y[:, : self.d], found], dim=1)

    @property
    def _existing(self) -> int | Tensor:
        """How many coordinates of an event exist: d, or (rows, 1) under a mask."""
        return self.d if self.mask is None else rowwise(self.mask).sum(dim=1, keepdim=True)

    def _scale(self, t: Tensor) -> float:
        scale = self.variable.scale(t)
        return 1.0 if scale is None else float(scale)

    def at(
        self, times: Tensor, quantity: str, keep: Number = 0.0, push: Number = 1.0
    ) -> Sequence[_At]:
        """Evaluations of the flow at the times t of these."""
        t = self.time(times)
        scale = self.variable.scale(t)
        flows = slopes(self.flow, self.variable, t)
        (scales,) = self.flow.coefs(len(times), 1.0 if scale is None else scale)
        ours = self.coefs(len(times), keep, push)
        return [_At(*row) for row in zip(flows, scales, *ours, strict=True)]

    def within(self, piece: tuple[float, float] | None, grid: Tensor) -> Self:
        """The flow too between two of its own breaks, in t."""
        part = super().within(piece, grid)
        if piece is not None:
            ends = [
                self._passed.get(u, float(t))
                for u, t in zip(piece, self.times[[0, -1]], strict=True)
            ]
            around, middle = (-math.inf, *self.flow.breaks, math.inf), 0.5 * sum(ends)
            own = max(t for t in around if t < middle), min(t for t in around if t > middle)
            part.flow = self.flow.within(own, self.time(grid))
        return part

    def take(self, rows: Tensor) -> Self:
        part = super().take(rows)
        part.flow, part.divergence = self.flow.take(rows), self.divergence.take(rows)
        return part

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """(dy / du, dl / du) at u = t."""
        return self.evaluate(x, self.at(t[None], "drift")[0])

    def evaluate(self, x: Tensor, at: _At) -> Tensor:
        differentiable = torch.is_grad_enabled()
        y = x[:, : self.d].reshape(-1, *self.event)
        with torch.enable_grad():
            y = y if differentiable and y.requires_grad else y.detach().requires_grad_()
            state = kept(weighted((at.scale, y)), self.mask)
            found = self.flow.outputs(state, at.flow)
            self._check(at, state, found.extras["raw"])
        slope = found.value
        products = Products(slope, y, differentiable=differentiable, single=self.single)
        trace = self.divergence(products, rowwise(y.detach()))
        slope = slope if differentiable else slope.detach()
        drift = torch.cat([rowwise(slope), trace / self._existing], dim=1)
        if self.monitor.watch:
            self.monitor.look(x, drift, self.rows)
        return weighted((at.keep, x), (at.push, drift))

    def _check(self, at: _At, x: Tensor, out: Tensor) -> None:
        """A ValueError if the network's output changes with x and has no gradient that would say
        how.
        """
        if self.known:
            return
        self.known.append(True)
        if out.requires_grad:
            (found,) = torch.autograd.grad(
                out, x, torch.ones_like(out), retain_graph=True, allow_unused=True
            )
            if found is not None:
                return
        with torch.no_grad():
            moved = self.flow.peek(1.5 * x.detach() + 0.125, at.flow)
        if not torch.equal(moved, out.detach()):
            raise ValueError(
                "the network's output changes with x but has no gradient with respect to it, so "
                "that its divergence is not known: "
                "take out torch.no_grad, .detach() or numpy from its forward pass"
            )

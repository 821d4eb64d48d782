"""The probability flow with the log-density as a part of its state."""

from __future__ import annotations

import math
from typing import Final, Self

import torch
from torch import Tensor

from sdediff.likelihood.divergence import Divergence, Products
from sdediff.reverse import Reverse
from solvers import Problem, expand, rowwise

__all__ = ["Augmented"]


_WEIGHT: Final = 10.0
"""Of the error of l, beside that of y. A step is accepted with an error up to the tolerance, and errors add up: with weight 1 the
log-density of 8 of 18 mixtures by DOP853 was off by more than the tolerance times d (by 5 times at most), with 10 that of none, for a
fifth more evaluations."""


class Augmented(Problem):
    """dy / dt = drift(c y, t) / c - r y, dl / dt = tr(d drift / dx) / d - r: states (rows, d + k) of y, flat, and of k estimates of l.

    d log p_t(x_t) / dt = -div drift along the path (Chen et al. 2018, arXiv 1806.07366, Theorem 1; Song et al. 2021,
    arXiv 2011.13456, eq. 39). It is solved for y = x / c, with c = sqrt(alpha^2 + sigma^2) and r = d log c / dt, because y and l stay
    of the size of 1 where x and log p do not: log p at the start is log p at the end plus d (l + log c_end - log c_start). Without
    a Gaussian kernel c = 1. One evaluation of the network serves drift and divergence. Solvers keep the error of y
    below their tolerance and that of l below a tenth of it.
    """

    offers = frozenset({"drift"})

    def __init__(self, flow: Reverse, divergence: Divergence, event: torch.Size) -> None:
        super().__init__(flow.monitor.samples)
        self.flow, self.divergence, self.event, self.d = flow, divergence, event, event.numel()
        self.parts = ((self.d, 1.0), (divergence.channels, _WEIGHT))
        self.single: list[bool] = []
        self.known: list[bool] = []  # that the network's output has a gradient

    def start(self, x: Tensor, t: Tensor) -> Tensor:
        """The state at x (rows, *event) and one time t, l = 0."""
        return torch.cat([rowwise(x) / self.flow.scale(t, x)[0], x.new_zeros(len(x), self.divergence.channels)], dim=1)

    def end(self, y: Tensor, times: Tensor) -> Tensor:
        """x at the last of ``times``, flat, and log p at the first less log p at the last: (rows, d + k)."""
        (first, _), (last, _) = self.flow.scale(times[0], y), self.flow.scale(times[-1], y)
        return torch.cat([last * y[:, : self.d], self.d * (y[:, self.d :] + math.log(last / first))], dim=1)

    def prepare(self, times: Tensor) -> tuple[Tensor, ...]:
        """The flow's."""
        return self.flow.prepare(times)

    def take(self, rows: Tensor) -> Self:
        """Some of the rows, with their probes and conditions."""
        part = super().take(rows)
        part.flow, part.divergence = self.flow.take(rows), self.divergence.take(rows)
        return part

    def drift(self, y: Tensor, t: Tensor) -> Tensor:
        """(dy / dt, dl / dt)."""
        differentiable = torch.is_grad_enabled()
        u = y[:, : self.d].reshape(-1, *self.event)
        entry, (c, rate) = self.flow.entry("drift", u, t), self.flow.scale(t, u)
        with torch.enable_grad():
            u = u if differentiable and u.requires_grad else u.detach().requires_grad_()
            x = expand(c, u) * u
            out = self.flow.respond(entry, x)
            self._check(entry, x, out)
            slope = self.flow.joined("drift", entry, x, t, out, -rate / c, 1 / c)
        products = Products(slope, u, differentiable=differentiable, single=self.single)
        trace = self.divergence(products, rowwise(u.detach()))
        slope = slope if differentiable else slope.detach()
        return self.seen(y, torch.cat([rowwise(slope), trace / self.d], dim=1))

    def _check(self, entry: tuple[object, ...], x: Tensor, out: Tensor) -> None:
        """A ValueError if the network's output changes with x and has no gradient that would say how."""
        if self.known:
            return
        self.known.append(True)
        if out.requires_grad:
            (found,) = torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True, allow_unused=True)
            if found is not None:
                return
        with torch.no_grad():
            moved = self.flow.respond(entry, 1.5 * x.detach() + 0.125)
        if not torch.equal(moved, out.detach()):
            raise ValueError(
                "the network's output changes with x but has no gradient with respect to it, so that its divergence is not known: "
                "take out torch.no_grad, .detach() or numpy from its forward pass"
            )

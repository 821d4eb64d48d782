"""The probability flow with the log-density as a part of its state."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from sdediff.likelihood.divergence import Divergence, Products
from sdediff.reverse import Reverse
from solvers import Problem, rowwise

__all__ = ["Augmented"]


class Augmented(Problem):
    """dx = drift dt, dl = div drift / d dt: states (rows, d + k) of x, flat, and of k estimates of the integral l a coordinate.

    d log p_t(x_t) / dt = -div drift along the path (Chen et al. 2018, arXiv 1806.07366, Theorem 1; Song et al. 2021,
    arXiv 2011.13456, eq. 39), so that log p at the start is log p at the end plus d l. One evaluation of the network serves drift
    and divergence. Solvers keep the errors of x and of l below their tolerances each by itself.
    """

    offers = frozenset({"drift"})

    def __init__(self, flow: Reverse, divergence: Divergence, event: torch.Size) -> None:
        super().__init__(flow.monitor.samples)
        self.flow, self.divergence, self.event, self.d = flow, divergence, event, event.numel()
        self.parts = (self.d, divergence.channels)
        self.single: list[bool] = []
        self.known: list[bool] = []  # that the network's output has a gradient

    def start(self, x: Tensor) -> Tensor:
        """The state at x (rows, *event), l = 0."""
        return torch.cat([rowwise(x), x.new_zeros(len(x), self.divergence.channels)], dim=1)

    def prepare(self, times: Tensor) -> tuple[Tensor, ...]:
        """The flow's."""
        return self.flow.prepare(times)

    def take(self, rows: Tensor) -> Self:
        """Some of the rows, with their probes and conditions."""
        part = super().take(rows)
        part.flow, part.divergence = self.flow.take(rows), self.divergence.take(rows)
        return part

    def drift(self, y: Tensor, t: Tensor) -> Tensor:
        """(drift, div drift / d)."""
        differentiable = torch.is_grad_enabled()
        x = y[:, : self.d].reshape(-1, *self.event)
        entry = self.flow.entry("drift", x, t)
        with torch.enable_grad():
            x = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            out = self.flow.respond(entry, x)
            self._check(entry, x, out)
            slope = self.flow.joined("drift", entry, x, t, out, 0.0, 1.0)
            products = Products(slope, x, differentiable=differentiable, single=self.single)
            with torch.set_grad_enabled(differentiable):
                trace = self.divergence(products, rowwise(x.detach()))
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

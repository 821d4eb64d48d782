"""The coefficient engine of the exponential integrators: everything but the network's prediction is
integrated exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from sdediff.solvers.exponential.forms import FARTHEST, Form, FormName, Points, form_of
from sdediff.solvers.problem import Problem
from sdediff.solvers.variable import VariableName

__all__ = [
    "MOMENTS",
    "Flow",
    "Moments",
    "gauss_legendre",
]


Moments = Literal["exact", "half", "half-h", "uniform"]
MOMENTS: Final = ("exact", "half", "half-h", "uniform")

_PER_PANEL: Final = 16
# e-foldings of the weight in a panel: the error of the rule is then below rounding, for the poles
# of arctan(exp(-u)) and of 1 / (1 + exp(-u)) too
_FOLDS: Final = 2.0


@cache
def gauss_legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre's rule on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(_PER_PANEL)
    return torch.from_numpy(0.5 * (1 + x)), torch.from_numpy(0.5 * w)


def _total(x: Tensor) -> Tensor:
    """The sum over the first dimension, in one order for every entry: torch's own depends on how
    many there are.
    """
    return x.cumsum(dim=0)[-1]


def lagrange(nodes: Sequence[Tensor], at: Tensor) -> list[Tensor]:
    """Each node's polynomial, 1 there and 0 at the others, at ``at``."""
    values = []
    for j, node in enumerate(nodes):
        value = torch.ones_like(at)
        for k, other in enumerate(nodes):
            if k != j:
                value = value * (at - other) / (node - other)
        values.append(value)
    return values


class Flow:
    """dx = [(ln alpha)' x - (1 + lambda^2) sigma noise] du + noise of variance 2 lambda^2 sigma^2
    du, with u = log(alpha / sigma).

    With E[noise] = (x - alpha E[data]) / sigma, a share theta of the prediction is put as data, and
    the rest as noise:

        d(x / S) = (1 + lambda^2) [theta alpha data - (1 - theta) sigma noise] / S du + ...,   S =
        alpha exp(-theta (u + L)),

    L the integral of lambda^2 du. theta = 1 is the data form (S = sigma exp(-L)), 0 the noise form
    (S = alpha); for one that changes see `Straight`. Over a step the predictions
    are replaced by polynomials in ``variable``, u itself or sigma / alpha or arctan(sigma / alpha)
    or t, and the integrals are computed to rounding: by Gauss and Legendre's rule in u, whose terms
    do not cancel however small the step. Coefficients are float64 and differentiable in the times.
    """

    def __init__(
        self,
        problem: Problem,
        form: FormName | float | Form,
        variable: VariableName,
        mixing: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """``mixing``: (L, lambda^2) at u, in place of the problem's."""
        self.problem = problem
        self.form = form_of(form)
        self.variable = variable
        self._mixing = mixing

    def mixed(self, u: Tensor, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(L, lambda^2) at u, where the time is t if it is known."""
        if self._mixing is not None:
            return self._mixing(u)
        constant = self.problem.constant_stochasticity
        if constant is not None:
            square = constant**2
            return (square * u if square else torch.zeros_like(u)), torch.full_like(u, square)
        t = self._time(2 * u) if t is None else t
        return self.problem.mixing(t), self.problem.stochasticity(t) ** 2

    def _time(self, log_snr: Tensor) -> Tensor:
        return self.problem.time_of(log_snr)

    def points(self, t: Tensor) -> Points:
        """All that is needed at times t."""
        alpha, sigma, log_snr = self.problem.levels(t)
        u = 0.5 * log_snr
        return Points(
            t, alpha, sigma, u, self.mixed(u, t)[0], t if self.variable == "t" else self._value(u)
        )

    def _value(self, u: Tensor) -> Tensor:
        if self.variable == "t":
            return self._time(2 * u)
        if self.variable == "log_snr":
            return u
        ratio = torch.exp(-u)
        return ratio if self.variable == "sigma" else torch.atan(ratio)

    def at(self, points: Points) -> Sequence[Any]:
        """The problem's entries for what the form evaluates at the points."""
        return self.problem.at(points.t, self.form.quantity, *self.form.affine(points))

    def bounded(self, points: Points) -> Tensor:
        """At which of the points predictions can be integrated up to there: where log-SNR is
        infinite only in a `Form.bounded` form, and without noise from there on.
        """
        finite = torch.isfinite(points.v)
        infinite = points.mixing if self.form.bounded else points.u
        return finite & torch.isfinite(infinite)

    def closes(self, points: Points) -> Tensor:
        """At which of the points sigma is 0 and the probability flow still has its integral, of a
        polynomial up to sigma / alpha = 0.
        """
        flow = self._mixing is None and self.problem.constant_stochasticity == 0
        closes = flow and self.form.closes and self.variable == "sigma"
        return (points.sigma == 0) & (points.v == 0) & closes

    def between(self, a: Points, b: Points, share: float) -> Points:
        """The points at a share of the way from a to b, in the variable."""
        v = a.v + share * (b.v - a.v)
        if self.variable == "t":
            return self.points(v)
        u = (
            v
            if self.variable == "log_snr"
            else -(v if self.variable == "sigma" else torch.tan(v)).log()
        )
        return self.points(self._time(2 * u))._replace(v=v)

    def keep(self, a: Points, b: Points) -> Tensor:
        """S_b / S_a."""
        return self.form.keep(a, b)

    def std(self, a: Points, b: Points) -> Tensor:
        """The standard deviation of what the noise adds from a to b."""
        return self.form.std(self, a, b)

    def nodes(self, a: Points, b: Points) -> tuple[Tensor, Tensor]:
        """u and weights, (nodes, *shape), of a quadrature rule from a to b."""
        x, w = gauss_legendre()
        if bool(self.closes(b).any()):
            # In sigma / alpha, which falls from a.v to 0: du = -dv / v.
            x, w = (each.reshape(-1, *(1,) * a.v.ndim) for each in (x, w))
            return -((1 - x) * a.v).log(), w / (1 - x)
        start, h = a.u, b.u - a.u
        if self.form.bounded:
            start = a.u.clamp(-FARTHEST, FARTHEST)
            h = b.u.clamp(-FARTHEST, FARTHEST) - start
        folds = torch.maximum(h.abs(), (h + b.mixing - a.mixing).abs()).detach()
        panels = max(1, math.ceil(float(folds.max()) / _FOLDS)) if h.numel() else 1
        at = ((torch.arange(panels, dtype=torch.float64)[:, None] + x) / panels).reshape(
            -1, *(1,) * h.ndim
        )
        return start + at * h, (w / panels).repeat(panels).reshape(at.shape) * h

    def weights(
        self,
        a: Points,
        b: Points,
        nodes: Sequence[Tensor],
        moments: Moments = "exact",
        at: Points | None = None,
    ) -> list[tuple[Tensor, ...]]:
        """For each node, what each of its predictions is multiplied by in the step from a to b;
        ``nodes`` are values v, the first of them a's.

        The integrals are up to b; what they are multiplied by is that of ``at``, by default b.

        ``moments`` other than ``"exact"`` are simplifications that publications make: ``"half"``,
        with two nodes, gives the slope the weight at the middle of the step; ``"half-h"`` that
        weight by the length of the step; ``"uniform"`` takes the Adams-Bashforth weights of equal
        steps.
        """
        u, w = self.nodes(a, b)
        mixing, square = self.mixed(u)
        w = w * (1 + square)
        basis = (
            lagrange(nodes, self._value(u))
            if moments == "exact" or (moments != "uniform" and len(nodes) > 2)
            else None
        )
        length = _total(w)
        terms = self.form.terms(u, mixing, b)
        scales = terms if at is None or at is b else self.form.terms(u, mixing, at)
        columns = [
            self._integrals(scale, w * density, length, b.v - a.v, nodes, basis, moments)
            for (scale, _), (_, density) in zip(scales, terms, strict=True)
        ]
        return list(zip(*columns, strict=True))

    def _integrals(
        self,
        scale: Tensor,
        density: Tensor,
        length: Tensor,
        step: Tensor,
        nodes: Sequence[Tensor],
        basis: list[Tensor] | None,
        moments: Moments,
    ) -> list[Tensor]:
        if basis is not None:
            return [scale * _total(density * each) for each in basis]
        total = scale * _total(density)
        if moments == "uniform":
            return [total * weight for weight in _equal_steps(len(nodes))]
        if len(nodes) == 1:
            return [total]
        slope = (
            (total if moments == "half" else scale * length) * 0.5 * step / (nodes[1] - nodes[0])
        )
        return [total - slope, slope]


@cache
def _equal_steps(n: int) -> tuple[float, ...]:
    """The weights of Adams and Bashforth."""
    x, w = gauss_legendre()
    nodes = [torch.tensor(-float(j), dtype=torch.float64) for j in range(n)]
    return tuple(float((w * each).sum()) for each in lagrange(nodes, x))

"""alpha and sigma from f and g: composite Gauss-Legendre quadrature in float64.

log alpha(t) is the integral of f, and sigma^2 / alpha^2 = sigma_0^2 + the integral of g^2 /
alpha^2. The panels are found once by bisection; an evaluation adds the integral from the last edge
to t, so that sigma keeps its relative precision as t goes to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sdediff.sde.linear import LinearSDE

__all__ = ["Integral", "accumulated"]

_NODES = 20
_EPS = torch.finfo(torch.float64).eps
_RELATIVE, _ABSOLUTE = 1e-14, 1e-15
_FINEST = 2.0**-48
"""Width of the smallest panel as a share of [0, T]."""
_MOST = 20_000
"""Panels at most: coefficients that need more (noise, thousands of kinks) get what accuracy these
give.
"""


def _rule() -> tuple[Tensor, Tensor, Tensor]:
    """Nodes x_i and weights of Gauss-Legendre on [0, 1], and the weights of the integrals from 0 to
    each x_i.
    """
    x, w = np.polynomial.legendre.leggauss(_NODES)
    to_legendre = np.linalg.inv(np.polynomial.legendre.legvander(x, _NODES - 1))
    antiderivative = np.stack(
        [np.polynomial.legendre.legint(row, lbnd=-1) for row in np.eye(_NODES)], axis=1
    )
    running = np.polynomial.legendre.legvander(x, _NODES) @ antiderivative @ to_legendre
    return torch.as_tensor((x + 1) / 2), torch.as_tensor(w / 2), torch.as_tensor(running / 2)


_X, _W, _RUNNING = _rule()


class _Part(NamedTuple):
    """Integrals over intervals, of f and of h = g^2 exp(-2 integral of f from the interval's
    start), and their rounding errors.
    """

    f: Tensor
    h: Tensor
    f_noise: Tensor
    h_noise: Tensor


class Integral:
    """The moments of dx = f(t) x dt + g(t) dw from x_0 with variance sigma_0^2, at any t in [0, T].

    ``f`` and ``g`` map float64 times (n,) to (n,). The relative error is near 1e-13 for piecewise
    smooth coefficients; isolated kinks, jumps and integrable singularities at 0 are found. Raises
    ValueError where f or g is not finite inside (0, T).
    """

    def __init__(
        self, f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor], T: float, sigma_0: float
    ) -> None:
        self.f, self.g = f, g
        with torch.inference_mode(False), torch.no_grad():
            self._edges, part = self._panels(T)
            start = torch.zeros(1, dtype=torch.float64)
            self._log_alpha = torch.cat([start, part.f.cumsum(0)])
            steps = torch.cat(
                [
                    2 * torch.as_tensor([sigma_0], dtype=torch.float64).log(),
                    part.h.log() - 2 * self._log_alpha[:-1],
                ]
            )
            self._log_ratio = steps.logcumsumexp(0)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(log alpha, log(sigma^2 / alpha^2)), shaped as t."""
        flat = t.reshape(-1)
        k = (torch.searchsorted(self._edges, flat.detach(), right=True) - 1).clamp(
            0, len(self._edges) - 2
        )
        f, h = self._nodes(self._edges[k], flat - self._edges[k])
        width, before = flat - self._edges[k], self._log_alpha[k]
        log_alpha = before + _scaled(width, f @ _W)
        return log_alpha.reshape(t.shape), _grown(
            self._log_ratio[k], _scaled(width, h @ _W), -2 * before
        ).reshape(t.shape)

    def _nodes(self, start: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """f and h at the nodes of each interval, (n, nodes)."""
        u = start[:, None] + width[:, None] * _X
        f = self.f(u.reshape(-1)).reshape(u.shape)
        g = self.g(u.reshape(-1)).reshape(u.shape)
        return f, g.square() * torch.exp(-2 * width[:, None] * (f @ _RUNNING.T))

    def _integrate(self, start: Tensor, width: Tensor) -> _Part:
        f, h = self._nodes(start, width)
        # A time is rounded by eps t, which moves f by eps t f': over an interval, by eps t times
        # the variation of f.
        rounding = 4 * _EPS * (start + width)
        f_noise, h_noise = ((c.amax(1) - c.amin(1)) * rounding for c in (f, h))
        total_f, total_h = _scaled(width, f @ _W), _scaled(width, h @ _W)
        f_noise = _ABSOLUTE + _RELATIVE * _scaled(width, f.abs() @ _W) + f_noise
        return _Part(total_f, total_h, f_noise, h_noise + total_h * (_RELATIVE + 2 * f_noise))

    def _panels(self, T: float) -> tuple[Tensor, _Part]:
        """Edges (K + 1,) and the integrals over the K panels between them."""
        start = torch.linspace(0, T, 5, dtype=torch.float64)[:-1]
        width = torch.full_like(start, T / 4)
        part = self._integrate(start, width)
        done: list[tuple[Tensor, _Part]] = []
        count = 0
        while len(start):
            half = width / 2
            both_start = torch.stack([start, start + half])
            both_width = torch.stack([half, half])
            flat = self._integrate(both_start.reshape(-1), both_width.reshape(-1))
            halves = _Part(*(c.reshape(2, -1) for c in flat))
            self._check_finite(both_start.reshape(-1), both_width.reshape(-1), flat)
            sum_h = halves.h[0] + torch.exp(-2 * halves.f[0]) * halves.h[1]
            close = ((part.f - halves.f.sum(0)).abs() <= part.f_noise) & (
                (part.h - sum_h).abs() <= part.h_noise
            )
            small = width <= _FINEST * T
            count += len(start)
            end = close | small if count < _MOST else torch.ones_like(close)
            done.append(
                (both_start[:, end].reshape(-1), _Part(*(c[:, end].reshape(-1) for c in halves)))
            )
            start = both_start[:, ~end].reshape(-1)
            width = both_width[:, ~end].reshape(-1)
            part = _Part(*(c[:, ~end].reshape(-1) for c in halves))
        starts = torch.cat([s for s, _ in done])
        order = starts.argsort()
        edges = torch.cat([starts[order], torch.tensor([T], dtype=torch.float64)])
        return edges, _Part(
            *(torch.cat([getattr(p, name) for _, p in done])[order] for name in _Part._fields)
        )

    def _check_finite(self, start: Tensor, width: Tensor, part: _Part) -> None:
        for name, function, integral in (("f", self.f, part.f), ("g", self.g, part.h)):
            bad = torch.nonzero(~torch.isfinite(integral)).flatten()
            for i in bad.tolist():
                u = start[i] + width[i] * _X
                wrong = ~torch.isfinite(function(u))
                if bool(wrong.any()):
                    t = float(u[wrong][0])
                    raise ValueError(
                        f"{name}(t) is {float(function(u)[wrong][0])} at t = {t:.6g}, inside (0, "
                        "T): "
                        "it must be finite there; only the ends of [0, T] may be singular"
                    )


def _scaled(width: Tensor, mean: Tensor) -> Tensor:
    """width * mean, and 0 over an empty interval where a coefficient is infinite."""
    return torch.where((width == 0) & ~torch.isfinite(mean), 0.0, width * mean)


def _grown(log_before: Tensor, part: Tensor, log_scale: Tensor) -> Tensor:
    """log(exp(log_before) + exp(log_scale) part), differentiable also where part is 0; log_before
    may be -inf.
    """
    some = torch.isfinite(log_before)
    before = torch.where(some, log_before, 0.0)
    grown = before + torch.log1p(part * torch.exp(torch.where(some, log_scale - before, 0.0)))
    return torch.where(some, grown, torch.where(some, 1.0, part).log() + log_scale)


def accumulated(sde: LinearSDE, stochasticity: Callable[[Tensor], Tensor]) -> Integral:
    """The integral from t_min on of -lambda^2 g^2 / (2 sigma^2), which is lambda^2 du / dt with u =
    log(alpha / sigma).
    """
    low, high = sde.t_min, sde.t_max

    def rate(after: Tensor) -> Tensor:
        t = low + after
        value: Tensor = -0.5 * (stochasticity(t) * sde.g(t) / sde.sigma(t)) ** 2
        return value

    return Integral(rate, torch.zeros_like, high - low, 0.0)

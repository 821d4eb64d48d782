"""Mean and variance of a linear SDE, integrated from its coefficients by an adaptive composite
Fejér rule.

It shares nothing with `sdediff.sde.quadrature`, which it checks: other nodes, other panels, another
form of the equations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

__all__ = ["Moments", "Rates", "integrate"]

Array = NDArray[np.float64]

_NODES: Final = 16
_TOLERANCE: Final = 1e-10
_NARROWEST: Final = 2.0**-44
"""Width of the smallest panel as a share of the interval: how near a jump is located."""


class Rates(NamedTuple):
    """a, c and d of m' = a m + c, V' = 2 a V + d at n times, each (n, k) for k coordinates."""

    a: Array
    c: Array
    d: Array


def _fejer() -> tuple[Array, Array, Array]:
    """Nodes in (0, 1), the weights of the whole integral and those of the integrals up to each
    node.
    """
    x = chebyshev.chebpts1(_NODES)
    antiderivative = chebyshev.chebint(np.linalg.inv(chebyshev.chebvander(x, _NODES - 1)), lbnd=-1)
    return (
        (x + 1) / 2,
        chebyshev.chebvander(np.ones(1), _NODES)[0] @ antiderivative / 2,
        chebyshev.chebvander(x, _NODES) @ antiderivative / 2,
    )


_X, _WHOLE, _RUNNING = _fejer()


class Moments(NamedTuple):
    """The exact map over each panel: m -> exp(a) m + c, V -> exp(2 a) V + d."""

    edges: Array
    a: Array
    c: Array
    d: Array
    error: float
    """Estimate of the relative error of the results: what halving the panels changed, summed."""

    def march(self, mean: Array, variance: Array) -> tuple[Array, Array]:
        """Means and variances at all edges, (edges, k), from those at the first."""
        means, variances = [np.asarray(mean)], [np.asarray(variance)]
        for a, c, d in zip(np.exp(self.a), self.c, self.d, strict=True):
            means.append(a * means[-1] + c)
            variances.append(a * a * variances[-1] + d)
        return np.stack(means), np.stack(variances)

    def at(self, times: Array, moments: tuple[Array, Array]) -> tuple[Array, Array]:
        """Those of the marched moments that belong to ``times``, each of them an edge."""
        order = np.argsort(self.edges, kind="stable")
        rows = order[np.searchsorted(self.edges[order], times)]
        return moments[0][rows], moments[1][rows]

    def kernel(self, s: float, times: Array) -> tuple[Array, Array]:
        """(growth, variance) from s to each time, for k = 1: the moments from m = 1 and V = 0 at s;
        all of them are edges.
        """
        first = int(np.searchsorted(self.edges, s))
        part = Moments(
            self.edges[first:], self.a[first:], self.c[first:], self.d[first:], self.error
        )
        mean, variance = part.at(times, part.march(np.ones(1), np.zeros(1)))
        return mean[:, 0], variance[:, 0]


class _Panels(NamedTuple):
    start: Array
    width: Array
    scale: Array
    a: Array
    c: Array
    d: Array

    def pick(self, which: NDArray[Any]) -> _Panels:
        return _Panels(*(item[which] for item in self))


def integrate(
    rates: Callable[[Array], Rates],
    edges: Array,
    mean: Array,
    variance: Array,
    level: Array,
    *,
    most: int = 4000,
) -> Moments:
    """The moments along ``edges``, which rise or fall and stay edges, from ``mean`` and
    ``variance`` (k,) at the first.

    Panels are halved until both halves agree with the whole to 1e-10 of the standard deviation at
    their end, whose square is ``level`` (panels, k), or until there are ``most``: noise and
    thousands of jumps could take any number, and are left with the error that is reported. Where
    time falls, dx = (a x + c) dt + sqrt(d) dw runs backward and V' = 2 a V - d.
    """
    start, width = edges[:-1], np.diff(edges)
    whole = _panels(rates, start, width, level)
    done, error = _refine(rates, whole, abs(float(edges[-1] - edges[0])), most)
    return Moments(np.append(done.start, edges[-1]), done.a, done.c, done.d, error)


def _refine(
    rates: Callable[[Array], Rates], panels: _Panels, span: float, most: int
) -> tuple[_Panels, float]:
    """Halve panels until they are resolved; the panels and what the last halving changed."""
    direction = float(np.sign(panels.width[0]))
    finished: list[_Panels] = []
    count, error = 0, 0.0
    while len(panels.start):
        half, n = panels.width / 2, len(panels.start)
        halves = _panels(
            rates,
            np.concatenate([panels.start, panels.start + half]),
            np.concatenate([half, half]),
            np.concatenate([panels.scale, panels.scale]),
        )
        gap = _gap(panels, halves.pick(np.arange(n)), halves.pick(np.arange(n, 2 * n)))
        count += n
        # What is not finite will not get better.
        end = ~(gap > _TOLERANCE) | (np.abs(panels.width) <= _NARROWEST * span) | (count > most)
        error += float(np.nansum(gap[end]))
        both = np.concatenate([end, end])
        finished.append(halves.pick(both))
        panels = halves.pick(~both)
    every = _Panels(*(np.concatenate(items) for items in zip(*finished, strict=True)))
    return every.pick(np.argsort(direction * every.start, kind="stable")), error


def _gap(whole: _Panels, first: _Panels, second: _Panels) -> Array:
    """By how much two halves differ from their panel, (panels,), relative to the standard
    deviation.
    """
    grown = np.exp(second.a)
    gaps = np.stack(
        [
            np.abs(first.a + second.a - whole.a),
            np.abs(grown * first.c + second.c - whole.c) / np.sqrt(whole.scale),
            np.abs(grown**2 * first.d + second.d - whole.d) / whole.scale,
        ]
    )
    # 0 / 0 where there is no noise yet
    return np.asarray(np.where(np.isnan(gaps) & (whole.scale == 0), 0.0, gaps).max(axis=(0, 2)))


def _panels(rates: Callable[[Array], Rates], start: Array, width: Array, scale: Array) -> _Panels:
    times = start[:, None] + width[:, None] * _X
    a, c, d = (item.reshape(len(start), _NODES, -1) for item in rates(times.reshape(-1)))
    span = width[:, None]
    total = span * np.einsum("i,pik->pk", _WHOLE, a)
    grown = np.exp(total[:, None] - span[:, None] * np.einsum("ij,pjk->pik", _RUNNING, a))
    return _Panels(
        start,
        width,
        scale,
        total,
        span * np.einsum("i,pik->pk", _WHOLE, c * grown),
        np.abs(span) * np.einsum("i,pik->pk", _WHOLE, d * grown**2),
    )

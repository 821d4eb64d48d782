"""What the identities share: the SDE's values at the times to check at, states to call methods
with, and the moments, integrated from f and g by an adaptive composite Fejér rule.

The rule shares nothing with `sdediff.sde.quadrature`, which it checks: other nodes, other panels,
another form of the equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from torch import Tensor

from sdediff.testing.report import INTEGRATED, Check

__all__ = [
    "IDENTITIES",
    "ROWS",
    "Context",
    "Identity",
    "Moments",
    "Rates",
    "array",
    "derivatives",
    "identity",
    "integrate",
    "irregular",
    "pairs",
    "times_tensor",
]

Array = NDArray[np.float64]

ROWS: Final = 3
_SHAPES: Final[tuple[tuple[int, ...], ...]] = ((ROWS,), (ROWS, 1), (ROWS, 2, 3), (ROWS, 2, 3, 4, 5))
_SOME: Final[tuple[tuple[int, ...], ...]] = (
    *_SHAPES[:2],
    (ROWS, 2),
    (ROWS, 3),
    (ROWS, 4),
    (ROWS, 2, 3),
    (ROWS, 3, 8, 8),
)
"""Shapes of which an SDE without a kernel need take one only."""

_ONE_SIDED: Final = (-49 / 20, 6.0, -15 / 2, 20 / 3, -15 / 4, 6 / 5, -1 / 6)
_STENCILS: Final[tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]] = (
    ((-3, -2, -1, 1, 2, 3), (-1 / 60, 9 / 60, -45 / 60, 45 / 60, -9 / 60, 1 / 60)),
    ((0, 1, 2, 3, 4, 5, 6), _ONE_SIDED),
    ((0, -1, -2, -3, -4, -5, -6), tuple(-w for w in _ONE_SIDED)),
)

_NODES: Final = 16
_TOLERANCE: Final = 1e-10
_NARROWEST: Final = 2.0**-44
"""Width of the smallest panel as a share of the interval: how near a jump is located."""


class Identity(NamedTuple):
    """One line of the table."""

    check: Check
    kind: str
    """"linear": for SDEs with a Gaussian kernel; "general": for those without; "any"."""
    after: tuple[str, ...]
    """Identities without which this one says nothing: it is skipped where one of them fails."""


IDENTITIES: Final[dict[str, Identity]] = {}


def identity(
    name: str, kind: str = "linear", after: tuple[str, ...] = ()
) -> Callable[[Check], Check]:
    """Enter a function of the context into the table under that name."""

    def enter(check: Check) -> Check:
        IDENTITIES[name] = Identity(check, kind, after)
        return check

    return enter


def times_tensor(t: Any) -> Tensor:
    """Times as every method takes them: float64 on the host, () or (n,)."""
    return torch.as_tensor(np.array(t, dtype=np.float64))


def array(out: Any, shape: tuple[int, ...], name: str) -> Array:
    """What a method returned as numbers of that shape; a ValueError if it has another."""
    if not isinstance(out, Tensor):
        raise TypeError(f"{name} must return a tensor, got {out!r}")
    if tuple(out.shape) != shape:
        raise ValueError(f"{name} must return shape {shape}; got {tuple(out.shape)}")
    return np.asarray(out.detach().to("cpu", torch.float64).numpy())


def irregular(shape: tuple[int, ...], shift: float) -> Tensor:
    """Numbers that look irregular and are not random."""
    count = torch.arange(1, 1 + math.prod(shape), dtype=torch.float64)
    return torch.sin(12.9898 * count + shift).reshape(shape)


def pairs(times: Array, count: int) -> tuple[Array, Array]:
    """All (t, s) with s < t among ``count`` of the times."""
    few = times[np.unique(np.linspace(0, len(times) - 1, count).round().astype(int))]
    i, j = np.tril_indices(len(few), -1)
    return few[i], few[j]


def derivatives(function: Callable[[Tensor], Tensor], t: Array, end: float) -> list[Array]:
    """d function / dt by autograd and by several differences inside [0, end]; NaN where there is
    none.

    Several, because each may fail on a good function: autograd on what is computed outside torch,
    differences at a kink.
    """
    time = times_tensor(t).requires_grad_()
    with torch.enable_grad():
        out = function(time)
        graph = out.requires_grad
        slope = torch.autograd.grad(out.sum(), time, allow_unused=True)[0] if graph else None
    if slope is None:
        slope = torch.full_like(time, 0.0 if bool((out == out[0]).all()) else math.nan)
    return [np.asarray(slope.detach().numpy()), *_differences(function, t, end)]


def _differences(function: Callable[[Tensor], Tensor], t: Array, end: float) -> Iterator[Array]:
    """Sixth-order differences: central, forward and backward, with steps in proportion to the room,
    and with fixed ones.
    """
    for offsets, weights in _STENCILS:
        for h in (5e-3 * np.minimum(t, end - t), np.full_like(t, 2e-3 * end)):
            inside = (h > 0) & (t + min(offsets) * h >= 0) & (t + max(offsets) * h <= end)
            places = (times_tensor(np.where(inside, t + k * h, t)) for k in offsets)
            values = np.stack([array(function(u), t.shape, "a coefficient") for u in places])
            yield np.asarray(np.array(weights) @ values / np.where(inside, h, math.nan))


class Context:
    """An SDE under test. ``times`` (n,) lie in [t_min, t_max], denser towards both ends, without
    t_max where alpha is 0.
    """

    def __init__(self, sde: Any) -> None:  # an SDE, or what a user wrote for one
        self.sde = sde
        self.linear = "kernel" in sde.offers
        self.T = float(sde.T)
        self.range_error: Exception | None = None
        try:
            self.low, self.high = float(sde.t_min), float(sde.t_max)
        except Exception as error:
            self.range_error = error
            self.low = self.high = math.nan
        self.range_holds = 0 <= self.low < self.high <= self.T < math.inf
        if not self.range_holds:
            # The other identities may still tell why.
            self.T = self.T if 0 < self.T < math.inf else 1.0
            self.low, self.high = 1e-3 * self.T, 0.999 * self.T
        self._values: dict[str, Array] = {}

    @cached_property
    def no_signal(self) -> bool:
        """Whether alpha(t_max) = 0, where f is infinite: cos(pi / 2) is 6e-17."""
        alpha, sigma = np.abs(self.values("alpha", "sigma", at=np.array([self.high])))
        return bool(alpha <= 1e-12 * sigma)

    @cached_property
    def times(self) -> Array:
        """Times to check at, rising; off round numbers, where a schedule may jump."""
        steps = (self.high - self.low) * np.geomspace(1e-6, 0.4637, 20)
        last = [] if self.linear and self.no_signal else [self.high]
        return np.unique(np.concatenate([self.low + steps, self.high - steps, [self.low], last]))

    @property
    def inner(self) -> Array:
        """``times`` without the first and the last: at t_min and t_max a schedule may jump."""
        return self.times[1:-1]

    @property
    def fine(self) -> Array:
        """The times to check at and a thousand more between them."""
        between = np.linspace(self.times[0], self.times[-1], 1000)
        return np.unique(np.concatenate([self.times, between]))

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes that the SDE takes: all for a linear one, those that its drift takes for
        another.
        """
        if self.linear:
            return list(_SHAPES)
        taken, problem = [], None
        t = times_tensor(0.5 * (self.low + self.high))
        for shape in _SOME:
            try:
                if self.sde.drift(irregular(shape, 0.0), t).shape == shape:
                    taken.append(shape)
            except (RuntimeError, ValueError, IndexError) as error:
                problem = error
        if not taken:
            tried = ", ".join(map(str, _SOME))
            raise ValueError(
                f"drift(x, t) takes and returns none of the shapes {tried}"
            ) from problem
        return taken

    def value(self, name: str, t: Array) -> Array:
        """The coefficient of that name at times (n,)."""
        return array(getattr(self.sde, name)(times_tensor(t)), t.shape, f"{name}(t)")

    def values(self, *names: str, at: Array) -> tuple[Array, ...]:
        """Several coefficients at times (n,)."""
        return tuple(self.value(name, at) for name in names)

    def at_times(self, name: str) -> Array:
        """The coefficient of that name at ``times``."""
        if name not in self._values:
            self._values[name] = self.value(name, self.times)
        return self._values[name]

    @cached_property
    def start(self) -> tuple[float, float, float]:
        """(t, m, V) where the moments start: (0, 1, sigma_0^2), or shortly after 0 where f or g are
        not bounded near it.
        """
        first = float(self.times[0])
        if first == 0 or self._bounded(first):
            return 0.0, 1.0, float(self.sde.sigma_0) ** 2
        early = np.array([1e-5 * first])
        alpha, sigma = self.values("alpha", "sigma", at=early)
        return float(early[0]), float(alpha[0]), float(sigma[0]) ** 2

    def _bounded(self, first: float) -> bool:
        """Whether f and g are finite near 0, and bring in next to nothing before a billionth of the
        first time.
        """
        lead = self._lead(0.0)
        sampled = np.concatenate([[1e-9 * first], lead[:-1] + 0.5 * np.diff(lead), lead[1:]])
        f, g = self.values("f", "g", at=sampled)
        rate = max(abs(f[0]), g[0] ** 2 / self.at_times("sigma")[0] ** 2)
        return bool(np.isfinite(f).all() and np.isfinite(g).all() and sampled[0] * rate < 3e-8)

    def _lead(self, start: float) -> Array:
        """Edges from the start to the first time, in a geometric progression."""
        first = float(self.times[0])
        if first == 0:
            return np.zeros(0)
        edges = first * 4.0 ** -np.arange(21, 0, -1)
        return np.concatenate([[start], edges[edges > 2 * start], [first]])

    @cached_property
    def integrated(self) -> Moments:
        """The moment equations m' = f m, V' = 2 f V + g^2 over [0, t_max]."""

        def rates(t: Array) -> Rates:
            f, g = (x[:, None] for x in self.values("f", "g", at=t))
            return Rates(f, np.zeros_like(f), g**2)

        t, *moments = self.start
        mean, variance = (np.array([x]) for x in moments)
        edges = np.unique(np.concatenate([self._lead(t), self.times]))
        rough = integrate(rates, edges, mean, variance, np.ones((len(edges) - 1, 1)), most=0)
        level = rough.at(edges[1:], mean, variance)[1]
        # What comes in before the first time matters by what it is of the variance then.
        before = edges[1:] < self.times[0]
        level[before] = np.interp(self.times[0], edges[1:], level[:, 0])
        return integrate(rates, edges, mean, variance, level)

    @property
    def bound(self) -> float:
        """Bound of the deviation of what is integrated from f and g."""
        return self.integrated.bound

    @cached_property
    def moments(self) -> tuple[Array, Array]:
        """Mean and standard deviation at ``times`` of the forward SDE from x_0 = 1, by integration
        of f and g.
        """
        _, mean, variance = self.start
        means, variances = self.integrated.at(self.times, np.array([mean]), np.array([variance]))
        return means[:, 0], np.sqrt(variances[:, 0])


class Rates(NamedTuple):
    """a, c and d of m' = a m + c, V' = 2 a V + d at n times, each (n, k) for k coordinates."""

    a: Array
    c: Array
    d: Array


class Moments(NamedTuple):
    """The exact map over each panel: m -> exp(a) m + c, V -> exp(2 a) V + d."""

    edges: Array
    a: Array
    c: Array
    d: Array
    error: float
    """Estimate of the relative error of the results: what halving the panels changed, summed."""

    @property
    def bound(self) -> float:
        """Bound of the deviation of what is integrated: 1e-6, up to 1e-2 more if the rates have
        noise or thousands of jumps.
        """
        return INTEGRATED + (min(self.error, 1e-2) if math.isfinite(self.error) else 0.0)

    def at(self, times: Array, mean: Array, variance: Array) -> tuple[Array, Array]:
        """Means and variances at ``times``, each of them an edge, from those at the first edge."""
        moments = [(mean, variance)]
        for a, c, d in zip(np.exp(self.a), self.c, self.d, strict=True):
            mean, variance = a * mean + c, a * a * variance + d
            moments.append((mean, variance))
        order = np.argsort(self.edges, kind="stable")
        rows = order[np.searchsorted(self.edges[order], times)]
        means, variances = (np.stack(each)[rows] for each in zip(*moments, strict=True))
        return means, variances

    def kernel(self, s: float, times: Array) -> tuple[Array, Array]:
        """(growth, variance) from s to each time, for k = 1: the moments from m = 1 and V = 0 at s;
        all of them are edges.
        """
        first = int(np.searchsorted(self.edges, s))
        part = self._replace(
            edges=self.edges[first:], a=self.a[first:], c=self.c[first:], d=self.d[first:]
        )
        mean, variance = part.at(times, np.ones(1), np.zeros(1))
        return mean[:, 0], variance[:, 0]


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


class _Panels(NamedTuple):
    start: Array
    width: Array
    scale: Array
    a: Array
    c: Array
    d: Array

    def pick(self, which: Any) -> _Panels:
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
    span = float(edges[-1] - edges[0])
    panels = _panels(rates, edges[:-1], np.diff(edges), level)
    finished: list[_Panels] = []
    count, error = 0, 0.0
    while n := len(panels.start):
        half = panels.width / 2
        starts = np.concatenate([panels.start, panels.start + half])
        halves = _panels(rates, starts, *(np.concatenate([x, x]) for x in (half, panels.scale)))
        gap = _gap(panels, halves.pick(slice(n)), halves.pick(slice(n, None)))
        count += n
        # What is not finite will not get better.
        narrow = np.abs(panels.width) <= _NARROWEST * abs(span)
        end = ~(gap > _TOLERANCE) | narrow | (count > most)
        error += float(np.nansum(gap[end]))
        finished.append(halves.pick(np.tile(end, 2)))
        panels = halves.pick(~np.tile(end, 2))
    every = _Panels(*(np.concatenate(items) for items in zip(*finished, strict=True)))
    done = every.pick(np.argsort(np.sign(span) * every.start, kind="stable"))
    return Moments(np.append(done.start, edges[-1]), done.a, done.c, done.d, error)


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
    mean = span * np.einsum("i,pik->pk", _WHOLE, c * grown)
    variance = np.abs(span) * np.einsum("i,pik->pk", _WHOLE, d * grown**2)
    return _Panels(start, width, scale, total, mean, variance)

"""What the identities share: times to check at, the SDE's values there, and its moments integrated
from f and g.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.testing.identity import INTEGRATED
from sdediff.testing.moments import Moments, Rates, integrate

__all__ = ["Context", "allowance", "array", "derivatives", "pairs", "times_tensor"]

Array = NDArray[np.float64]

_GRADED: Final = 20
_NEXT_TO_NOTHING: Final = 3e-8
_WORST: Final = 1e-2
_ONE_SIDED: Final = (-49 / 20, 6.0, -15 / 2, 20 / 3, -15 / 4, 6 / 5, -1 / 6)
_STENCILS: Final[tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]] = (
    ((-3, -2, -1, 1, 2, 3), (-1 / 60, 9 / 60, -45 / 60, 45 / 60, -9 / 60, 1 / 60)),
    ((0, 1, 2, 3, 4, 5, 6), _ONE_SIDED),
    ((0, -1, -2, -3, -4, -5, -6), tuple(-w for w in _ONE_SIDED)),
)
_ALPHA_ZERO: Final = 1e-12
"""alpha / sigma below which no signal is left: cos(pi / 2) is 6e-17."""


def times_tensor(t: Any) -> Tensor:
    """Times as every method takes them: float64 on the host, () or (n,)."""
    return torch.as_tensor(np.array(t, dtype=np.float64))


def array(out: Any, shape: tuple[int, ...], name: str) -> Array:
    """What a method returned as numbers of that shape; a ValueError if it has another."""
    if not isinstance(out, Tensor):
        raise TypeError(f"{name} must return a tensor, got {out!r}")
    if tuple(out.shape) != shape:
        raise ValueError(
            f"{name} must return shape {shape}, one number for each time; got {tuple(out.shape)}"
        )
    return np.asarray(out.detach().to("cpu", torch.float64).numpy())


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
        slope = (
            torch.autograd.grad(out.sum(), time, allow_unused=True)[0]
            if out.requires_grad
            else None
        )
    if slope is not None:
        by_autograd = np.asarray(slope.numpy())
    else:
        constant = bool((out == out[0]).all())
        by_autograd = np.full_like(t, 0.0 if constant else math.nan)
    return [by_autograd, *_differences(function, t, end)]


def _differences(function: Callable[[Tensor], Tensor], t: Array, end: float) -> Iterator[Array]:
    """Sixth-order differences: central, forward and backward, with steps in proportion to the room,
    and with fixed ones.
    """
    room = np.minimum(t, end - t)
    for offsets, weights in _STENCILS:
        for h in (5e-3 * room, np.full_like(t, 2e-3 * end)):
            inside = (h > 0) & (t + min(offsets) * h >= 0) & (t + max(offsets) * h <= end)
            step = np.where(inside, h, math.nan)
            values = [
                array(
                    function(times_tensor(np.where(inside, t + k * h, t))), t.shape, "a coefficient"
                )
                for k in offsets
            ]
            yield (
                sum((w * v for w, v in zip(weights, values, strict=True)), np.zeros_like(t)) / step
            )


def allowance(moments: Moments) -> float:
    """Bound of the deviation of what is integrated: 1e-6, up to 1e-2 more if the rates have noise
    or thousands of jumps.
    """
    return INTEGRATED + (min(moments.error, _WORST) if math.isfinite(moments.error) else 0.0)


class Context:
    """An SDE under test. ``times`` (n,) lie in [t_min, t_max], denser towards both ends, without
    t_max where alpha is 0.
    """

    def __init__(self, sde: Any) -> None:
        self.sde = sde
        self.linear = "kernel" in sde.offers
        self.T = float(sde.T)
        self.range_error: Exception | None = None
        try:
            self.low, self.high = float(sde.t_min), float(sde.t_max)
        except Exception as error:
            self.range_error = error
            self.low = math.nan
            self.high = math.nan
        self.range_holds = 0 <= self.low < self.high <= self.T < math.inf
        if not self.range_holds:
            # The other identities may still tell why.
            self.T = self.T if 0 < self.T < math.inf else 1.0
            self.low, self.high = 1e-3 * self.T, 0.999 * self.T

    @cached_property
    def no_signal(self) -> bool:
        """Whether alpha(t_max) = 0, where f is infinite."""
        alpha, sigma = (
            abs(float(self.value(name, np.array([self.high]))[0])) for name in ("alpha", "sigma")
        )
        return alpha <= _ALPHA_ZERO * sigma

    @cached_property
    def times(self) -> Array:
        """Times to check at, rising; off round numbers, where a schedule may jump."""
        span = self.high - self.low
        steps = span * np.geomspace(1e-6, 0.4637, _GRADED)
        ends = [self.low] if self.linear and self.no_signal else [self.low, self.high]
        return np.unique(np.concatenate([self.low + steps, self.high - steps, np.array(ends)]))

    @property
    def inner(self) -> Array:
        """``times`` without the first and the last: at t_min and t_max a schedule may jump."""
        return self.times[1:-1]

    def value(self, name: str, t: Array) -> Array:
        """The coefficient of that name at times (n,)."""
        return array(getattr(self.sde, name)(times_tensor(t)), t.shape, f"{name}(t)")

    @cached_property
    def _values(self) -> dict[str, Array]:
        return {}

    def at_times(self, name: str) -> Array:
        """The coefficient of that name at ``times``."""
        if name not in self._values:
            self._values[name] = self.value(name, self.times)
        return self._values[name]

    def rates(self, t: Array) -> Rates:
        """The moment equations m' = f m, V' = 2 f V + g^2."""
        f, g = self.value("f", t)[:, None], self.value("g", t)[:, None]
        return Rates(f, np.zeros_like(f), g**2)

    @cached_property
    def start(self) -> tuple[float, float, float]:
        """(t, m, V) where the moments start: (0, 1, sigma_0^2), or shortly after 0 where f or g are
        not bounded near it.
        """
        first = float(self.times[0])
        if first == 0 or self._bounded(first):
            return 0.0, 1.0, float(self.sde.sigma_0) ** 2
        early = np.array([1e-5 * first])
        return (
            float(early[0]),
            float(self.value("alpha", early)[0]),
            float(self.value("sigma", early)[0]) ** 2,
        )

    def _bounded(self, first: float) -> bool:
        """Whether f and g are finite near 0, and bring in next to nothing before a billionth of the
        first time.
        """
        lead = self._lead(0.0)
        sampled = np.concatenate([[1e-9 * first], lead[:-1] + 0.5 * np.diff(lead), lead[1:]])
        f, g = self.value("f", sampled), self.value("g", sampled)
        finite = bool(np.isfinite(f).all() and np.isfinite(g).all())
        return (
            finite
            and sampled[0] * max(abs(f[0]), g[0] ** 2 / self.at_times("sigma")[0] ** 2)
            < _NEXT_TO_NOTHING
        )

    def _lead(self, start: float) -> Array:
        """Edges from the start to the first time, in a geometric progression."""
        first = float(self.times[0])
        if first == 0:
            return np.zeros(0)
        edges = first * 4.0 ** -np.arange(21, 0, -1)
        return np.concatenate([[start], edges[edges > 2 * start], [first]])

    @cached_property
    def integrated(self) -> Moments:
        """The moment equations over [0, t_max]."""
        t, mean, variance = self.start
        lead = self._lead(t)
        edges = np.unique(np.concatenate([lead, self.times]))
        rough = integrate(
            self.rates,
            edges,
            np.array([mean]),
            np.array([variance]),
            np.ones((len(edges) - 1, 1)),
            most=0,
        )
        level = rough.at(edges[1:], rough.march(np.array([mean]), np.array([variance])))[1]
        # What comes in before the first time matters by what it is of the variance then.
        before = edges[1:] < self.times[0]
        level[before] = np.interp(self.times[0], edges[1:], level[:, 0])
        return integrate(self.rates, edges, np.array([mean]), np.array([variance]), level)

    @property
    def bound(self) -> float:
        """Bound of the deviation of what is integrated from f and g."""
        return allowance(self.integrated)

    @cached_property
    def moments(self) -> tuple[Array, Array]:
        """Mean and standard deviation at ``times`` of the forward SDE from x_0 = 1, by integration
        of f and g.
        """
        _, mean, variance = self.start
        marched = self.integrated.march(np.array([mean]), np.array([variance]))
        means, variances = self.integrated.at(self.times, marched)
        return means[:, 0], np.sqrt(variances[:, 0])

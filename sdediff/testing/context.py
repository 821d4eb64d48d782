"""What the identities share: times to check at, the SDE's values there, and its moments integrated from f and g."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.testing.moments import Moments, Rates, integrate

__all__ = ["Context", "array", "derivatives", "pairs", "times_tensor"]

Array = NDArray[np.float64]

_GRADED: Final = 20
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
        raise ValueError(f"{name} must return shape {shape}, one number for each time; got {tuple(out.shape)}")
    return np.asarray(out.detach().to("cpu", torch.float64).numpy())


def pairs(times: Array, count: int) -> tuple[Array, Array]:
    """All (t, s) with s < t among ``count`` of the times."""
    few = times[np.unique(np.linspace(0, len(times) - 1, count).round().astype(int))]
    i, j = np.tril_indices(len(few), -1)
    return few[i], few[j]


def derivatives(function: Callable[[Tensor], Tensor], t: Array, end: float) -> tuple[Array, Array]:
    """d function / dt by autograd and by sixth-order differences inside (0, end); NaN where there is none.

    Two, because either may fail on a good function: autograd on what is computed outside torch, differences at a kink.
    """
    time = times_tensor(t).requires_grad_()
    with torch.enable_grad():
        out = function(time)
        slope = torch.autograd.grad(out.sum(), time, allow_unused=True)[0] if out.requires_grad else None
    if slope is not None:
        by_autograd = np.asarray(slope.numpy())
    else:
        constant = bool((out == out[0]).all())
        by_autograd = np.full_like(t, 0.0 if constant else math.nan)
    room = np.minimum(t, end - t)
    h = 5e-3 * np.where(room > 0, room, math.nan)
    total = np.zeros_like(t)
    for step, weight in ((1, 45), (2, -9), (3, 1)):
        ahead, behind = (function(times_tensor(np.nan_to_num(t + k * h, nan=0.5 * end))).detach().numpy() for k in (step, -step))
        total += weight * (ahead - behind)
    return by_autograd, total / (60 * h)


class Context:
    """An SDE under test. ``times`` (n,) lie in [t_min, t_max], denser towards both ends, without t_max where alpha is 0."""

    def __init__(self, sde: Any) -> None:
        self.sde = sde
        self.linear = "kernel" in sde.offers
        self.T = float(sde.T)
        self.range_error: Exception | None = None
        try:
            self.low, self.high = float(sde.t_min), float(sde.t_max)
        except Exception as error:
            self.range_error, self.low, self.high = error, math.nan, math.nan
        self.range_holds = 0 <= self.low < self.high <= self.T < math.inf
        if not self.range_holds:
            # The other identities may still tell why.
            self.T = self.T if 0 < self.T < math.inf else 1.0
            self.low, self.high = 1e-3 * self.T, 0.999 * self.T

    @cached_property
    def no_signal(self) -> bool:
        """Whether alpha(t_max) = 0, where f is infinite."""
        alpha, sigma = (abs(float(self.value(name, np.array([self.high]))[0])) for name in ("alpha", "sigma"))
        return alpha <= _ALPHA_ZERO * sigma

    @cached_property
    def times(self) -> Array:
        """Times to check at, rising; off round numbers, where a schedule may jump."""
        span = self.high - self.low
        steps = span * np.geomspace(1e-6, 0.4637, _GRADED)
        ends = [self.low] if self.linear and self.no_signal else [self.low, self.high]
        return np.unique(np.concatenate([self.low + steps, self.high - steps, np.array(ends)]))

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
        """(t, m, V) where the moments start: (0, 1, sigma_0^2), or shortly after 0 where f or g are not finite near it."""
        lead = self._lead(0.0)
        sampled = np.concatenate([lead[:-1] + 0.5 * np.diff(lead), lead[1:]]) if len(lead) else np.array([0.5 * self.times[1]])
        if np.isfinite(self.value("f", sampled)).all() and np.isfinite(self.value("g", sampled)).all():
            return 0.0, 1.0, float(self.sde.sigma_0) ** 2
        early = 1e-5 * float(self.times[0])
        at = np.array([early])
        return early, float(self.value("alpha", at)[0]), float(self.value("sigma", at)[0]) ** 2

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
        return integrate(self.rates, edges, np.array([mean]), np.array([variance]), lead=max(len(lead) - 1, 0))

    @cached_property
    def moments(self) -> tuple[Array, Array]:
        """Mean and standard deviation at ``times`` of the forward SDE from x_0 = 1, by integration of f and g."""
        _, mean, variance = self.start
        with np.errstate(all="ignore"):
            marched = self.integrated.march(np.array([mean]), np.array([variance]))
        means, variances = self.integrated.at(self.times, marched)
        return means[:, 0], np.sqrt(variances[:, 0])

"""SDEs through given levels: what a discrete model is in continuous time."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator
from torch import Tensor

from sdediff.sde.linear import LinearSDE
from sdediff.sde.roots import crossing
from sdediff.solvers.given import Numbers, reals

__all__ = ["InterpolatedVE", "InterpolatedVP", "points"]

Array = NDArray[np.float64]
_RIGHT_ANGLE = 0.5 * math.pi
_TINY = torch.finfo(torch.float64).tiny


class _Rising:
    """A rising function through (x_i, y_i): the cubic spline of two continuous derivatives, or
    where that would fall or is nearly flat the monotone one of one (Fritsch and Butland 1984, as
    SciPy has it). At x_i it is y_i to the bit.
    """

    def __init__(self, x: Array, y: Array) -> None:
        slope = CubicSpline(x, y)(x, 1) if len(x) > 2 else np.full(2, np.diff(y) / np.diff(x))
        secant = np.diff(y) / np.diff(x)
        # Where both slopes are at most three times the secant a cubic is monotone (Fritsch and
        # Carlson 1980).
        least, most = 0.05 * secant, 3 * secant
        ends = np.stack([slope[:-1], slope[1:]])
        if not bool(((ends > least) & (ends < most)).all()):
            least = 0.05 * np.minimum(
                np.concatenate([secant[:1], secant]), np.concatenate([secant, secant[-1:]])
            )
            slope = np.maximum(PchipInterpolator(x, y)(x, 1), least)  # at an end it may be 0
        self.x, self.y, self.slope = (
            torch.from_numpy(np.ascontiguousarray(each)) for each in (x, y, slope)
        )

    def _cell(self, t: Tensor) -> tuple[Tensor, ...]:
        i = torch.searchsorted(self.x, t.detach(), right=True).sub(1).clamp(0, len(self.x) - 2)
        width = self.x[i + 1] - self.x[i]
        return (
            (t - self.x[i]) / width,
            width,
            self.y[i],
            self.y[i + 1],
            self.slope[i],
            self.slope[i + 1],
        )

    def __call__(self, t: Tensor) -> Tensor:
        u, width, low, high, rise, last = self._cell(t)
        v = 1 - u
        return (
            (1 + 2 * u) * v**2 * low
            + (1 + 2 * v) * u**2 * high
            + width * u * v * (v * rise - u * last)
        )

    def rate(self, t: Tensor) -> Tensor:
        """The derivative."""
        u, width, low, high, rise, last = self._cell(t)
        v = 1 - u
        rate = 6 * u * v * (high - low) / width + v * (1 - 3 * u) * rise + u * (1 - 3 * v) * last
        return rate.clamp(min=0)  # below by rounding alone

    def inverse(self, value: Tensor) -> Tensor:
        """Where it takes ``value`` (n,), which lies in its range."""
        i = torch.searchsorted(self.y, value, right=True).sub(1).clamp(0, len(self.y) - 2)
        start, end = self.x[i], self.x[i + 1]
        ends = (value - self(start), value - self(end))
        share = crossing(lambda u: value - self(start + u * (end - start)), value.shape, 1.0, ends)
        return torch.where(value <= self.y[i], start, start + share * (end - start))


def points(
    name: str, what: str, values: Numbers, times: Numbers, *, above: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both as tuples of floats; a ValueError unless there is a time for each value and times rise
    from 0, or from ``above`` it.
    """
    levels, at = _floats(f"{name}: {what}", values), _floats(f"{name}: times", times)
    if len(levels) != len(at):
        raise ValueError(
            f"{name}: needs one time for each of the {len(levels)} {what}, got {len(at)}"
        )
    if at[0] < 0 or (above and at[0] == 0) or any(b <= a for a, b in itertools.pairwise(at)):
        raise ValueError(
            f"{name}: times must rise from {'above 0' if above else '0 or above'}, got {at[0]:g} "
            f"to {at[-1]:g}"
        )
    return levels, at


def _floats(name: str, values: Numbers) -> tuple[float, ...]:
    try:
        vector = reals(name, values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}") from error
    if vector.ndim != 1 or not len(vector) or not bool(torch.isfinite(vector).all()):
        raise ValueError(
            f"{name} must be a vector of at least one number, all finite; got {values!r}"
        )
    return tuple(vector.tolist())


@dataclass(frozen=True, repr=False)
class InterpolatedVP(LinearSDE):
    """alpha = cos(phi), sigma = sin(phi) with a smooth phi(t) such that alpha(times_i)^2 is the
    product of 1 - beta_j over j <= i.

    A variance-preserving SDE, dx = -beta(t) / 2 x dt + sqrt(beta(t)) dw with beta = 2 tan(phi)
    phi', whose marginals at the given times are those of the chain x_i = sqrt(1 - beta_i) x_{i-1} +
    sqrt(beta_i) noise. phi^2, which is nearly linear at t = 0 as sigma^2 is and smooth where no
    signal is left, is interpolated by a cubic spline from phi(0) = 0 on. t_min is the first time.
    ``betas`` lie in (0, 1); the last may be 1 (zero terminal SNR), and sampling then starts at
    alpha = 0 itself.
    """

    betas: tuple[float, ...]
    times: tuple[float, ...]

    def __post_init__(self) -> None:
        betas, times = points("InterpolatedVP", "betas", self.betas, self.times, above=True)
        vars(self).update(betas=betas, times=times)

    def __repr__(self) -> str:
        return f"InterpolatedVP({len(self.betas)} levels up to t = {self.T:g})"

    @property
    def T(self) -> float:
        return self.times[-1]

    @property
    def t_min(self) -> float:
        """The first time; of a single one, a thousandth of it."""
        return self.times[0] if len(self.times) > 1 else 1e-3 * self.T

    @property
    def t_max(self) -> float:
        return self.times[-1]

    @cached_property
    def _angle(self) -> _Rising:
        with np.errstate(divide="ignore"):
            bar = np.cumsum(np.log1p(-np.array(self.betas)))
        phi = np.arctan2(np.sqrt(-np.expm1(bar)), np.exp(0.5 * bar))
        return _Rising(np.array([0.0, *self.times]), np.concatenate([[0.0], phi**2]))

    def _phi(self, t: Tensor) -> Tensor:
        square = self._angle(t)
        return torch.where(square > 0, square.clamp(min=_TINY).sqrt(), 0.0)

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.g(t).square()

    def g(self, t: Tensor) -> Tensor:
        """sqrt(beta), beta = tan(phi) / phi d phi^2 / dt."""
        phi = self._phi(t)
        least = phi.clamp(min=_TINY**0.5)  # at t = 0 sin(phi) / phi is 1
        return (torch.sin(least) / (least * self.alpha(t)) * self._angle.rate(t)).sqrt()

    def alpha(self, t: Tensor) -> Tensor:
        """cos(phi), 0 where phi is pi / 2."""
        return torch.sin(_RIGHT_ANGLE - self._phi(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._phi(t))

    def invert(self, log_snr: Tensor) -> Tensor:
        """Where phi = arctan(exp(-log_snr / 2))."""
        phi = torch.exp(-0.5 * log_snr).arctan()
        return self._angle.inverse(
            phi.square().reshape(-1).clamp(max=float(self._angle.y[-1]))
        ).reshape(log_snr.shape)


@dataclass(frozen=True, repr=False)
class InterpolatedVE(LinearSDE):
    """alpha = 1 with a smooth sigma(t) such that sigma(times_i) = sigmas_i, both rising: dx =
    sqrt(d sigma^2 / dt) dw.

    log sigma is interpolated by a cubic spline. t_min is the first time. Data carry noise of
    sigma(0) at t = 0, the first sigma if that is its time, as in `VE`; else log sigma goes on in a
    straight line.
    """

    sigmas: tuple[float, ...]
    times: tuple[float, ...]

    def __post_init__(self) -> None:
        sigmas, times = points("InterpolatedVE", "sigmas", self.sigmas, self.times, above=False)
        if len(sigmas) < 2 or sigmas[0] <= 0 or any(b <= a for a, b in itertools.pairwise(sigmas)):
            raise ValueError(
                "InterpolatedVE: sigmas must be at least two positive numbers that rise"
            )
        vars(self).update(sigmas=sigmas, times=times)

    def __repr__(self) -> str:
        return (
            f"InterpolatedVE({len(self.sigmas)} levels, sigma {self.sigmas[0]:g} to "
            f"{self.sigmas[-1]:g}, up to t = {self.T:g})"
        )

    @property
    def T(self) -> float:
        return self.times[-1]

    @property
    def sigma_0(self) -> float:
        return math.exp(float(self._log_sigma.y[0]))

    @property
    def t_min(self) -> float:
        return self.times[0]

    @property
    def t_max(self) -> float:
        return self.times[-1]

    @cached_property
    def _log_sigma(self) -> _Rising:
        times, logs = np.array(self.times), np.log(self.sigmas)
        if times[0] > 0:
            start = logs[0] - times[0] * (logs[1] - logs[0]) / (times[1] - times[0])
            times = np.concatenate([[0.0], times])
            logs = np.concatenate([[start], logs])
        return _Rising(times, logs)

    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:
        """sigma sqrt(2 d log sigma / dt)."""
        return self.sigma(t) * (2 * self._log_sigma.rate(t)).sqrt()

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._log_sigma(t).exp()

    def invert(self, log_snr: Tensor) -> Tensor:
        """Where log sigma = -log_snr / 2."""
        low, high = float(self._log_sigma.y[0]), float(self._log_sigma.y[-1])
        return self._log_sigma.inverse((-0.5 * log_snr).reshape(-1).clamp(low, high)).reshape(
            log_snr.shape
        )

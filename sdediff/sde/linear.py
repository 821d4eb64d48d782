"""Linear SDEs: two coefficients are given, all else follows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.sde.base import SDE, Prior, as_time, derived, values
from sdediff.sde.quadrature import Integral
from sdediff.sde.roots import Inverse, close, earliest, inverted, time_derivative
from sdediff.solvers import expand
from sdediff.solvers.exponential.euler import posterior_weights
from sdediff.solvers.given import fact, real, reals

__all__ = ["LinearSDE"]

COEFFICIENTS: Final = ("f", "g", "alpha", "sigma", "log_snr")
_LOWEST: Final = -20.0
"""log_snr at the last usable time, in units of the noise near T."""


class LinearSDE(SDE):
    """dx = f(t) x dt + g(t) dw, so that x_t given x_0 is N(alpha(t) x_0, sigma(t)^2 I).

    Give ``f`` and ``g``, or ``alpha`` and ``sigma``, or ``alpha`` and ``log_snr``, as methods of a
    subclass or as functions: ``LinearSDE(f=lambda t: -5.0, g=lambda t: 10**0.5)``. Each takes a
    float64 tensor of times, () or (n,), and returns as many numbers (or one). The others are
    derived (Song et al. 2021, arXiv 2011.13456; Kingma et al. 2021, arXiv 2107.00630):

        log alpha = int_0^t f,    sigma^2 = alpha^2 (sigma_0^2 + int_0^t g^2 / alpha^2),
        f = d log alpha / dt,     g^2 = d sigma^2 / dt - 2 f sigma^2 = -sigma^2 d log_snr / dt.

    An override of any method is used where it is given; `testing.check_sde` holds it against the
    derivation.

    ``sigma_0`` is the noise that data carry at t = 0: by default 0 where f and g are given, else
    sigma(0). ``perturb`` and ``posterior`` condition on clean data, ``kernel(t, 0)`` on the state
    at 0. ``T``, ``sigma_0``, ``t_min`` and ``t_max`` are class attributes, fields or arguments; by
    default ``t_min`` is T / 1000 (0 if sigma_0 > 0), and ``t_max`` is T, or where alpha has fallen
    to exp(-10) times the noise near T if alpha(T) is below that: f is infinite where alpha = 0.

    Lengths are in the units of the data: sigma, g, sigma_0 and the prior. `scaled` gives the SDE in
    other units.
    """

    @fact
    def offers(self) -> frozenset[str]:
        """What every SDE offers, and the Gaussian kernel."""
        return frozenset({"drift", "diffusion", "kernel"})

    def __init__(
        self,
        *,
        f: Callable[[Tensor], Any] | None = None,
        g: Callable[[Tensor], Any] | None = None,
        alpha: Callable[[Tensor], Any] | None = None,
        sigma: Callable[[Tensor], Any] | None = None,
        log_snr: Callable[[Tensor], Any] | None = None,
        T: float | None = None,
        sigma_0: float | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
    ) -> None:
        super().__init__(T=T, t_min=t_min, t_max=t_max)
        self._declare(sigma_0=sigma_0)
        for name, function in zip(COEFFICIENTS, (f, g, alpha, sigma, log_snr), strict=True):
            if function is not None:
                if not callable(function):
                    raise TypeError(
                        f"{name} must be a function of t, got {function!r}; write {name}=lambda "
                        f"t: {function!r}"
                    )
                vars(self)[name] = partial(values, function, name=f"{name}(t)")

    def check_declared(self) -> None:
        """Raise a TypeError where coefficients are missing, and a ValueError unless sigma_0 and the
        times make sense.
        """
        super().check_declared()
        sigma_0 = self._given("sigma_0")
        if sigma_0 is not None and not 0 <= sigma_0 < float("inf"):
            raise ValueError(
                f"{type(self).__name__}: sigma_0 must be a finite number >= 0, got {sigma_0!r}"
            )
        if not (
            self._gives("f", "g")
            or self._gives("alpha", "sigma")
            or self._gives("alpha", "log_snr")
        ):
            raise TypeError(self._lacking())

    def _gives(self, *names: str) -> bool:
        """Whether all of these are the user's and not derived."""
        return all(
            name in vars(self) or getattr(type(self), name) is not getattr(LinearSDE, name)
            for name in names
        )

    def _lacking(self) -> str:
        given = [name for name in COEFFICIENTS if self._gives(name)]
        return (
            f"{type(self).__name__} gives {' and '.join(given) or 'no coefficient'}: "
            "give f and g, or alpha and sigma, or alpha and log_snr, as methods or as functions "
            "of t"
        )

    @cached_property
    def _integral(self) -> Integral:
        if not self._gives("f", "g"):
            raise TypeError(self._lacking())
        return Integral(self.f, self.g, self.T, self.sigma_0)

    @cached_property
    def sigma_0(self) -> float:
        """Standard deviation of the noise that data carry at t = 0: not to be had from f and g, so
        0 where they are given.
        """
        return 0.0 if self._gives("f", "g") else float(self.sigma(0.0))

    @cached_property
    def t_min(self) -> float:
        """The smallest usable time: T / 1000, or 0 where data carry noise."""
        return 0.0 if self.sigma_0 > 0 else 1e-3 * self.T

    @cached_property
    def t_max(self) -> float:
        """The largest usable time, where sampling starts: T, or an earlier one where alpha has all
        but vanished at T, since f is infinite at alpha = 0. There log_snr = -20 in units of the
        noise near T.
        """
        # At alpha = 0 itself an integral has lost sigma.
        noise = float(self.sigma((1 - 1e-6) * self.T))
        level = _LOWEST - 2 * math.log(noise) if 0 < noise < math.inf else _LOWEST
        signal = float(self.alpha(self.T))
        if 2 * math.log(max(signal, 1e-300)) >= _LOWEST or float(self.log_snr(self.T)) >= level:
            return self.T
        return float(self.time_of(level))

    @cached_property
    def data_std(self) -> float:
        """The standard deviation of data that the SDE is made for, in the units of sigma.

        It is 1 where alpha^2 + sigma^2 = 1, and the prior's or the last sigma where the data vanish
        in it. Where they stay, as under `VE`, it is sqrt(sigma(t_min) sigma(t_max) / 0.5), which is
        1 for sigma from 0.01 to 50.
        """
        kept = self.stationary
        if kept is not None:
            return math.sqrt(float(kept.detach()))
        ends = torch.tensor([self.t_min, self.t_max], dtype=torch.float64)
        alpha, sigma = self.alpha(ends).detach(), self.sigma(ends).detach()
        if float(alpha[1]) < 0.5 * float(alpha[0]):
            return float(sigma[1])
        least, most = (sigma / alpha).tolist()
        return math.sqrt(max(least, 1e-8 * most) * most / 0.5)  # at t_min there may be no noise

    @cached_property
    def spacing(self) -> str:
        """The grid that suits the SDE's own time: "uniform", or "karras" where one of 20 equal
        steps would cross more than a third of the range from log_snr = 4 to -4, in units of
        `data_std`, in which data and noise are of one size.

        Published schedules cross a sixth of it at most; constant coefficients, under which `Heun`
        and `Churn` at 20 steps then have 1.2 and 2 times the right spread, nearly half.
        """
        times = torch.linspace(self.t_min, self.t_max, 21, dtype=torch.float64)
        level = self.log_snr(times).detach() + 2 * math.log(self.data_std)
        return "karras" if float(level.clamp(-4, 4).diff().abs().max()) > 8 / 3 else "uniform"

    def scaled(self, factor: float) -> LinearSDE:
        """This SDE for data in other units: if x follows it, c x with c = ``factor`` follows that
        one.

        sigma, g, sigma_0, the prior and `data_std` are c times as large, alpha and f stay. Where
        alpha^2 + sigma^2 = 1 holds, it no longer does. Raises ValueError unless the factor is a
        positive number.
        """
        from sdediff.sde.scaled import Scaled

        factor = real("scaled: the factor", factor)
        return self if factor == 1 else Scaled(self, factor)

    @derived
    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient d log alpha / dt, shaped as t."""
        if not self._gives("alpha"):
            raise TypeError(self._lacking())
        return time_derivative(self.alpha, t) / self.alpha(t)

    @derived
    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient, sqrt(d sigma^2 / dt - 2 f sigma^2), shaped as t."""
        # where sigma vanishes as sqrt(t), its derivative at 0 is infinite and g is not
        t = t.clamp(min=1e-12 * self.T)
        if self._gives("log_snr"):
            rate = -time_derivative(self.log_snr, t)
            square = self.sigma(t) ** 2 * rate
        elif self._gives("sigma"):
            sigma = self.sigma(t)
            excess = time_derivative(self.sigma, t) - self.f(t) * self.sigma(t)
            rate, square = 2 * excess / sigma, 2 * sigma * excess
        else:
            raise TypeError(self._lacking())
        # log_snr is flat to rounding where g = 0; where it rises, no g exists and NaN says so.
        return torch.where((square < 0) & (rate * self.T > -1e-10), 0.0, square).sqrt()

    @derived
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data in x_t, shaped as t."""
        return self._integral(t)[0].exp()

    @derived
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in x_t given clean data, shaped as t."""
        if self._gives("log_snr") and not self._gives("f", "g"):
            return self.alpha(t) * torch.exp(-0.5 * self.log_snr(t))
        log_alpha, log_ratio = self._integral(t)
        return torch.exp(log_alpha + 0.5 * log_ratio)

    @derived
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), twice DPM-Solver's lambda, shaped as t; it falls with t."""
        if self._gives("sigma"):
            return 2 * (self.alpha(t).log() - self.sigma(t).log())
        return -self._integral(t)[1]

    def levels(self, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """(alpha, sigma, log_snr), each shaped as t: by one quadrature where all of them are
        derived from f and g.
        """
        time = as_time(t)
        if any(map(self._gives, ("alpha", "sigma", "log_snr"))):
            return self.alpha(time), self.sigma(time), self.log_snr(time)
        log_alpha, log_ratio = self._integral(time)
        return log_alpha.exp(), torch.exp(log_alpha + 0.5 * log_ratio), -log_ratio

    @derived
    def time_of(self, log_snr: Tensor) -> Tensor:
        """The earliest t in [0, T] with log_snr(t) <= ``log_snr``, shaped as it: the inverse of
        `log_snr`.

        Exact to 1e-10 where the slope of log_snr exceeds 1e-4, and differentiable. Raises
        ValueError beyond log_snr's own range on [0, T].
        """
        found = self.invert(log_snr).clamp(max=self.T)
        if type(self).invert is not LinearSDE.invert:
            # where the inverse is known to hold: to look again would double its cost
            low, high = self._inverted
            level = log_snr.detach()
            sure = bool(((level >= low) & (level <= high)).all())
            if not sure and not close(self.log_snr(found), log_snr):
                found = LinearSDE.invert(self, log_snr)
        if found.requires_grad or not (torch.is_grad_enabled() and log_snr.requires_grad):
            return found
        with torch.no_grad():
            rate = (-self.g(found).square() / self.sigma(found).square()).clamp(
                max=-torch.finfo(torch.float64).tiny
            )
        return found + (log_snr - log_snr.detach()) / rate  # d t / d log_snr

    def time_beyond(self, log_snr: Tensor | float) -> Tensor:
        """`time_of`, which takes levels below the last one too, shaped as ``log_snr``.

        For these it is t_max, or a time after T where the SDE goes on after T: where the `invert`
        of a subclass returns such a time (`EDM` and `VE`), and the coefficients hold there.
        """
        target = as_time(log_snr)
        last = self.log_snr(self.t_max).detach()
        inside = self.time_of(target.clamp(min=last))
        given = type(self).invert is not LinearSDE.invert
        if not given or not bool((target < last).any()):
            return inside
        found = self.invert(target)
        after = (found > self.T) & torch.isclose(self.log_snr(found), target, rtol=1e-8, atol=1e-8)
        return torch.where(after, found, inside)

    def invert(self, log_snr: Tensor) -> Tensor:
        """What `time_of` is for a float64 tensor, without gradients.

        An SDE with a closed form overrides it. It may return times after T: `time_beyond`.
        """
        with torch.no_grad():
            return earliest(self, self._inverse, log_snr.detach().reshape(-1)).reshape(
                log_snr.shape
            )

    @cached_property
    def _inverted(self) -> tuple[float, float]:
        return inverted(self.log_snr, self.invert, self.T)

    @cached_property
    def _inverse(self) -> Inverse:
        return Inverse(self.log_snr, self.T)

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt), shaped as t."""
        time = as_time(t)
        if not self._gives("f", "g"):
            return time_derivative(self.alpha, time), time_derivative(self.sigma, time)
        f, sigma = self.f(time), self.sigma(time)
        return f * self.alpha(time), f * sigma + self.g(time) ** 2 / (2 * sigma)

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return expand(self.f(t), x) * x

    @derived
    def diffusion(self, t: Tensor) -> Tensor:
        return self.g(t)

    def kernel(self, t: Tensor | float, s: Tensor | float) -> tuple[Tensor, Tensor]:
        """(ratio, std) of x_t given x_s, s <= t: N(ratio x_s, std^2 I).

        ratio = alpha_t / alpha_s and std^2 = sigma_t^2 - ratio^2 sigma_s^2 = -sigma_t^2
        expm1(log_snr(t) - log_snr(s)).
        """
        t, s = as_time(t), as_time(s)
        if bool((s > t).any()):
            raise ValueError(
                "kernel(t, s) goes forward in time, from s to t: s must not exceed t; swap them"
            )
        fall = torch.where(t == s, 0.0, self.log_snr(t) - self.log_snr(s))
        return self.alpha(t) / self.alpha(s), self.sigma(t) * (-torch.expm1(fall)).clamp(
            min=0
        ).sqrt()

    def posterior(
        self,
        x_t: Tensor,
        x_0: Tensor,
        t: Tensor | float,
        s: Tensor | float,
        *,
        std: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(mean, std) of x_s given x_t and clean data x_0, s <= t; mean (B, *event), std shaped as
        the times.

        mean = ratio sigma_s^2 / sigma_t^2 x_t + alpha_s v / sigma_t^2 x_0 and std^2 = sigma_s^2 v /
        sigma_t^2 with the kernel N(ratio x_s, v) from s to t (Ho et al. 2020, arXiv 2006.11239, eq.
        7; Kingma et al. 2021, arXiv 2107.00630, eq. 27).

        With ``std`` in [0, sigma_s], a number or (B,), it is DDIM's posterior q_sigma of that
        standard deviation, of a process with the same marginals that is not Markov: mean = alpha_s
        x_0 + sqrt(sigma_s^2 - std^2) (x_t - alpha_t x_0) / sigma_t (Song et al. 2021, arXiv
        2010.02502, eq. 7).
        """
        t, s = as_time(t), as_time(s)
        _check_states("x_t", x_t, x_0, t=t, s=s)
        if std is not None:
            std = reals("std", std, "cpu")
            _check_states("x_t", x_t, x_0, std=std)
            at_t, at_s = ((self.alpha(at), self.sigma(at)) for at in (t, s))
            keep, data = posterior_weights(std, at_t, at_s)
            return expand(keep, x_t) * x_t + expand(data, x_t) * x_0, std.expand(keep.shape)
        ratio, std = self.kernel(t, s)
        sigma_t, sigma_s = self.sigma(t), self.sigma(s)
        share = (std / sigma_t) ** 2  # v / sigma_t^2
        keep, data = ratio * (sigma_s / sigma_t) ** 2, self.alpha(s) * share
        return expand(keep, x_t) * x_t + expand(data, x_t) * x_0, sigma_s * share.sqrt()

    def perturb(self, x_0: Tensor, t: Tensor | float, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) noise for clean data x_0 (B, *event) and standard normal
        noise of the same shape.
        """
        time = self.check_time(as_time(t))
        _check_states("noise", noise, x_0, t=time)
        return expand(self.alpha(time), x_0) * x_0 + expand(self.sigma(time), x_0) * noise

    @property
    def prior(self) -> Prior:
        """N(0, K I) where sigma^2 = K - p^2 alpha^2, so N(0, I) where alpha^2 + sigma^2 = 1; else
        N(0, sigma(t_max)^2 I).
        """
        kept = self.stationary
        return Prior(
            float(self.sigma(self.t_max).detach() if kept is None else kept.detach().sqrt())
        )

    @property
    def stationary(self) -> Tensor | None:
        """The variance K that the process keeps if it ever has it: sigma^2 = K - p^2 alpha^2,
        looked up at five times; or None.

        It is 1 where alpha^2 + sigma^2 = 1, and c^2 times as large in units that are c times as
        small: no size is absolute. There is none where alpha stays or grows.
        """
        times = torch.linspace(self.t_min, self.t_max, 5, dtype=torch.float64)
        signal, noise = self.alpha(times) ** 2, self.sigma(times) ** 2
        fall, rise = signal[0] - signal[-1], noise[-1] - noise[0]
        if not bool(fall > 1e-9 * signal[0]):
            return None
        share = rise / fall
        total = noise[-1] + share * signal[-1]
        off = (noise + share * signal - total).abs().max()
        if not bool(off < 1e-9 * rise + 1e-14 * total):
            return None
        # What rounding leaves of 1 is 1, the published prior.
        return total / total.detach() if bool((total - 1).abs() < 1e-11) else total

    def prior_gap(self, mean: Tensor | float, variance: Tensor | float) -> float:
        """Nats by which the law at t_max exceeds the prior for Gaussian data: KL(N(alpha m, alpha^2
        v + sigma^2) || prior).

        ``mean`` and ``variance`` hold one entry for each coordinate of an event (or one number for
        one coordinate); the sum over coordinates is returned: sum of (r - log(1 + r) + (alpha m /
        p)^2) / 2 with r = (alpha^2 v + sigma^2) / p^2 - 1 and p the prior's standard deviation.
        """
        m, v = torch.broadcast_tensors(reals("mean", mean), reals("variance", variance))
        if bool((v < 0).any()) or not bool(torch.isfinite(v).all() and torch.isfinite(m).all()):
            raise ValueError(
                "prior_gap: mean and variance must be finite and the variance not negative"
            )
        std = self.prior.std
        alpha = self.alpha(self.t_max).detach() / std
        sigma = self.sigma(self.t_max).detach() / std
        r = alpha**2 * v + (sigma - 1) * (sigma + 1)
        return float(0.5 * (r - torch.log1p(r) + (alpha * m) ** 2).sum())


def _check_states(name: str, x: Tensor, x_0: Tensor, **times: Tensor) -> None:
    """A TypeError unless x and x_0 are tensors; a ValueError unless they are of one shape (B,
    *event), and each of the times is one number or (B,).
    """
    for each, value in ((name, x), ("x_0", x_0)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{each} must be a tensor (B, *event), got {type(value).__name__}")
    if x.shape != x_0.shape:
        raise ValueError(
            f"{name} must have the shape of x_0, {tuple(x_0.shape)}, got {tuple(x.shape)}"
        )
    for each, time in times.items():
        if time.ndim and time.shape != x_0.shape[:1]:
            raise ValueError(
                f"{each} must be a number or (B,) with B = {x_0.shape[0]} as in x_0, got shape "
                f"{tuple(time.shape)}"
            )

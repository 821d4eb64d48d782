"""What a forward SDE is: dx = drift(x, t) dt + g(t) dw from data at t = 0 to noise at t = T."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import expand, rowwise

__all__ = ["SDE", "LinearSDE", "Prior", "as_time"]

_SLACK = 1e-6


def as_time(t: Tensor | float) -> Tensor:
    """``t`` as a float64 tensor on the host, () or (B,), where schedules are evaluated."""
    time = torch.as_tensor(t, dtype=torch.float64) if not isinstance(t, Tensor) else t.detach().cpu().to(torch.float64)
    if time.ndim > 1:
        raise ValueError(f"t must be a number or one number a sample, (B,); got shape {tuple(time.shape)}")
    return time


@dataclass(frozen=True)
class Prior:
    """N(0, std^2 I), from which sampling starts."""

    std: float

    def from_noise(self, z: Tensor) -> Tensor:
        """The draw that a standard normal z (B, *event) becomes."""
        return self.std * z

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x (B, *event) in nats, (B,)."""
        flat = rowwise(x) / self.std
        return -0.5 * flat.square().sum(dim=1) - flat.shape[1] * (math.log(self.std) + 0.5 * math.log(2 * math.pi))


class SDE:
    """dx = drift(x, t) dt + diffusion(t) dw, t from 0 (data) to T (noise), as in Song et al. 2021 (arXiv 2011.13456, eq. 5).

    ``[t_min, t_max]`` is the usable range of time, shared by losses, sampling and likelihood. Times are numbers or float64 host
    tensors, () or (B,); states are (B, *event) of any rank.
    """

    T: float = 1.0
    t_min: float = 1e-3

    @property
    def t_max(self) -> float:
        """Where sampling starts: T, unless coefficients are infinite there."""
        return self.T

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """Drift at (x, t), (B, *event)."""
        raise NotImplementedError

    def diffusion(self, t: Tensor) -> Tensor:
        """Diffusion coefficient g(t), shaped as t."""
        raise NotImplementedError

    @property
    def prior(self) -> Prior:
        """The law from which sampling starts, at t_max."""
        raise NotImplementedError

    def check_time(self, t: Tensor) -> Tensor:
        """Return t; a ValueError if any of it is outside the usable range."""
        low, high = self.t_min, self.t_max
        # The slack lets a bound pass that was rounded to float32; written so that NaN does not.
        inside = (t >= low * (1 - _SLACK)) & (t <= high * (1 + _SLACK))
        if not bool(inside.all()):
            wrong = t[~inside] if t.ndim else t
            raise ValueError(
                f"t = {float(wrong.flatten()[0]):.6g} is outside the usable range [t_min, t_max] = [{low:g}, {high:g}] of {self!r}"
            )
        return t


class LinearSDE(SDE):
    """dx = f(t) x dt + g(t) dw, so that x_t given x_0 is N(alpha(t) x_0, sigma(t)^2 I).

    A subclass gives ``f``, ``g``, ``alpha`` and ``sigma`` as functions of a tensor of times, consistent with one another:
    f = d log(alpha) / dt and g^2 = d sigma^2 / dt - 2 f sigma^2; and ``log_snr`` where cancellation would spoil
    2 log(alpha / sigma). ``sigma(0)`` is the noise that data carry at t = 0: ``perturb`` conditions on clean data,
    ``kernel(t, 0)`` on the state at 0.
    """

    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient, shaped as t."""
        raise NotImplementedError

    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient, shaped as t."""
        raise NotImplementedError

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data in x_t, shaped as t."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in x_t, shaped as t."""
        raise NotImplementedError

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), twice DPM-Solver's lambda, shaped as t."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(t) x."""
        return expand(self.f(as_time(t)), x) * x

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t)."""
        return self.g(t)

    def kernel(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(ratio, std) of x_t given x_s, s <= t: N(ratio x_s, std^2 I).

        ratio = alpha_t / alpha_s and std^2 = sigma_t^2 - ratio^2 sigma_s^2 = -sigma_t^2 expm1(log_snr(t) - log_snr(s)).
        """
        t, s = as_time(t), as_time(s)
        std = self.sigma(t) * (-torch.expm1(self.log_snr(t) - self.log_snr(s))).clamp(min=0).sqrt()
        return self.alpha(t) / self.alpha(s), std

    def perturb(self, x_0: Tensor, t: Tensor | float, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) noise for clean data x_0 (B, *event) and standard normal noise of the same shape."""
        time = self.check_time(as_time(t))
        return expand(self.alpha(time), x_0) * x_0 + expand(self.sigma(time), x_0) * noise

    @property
    def prior(self) -> Prior:
        """N(0, sigma(t_max)^2 I)."""
        return Prior(float(self.sigma(torch.tensor(self.t_max, dtype=torch.float64))))

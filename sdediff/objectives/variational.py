"""The variational bound in continuous time, of which VDM's loss is an estimate (Kingma et al. 2021,
arXiv 2107.00630).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sdediff.calls import Condition
from sdediff.masks import counts, sum_over
from sdediff.objectives.objective import Batch, Loss
from sdediff.objectives.times import uniform
from sdediff.predict import conversion_of, outputs, target
from sdediff.protocols import Model
from sdediff.sde import LinearSDE
from sdediff.sde.roots import time_derivative
from sdediff.solvers import expand
from sdediff.solvers.given import Record, integer

__all__ = ["Bins", "VariationalDiffusion"]


@dataclass(frozen=True)
class Bins(Record):
    """Data on ``count`` evenly spaced values from ``low`` to ``high``, 8-bit images scaled to [-1,
    1] by default.

    The decoder is p(x_0 | x_1) = Phi((x_0 + h - mean) / std) - Phi((x_0 - h - mean) / std) with h
    half the spacing, and the outermost bins open (Ho et al. 2020, arXiv 2006.11239, eq. 13).
    """

    count: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _ = integer("Bins: count", self.count, 2)
        if not self.low < self.high:
            raise ValueError(f"Bins: low must be below high, got {self.low!r} and {self.high!r}")

    @property
    def spacing(self) -> float:
        """Distance of two neighbours."""
        return (self.high - self.low) / (self.count - 1)

    @classmethod
    def checked(cls, bins: object) -> Bins:
        """Return ``bins``; a TypeError unless it is one."""
        if not isinstance(bins, cls):
            raise TypeError(
                f"bins must be Bins(), which says on which values data lie; got {bins!r}"
            )
        return bins

    def check(self, x_0: Tensor) -> None:
        """A ValueError or TypeError unless all of x_0 lies on the values: scales are declared,
        never guessed.
        """
        if isinstance(x_0, Tensor) and not x_0.is_floating_point():
            raise TypeError(
                f"data are floating-point, as the model takes them, got {x_0.dtype}; scale bin "
                "numbers first: "
                f"{self.low:g} + number * {self.high - self.low:g} / {self.count - 1}"
            )
        if not bool(torch.isfinite(x_0).all()):
            raise ValueError("data contain values that are not finite")
        place = (x_0.detach().cpu().double() - self.low) / self.spacing
        off = float((place - place.round()).abs().max()) if x_0.numel() else 0.0
        if (
            not off < 1e-2
            or bool((place.round() < 0).any())
            or bool((place.round() > self.count - 1).any())
        ):
            raise ValueError(
                f"data must lie on the {self.count} values from {self.low:g} to {self.high:g}, "
                "and run from "
                f"{float(x_0.min()):.4g} to {float(x_0.max()):.4g}, up to {off:.2g} of their "
                "spacing off; declare how they were "
                "scaled, Bins(count, low, high), and pass them without noise (DDPMLoss and "
                "variational_bound take bins=None for "
                "data with a density)"
            )

    def log_prob(self, x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """log p(x_0 | x_1) of each entry, shaped as x_0."""
        narrow = torch.exp(-0.5 * log_variance)
        upper = (x_0 + 0.5 * self.spacing - mean) * narrow
        lower = (x_0 - 0.5 * self.spacing - mean) * narrow
        upper = torch.where(x_0 > self.high - 0.5 * self.spacing, torch.inf, upper)
        lower = torch.where(x_0 < self.low + 0.5 * self.spacing, -torch.inf, lower)
        # Mirrored into the lower tail, where the logarithm of Phi loses nothing.
        flip = lower > 0
        upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
        return _log_difference(upper, lower)


def _log_difference(upper: Tensor, lower: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)) for lower < upper, the ends of which may be infinite."""
    open_below, open_above = lower == -torch.inf, upper == torch.inf
    # Finite stand-ins, so that no gradient is infinity times 0.
    high = torch.where(open_above, 0.0, upper)
    low = torch.where(open_below, -40.0, lower)
    top = torch.where(open_above, 0.0, torch.special.log_ndtr(high))
    fall = torch.where(open_below, -torch.inf, torch.special.log_ndtr(low) - top)
    return top + torch.where(
        open_below, 0.0, torch.log(-torch.expm1(torch.where(open_below, -1.0, fall)))
    )


@dataclass(frozen=True)
class VariationalDiffusion(Loss):
    """-log p(x_0) <= KL(q(x_T | x_0) || N(0, p^2)) + E[-log p(x_0 | x_{t_min})] + 1/2 E int
    gamma'(t) ||noise error||^2 dt.

    N(0, p^2) is the SDE's prior and gamma = -log_snr; the integral is t_max - t_min times the mean
    at a random t (eq. 11 and 17), in bits per dimension. For any linear SDE; under `LearnedVP` it
    is differentiable in the schedule, whose ends it trains: between them the bound does not depend
    on it (section 5.1). ``bins`` are the values on which data lie, p(x_0 | x) in proportion to q(x
    | x_0) on them (eq. 8); None: the Gaussian N(x / alpha, sigma^2 / alpha^2). ``stratified``
    spreads the times of a batch (Appendix I.1).
    ``inside``: how the interior of a learned schedule is trained. ``"bound"``: by the plain
    gradient, which is zero on average. ``"variance"``: by the gradient of the mean of (diffusion
    part)^2, so that the estimate varies less (Appendix I.2). It takes the same backward pass, and
    is meant for the mean of the losses over a batch.
    """

    bins: Bins | None = None
    stratified: bool = field(default=True, kw_only=True)
    inside: Literal["bound", "variance"] = field(default="bound", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.bins, Bins | None):
            raise TypeError(f"VariationalDiffusion: bins must be Bins() or None, got {self.bins!r}")

    def losses(self, batch: Batch) -> Tensor:
        """Bits per dimension, by one evaluation of the network; dimensions are those that exist."""
        model, sde = batch.model, batch.model.sde
        if "kernel" not in sde.offers:
            raise ValueError(
                f"the variational bound needs a Gaussian kernel, which {sde!r} does not have: "
                "use a LinearSDE"
            )
        batch = batch.prepared()
        x_0, condition, mask = batch.x_0, batch.condition, batch.mask
        if self.bins is not None:
            self.bins.check(x_0 if mask is None else x_0[mask])
        apart = _Apart(sde) if self.inside == "variance" else None
        t = batch.at
        if t is None:
            u = uniform(len(x_0), batch.generator, stratified=self.stratified)
            t = sde.t_min + (sde.t_max - sde.t_min) * u
        time = sde.check_time(t.detach().cpu().double())
        noise = batch.drawn()
        bits = 1 / (counts(x_0, mask) * math.log(2))
        if apart is None:
            nats = self.diffusion(model, x_0, time, noise, condition, mask)
        else:
            nats = self._integrand(
                apart.model(model), x_0, time, noise, condition, apart.rate(time), mask
            )
            apart.weight = (2 * bits * nats.detach()).to(time)
        return bits * (
            nats + self.prior(model, x_0, mask) + self.reconstruction(model, x_0, noise, mask)
        )

    def diffusion(
        self,
        model: Model,
        x_0: Tensor,
        t: Tensor,
        noise: Tensor,
        condition: Condition | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The integral's part: (t_max - t_min) / 2 gamma'(t) ||noise - predicted noise||^2, nats
        (B,).
        """
        return self._integrand(model, x_0, t, noise, condition, _rate(model.sde, t), mask)

    def _integrand(
        self,
        model: Model,
        x_0: Tensor,
        t: Tensor,
        noise: Tensor,
        condition: Condition | None,
        rate: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        sde = model.sde
        x_t = expand(sde.alpha(t), x_0) * x_0 + expand(sde.sigma(t), x_0) * noise
        error = outputs(model, x_t, t, condition, mask).value - target(model, x_0, noise, t)
        scale = 0.5 * (sde.t_max - sde.t_min) * rate * conversion_of(model, "noise", t)[1] ** 2
        squares = sum_over(error.square(), mask)
        return torch.as_tensor(expand(scale, squares)) * squares

    def prior(self, model: Model, x_0: Tensor, mask: Tensor | None = None) -> Tensor:
        """KL(N(alpha x_0, sigma^2) || N(0, p^2)) at t_max, the prior of `sample`, nats (B,): p is 1
        where alpha^2 + sigma^2 = 1.

        That is (r - 1 - log r + alpha^2 / p^2 x_0^2) / 2 for each coordinate, r = sigma^2 / p^2.
        """
        sde = model.sde
        end = torch.tensor(sde.t_max, dtype=torch.float64)
        variance = torch.tensor(sde.prior.std**2, dtype=torch.float64)
        own = sde.stationary
        if own is not None and torch.isclose(own, variance, rtol=1e-9):
            variance = own  # with the gradient of a learned schedule
        spread = sde.sigma(end).square() / variance
        signal = sde.alpha(end).square() / variance
        noise = (spread - 1 - spread.log()).to(x_0.dtype).to(x_0.device)
        nats: Tensor = noise * counts(x_0, mask) + signal.to(x_0.dtype).to(x_0.device) * sum_over(
            x_0.square(), mask
        )
        return 0.5 * nats

    def reconstruction(
        self, model: Model, x_0: Tensor, noise: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """-log p(x_0 | x) at x = alpha x_0 + sigma noise of t_min, nats (B,)."""
        log_snr = (
            model.sde.log_snr(torch.tensor([model.sde.t_min], dtype=torch.float64))
            .to(x_0.dtype)
            .to(x_0.device)
        )
        if self.bins is None:
            return 0.5 * sum_over(noise.square() + math.log(2 * math.pi) - log_snr, mask)
        values = torch.linspace(
            self.bins.low, self.bins.high, self.bins.count, dtype=x_0.dtype, device=x_0.device
        )
        seen = x_0 + torch.exp(-0.5 * log_snr) * noise
        logits = -0.5 * log_snr.exp() * (seen[..., None] - values).square()
        own = -0.5 * log_snr.exp() * (seen - x_0).square()
        return sum_over(logits.logsumexp(dim=-1) - own, mask)


def _rate(sde: LinearSDE, t: Tensor) -> Tensor:
    # Asked for at times with gradients, the slope keeps its own graph, of the schedule's
    # parameters.
    rate = -time_derivative(sde.log_snr, t.clone().requires_grad_()).to(t)
    return rate if torch.is_grad_enabled() else rate.detach()


class _Apart(nn.Module):
    """A schedule gamma = first + (last - first) share(t); the gradients of shares at times (B,) are
    multiplied by ``weight``.
    """

    weight: Tensor | None = None

    def __init__(self, sde: LinearSDE) -> None:
        super().__init__()
        schedule = getattr(sde, "schedule", None)
        ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
        gamma = schedule(ends) if isinstance(schedule, nn.Module) else None
        if gamma is None or not torch.equal(gamma, -sde.log_snr(ends)):
            raise ValueError(
                "inside='variance' is for an SDE with a module `schedule` that gives gamma(t) = "
                "-log_snr(t), "
                f"LearnedVP(MonotoneSchedule()) say; got {sde!r}"
            )
        self.schedule: Any = schedule
        self.first, self.last = gamma.unbind()
        self.sde = sde

    def model(self, model: Model) -> Any:
        """The model under the same SDE with this schedule."""
        other = cast(Any, copy.copy(model))
        other.sde = copy.copy(self.sde)
        vars(other.sde)["schedule"] = self
        return other

    def forward(self, t: Tensor) -> Tensor:
        length = self.last - self.first
        gamma: Tensor = self.first + length * self._weighed(
            (self.schedule(t) - self.first) / length
        )
        return gamma

    def rate(self, t: Tensor) -> Tensor:
        """gamma'(t)."""
        length: Tensor = self.last - self.first
        return length * self._weighed(_rate(self.sde, t) / length)

    def _weighed(self, share: Tensor) -> Tensor:
        # The quotients do not depend on the ends, nor do the ends' gradients on the weights.
        if share.requires_grad:
            share.register_hook(
                lambda grad: (
                    grad
                    if self.weight is None or grad.shape != self.weight.shape
                    else self.weight * grad
                )
            )
        return share

"""The variational bound in continuous time, of which VDM's loss is an estimate (Kingma et al. 2021,
arXiv 2107.00630).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sdediff.masks import counts, kept, mask_of, sum_over
from sdediff.objectives.bins import Bins
from sdediff.objectives.timed import check_loss_call
from sdediff.objectives.times import uniform
from sdediff.predict import conversion_of, outputs, target
from sdediff.protocols import Model
from sdediff.sde.coefficient import slope
from sdediff.solvers import expand
from sdediff.solvers.arithmetic import at_least_float32
from sdediff.solvers.given import Record, check_choice

__all__ = ["VariationalDiffusion"]


@dataclass(frozen=True)
class VariationalDiffusion(Record):
    """-log p(x_0) <= KL(q(x_T | x_0) || N(0, p^2)) + E[-log p(x_0 | x_{t_min})] + 1/2 E int
    gamma'(t) ||noise error||^2 dt.

    N(0, p^2) is the SDE's prior and gamma = -log_snr; the integral is t_max - t_min times the mean
    at a random t (eq. 11 and 17), in bits per dimension. For any linear SDE; under `LearnedVP` it
    is differentiable in the schedule, whose ends it trains: between them the bound does not depend
    on it (section 5.1). ``bins`` are the values on which data lie, p(x_0 | x) in proportion to q(x
    | x_0) on them (eq. 8); None: the Gaussian N(x / alpha, sigma^2 / alpha^2). ``stratified``
    spreads the times of a batch (Appendix I.1).
    ``inside``: what gradients pull a learned schedule to between its ends. ``"bound"``: nothing but
    chance, the plain gradient, whose mean is zero there. ``"variance"``: the gradient of the mean
    of (diffusion part)^2, so that the estimate varies less (Appendix I.2), by the same backward
    pass; for the mean of the losses over a batch.
    """

    bins: Bins | None = None
    stratified: bool = field(default=True, kw_only=True)
    inside: Literal["bound", "variance"] = field(default="bound", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.bins, Bins | None):
            raise TypeError(f"VariationalDiffusion: bins must be Bins() or None, got {self.bins!r}")
        check_choice("inside", self.inside, ("bound", "variance"))

    def __call__(
        self,
        model: Model,
        x_0: Tensor,
        condition: Mapping[str, Tensor] | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Bits per dimension of the samples x_0 (B, *event), (B,), by one evaluation of the
        network.

        ``t`` (B,) and ``noise`` (shape of x_0) are drawn where they are not given, on the host from
        ``generator``. ``mask``: as for `DenoisingScoreMatching`; dimensions are those that exist.
        """
        model = check_loss_call(model, x_0, generator)
        sde = model.sde
        mask = mask_of(mask, x_0)
        if "kernel" not in sde.offers:
            raise ValueError(
                f"the variational bound needs a Gaussian kernel, which {sde!r} does not have: "
                "use a LinearSDE"
            )
        if self.bins is not None:
            self.bins.check(x_0 if mask is None else x_0[mask])
        x_0 = at_least_float32(x_0)
        apart = _Apart(sde) if self.inside == "variance" else None
        if t is None:
            t = sde.t_min + (sde.t_max - sde.t_min) * uniform(
                len(x_0), generator, stratified=self.stratified
            )
        time = sde.check_time(t.detach().cpu().double())
        if noise is None:
            noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype).to(x_0.device)
        x_0, noise = kept(x_0, mask), kept(noise, mask)
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
        condition: Mapping[str, Tensor] | None = None,
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
        condition: Mapping[str, Tensor] | None,
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


def _rate(sde: Any, t: Tensor) -> Tensor:
    # Asked for at times with gradients, the slope keeps its own graph, of the schedule's
    # parameters.
    rate = -slope(sde.log_snr, t.clone().requires_grad_()).to(t)
    return rate if torch.is_grad_enabled() else rate.detach()


class _Apart(nn.Module):
    """A schedule gamma = first + (last - first) share(t); the gradients of shares at times (B,) are
    multiplied by ``weight``.
    """

    weight: Tensor | None = None

    def __init__(self, sde: Any) -> None:
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

"""Laws made of laws: products and powers of densities, and laws that are tilted by a reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.posterior.factors import At, Factors
from sdediff.posterior.observation import Observed
from sdediff.posterior.operators import Denoised, Posterior
from sdediff.protocols import Model, Output, Rows, facts
from sdediff.solvers import rowwise
from sdediff.solvers.arithmetic import along, weighted
from sdediff.solvers.given import real
from sdediff.solvers.masked import kept

__all__ = ["Anneal", "Product", "Reward"]


class Product(Factors):
    """The model of the law q ~ prod p_i(x)^w_i, from models of the p_i with one SDE.

    ``factors`` maps models to exponents, {model: 2.0, other: -1.0}, or holds tuples (model,
    exponent) or (model, exponent, condition). ``condition`` replaces conditions of the call by
    name, one value for all samples: p(x | c)^w p(x)^(1 - w) is

        Product([(model, w), (model, 1 - w, {"label": 10})])

    where 10 stands for no label. Exponents may be negative; their sum W must be positive. A model
    is handed those conditions that its network takes by name.

    `sample_weighted` with `FeynmanKac` samples q. As a model by itself the product has the score
    sum w_i s_i, as classifier-free guidance has, and `sdediff.sample` of it samples another law
    than q: that sum is the score of the product of the p_i(., t), which is not q under noise.
    """

    predicts: Final = "noise"  # type: ignore[misc]  # the base's can be set, this one cannot
    extras = ("center", "scatter")

    def log_start(self, event: Sequence[int]) -> float:
        """The log of the integral of prod p_i(., T)^w_i, in the units of the user's data."""
        size, W = math.prod(event), self.power
        variance = 2 * math.pi * self.sde.prior.std**2
        normalizer = facts(self.model).normalizer
        volume = 0.0 if normalizer is None else float(normalizer.log_det(event))
        return 0.5 * size * ((1 - W) * math.log(variance) - math.log(W)) + (1 - W) * volume

    def evaluate(self, x: Tensor, at: At, rows: Rows) -> Output:
        """sum w_i noise_i; the ``center`` M = sum w_i E_i[x_0 | x_t] / W, the ``scatter`` (alpha /
        sigma)^2 sum w_i |E_i[x_0 | x_t] - M|^2, and ``back``, v -> (W - 1) alpha (dM / dx)^T v,
        None for W = 1.
        """
        if self.power == 1:
            return Output(**self._summed(x, at, rows), back=None)
        state, keep = self.differentiated(x)
        with torch.enable_grad():
            found = self._summed(state, at, rows)

        def back(v: Tensor) -> Tensor:
            rows.count(0, 1)
            pulled = torch.autograd.grad(
                found["center"], state, v, retain_graph=True, create_graph=keep
            )[0]
            return weighted(((self.power - 1) * at.alpha, kept(pulled, rows.mask)))

        shown = found if keep else {name: each.detach() for name, each in found.items()}
        return Output(**shown, back=back)

    def _summed(self, x: Tensor, at: At, rows: Rows) -> dict[str, Tensor]:
        """The value and the tensors beside it."""
        data = [*self.data_of(x, at, rows)]
        weights = [each.exponent for each in self.factors]
        center = weighted(*zip([w / self.power for w in weights], data, strict=True))
        offs = [rowwise(each - center).square().sum(dim=1) for each in data]
        total = along(weighted(*zip(weights, offs, strict=True)), x).expand(x.shape)
        value = weighted((at.keep, x), (at.push, center))
        return {"value": value, "center": center, "scatter": weighted((at.snr, total))}


class Anneal(Product):
    """The model of the law q ~ p(x)^(1 / temperature), from one of p.

    A temperature below 1 sharpens the law and one above 1 flattens it. It is the `Product` of one
    factor: `sample_weighted` with `FeynmanKac` samples it. (Scaling the score by 1 / temperature
    does not.)
    """

    def __init__(self, model: Model, temperature: float) -> None:
        heat = real("Anneal: temperature", temperature)
        if not 0 < heat < math.inf:
            raise ValueError(f"Anneal: temperature must be positive and finite, got {heat:g}")
        super().__init__([(model, 1 / heat)])


class _Rewarded:
    """A reward where posteriors have a measurement: log p(y | x_0) = r(x_0)."""

    def __init__(self, r: Callable[[Tensor], Tensor]) -> None:
        self.r = r

    def forward(self, x: Tensor) -> Tensor:
        """r(x), (B, 1), of x that takes gradients; a ValueError unless it has one."""
        found = self.log_likelihood(x, x)
        if not found.requires_grad:
            raise ValueError(
                "Reward: r(x) does not depend on x, so that it has no gradient: look in it for "
                "torch.no_grad, detach() or a threshold"
            )
        return found[:, None]

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """r(x), (B,)."""
        found = self.r(x)
        if not isinstance(found, Tensor) or found.shape != x.shape[:1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"Reward: r(x) must return one number a sample, ({len(x)},), got {got}"
            )
        return found


class Reward(Posterior):
    """The model of the law q(x_0) ~ p(x_0) exp(r(x_0)), from one of p.

    ``r(x_0)`` takes data (B, *event) in the user's units and returns (B,), in nats. It treats every
    sample by itself, and autograd differentiates it twice. `sample_weighted` with `Particles`
    samples q, and its log evidence is log E[exp(r(x_0))]. Their twist is

        log E[exp(r(x_0)) | x_t] = r + |g|^2 c / (2 (1 - c h)) - log(1 - c h) / 2,

    with g = grad r and all at x^_0 = E[x_0 | x_t], c and h the covariance of x_0 given x_t (by
    Tweedie's formula) and the Hessian of r along g, and h at most 0: exact along g for a quadratic
    r. As a model by itself it has the pull of this twist, g / (1 - c h), as an approximation that
    any solver takes. An evaluation takes one evaluation of ``model`` and two backward passes. (Wu
    et al. 2023, arXiv 2306.17775, for the weights.)
    """

    linear = False
    extras = ("prior", "log_likelihood")

    def __init__(self, model: Model, r: Callable[[Tensor], Tensor]) -> None:
        if not callable(r):
            raise TypeError(f"Reward: r must be a function of x_0 (B, *event), got {r!r}")
        super().__init__(model, _Rewarded(r), torch.zeros(1, 1))

    def pull(self, denoised: Denoised, seen: Observed) -> tuple[Tensor, dict[str, Any]]:
        with torch.enable_grad():
            x = denoised.data.detach().requires_grad_()
            reward = seen.log_likelihood("Reward: r(x)", x)
            (g,) = torch.autograd.grad(reward.sum(), x, create_graph=True)
            bent = torch.zeros_like(x)
            if g.requires_grad:
                found = torch.autograd.grad(g, x, g.detach(), allow_unused=True)[0]
                bent = bent if found is None else found
        g, reward = g.detach(), reward.detach()
        moved = denoised.covariance(g)
        size, force, curve = (rowwise(g * each).double().sum(dim=1) for each in (g, moved, bent))
        force = force.clamp(min=0)
        least = torch.where(size > 0, size, 1.0)
        width = 1 + force / least * (-curve / least).clamp(min=0)
        value = reward.double() + 0.5 * (force / width - width.log())
        extras = {
            "prior": denoised.data,
            "log_likelihood": along(value, x).expand(x.shape),
            "covariance": denoised.covariance,
            "spread": (
                along(torch.where(force > 0, force, torch.inf).rsqrt(), x).to(g) * moved
            ).flatten(1)[:, None],
            "left": 1 / width[:, None],
        }
        return g / along(width, x).to(x.dtype), extras

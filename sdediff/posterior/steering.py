"""Laws made of laws: products and powers of densities, and laws that are tilted by a reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from sdediff.calls import check_names
from sdediff.guidance.conditions import given_to, taken
from sdediff.guidance.pairs import alike
from sdediff.operator import Operator
from sdediff.posterior.observation import Observed
from sdediff.posterior.operators import Denoised, Posterior
from sdediff.predict import affine
from sdediff.protocols import (
    Like,
    Model,
    Output,
    Piece,
    Rows,
    ask,
    breaks_of,
    check_model,
    cost_of,
    facts,
    value_of,
)
from sdediff.solvers import rowwise
from sdediff.solvers.arithmetic import Number, along, planned, weighted
from sdediff.solvers.given import real
from sdediff.solvers.masked import kept

__all__ = ["Anneal", "Product", "Reward"]


class _Factor(NamedTuple):
    model: Any
    exponent: float
    condition: dict[str, Tensor]


class _At(NamedTuple):
    factors: list[tuple[Any, Number, Number]]
    """Of each model its entry, and x_0 = keep x + push output."""
    keep: Number
    """The noise prediction is keep x + push M."""
    push: Number
    scatter: Number
    """(alpha / sigma)^2."""
    alpha: Number


class Product(Operator):
    """The model of the law q ~ prod p_i(x)^w_i, from models of the p_i with one SDE.

    ``factors`` maps models to exponents, {model: 2.0, other: -1.0}, or holds tuples (model,
    exponent) or (model, exponent, condition). ``condition`` replaces conditions of the call by
    name, one value for all samples: p(x | c)^w p(x)^(1 - w) is

        Product([(model, w), (model, 1 - w, {"label": 10})])

    where 10 stands for no label. Exponents may be negative; their sum W must be positive. A model
    is handed those conditions that its network takes by name.

    `sample_weighted` with `FeynmanKac` samples q. As a model by itself the product has the score
    sum w_i s_i, as classifier-free guidance has, and `sdediff.sample` of it does *not* sample q:
    that sum is the score of the product of the p_i(., t), which is not q under noise.
    """

    predicts: Final = "noise"  # type: ignore[misc]  # the base's can be set, this one cannot
    extras: tuple[str, ...] = ("center", "scatter")

    def __init__(self, factors: Mapping[Any, float] | Iterable[Sequence[Any]]) -> None:
        name = type(self).__name__
        pairs = [*factors.items()] if isinstance(factors, Mapping) else _listed(name, factors)
        found = [_factor(name, each) for each in pairs]
        if not found:
            raise ValueError(f"{name}: give at least one model and its exponent")
        first = found[0].model
        super().__init__(first)
        self.factors = tuple(found)
        self.power = math.fsum(each.exponent for each in found)
        if not self.power > 0:
            raise ValueError(
                f"{name}: the exponents must have a positive sum, got {self.power:g}: a product "
                "of powers whose sum is 0 or less has no normaliser under noise"
            )
        if "kernel" not in first.sde.offers:
            raise ValueError(f"{name}: {first.sde!r} has no Gaussian kernel; take a LinearSDE")
        times = torch.linspace(first.sde.t_min, first.sde.t_max, 5, dtype=torch.float64)
        for each in found:
            if not alike(first.sde, each.model.sde, times):
                raise ValueError(
                    f"{name}: all models must have one SDE, got {first.sde!r} and "
                    f"{each.model.sde!r}"
                )
            one, two = facts(first).normalizer, facts(each.model).normalizer
            if one != two:
                raise ValueError(
                    f"{name}: all models must have one normalizer, or none: their states are in "
                    f"other units; got {one!r} and {two!r}"
                )
        self.breaks = tuple(sorted({t for each in found for t in breaks_of(each.model)}))
        self.others = nn.ModuleList(
            each.model for each in found[1:] if isinstance(each.model, nn.Module)
        )

    @property
    def cost(self) -> int:
        """Evaluations of a call, in those of the first model."""
        costs = [cost_of(each.model) for each in self.factors]
        return math.ceil(sum(costs) / costs[0])

    def log_start(self, event: Sequence[int]) -> float:
        """The log of the integral of prod p_i(., T)^w_i, in the units of the user's data."""
        size, W = math.prod(event), self.power
        variance = 2 * math.pi * self.sde.prior.std**2
        normalizer = facts(self.model).normalizer
        volume = 0.0 if normalizer is None else float(normalizer.log_det(event))
        return 0.5 * size * ((1 - W) * math.log(variance) - math.log(W)) + (1 - W) * volume

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[_At]:
        """The entries of all models, and the coefficients of their data predictions."""
        t = times.reshape(-1)
        parts = []
        for each in self.factors:
            pair = (c.reshape(times.shape) for c in affine(each.model, "data", t))
            entries = each.model.at(times, like, piece)
            parts.append(list(zip(entries, *planned(len(times), like, *pair), strict=True)))
        alpha, sigma, W = self.sde.alpha(t), self.sde.sigma(t), self.power
        if not bool((sigma > 0).all()):
            raise ValueError(
                f"{type(self).__name__}: a product of densities is known where there is noise, and "
                f"sigma = 0 at t = {float(t[sigma <= 0][0]):g}: let the solve end before, by "
                "t_end=1e-3, say"
            )
        numbers = (W / sigma, -W * alpha / sigma, (alpha / sigma) ** 2, alpha)
        columns = planned(len(times), like, *(c.reshape(times.shape) for c in numbers))
        own = zip(*columns, strict=True)
        return [_At([*row], *n) for row, n in zip(zip(*parts, strict=True), own, strict=True)]

    def evaluate(self, x: Tensor, at: _At, rows: Rows) -> Output:
        """sum w_i noise_i; the ``center`` M = sum w_i E_i[x_0 | x_t] / W, the ``scatter`` (alpha /
        sigma)^2 sum w_i |E_i[x_0 | x_t] - M|^2, and ``back``, v -> (W - 1) alpha (dM / dx)^T v,
        None for W = 1.
        """
        if self.power == 1:
            return Output(**self._summed(x, at, rows), back=None)
        keep = torch.is_grad_enabled() and (
            x.requires_grad or any(each.requires_grad for each in self.parameters())
        )
        with torch.enable_grad():
            state = x if keep and x.requires_grad else x.detach().requires_grad_()
            found = self._summed(state, at, rows)

        def back(v: Tensor) -> Tensor:
            rows.count(0, 1)
            pulled = torch.autograd.grad(
                found["center"], state, v, retain_graph=True, create_graph=keep
            )[0]
            return weighted(((self.power - 1) * at.alpha, kept(pulled, rows.mask)))

        shown = found if keep else {name: each.detach() for name, each in found.items()}
        return Output(**shown, back=back)

    def _summed(self, x: Tensor, at: _At, rows: Rows) -> dict[str, Tensor]:
        """The value and the tensors beside it."""
        data = []
        for factor, (entry, keep, push) in zip(self.factors, at.factors, strict=True):
            own = rows.under(given_to(taken(factor.model), _replaced(rows, factor.condition, x)))
            out = value_of(ask(factor.model, x, entry, own), x, factor.model)
            data.append(kept(weighted((keep, x), (push, out)), rows.mask))
        weights = [each.exponent for each in self.factors]
        shares = [w / self.power for w in weights]
        center = weighted(*zip(shares, data, strict=True))
        offs = [rowwise(each - center).square().sum(dim=1) for each in data]
        total = along(weighted(*zip(weights, offs, strict=True)), x).expand(x.shape)
        value = weighted((at.keep, x), (at.push, center))
        return {"value": value, "center": center, "scatter": weighted((at.scatter, total))}


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


def _listed(name: str, factors: Any) -> list[Any]:
    """The tuples of a product."""
    try:
        return list(factors)
    except TypeError as error:
        raise TypeError(
            f"{name}: factors must be {{model: exponent, ...}} or tuples (model, exponent), got "
            f"{type(factors).__name__}"
        ) from error


def _factor(name: str, given: Any) -> _Factor:
    """One factor, checked."""
    if not isinstance(given, Sequence) or len(given) not in (2, 3):
        raise TypeError(
            f"{name}: each factor is (model, exponent) or (model, exponent, condition), got "
            f"{given!r}"
        )
    model, exponent, *condition = given
    check_model(model)
    number = real(f"{name}: exponent", exponent)
    if not math.isfinite(number):
        raise ValueError(f"{name}: exponents must be finite, got {number}")
    if not condition:
        return _Factor(model, number, {})
    check_names(condition[0], facts(model).net)
    names = taken(model)
    for key in condition[0]:
        if names is not None and key not in names:
            raise ValueError(
                f"{name}: the network of this factor takes no condition {key!r}, it takes "
                f"{', '.join(sorted(names)) or 'none'}"
            )
    values = {key: torch.as_tensor(value) for key, value in condition[0].items()}
    return _Factor(model, number, values)


def _replaced(rows: Rows, condition: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The conditions of the rows, some replaced by one value for all."""
    own = {name: c.to(x.device).expand(len(x), *c.shape) for name, c in condition.items()}
    return {**rows.condition, **own}


class _Rewarded:
    """A reward where posteriors have a measurement: log p(y | x_0) = r(x_0)."""

    def __init__(self, r: Callable[[Tensor], Tensor]) -> None:
        self.r = r

    def forward(self, x: Tensor) -> Tensor:
        """r(x), (B, 1); a ValueError unless it has a gradient."""
        with torch.enable_grad():
            found = self.log_likelihood(x.detach().requires_grad_(), x)
        if not found.requires_grad:
            raise ValueError(
                "Reward: r(x) does not depend on x, so that it has no gradient: look in it for "
                "torch.no_grad, detach() or a threshold"
            )
        return found.detach()[:, None]

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
    et al. 2023, arXiv 2306.17775; Skreta et al. 2025, arXiv 2503.02819, section 4, have r(x_t)
    instead.)
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
            reward = seen.measurement.log_likelihood(seen.units.leave(x), seen.y)
            (g,) = torch.autograd.grad(reward.sum(), x, create_graph=True)
            bent = torch.zeros_like(x)
            if g.requires_grad:
                found = torch.autograd.grad(g, x, g.detach(), allow_unused=True)[0]
                bent = bent if found is None else found
        g, reward = g.detach(), reward.detach()
        size, force, curve = (
            rowwise(g * each).double().sum(dim=1) for each in (g, denoised.covariance(g), bent)
        )
        force = force.clamp(min=0)
        least = torch.where(size > 0, size, 1.0)
        width = 1 + force / least * (-curve / least).clamp(min=0)
        value = reward.double() + 0.5 * (force / width - width.log())
        extras = {
            "prior": denoised.data,
            "log_likelihood": along(value, x).expand(x.shape),
            "covariance": denoised.covariance,
        }
        return g / along(width, x).to(x.dtype), extras

"""Models made of models p_i with exponents w_i, for the law prod p_i^w_i."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sdediff.calls import check_names
from sdediff.guidance.conditions import given_to, taken
from sdediff.guidance.pairs import alike
from sdediff.operator import Operator
from sdediff.predict import affine
from sdediff.protocols import (
    Like,
    Piece,
    Rows,
    ask,
    breaks_of,
    check_model,
    cost_of,
    facts,
    guidance_scale_of,
    value_of,
)
from sdediff.solvers.arithmetic import Number, planned, weighted
from sdediff.solvers.given import real
from sdediff.solvers.masked import kept

__all__ = ["At", "Factors"]


class _Factor(NamedTuple):
    model: Any
    exponent: float
    condition: dict[str, Tensor]


class _Own(NamedTuple):
    entry: Any
    keep: Number
    """x_0 = keep x + push output."""
    push: Number


class At(NamedTuple):
    """The entries of all factors for one time, and coefficients that belong to it."""

    factors: Sequence[_Own]
    keep: Number
    """The noise prediction is keep x + push M, with M = sum w_i E_i[x_0 | x_t] / W."""
    push: Number
    snr: Number
    """(alpha / sigma)^2."""
    alpha: Number
    lift: Number
    """sigma^2 / alpha."""


class Factors(Operator):
    """Base of models made of models p_i with exponents w_i and one SDE: `Product` has the
    arguments.
    """

    positive: ClassVar[bool] = True
    """Whether the sum of the exponents must be positive."""
    extras: tuple[str, ...] = ()

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
        if self.positive and not self.power > 0:
            raise ValueError(
                f"{name}: the exponents must have a positive sum, got {self.power:g}: a product "
                "of powers whose sum is 0 or less has no normaliser under noise"
            )
        if "kernel" not in first.sde.offers:
            raise ValueError(f"{name}: {first.sde!r} has no Gaussian kernel; take a LinearSDE")
        for each in found[1:]:
            _check_one(name, first, each.model)
        self.breaks = tuple(sorted({t for each in found for t in breaks_of(each.model)}))
        self.others = nn.ModuleList(
            each.model for each in found[1:] if isinstance(each.model, nn.Module)
        )

    @property
    def cost(self) -> int:
        """Evaluations of a call, in those of the first model."""
        costs = [cost_of(each.model) for each in self.factors]
        return math.ceil(sum(costs) / costs[0])

    @property
    def guidance_scale(self) -> float:
        """The largest of the models."""
        return max(guidance_scale_of(each.model) for each in self.factors)

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[At]:
        """The entries of all models, and the coefficients of their data predictions."""
        t = times.reshape(-1)
        parts = []
        for each in self.factors:
            pair = (c.reshape(times.shape) for c in affine(each.model, "data", t))
            entries = each.model.at(times, like, piece)
            rows = zip(entries, *planned(len(times), like, *pair), strict=True)
            parts.append([_Own(*row) for row in rows])
        alpha, sigma, W = self.sde.alpha(t), self.sde.sigma(t), self.power
        if not bool((sigma > 0).all()):
            raise ValueError(
                f"{type(self).__name__}: a product of densities is known where there is noise, and "
                f"sigma = 0 at t = {float(t[sigma <= 0][0]):g}: let the solve end before, by "
                "t_end=1e-3, say"
            )
        numbers = (W / sigma, -W * alpha / sigma, (alpha / sigma) ** 2, alpha, sigma**2 / alpha)
        columns = planned(len(times), like, *(c.reshape(times.shape) for c in numbers))
        factors = zip(*parts, strict=True)
        return [At(*row) for row in zip(factors, *columns, strict=True)]

    def data_of(self, x: Tensor, at: At, rows: Rows) -> Iterator[Tensor]:
        """E_i[x_0 | x_t = x] of each model, one evaluation each."""
        for factor, own in zip(self.factors, at.factors, strict=True):
            part = rows.under(given_to(taken(factor.model), _replaced(rows, factor.condition, x)))
            out = value_of(ask(factor.model, x, own.entry, part), x, factor.model)
            yield kept(weighted((own.keep, x), (own.push, out)), rows.mask)

    def differentiated(self, x: Tensor) -> tuple[Tensor, bool]:
        """x as the start of a graph, and whether the caller keeps graphs."""
        keep = torch.is_grad_enabled() and (
            x.requires_grad or any(each.requires_grad for each in self.parameters())
        )
        return x if keep and x.requires_grad else x.detach().requires_grad_(), keep


def _check_one(name: str, first: Any, other: Any) -> None:
    """A ValueError unless two models have one SDE and one normalizer."""
    times = torch.linspace(first.sde.t_min, first.sde.t_max, 5, dtype=torch.float64)
    if not alike(first.sde, other.sde, times):
        raise ValueError(
            f"{name}: all models must have one SDE, got {first.sde!r} and {other.sde!r}"
        )
    one, two = facts(first).normalizer, facts(other).normalizer
    if one != two:
        raise ValueError(
            f"{name}: all models must have one normalizer, or none: their states are in other "
            f"units; got {one!r} and {two!r}"
        )


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

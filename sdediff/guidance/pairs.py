"""Guidance by the difference of two predictions: with and without a condition, of a better and a
weaker network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sdediff.guidance.base import Guidance, Interval, Scale
from sdediff.guidance.conditions import given_to, taken
from sdediff.predictions import coefficients_of, conversion, prediction_of
from sdediff.protocols import (
    Like,
    Model,
    Output,
    Piece,
    Rows,
    ask,
    check_model,
    cost_of,
    facts,
    sigma_data,
    value_of,
)
from sdediff.solvers.arithmetic import Number, planned, weighted
from sdediff.solvers.given import check_choice, flag, nearest

__all__ = ["Auto", "ClassifierFree", "Pair", "Pairing", "alike", "replaced"]


class Pair(NamedTuple):
    """The two predictions that guidance is made of, both of the kind that the model predicts."""

    own: Tensor | Output
    """The model's own answer, of the condition asked for, with its extras."""
    other: Tensor
    """The prediction from which guidance leads away."""
    scale: Number
    """other + scale (own - other)."""


class Pairing(Guidance):
    """Guidance of the form other + scale (own - other).

    A subclass gives `pair`. Since the weights of the two predictions add to 1, the guided
    prediction is the same whatever the model predicts: noise, data, score or a velocity.
    """

    cost = 2
    extrapolates = True

    def pair(self, x: Tensor, at: Any, rows: Rows) -> Pair | Tensor | Output:
        """Both predictions at states x; the answer of the model alone where it is not guided."""
        raise NotImplementedError(f"{type(self).__name__} has no pair(self, x, at, rows)")

    def evaluate(self, x: Tensor, at: Any, rows: Rows) -> Tensor | Output:
        found = self.pair(x, at, rows)
        if not isinstance(found, Pair):
            return found
        own, other, scale = found
        terms = (scale, value_of(own, x, self.model)), (1.0 - scale, other)
        return replaced(own, weighted(*terms))


def replaced(found: Tensor | Output, value: Tensor) -> Tensor | Output:
    """An answer with another value, its extras kept."""
    return Output(value, **found.extras) if isinstance(found, Output) else value


class _At(NamedTuple):
    scale: Any
    alone: Any
    """The model's entry for the rows themselves."""
    both: Any
    """Its entry for all of them twice."""


class ClassifierFree(Pairing):
    """Classifier-free guidance, for a conditional network that was also trained without a
    condition.

        guided = ClassifierFree(model, 3.0, null={"label": 10}, interval=(-3.0, 4.0))
        out = sd.sample(guided, shape, steps=20, condition={"label": labels})

    With c the prediction under the condition of the call, and u the one under ``null``, it is

        u + s (c - u)          convention="s"
        (1 + w) c - w u        convention="1+w"

    with ``scale`` as s or as w, so that s = 1 + w. s = 1 is the conditional model and s = 0 the
    unconditional one; both cost one evaluation. Other scales cost two, and one outside the
    interval. Any finite scale is allowed, also one below 1.

    ``scale`` and ``interval``: as in `Guidance`.
    ``null``: a dictionary of conditions that replace those of the call in the second evaluation:
    the label on which the network was trained for "no label", or a negative prompt. A value is for
    all samples, or has a row for each sample. Conditions that ``null`` does not name are the same
    in both evaluations. By default it is the ``null`` with which the model was trained.
    ``convention``: ``"s"`` or ``"1+w"``, as above.
    ``batched``: True makes one call of the network with 2 B rows. False makes two calls with B
    rows, which take half of the memory and give the same numbers to rounding.

    Extras, such as a learned variance, are those of the conditional evaluation. Raises TypeError or
    ValueError if an argument is wrong, and, before the first evaluation, if the call lacks a
    condition that ``null`` replaces, or has one of another shape.

    "s": Saharia et al. 2022 (arXiv 2205.11487, eq. 2). "1+w": Ho and Salimans 2022 (arXiv
    2207.12598, eq. 6). Interval: Kynkaanniemi et al. 2024 (arXiv 2404.07724).
    """

    def __init__(
        self,
        model: Model,
        scale: Scale,
        null: Mapping[str, Any] | None = None,
        *,
        convention: Literal["s", "1+w"] = "s",
        interval: Interval | None = None,
        batched: bool = True,
    ) -> None:
        check_choice("ClassifierFree: convention", convention, ("s", "1+w"))
        self.shift = 1.0 if convention == "1+w" else 0.0
        super().__init__(model, scale, interval)
        null = getattr(model, "null", None) if null is None else null
        if not isinstance(null, Mapping) or not null:
            raise TypeError(
                "ClassifierFree: null must be the condition that stands for no condition, "
                "null={'label': 10} for a network that was trained with 10 for no label, or a "
                f"negative prompt; got {null!r}, and the model declares none"
            )
        self.null = {name: _tensor(name, value) for name, value in null.items()}
        self.convention = convention
        self.batched = flag("ClassifierFree: batched", batched)

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[_At]:
        scales = self.strengths(times, like, piece)
        single = [not isinstance(s, Tensor) and s in (None, 0.0, 1.0) for s in scales]
        alone: Sequence[Any] = [None] * len(times)
        both = alone
        if any(single) or not self.batched:
            alone = self.model.at(times, like, piece)
        if self.batched and not all(single):
            twice = times.repeat(1, 2) if times.ndim > 1 else times
            both = self.model.at(twice, like._replace(rows=2 * like.rows), piece)
        return [_At(*row) for row in zip(scales, alone, both, strict=True)]

    def evaluate(self, x: Tensor, at: _At, rows: Rows) -> Tensor | Output:
        null = self._null(rows)
        if isinstance(at.scale, float) and at.scale == 0.0 and not facts(self.model).extras:
            return self.ask(x, at.alone, rows.under(null))
        return super().evaluate(x, at, rows)

    def pair(self, x: Tensor, at: _At, rows: Rows) -> Pair | Tensor | Output:
        null, scale = self._null(rows), self.strength(at.scale, x, rows)
        if scale is None or (isinstance(scale, float) and scale == 1.0):
            return self.ask(x, at.alone, rows)
        if at.both is None:
            own = self.ask(x, at.alone, rows)
            return Pair(own, self.value(x, at.alone, rows.under(null)), scale)
        n = len(rows)
        twice = rows.take(torch.arange(2 * n) % n)
        given = {name: torch.cat([rows.condition[name], null[name]]) for name in self.null}
        both = self.ask(torch.cat([x, x]), at.both, twice.under({**twice.condition, **given}))
        if not isinstance(both, Output):
            return Pair(both[:n], both[n:], scale)
        extras = {name: value[:n] for name, value in both.extras.items()}
        return Pair(Output(both.value[:n], **extras), both.value[n:], scale)

    def _null(self, rows: Rows) -> dict[str, Tensor]:
        """The condition of the second evaluation, a row for each of ``rows``."""
        found = dict(rows.condition)
        for name, value in self.null.items():
            own = found.get(name)
            if own is None:
                has = f"; it has {', '.join(rows.condition)}" if rows.condition else ""
                raise ValueError(
                    f"ClassifierFree: null replaces the condition {name!r}, which the call does "
                    f"not have{nearest(name, rows.condition)}: pass condition={{{name!r}: ...}}, a "
                    f"row for each sample{has}"
                )
            each, one = (rows.size, *own.shape[1:]), own.shape[1:]
            if value.shape not in (each, one, (1, *one)) or not torch.can_cast(
                value.dtype, own.dtype
            ):
                raise ValueError(
                    f"ClassifierFree: null has {name!r} as {value.dtype} of shape "
                    f"{tuple(value.shape)}, and the condition is {own.dtype} with rows of shape "
                    f"{tuple(one)}: give {tuple(one)} for all samples, or {each}"
                )
            whole = value.to(own.device, own.dtype)
            if value.shape == each and value.shape != (1, *one):
                whole = whole[rows.index.to(own.device)]
            found[name] = whole.expand(own.shape)
        return found


def _tensor(name: str, value: Any) -> Tensor:
    """A condition as a tensor; integers stay integers."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"ClassifierFree: null[{name!r}] must be a number or a tensor, got {value!r}"
        ) from error


class _Asked:
    """What a model predicts, as a value that has coefficients: with its own ``sigma_data``."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def coefficients(self, sde: Any, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of p x_0 + q noise."""
        source = prediction_of(self.model.predicts)
        return coefficients_of(source, self.model.sde, t, sigma_data(self.model))


class _Two(NamedTuple):
    scale: Any
    own: Any
    weaker: Any
    keep: Number = 0.0
    push: Number = 1.0


class Auto(Pairing):
    """Autoguidance: weaker + scale (model - weaker), guidance by a weaker version of the model.

    ``weaker``: a model of the same data under the same SDE and the same condition, but smaller, or
    trained for a shorter time. It may predict something else (noise, data, v, ...), which is
    converted. It gets those of the call's conditions that its network names, so an unconditional
    network will do too, as in classifier-free guidance by two networks.
    ``scale`` and ``interval``: as in `Guidance`. At scale 1 the weaker model is not evaluated.

    Each evaluation costs one of each model. Extras are those of ``model``. Raises ValueError if the
    two models have different SDEs or normalizers.

    Karras et al. 2024 (arXiv 2406.02507).
    """

    def __init__(
        self, model: Model, weaker: Model, scale: Scale, *, interval: Interval | None = None
    ) -> None:
        super().__init__(model, scale, interval)
        try:
            check_model(weaker)
        except TypeError as error:
            raise TypeError(f"Auto: the weaker model: {error}") from error
        self.weaker = weaker
        mine, other = facts(model), facts(weaker)
        times = torch.linspace(model.sde.t_min, model.sde.t_max, 5, dtype=torch.float64)
        if not alike(model.sde, weaker.sde, times):
            raise ValueError(
                f"Auto: both models must have one SDE, got {model.sde!r} and {weaker.sde!r}"
            )
        if mine.normalizer != other.normalizer:
            raise ValueError(
                "Auto: both models must have one normalizer, or none: their states are in other "
                f"units; got {mine.normalizer!r} and {other.normalizer!r}"
            )
        self.breaks = tuple(sorted({*self.breaks, *other.breaks}))

    @property
    def cost(self) -> int:  # type: ignore[override]  # it depends on both models
        """Evaluations of a call, in those of the model."""
        return 1 + math.ceil(cost_of(self.weaker) / cost_of(self.model))

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[_Two]:
        scales, own = self.strengths(times, like, piece), self.model.at(times, like, piece)
        if scales[0] is None:
            return [_Two(scale, each, None) for scale, each in zip(scales, own, strict=True)]
        flat = times.reshape(-1)
        source, target = (prediction_of(each.predicts) for each in (self.weaker, self.model))
        if source != target or source == "edm":
            target = _Asked(self.model)
        pair = conversion(self.model.sde, source, target, flat, sigma_data(self.weaker))
        if not all(bool(torch.isfinite(column).all()) for column in pair):
            raise ValueError(
                f"Auto: what the model predicts ({self.model.predicts!r}) does not follow from "
                f"what the weaker one does ({self.weaker.predicts!r}) at all times from "
                f"{float(flat.min()):.6g} to {float(flat.max()):.6g}: let both predict v or flow"
            )
        columns = planned(len(times), like, *(each.reshape(times.shape) for each in pair))
        weaker = self.weaker.at(times, like, piece)
        return [_Two(*row) for row in zip(scales, own, weaker, *columns, strict=True)]

    def pair(self, x: Tensor, at: _Two, rows: Rows) -> Pair | Tensor | Output:
        scale = self.strength(at.scale, x, rows)
        own = self.ask(x, at.own, rows)
        if scale is None or (isinstance(scale, float) and scale == 1.0):
            return own
        part = rows.under(given_to(taken(self.weaker), rows.condition))
        found = value_of(ask(self.weaker, x, at.weaker, part), x, self.weaker)
        return Pair(own, weighted((at.keep, x), (at.push, found)), scale)


def alike(one: Any, two: Any, times: Tensor) -> bool:
    """Whether two SDEs have the same kernel at some times; of those without one, whether they are
    the same object.
    """
    if one is two or "kernel" not in one.offers or "kernel" not in two.offers:
        return one is two
    return one.T == two.T and all(
        torch.allclose(getattr(one, name)(times), getattr(two, name)(times), rtol=1e-6, atol=1e-9)
        for name in ("alpha", "sigma")
    )

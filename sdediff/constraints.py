"""What a data prediction may be held to while sampling."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from sdediff.operator import Operator
from sdediff.predict import affine
from sdediff.protocols import Like, Model, Output, Piece, Rows, facts, value_of
from sdediff.solvers import rowwise
from sdediff.solvers.arithmetic import along, own, planned, weighted
from sdediff.solvers.coefficients import Coef
from sdediff.solvers.given import Positive, Record, Share, described
from sdediff.solvers.masked import kept

__all__ = ["Clip", "Constrained", "Constraint", "DynamicThreshold", "applied"]

Constraint = Callable[..., Tensor]
"""E[x_0 | x_t] to the same, each sample by itself; `Predictions.constrained` says how it is
called.
"""

Applied = Callable[[Tensor, Tensor, int], Tensor]


def applied(constraint: Constraint) -> Applied:
    """The constraint as a function of x_0 (k, *event), the rows (k,) of the call's batch that these
    are, and the batch's size.

    Only some of the samples are there while others have arrived, or wait for their turn. A function
    of (x_0, rows) is told which. One of x_0 alone may hold something for each sample of the batch,
    so that it is handed the whole batch. In the places of absent samples it gets copies of the
    first sample that is there. A constraint with ``samplewise = True`` says that it holds nothing
    of that kind, and is handed the present samples alone.
    """
    if takes_rows(constraint):
        return lambda x_0, rows, count: _checked(constraint(x_0, rows), x_0)
    if getattr(constraint, "samplewise", False):
        return lambda x_0, rows, count: _checked(constraint(x_0), x_0)

    def whole(x_0: Tensor, rows: Tensor, count: int) -> Tensor:
        if torch.equal(rows, torch.arange(count)):
            return _checked(constraint(x_0), x_0)
        parts = _once(rows)
        if len(parts) == 1:
            return _whole(constraint, x_0, rows, count)
        found = torch.cat(
            [_whole(constraint, x_0[some.to(x_0.device)], rows[some], count) for some in parts]
        )
        return found[torch.cat(parts).argsort().to(x_0.device)]

    return whole


def _whole(constraint: Constraint, x_0: Tensor, rows: Tensor, count: int) -> Tensor:
    """What a constraint of the whole batch makes of the rows ``rows`` of it, all different."""
    there = rows.to(x_0.device)
    batch = x_0[:1].detach().expand(count, *x_0.shape[1:]).index_copy(0, there, x_0)
    return _checked(constraint(batch), batch)[there]


def _once(rows: Tensor) -> list[Tensor]:
    """Where in ``rows`` each comes for the first time, for the second, and so on: in each of these
    no row is twice.
    """
    ordered, order = rows.sort(stable=True)
    before = torch.empty_like(rows)
    before[order] = torch.arange(len(rows)) - torch.searchsorted(ordered, ordered)
    return [torch.nonzero(before == k).flatten() for k in range(int(before.max()) + 1)]


def takes_rows(constraint: Constraint) -> bool:
    """Whether a constraint is called with (x_0, rows): it needs a second argument, or has one
    called ``rows``.
    """
    function: Any = constraint.forward if isinstance(constraint, torch.nn.Module) else constraint
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a built-in function
        return False
    placed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(placed) > 1 and (
        placed[1].default is inspect.Parameter.empty or placed[1].name == "rows"
    )


def _checked(out: Tensor, x_0: Tensor) -> Tensor:
    if not isinstance(out, Tensor) or out.shape != x_0.shape:
        raise ValueError(
            f"a constraint must return a tensor of the shape of x_0, {tuple(x_0.shape)}, got "
            f"{described(out)}"
        )
    return out


class _At(NamedTuple):
    inner: Any
    keep: Coef  # x_0 = keep x + push output
    push: Coef


class Constrained(Operator):
    """A model whose E[x_0 | x_t] is held to a constraint, in the user's units; it predicts the
    data.

    `Predictions.constrained` makes it and says how the constraint is called. ``learner`` is the
    model whose network losses are about: they do not see constraints.
    """

    predicts: Final = "data"  # type: ignore[misc]  # the base's can be set, this one cannot

    def __init__(self, model: Model, constraint: Constraint) -> None:
        super().__init__(model)
        # not by attribute: a module would be entered among the network's
        vars(self)["constraint"] = constraint
        vars(self)["_applied"] = applied(constraint)

    @property
    def learner(self) -> Model:
        """The model inside, without its constraints."""
        learner: Model = getattr(self.model, "learner", self.model)
        return learner

    def constrained(self, constraint: Constraint) -> Constrained:
        """The model inside under another constraint, in place of this one."""
        return Constrained(self.model, constraint)

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[_At]:
        """The coefficients by which the data follow from the model's prediction."""
        pair = affine(self.model, "data", times.reshape(-1))
        keeps, pushes = planned(len(times), like, *(c.reshape(times.shape) for c in pair))
        inner = self.model.at(times, like, piece)
        return [_At(*row) for row in zip(inner, keeps, pushes, strict=True)]

    def evaluate(self, x: Tensor, at: _At, rows: Rows) -> Tensor | Output:
        """The constrained data prediction; under a normalizer with ``clean``, the same in the
        user's units to the bit.
        """
        found = self.ask(x, at.inner, rows)
        out = kept(value_of(found, x, self.model), rows.mask)
        rows.look(x, out)  # of NaN a constraint may make a number
        data = own(weighted((at.keep, x), (at.push, out)), x, out)
        normalizer = facts(self.model).normalizer
        users = data if normalizer is None else kept(normalizer.denormalize(data), rows.mask)
        clean = kept(self._applied(users, rows.index, rows.size), rows.mask)
        extras = found.extras if isinstance(found, Output) else {}
        if normalizer is None:
            return Output(clean, **extras) if extras else clean
        value = kept(normalizer.normalize(clean), rows.mask)
        return Output(value, **{**extras, "clean": clean})


@dataclass(frozen=True)
class Clip(Record):
    """A constraint that clips the predicted data x_0 to [low, high], the range of the data.

    Use it as ``model.constrained(sd.Clip(-1, 1))``. (The code of Ho et al. 2020 does so for images
    in [-1, 1].)
    """

    samplewise: ClassVar[bool] = True
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"Clip: low must be below high, got {self.low!r} and {self.high!r}")

    def __call__(self, x_0: Tensor) -> Tensor:
        return x_0.clamp(self.low, self.high)


@dataclass(frozen=True)
class DynamicThreshold(Record):
    """x_0 confined to [-s, s] and divided by s / bound, s the larger of ``bound`` and the
    ``quantile`` of a sample's abs(x_0): the least of its entries that so large a share of them does
    not exceed.

    Saharia et al. 2022 (arXiv 2205.11487, section 2.3), for data in [-bound, bound].
    """

    samplewise: ClassVar[bool] = True
    quantile: Share = 0.995
    bound: Positive = 1.0

    def __call__(self, x_0: Tensor) -> Tensor:
        sizes = rowwise(x_0).abs()
        size = sizes.kthvalue(
            max(1, math.ceil(self.quantile * sizes.shape[1] - 1e-9)), dim=1
        ).values
        s = along(size.clamp(min=self.bound), x_0)
        return torch.maximum(torch.minimum(x_0, s), -s) * (self.bound / s)

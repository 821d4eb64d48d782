"""What a data prediction may be held to while sampling."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sdediff.normalizer import Normalizer
from sdediff.solvers import rowwise
from sdediff.solvers.scalars import Record

__all__ = ["Batch", "Clip", "Constraint", "DynamicThreshold", "applied", "constrained"]

Constraint = Callable[..., Tensor]
"""E[x_0 | x_t] to the same, each sample by itself; `ScoreModel.constrained` says how it is called."""

Applied = Callable[[Tensor, Tensor, int], Tensor]


class Batch(NamedTuple):
    """Which samples of a call a problem is about."""

    rows: Tensor
    """Their indices, int64 (k,) on the host."""
    size: int
    """How many samples the call has."""


def applied(constraint: Constraint) -> Applied:
    """The constraint as a function of x_0 (k, *event), the rows (k,) of the call's batch that these are, and the batch's size.

    Only some of the samples are there while others have arrived, or wait for their turn. A function of
    (x_0, rows) is told which. One of x_0 alone may hold something for each sample of the batch, so
    that it is handed the whole batch, absent samples being stood in for by the first that is there;
    unless it has ``samplewise = True``, which says that it holds nothing of that kind.
    """
    if takes_rows(constraint):
        return lambda x_0, rows, count: _checked(constraint(x_0, rows), x_0)
    if getattr(constraint, "samplewise", False):
        return lambda x_0, rows, count: _checked(constraint(x_0), x_0)

    def whole(x_0: Tensor, rows: Tensor, count: int) -> Tensor:
        if torch.equal(rows, torch.arange(count)):
            return _checked(constraint(x_0), x_0)
        there = rows.to(x_0.device)
        batch = x_0[:1].detach().expand(count, *x_0.shape[1:]).index_copy(0, there, x_0)
        return _checked(constraint(batch), batch)[there]

    return whole


def constrained(constraint: Constraint, x_0: Tensor, normalizer: Normalizer | None) -> Tensor:
    """Predictions x_0 of a whole batch, in the units of the model, held to a constraint that acts in the user's."""
    call, rows, size = applied(constraint), torch.arange(len(x_0)), len(x_0)
    if normalizer is None:
        return call(x_0, rows, size)
    return normalizer.normalize(call(normalizer.denormalize(x_0), rows, size))


def takes_rows(constraint: Constraint) -> bool:
    """Whether a constraint is called with (x_0, rows): it needs a second argument, or has one called ``rows``."""
    function: Any = constraint.forward if isinstance(constraint, torch.nn.Module) else constraint
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a built-in function
        return False
    placed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(placed) > 1 and (placed[1].default is inspect.Parameter.empty or placed[1].name == "rows")


def _checked(out: Tensor, x_0: Tensor) -> Tensor:
    if not isinstance(out, Tensor) or out.shape != x_0.shape:
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"a constraint must return a tensor of the shape of x_0, {tuple(x_0.shape)}, got {got}")
    return out


@dataclass(frozen=True)
class Clip(Record):
    """x_0 confined to [low, high], the range of the data (Ho et al. 2020's code does so for images in [-1, 1])."""

    samplewise: ClassVar[bool] = True
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not self.low < self.high:
            raise ValueError(f"Clip: low must be below high, got {self.low!r} and {self.high!r}")

    def __call__(self, x_0: Tensor) -> Tensor:
        """The confined prediction."""
        return x_0.clamp(self.low, self.high)


@dataclass(frozen=True)
class DynamicThreshold(Record):
    """x_0 confined to [-s, s] and divided by s / bound, s the larger of ``bound`` and the ``quantile`` of a sample's abs(x_0): the
    least of its entries that so large a share of them does not exceed.

    Saharia et al. 2022 (arXiv 2205.11487, section 2.3), for data in [-bound, bound].
    """

    samplewise: ClassVar[bool] = True
    quantile: float = 0.995
    bound: float = 1.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not 0 < self.quantile <= 1 or not 0 < self.bound < float("inf"):
            raise ValueError(
                f"DynamicThreshold: quantile must lie in (0, 1] and bound be positive, got {self.quantile!r} and {self.bound!r}"
            )

    def __call__(self, x_0: Tensor) -> Tensor:
        """The confined prediction."""
        sizes = rowwise(x_0).abs()
        size = sizes.kthvalue(max(1, math.ceil(self.quantile * sizes.shape[1] - 1e-9)), dim=1).values
        s = size.clamp(min=self.bound).reshape(-1, *(1,) * (x_0.ndim - 1))
        return torch.maximum(torch.minimum(x_0, s), -s) * (self.bound / s)

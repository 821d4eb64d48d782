"""Host numbers times states: what a step consists of, in as few passes over the state as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.coefficients import Coef

__all__ = [
    "Like",
    "Number",
    "along",
    "at_least_float32",
    "expand",
    "own",
    "place",
    "planned",
    "rowwise",
    "vanishing",
    "weighted",
]

Number = float | Tensor
"""A planned coefficient: a float, or a float64 host tensor, () where it has a gradient or (rows,)
where rows differ; the latter may be beside the state already (see `place`).
"""

_ZERO: Final = torch.zeros(())


class Like(NamedTuple):
    """What the states of a solve look like."""

    rows: int
    """How many there are; a model that is asked at times of all rows may be handed others."""
    event: torch.Size
    """The shape of each."""
    dtype: torch.dtype
    """Their own dtype, in which coefficients that stand beside them are."""
    device: torch.device
    """Where they are."""
    sees: torch.dtype
    """The dtype in which a network without parameters is handed them."""
    asked: object = None
    """The model whose own dtype ``sees`` is, if it has one: it need not look for it again at each
    step.
    """

    @classmethod
    def of(cls, x: Tensor) -> Like:
        """What x (rows, *event) looks like."""
        return cls(len(x), x.shape[1:], x.dtype, x.device, x.dtype)


def planned(count: int, like: Like | None, *columns: Coef) -> list[Sequence[Coef]]:
    """Each column as a sequence of ``count`` coefficients, one for each time of a plan.

    A column is a number for all times, float64 (count,), float64 (count, rows) where every row
    has its own times, or a `Linear` of such columns. Entries are floats where they have neither a
    gradient nor rows. Those of every row stand beside states that look ``like`` this, by one
    transfer, and are shaped for them; if it is not known how they look, they stay on the host.
    """
    own: Sequence[Tensor] = [c for c in columns if isinstance(c, Tensor) and c.ndim == 2]
    if own and like is not None:
        table = torch.stack(list(own)).to(like.dtype).to(like.device)
        own = table.reshape(*table.shape, *(1,) * len(like.event)).unbind()
    of_rows = iter(own)
    found: list[Sequence[Coef]] = []
    for c in columns:
        if isinstance(c, float | int):
            found.append([float(c)] * count)
        elif not isinstance(c, Tensor):
            found.append((c if like is None else c.to(like.dtype, like.device)).unbind())
        elif c.ndim == 2:
            found.append(next(of_rows).unbind())
        elif c.ndim == 0:
            found.append([c] * count)
        else:
            found.append(c.unbind() if c.requires_grad else c.tolist())
    return found


def along(rows: Tensor, x: Tensor) -> Tensor:
    """A mask or numbers, (rows,) or (..., rows), shaped for states x (rows, *event), where these
    are.
    """
    return rows.to(x.device).reshape(*rows.shape, *(1,) * (x.ndim - 1))


def expand(c: Number, x: Tensor) -> Number:
    """Shape host numbers ``c``, () or (rows,), so that they multiply a state ``x`` (rows, *event).

    A float or 0-d host tensor is left as it is: it multiplies a state on any device without a copy
    and without changing its dtype.
    """
    if not isinstance(c, Tensor) or c.ndim != 1:
        return c
    return c.to(x.dtype).to(x.device).reshape(-1, *(1,) * (x.ndim - 1))


def place(plan: Any, x: Tensor) -> Any:
    """``plan``, nested tuples of numbers, with those of shape (rows,) beside a state ``x`` and
    shaped for it, by one transfer.
    """
    found: dict[int, Tensor] = {}
    _collect(plan, found)
    if not found:
        return plan
    there = torch.stack(list(found.values())).to(x.dtype).to(x.device)
    parts = there.reshape(len(found), -1, *(1,) * (x.ndim - 1)).unbind()
    return _exchange(plan, dict(zip(found, parts, strict=True)))


def _collect(plan: Any, found: dict[int, Tensor]) -> None:
    for part in plan:
        if isinstance(part, tuple):
            _collect(part, found)
        elif isinstance(part, Tensor) and part.ndim == 1:
            found[id(part)] = part


def _exchange(plan: Any, parts: dict[int, Tensor]) -> Any:
    new = [
        _exchange(part, parts) if isinstance(part, tuple) else parts.get(id(part), part)
        for part in plan
    ]
    return type(plan)(*new) if hasattr(plan, "_fields") else tuple(new)


def rowwise(x: Tensor) -> Tensor:
    """View a state (rows, *event) as a matrix (rows, d), for norms and checks over the event."""
    return x.reshape(x.shape[0], -1)


def vanishing(error: Tensor, size: Tensor) -> Tensor | None:
    """Where an error and the size of the states are exactly 0, (rows, *event); None where that is
    nowhere.

    A device is not waited for: there the answer is a tensor even if nothing is 0.
    """
    if size.device.type == "cpu" and int(torch.count_nonzero(size)) == size.numel():
        return None
    return (size == 0) & (error == 0)


def weighted(*terms: tuple[Coef, Tensor]) -> Tensor:
    """The sum of c x over ``terms`` (c, x); where c is a float 0, x is not read.

    Here alone the kinds of coefficients are told apart.
    """
    if len(terms) == 2:  # most steps: two floats, neither of them 0
        (a, x), (b, y) = terms
        if type(a) is type(b) is float and a and b:
            return x.add(y, alpha=b) if a == 1.0 else _ZERO.add(x, alpha=a).add_(y, alpha=b)
    total, fresh = None, False
    for c, x in terms:
        # Numbers first: for them isinstance is fast. They multiply as ``alpha``, which torch takes
        # as it is: of the c in x * c it makes a tensor, which doubles the time of a small product.
        if isinstance(c, float):
            if c == 0.0:
                continue
            if total is None:
                total = x if c == 1.0 else _ZERO.add(x, alpha=c)
                fresh = total is not x
                continue
            total = total.add_(x, alpha=c) if fresh else total.add(x, alpha=c)
        elif not isinstance(c, Tensor | int):
            total = c @ x if total is None else total + c @ x
        else:
            factor = expand(c, x)
            if total is not None and isinstance(factor, Tensor) and factor.ndim == x.ndim:
                total = torch.addcmul(total, factor, x)
            else:
                total = factor * x if total is None else total + factor * x
        fresh = True
    return torch.zeros_like(terms[0][1]) if total is None else total


def own(found: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """``found``, copied if it is the state or the network's output itself: a network may write all
    its outputs to one tensor.
    """
    return found.clone() if found is out or found is x else found


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in its own dtype, or in float32 if that has fewer digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

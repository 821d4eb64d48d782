"""Host numbers times states: what a step consists of, in as few passes over the state as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

__all__ = ["Number", "entries", "expand", "numbers", "rowwise", "weighted"]

Number = float | Tensor
"""A planned coefficient: a float, or a float64 host tensor, () where it has a gradient or (rows,) where rows differ."""

_ZERO: Final = torch.zeros(())


def expand(c: Number, x: Tensor) -> Number:
    """Shape host numbers ``c``, () or (rows,), so that they multiply a state ``x`` (rows, *event).

    A float or 0-d host tensor is left as it is: it multiplies a state on any device without a copy and without changing its dtype.
    """
    if not isinstance(c, Tensor) or c.ndim == 0:
        return c
    return c.to(x.dtype).to(x.device).reshape(-1, *(1,) * (x.ndim - 1))


def rowwise(x: Tensor) -> Tensor:
    """View a state (rows, *event) as a matrix (rows, d), for norms and checks over the event."""
    return x.reshape(x.shape[0], -1)


def numbers(column: Tensor) -> Sequence[Number]:
    """The entries of planned coefficients (N,) or (N, rows), as floats where they have neither a gradient nor rows."""
    if column.ndim == 1 and not column.requires_grad:
        floats: list[float] = column.tolist()
        return floats
    return column.unbind()


def entries(*columns: Tensor) -> list[tuple[Number, ...]]:
    """Planned coefficients, a tuple a step, from columns (N,) or (N, rows)."""
    return list(zip(*map(numbers, columns), strict=True))


def weighted(*terms: tuple[Number, Tensor]) -> Tensor:
    """The sum of c x over ``terms`` (c, x); where c is a float 0, x is not read."""
    total, fresh = None, False
    for c, x in terms:
        # Numbers first: for them isinstance is fast. They multiply as ``alpha``, which torch takes as it is: of the c in x * c it
        # makes a tensor, which doubles the time of a small product.
        if isinstance(c, float):
            if c == 0.0:
                continue
            if total is None:
                total = x if c == 1.0 else _ZERO.add(x, alpha=c)
                fresh = total is not x
                continue
            total = total.add_(x, alpha=c) if fresh else total.add(x, alpha=c)
        else:
            part = expand(c, x) * x
            total = part if total is None else total + part
        fresh = True
    return torch.zeros_like(terms[0][1]) if total is None else total

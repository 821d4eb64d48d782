"""Coefficients that states are multiplied by: a number, a number a coordinate, a small matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from sdediff.solvers.given import integer

__all__ = ["Coef", "Columns", "Coordinates", "Linear", "Matrix", "is_linear", "outer"]


class Linear(Protocol):
    """A linear map of states that is no number; one object holds those of n times as `Coordinates`
    and `Matrix` do.
    """

    def __matmul__(self, x: Tensor) -> Tensor:
        """The map applied to states x (rows, *event)."""

    def __mul__(self, c: float | Tensor) -> Self:
        """The map times a number: a float, or float64 (n,) or (n, rows) for maps at these times."""

    def __rmul__(self, c: float | Tensor) -> Self:
        """The same."""

    @property
    def outer(self) -> Self:
        """The map times its transpose."""

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        """The map with its numbers in a dtype and on a device."""

    def reshape(self, shape: torch.Size) -> Self:
        """The maps of n rows of times, (n, rows), from those of all times one after another."""

    def unbind(self) -> Sequence[Self]:
        """The map at each of n times, or the maps of its rows."""


Coef = float | Tensor | Linear
"""What a state can be multiplied by: a float; a float64 host tensor, () or (rows,), or one that is
shaped for the states and stands beside them; a linear map."""


@dataclass(frozen=True, eq=False, repr=False)
class _Values:
    """Values whose first dimensions, those that a single map does not have, count times and
    rows.
    """

    values: Tensor

    def __mul__(self, c: float | Tensor) -> Self:
        if isinstance(c, Tensor):
            c = c.reshape(*c.shape, *(1,) * (self.values.ndim - c.ndim))
        return replace(self, values=c * self.values)

    __rmul__ = __mul__

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        return replace(self, values=self.values.to(dtype).to(device))

    def reshape(self, shape: torch.Size) -> Self:
        return replace(self, values=self.values.reshape(*shape, *self.values.shape[1:]))

    def unbind(self) -> Sequence[Self]:
        return [replace(self, values=each) for each in self.values.unbind()]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(values of shape {tuple(self.values.shape)})"

    def _like(self, x: Tensor) -> Tensor:
        return self.values.to(x.dtype).to(x.device)


@dataclass(frozen=True, eq=False, repr=False)
class Coordinates(_Values):
    """A number for each coordinate: ``values`` (*event), or (n, *event) at n times.

    A flat state of several parts has one such coefficient, with the number of each part in its
    coordinates.
    """

    def __matmul__(self, x: Tensor) -> Tensor:
        if self.values.shape not in (x.shape[1:], x.shape):
            raise ValueError(
                f"Coordinates with values of shape {tuple(self.values.shape)} do not fit states "
                "with events "
                f"{tuple(x.shape[1:])}: there is a number for each coordinate"
            )
        return self._like(x) * x

    @property
    def outer(self) -> Self:
        """The squares."""
        return replace(self, values=self.values.square())


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(_Values):
    """A matrix on one axis of the event: (c x)_i = sum_j c_ij x_j for the entries i, j along
    ``axis``.

    ``values`` (k, k), or (n, k, k) at n times; ``axis`` counts the dimensions of the event from 0,
    and the event has the length k there. A phase space of positions and velocities has the event
    (2, ...) and a 2x2 matrix on axis 0.
    """

    axis: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", integer("Matrix: axis", self.axis))

    def __matmul__(self, x: Tensor) -> Tensor:
        size = x.shape[1 + self.axis] if self.axis + 1 < x.ndim else None
        if self.values.shape[-2:] != (size, size):
            raise ValueError(
                f"a Matrix of {' x '.join(map(str, self.values.shape[-2:]))} on axis {self.axis} "
                "does not fit "
                f"states with events {tuple(x.shape[1:])}: it is square, of the length of that axis"
            )
        there = x.movedim(1 + self.axis, 1)
        product = self._like(x) @ there.reshape(len(x), there.shape[1], -1)
        return product.reshape(there.shape).movedim(1, 1 + self.axis)

    @property
    def outer(self) -> Self:
        """The matrix times its transpose."""
        return replace(self, values=self.values @ self.values.mT)


@dataclass(frozen=True, eq=False, repr=False)
class Columns(_Values):
    """A matrix a row, ``values`` (rows, d, m), that takes increments (rows, m) of m Brownian
    motions to flat states (rows, d).
    """

    def __matmul__(self, x: Tensor) -> Tensor:
        return (self._like(x) @ x[..., None])[..., 0]

    @property
    def outer(self) -> Self:
        """The matrices times their transposes."""
        return replace(self, values=self.values @ self.values.mT)


def outer(c: Coef) -> Coef:
    """A coefficient times its transpose: g g^T, by which a diffusion multiplies the score."""
    return c * c if isinstance(c, float | int | Tensor) else c.outer


def is_linear(c: object) -> bool:
    """Whether it is a linear map that is no number, ours or one of the user's."""
    return not isinstance(c, float | int | Tensor) and all(
        hasattr(c, name) for name in ("outer", "unbind", "__matmul__")
    )

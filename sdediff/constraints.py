"""What a data prediction may be held to while sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import rowwise

__all__ = ["Clip", "Constraint", "DynamicThreshold"]

Constraint = Callable[[Tensor], Tensor]
"""E[x_0 | x_t] (B, *event) to the same, each sample by itself."""


@dataclass(frozen=True)
class Clip:
    """x_0 confined to [low, high], the range of the data (Ho et al. 2020's code does so for images in [-1, 1])."""

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
class DynamicThreshold:
    """x_0 confined to [-s, s] and divided by s / bound, s the larger of ``bound`` and the ``quantile`` of a sample's abs(x_0): the
    least of its entries that so large a share of them does not exceed.

    Saharia et al. 2022 (arXiv 2205.11487, section 2.3), for data in [-bound, bound].
    """

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

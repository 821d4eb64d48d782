"""Noise of states some of whose coordinates do not exist: those have none."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from sdediff.solvers.noise import Noise, Refinable, StepNoise
from sdediff.solvers.white import Nodes

__all__ = ["Masked", "kept", "masked"]


def kept(x: Tensor, mask: Tensor | None) -> Tensor:
    """States x, (rows, *event) or (n, rows, *event), with 0 where ``mask`` (rows, *event) is
    False.
    """
    return x if mask is None else torch.where(mask, x, 0.0)


def masked(noise: Noise, mask: Tensor) -> Masked:
    """``noise`` with 0 where ``mask`` (rows, *event) is False, refinable if it is."""
    return _MaskedPath(noise, mask) if isinstance(noise, Refinable) else Masked(noise, mask)


class Masked:
    """What `masked` makes of a noise."""

    def __init__(self, noise: Noise, mask: Tensor) -> None:
        self.noise, self.mask = noise, mask

    def at(self, step: int) -> StepNoise:
        """Noise of the step number ``step``."""
        return _MaskedStep(self.noise.at(step), self.mask)

    def take(self, rows: Tensor) -> Self:
        """The noise of some of the rows."""
        return type(self)(self.noise.take(rows), self.mask[rows.to(self.mask.device)])


class _MaskedPath(Masked):
    noise: Refinable

    def tree(self) -> Nodes | None:
        found = self.noise.tree()
        return None if found is None else _MaskedNodes(found, self.mask)


class _MaskedNodes(Nodes):
    def __init__(self, nodes: Nodes, mask: Tensor) -> None:
        super().__init__(nodes.seeds, nodes.event, dtype=nodes.dtype, device=nodes.device)
        self.nodes, self.mask = nodes, mask

    def normal(self, node: Tensor, k: int = 0) -> Tensor:
        return kept(self.nodes.normal(node, k), self.mask)

    def take(self, rows: Tensor) -> Self:
        return type(self)(self.nodes.take(rows), self.mask[rows.to(self.mask.device)])


class _MaskedStep(StepNoise):
    def __init__(self, noise: StepNoise, mask: Tensor) -> None:
        self.noise, self.mask = noise, mask

    def normal(self, stream: str, k: int = 0) -> Tensor:
        return kept(self.noise.normal(stream, k), self.mask)

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return kept(self.noise.over(a, b, k), self.mask)

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        return kept(self.noise.increment(a, b), self.mask)

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        increment, integral = self.noise.pair(a, b)
        return kept(increment, self.mask), kept(integral, self.mask)

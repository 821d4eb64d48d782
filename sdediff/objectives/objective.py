"""What training asks of a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sdediff.protocols import Model

__all__ = ["DrawingObjective", "Objective"]


class Objective(Protocol):
    """``loss(model, x_0, condition) -> (B,)``, the losses of samples x_0 (B, *event), random by
    torch's own generator.

    One that learns something itself has ``state_dict`` and ``load_state_dict`` too, with tensors,
    which run folders keep.
    """

    def __call__(
        self, model: Model, x_0: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Losses, (B,)."""


class DrawingObjective(Protocol):
    """An `Objective` that takes the generator to draw from and a mask of what exists, as all of
    ours do.
    """

    def __call__(
        self,
        model: Model,
        x_0: Tensor,
        condition: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Losses, (B,)."""

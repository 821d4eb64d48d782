"""A multilayer perceptron for points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdediff.networks.parts import Labelled, TimeFeatures, check_count, check_label, class_embedding
from sdediff.solvers.given import integer

__all__ = ["MLP"]


class MLP(Labelled, nn.Module):
    """Residual perceptron for points (B, d) and times (B,) in [0, 1], the time as Fourier
    features.

    With ``classes`` the condition ``label`` (B,) is the class of each sample, 0 to classes - 1, or
    ``classes`` for none.
    """

    def __init__(
        self,
        dimension: int = 2,
        width: int = 128,
        depth: int = 4,
        frequencies: int = 16,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        dimension = integer("MLP: dimension", dimension, 1)
        width = integer("MLP: width", width, 1)
        depth = integer("MLP: depth", depth)
        frequencies = integer("MLP: frequencies", frequencies, 1)
        classes = check_count("MLP: classes", classes)
        self.config: dict[str, Any] = {
            "dimension": dimension,
            "width": width,
            "depth": depth,
            "frequencies": frequencies,
            "classes": classes,
        }
        self.classes = classes
        self.time = TimeFeatures(frequencies)
        self.enter = nn.Linear(dimension + 2 * frequencies, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.SiLU(), nn.Linear(width, dimension))
        if classes is not None:
            self.embed = class_embedding(classes, width)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Prediction (B, d)."""
        seen = check_label("MLP", self.classes, label)
        h: Tensor = self.enter(torch.cat([x, self.time(t.to(x.dtype))], dim=1))
        h = h if seen is None else h + self.embed(seen)
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.leave(h)
        return out

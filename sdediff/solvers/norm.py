"""The norm of a step's error, in tolerances."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import rowwise, vanishing

__all__ = ["ErrorNorm"]


class ErrorNorm(NamedTuple):
    """The root mean square over coordinates of error / (atol + rtol max(abs(x), abs(y))): 1 is the
    tolerance.
    """

    rtol: float
    atol: float
    parts: tuple[tuple[int, float], ...] = ()
    """(size, weight) of parts of the event, of which the largest weight times norm counts; ():
    there is one.
    """

    def __call__(self, error: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The norm, float64 (rows,) on the host, of an error on the way from x to y.

        A coordinate that is exactly 0 in x, in y and in the error is padding, and does not count.
        """
        error = error.detach()
        x = x.detach()
        y = y.detach()
        size = torch.maximum(x.abs(), y.abs())
        padding = vanishing(error, size)
        scale = size.mul_(self.rtol).add_(self.atol)
        scaled = rowwise(error / scale)
        parts = self.parts or ((scaled.shape[1], 1.0),)
        sizes = [size for size, _ in parts]
        norms = [
            torch.linalg.vector_norm(piece, dim=1) / (math.sqrt(max(1, size)) / weight)
            for piece, (size, weight) in zip(scaled.split(sizes, dim=1), parts, strict=True)
        ]
        if padding is not None:
            counts = [
                (~piece).sum(dim=1).clamp(min=1) for piece in rowwise(padding).split(sizes, dim=1)
            ]
            norms = [
                norm * (size / count.to(norm)).sqrt()
                for norm, size, count in zip(norms, sizes, counts, strict=True)
            ]
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).amax(dim=0)
        return norm.cpu().to(torch.float64)

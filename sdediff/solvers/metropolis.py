"""The Metropolis-Hastings test: what a proposal gains, and whether it is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, rowwise

__all__ = ["accepts", "line_integral", "proposal_ratio"]


def line_integral(x: Tensor, y: Tensor, start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """log p(y) - log p(x), (rows,), from the scores at x, (x + y) / 2 and y: their integral along
    the segment by Simpson's rule.

    Exact for Gaussian laws and for any log-density of degree 4.
    """
    return rowwise((y - x) * ((start + 4 * middle + end) / 6)).sum(dim=1)


def proposal_ratio(
    x: Tensor, y: Tensor, z: Tensor, score: Tensor, size: Number, root: Number
) -> Tensor:
    """log q(x | y) - log q(y | x), (rows,), of q(. | x) = N(x + size score(x), root^2 I) and a
    proposal y made with the normals z.

    ``score`` is that at y.
    """
    back = (x - y - size * score) / root
    return 0.5 * rowwise(z.square() - back.square()).sum(dim=1)


def accepts(log_ratio: Tensor, z: Tensor) -> Tensor:
    """Whether to go, bool (rows,): with the probability min(1, exp(log_ratio)), by standard normals
    z (rows,).
    """
    go: Tensor = torch.special.log_ndtr(z) < log_ratio
    return go

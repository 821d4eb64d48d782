"""A mixture whose components belong to classes: the law of each class, of all of them, and the
exact classifier of noisy states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

import sdediff as sd

__all__ = ["CLASSES", "EVERY", "posterior"]

_F64: Final = torch.float64
_MEANS: Final = torch.tensor(
    [[2.0, 0.0], [1.2, 1.5], [-0.3, 1.8], [-1.7, 0.6], [-1.5, -1.2], [0.4, -1.9]], dtype=_F64
)
_STDS: Final = torch.tensor([0.3, 0.45, 0.25, 0.5, 0.35, 0.4], dtype=_F64)
_WEIGHTS: Final = torch.tensor([0.1, 0.2, 0.25, 0.15, 0.2, 0.1], dtype=_F64)
_OWNER: Final = torch.tensor([0, 1, 0, 2, 1, 2])

EVERY: Final = sd.exact.GaussianMixture(_MEANS, _STDS, _WEIGHTS)
CLASSES: Final = [
    sd.exact.GaussianMixture(_MEANS[own], _STDS[own], _WEIGHTS[own] / _WEIGHTS[own].sum())
    for own in (k == _OWNER for k in range(3))
]


def posterior(sde: sd.LinearSDE) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """log p(label | x_t = x), (B,), of the mixture."""
    shares = torch.stack([_WEIGHTS[k == _OWNER].sum() for k in range(3)]).log()

    def log_prob(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        each = torch.stack([law.log_prob(sde, x, t) for law in CLASSES], dim=1)
        return (each + shares).log_softmax(dim=1).gather(1, label[:, None])[:, 0]

    return log_prob

"""Schedules of betas by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.solvers.given import integer, nearest, reals

__all__ = ["SCHEDULES", "schedule", "zero_terminal_snr"]

_MOST: Final = 0.999


def _linear(N: int) -> Tensor:
    return torch.linspace(0.1 / N, min(20 / N, _MOST), N, dtype=torch.float64)


def _scaled_linear(N: int) -> Tensor:
    scale = 1000 / N
    return torch.linspace(
        math.sqrt(0.00085 * scale), math.sqrt(min(0.012 * scale, _MOST)), N, dtype=torch.float64
    ).square()


def _cosine(share: Tensor) -> Tensor:
    return torch.cos((share + 0.008) / 1.008 * (math.pi / 2)).square()


def _sigmoid(share: Tensor) -> Tensor:
    ends = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=torch.float64))
    return (ends[1] - torch.sigmoid(6 * share - 3)) / (ends[1] - ends[0])


def from_alpha_bar(alpha_bar: Callable[[Tensor], Any], N: int) -> Tensor:
    """beta_i = 1 - alpha_bar(i / N) / alpha_bar((i - 1) / N), at most 0.999 (Nichol and Dhariwal
    2021, arXiv 2102.09672).
    """
    try:
        bar = reals("alpha_bar(t)", alpha_bar(torch.arange(N + 1, dtype=torch.float64) / N))
    except TypeError as error:
        raise TypeError(
            f"alpha_bar must be a function of t in [0, 1] on float64 tensors: {error}"
        ) from error
    if bar.shape != (N + 1,) or not bool((bar >= 0).all()) or not bool((bar.diff() < 0).all()):
        raise ValueError(
            "alpha_bar(t) must fall, stay >= 0 and be shaped as t, float64 (N + 1,) times from 0 "
            "to 1"
        )
    return (1 - bar[1:] / bar[:-1]).clamp(max=_MOST)


SCHEDULES: Final[dict[str, Callable[[int], Tensor]]] = {
    "linear": _linear,
    "scaled-linear": _scaled_linear,
    "cosine": lambda N: from_alpha_bar(_cosine, N),
    "sigmoid": lambda N: from_alpha_bar(_sigmoid, N),
}
"""Betas (N,) by name, at most 0.999.

- ``linear``: from 0.1 / N to 20 / N, which at N = 1000 is 1e-4 to 0.02 (Ho et al. 2020, arXiv
  2006.11239, section 4);
- ``scaled-linear``: linear in sqrt(beta), 0.00085 to 0.012 at N = 1000 (Rombach et al. 2022, arXiv
  2112.10752);
- ``cosine``: alpha_bar = cos^2((t + 0.008) / 1.008 pi / 2) over its value at 0 (Nichol and Dhariwal
  2021, eq. 17);
- ``sigmoid``: alpha_bar = (sigmoid(3) - sigmoid(6 t - 3)) / (sigmoid(3) - sigmoid(-3)) (Jabri et
  al. 2022, arXiv 2212.11972).
"""


def schedule(name: str | Callable[[Tensor], Any], N: int) -> Tensor:
    """Betas (N,) of a name in `SCHEDULES`, or of a function alpha_bar(t) that falls from t = 0 to
    1.
    """
    N = integer("N", N, 1)
    if callable(name):
        return from_alpha_bar(name, N)
    if not isinstance(name, str):
        raise TypeError(
            f"name must be one of {', '.join(SCHEDULES)}, or a function alpha_bar(t); got {name!r}"
        )
    if name not in SCHEDULES:
        raise ValueError(
            f"no schedule is called {name!r}{nearest(str(name), SCHEDULES)}; known: "
            f"{', '.join(SCHEDULES)}"
        )
    return SCHEDULES[name](N)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas whose sqrt(alpha_bar) is that of ``betas`` (N,), shifted and scaled to end at 0 and
    start where it did.

    Lin et al. 2024 (arXiv 2305.08891, Algorithm 1). The last beta is 1: no signal is left at i = N.
    """
    if len(betas) < 2:
        raise ValueError("zero terminal SNR needs at least two steps")
    root = torch.cumsum(torch.log1p(-betas), dim=0).mul(0.5).exp()
    shifted = root - root[-1]  # the scale is that of the first, whose beta stays
    return torch.cat([betas[:1], 1 - (shifted[1:] / shifted[:-1]).square()])

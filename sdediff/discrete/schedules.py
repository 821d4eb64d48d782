"""Schedules of betas by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Final, TypedDict, Unpack

import torch
from torch import Tensor

from sdediff.solvers.given import Numbers, check_name, integer, nearest, real, reals, within

__all__ = ["SCHEDULES", "ScheduleOptions", "schedule", "zero_terminal_snr"]

_MOST: Final = 0.999


class ScheduleOptions(TypedDict, total=False):
    """What a schedule by name takes; `SCHEDULES` says which takes what.

    ``beta_start``, ``beta_end``: the first and the last beta, in (0, 1).
    ``s``: the offset of ``"cosine"``, >= 0.
    ``start``, ``end``, ``tau``: the ends of the sigmoid's argument, and its temperature.
    """

    beta_start: float
    beta_end: float
    s: float
    start: float
    end: float
    tau: float


def _or(name: str, beta: float | None, default: float) -> float:
    """A given beta, in (0, 1), else its default, at most 0.999."""
    within(name, beta, "Part | None")
    return min(default, _MOST) if beta is None else float(beta)


def _linear(N: int, *, beta_start: float | None = None, beta_end: float | None = None) -> Tensor:
    low, high = _or("beta_start", beta_start, 0.1 / N), _or("beta_end", beta_end, 20 / N)
    return torch.linspace(low, high, N, dtype=torch.float64)


def _scaled_linear(
    N: int, *, beta_start: float | None = None, beta_end: float | None = None
) -> Tensor:
    scale = 1000 / N
    low = _or("beta_start", beta_start, 0.00085 * scale) ** 0.5
    high = _or("beta_end", beta_end, 0.012 * scale) ** 0.5
    return torch.linspace(low, high, N, dtype=torch.float64).square()


def _sigmoid_betas(
    N: int, *, beta_start: float | None = None, beta_end: float | None = None
) -> Tensor:
    low, high = _or("beta_start", beta_start, 0.1 / N), _or("beta_end", beta_end, 20 / N)
    return low + (high - low) * torch.sigmoid(torch.linspace(-6, 6, N, dtype=torch.float64))


def _cosine(N: int, *, s: float = 0.008) -> Tensor:
    within("s", s, "NotNegative")
    return from_alpha_bar(lambda t: torch.cos((t + s) / (1 + s) * (math.pi / 2)).square(), N)


def _sigmoid(N: int, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    start, end = (real(name, value) for name, value in (("start", start), ("end", end)))
    within("tau", tau, "Positive")
    if not -700 * tau <= start < end <= 700 * tau:
        raise ValueError(
            f"the sigmoid's argument rises from start / tau to end / tau, within -700 and 700; "
            f"got start = {start:g}, end = {end:g}, tau = {tau:g}"
        )

    def alpha_bar(t: Tensor) -> Tensor:
        # 1 - sigmoid(u) = sigmoid(-u), whose differences keep their digits where it is small
        first, last = torch.sigmoid(-torch.tensor([start, end], dtype=torch.float64) / tau)
        u = ((1 - t) * start + t * end) / tau  # exact at both ends
        bar: Tensor = (torch.sigmoid(-u) - last) / (first - last)
        return bar

    return from_alpha_bar(alpha_bar, N)


def from_alpha_bar(alpha_bar: Callable[[Tensor], Numbers], N: int) -> Tensor:
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


SCHEDULES: Final[dict[str, Callable[..., Tensor]]] = {
    "linear": _linear,
    "scaled-linear": _scaled_linear,
    "sigmoid-betas": _sigmoid_betas,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
}
"""Betas (N,) by name, functions of N and of the options that each takes.

- ``linear``: from ``beta_start`` to ``beta_end``, by default 0.1 / N and 20 / N, which at N = 1000
  are 1e-4 and 0.02 (Ho et al. 2020, arXiv 2006.11239, section 4);
- ``scaled-linear``: linear in sqrt(beta), by default 0.00085 to 0.012 at N = 1000 (Rombach et al.
  2022, arXiv 2112.10752), the quadratic schedule of DDIM's code;
- ``sigmoid-betas``: beta_start + (beta_end - beta_start) sigmoid(u), u from -6 to 6 (Xu et al.
  2022, arXiv 2203.02923), by default between the ends of ``linear``;
- ``cosine``: alpha_bar = cos^2((t + s) / (1 + s) pi / 2) over its value at 0, s = 0.008 (Nichol and
  Dhariwal 2021, eq. 17);
- ``sigmoid``: alpha_bar = (sigmoid(end / tau) - sigmoid((start + (end - start) t) / tau)) /
  (sigmoid(end / tau) - sigmoid(start / tau)), by default from -3 to 3 at tau = 1 (Jabri et al.
  2022, arXiv 2212.11972).

Default betas, and those that an alpha_bar makes, are at most 0.999.
"""


def schedule(
    name: str | Callable[[Tensor], Numbers], N: int, **options: Unpack[ScheduleOptions]
) -> Tensor:
    """Betas (N,) of a name in `SCHEDULES` with its options, or of a function alpha_bar(t) that
    falls from t = 0 to 1. Raises ValueError for numbers out of range, and TypeError for options
    that the schedule does not take.
    """
    N = integer("N", N, 1)
    if not callable(name) and not isinstance(name, str):
        raise TypeError(
            f"name must be one of {', '.join(SCHEDULES)}, or a function alpha_bar(t); got {name!r}"
        )
    if isinstance(name, str):
        check_name("schedule", name, SCHEDULES)
    known = list(inspect.signature(SCHEDULES[name]).parameters)[1:] if isinstance(name, str) else []
    wrong = [option for option in options if option not in known]
    if wrong:
        whose = f"the schedule {name!r}" if known else "a schedule alpha_bar(t)"
        raise TypeError(
            f"{whose} takes {', '.join(known) or 'no options'}; got "
            f"{wrong[0]}{nearest(wrong[0], known)}"
        )
    return from_alpha_bar(name, N) if callable(name) else SCHEDULES[name](N, **options)


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

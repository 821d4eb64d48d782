"""Time grids: plain functions of (steps, start, end) that return float64 tensors of steps + 1 times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

__all__ = ["GRIDS", "check_grid", "quadratic", "uniform"]


def uniform(steps: int, start: float, end: float) -> Tensor:
    """t_i = start + (end - start) i / steps."""
    return polynomial(steps, start, end, power=1.0)


def quadratic(steps: int, start: float, end: float) -> Tensor:
    """Uniform in sqrt(t): t_i = (sqrt(start) + (sqrt(end) - sqrt(start)) i / steps)^2, finer near t = 0.

    The quadratic spacing of DDIM (Song et al. 2021, arXiv 2010.02502, D.2).
    """
    return polynomial(steps, start, end, power=2.0)


def polynomial(steps: int, start: float, end: float, *, power: float) -> Tensor:
    """Uniform in t^(1 / power), its ends exact."""
    root = 1.0 / power
    times = torch.linspace(start**root, end**root, steps + 1, dtype=torch.float64) ** power
    times[0], times[-1] = start, end
    return times


GRIDS: Final[dict[str, Callable[[int, float, float], Tensor]]] = {"uniform": uniform, "quadratic": quadratic}
"""Grids with a name."""


def check_grid(times: Tensor) -> Tensor:
    """Return ``times`` as float64 on the host; a ValueError unless it is a strictly monotone, finite vector."""
    times = torch.as_tensor(times, dtype=torch.float64).cpu()
    if times.ndim != 1 or times.numel() < 1:
        raise ValueError(
            f"a grid is a vector of times, got shape {tuple(times.shape)}; pass torch.linspace(t_max, t_min, N + 1), say"
        )
    if not bool(torch.isfinite(times).all()):
        raise ValueError("the grid contains times that are not finite; drop them")
    step = times.diff()
    if step.numel() and not (bool((step < 0).all()) or bool((step > 0).all())):
        worst = int((step * step.sum().sign()).argmin())
        raise ValueError(
            f"the grid is not strictly monotone: times {worst} and {worst + 1} are {float(times[worst]):.6g} and "
            f"{float(times[worst + 1]):.6g}; sort it and drop repeated times"
        )
    return times

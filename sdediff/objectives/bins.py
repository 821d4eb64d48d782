"""Data on evenly spaced values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.solvers.given import Record, whole

__all__ = ["Bins"]


@dataclass(frozen=True)
class Bins(Record):
    """Data on ``count`` evenly spaced values from ``low`` to ``high``, 8-bit images scaled to [-1,
    1] by default.

    The decoder is p(x_0 | x_1) = Phi((x_0 + h - mean) / std) - Phi((x_0 - h - mean) / std) with h
    half the spacing, and the outermost bins open (Ho et al. 2020, arXiv 2006.11239, eq. 13).
    """

    count: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _ = whole("Bins: count", self.count, 2)
        if not self.low < self.high:
            raise ValueError(f"Bins: low must be below high, got {self.low!r} and {self.high!r}")

    @property
    def spacing(self) -> float:
        """Distance of two neighbours."""
        return (self.high - self.low) / (self.count - 1)

    @classmethod
    def checked(cls, bins: object) -> Bins:
        """Return ``bins``; a TypeError unless it is one."""
        if not isinstance(bins, cls):
            raise TypeError(
                f"bins must be Bins(), which says on which values data lie; got {bins!r}"
            )
        return bins

    def check(self, x_0: Tensor) -> None:
        """A ValueError or TypeError unless all of x_0 lies on the values: scales are declared,
        never guessed.
        """
        if isinstance(x_0, Tensor) and not x_0.is_floating_point():
            raise TypeError(
                f"data are floating-point, as the model takes them, got {x_0.dtype}; scale bin "
                "numbers first: "
                f"{self.low:g} + number * {self.high - self.low:g} / {self.count - 1}"
            )
        if not bool(torch.isfinite(x_0).all()):
            raise ValueError("data contain values that are not finite")
        place = (x_0.detach().cpu().double() - self.low) / self.spacing
        off = float((place - place.round()).abs().max()) if x_0.numel() else 0.0
        if (
            not off < 1e-2
            or bool((place.round() < 0).any())
            or bool((place.round() > self.count - 1).any())
        ):
            raise ValueError(
                f"data must lie on the {self.count} values from {self.low:g} to {self.high:g}, "
                "and run from "
                f"{float(x_0.min()):.4g} to {float(x_0.max()):.4g}, up to {off:.2g} of their "
                "spacing off; declare how they were "
                "scaled, Bins(count, low, high), and pass them without noise (DDPMLoss and "
                "variational_bound take bins=None for "
                "data with a density)"
            )

    def log_prob(self, x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """log p(x_0 | x_1) of each entry, shaped as x_0."""
        narrow = torch.exp(-0.5 * log_variance)
        upper = (x_0 + 0.5 * self.spacing - mean) * narrow
        lower = (x_0 - 0.5 * self.spacing - mean) * narrow
        upper = torch.where(x_0 > self.high - 0.5 * self.spacing, torch.inf, upper)
        lower = torch.where(x_0 < self.low + 0.5 * self.spacing, -torch.inf, lower)
        # Mirrored into the lower tail, where the logarithm of Phi loses nothing.
        flip = lower > 0
        upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
        return _log_difference(upper, lower)


def _log_difference(upper: Tensor, lower: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)) for lower < upper, the ends of which may be infinite."""
    open_below, open_above = lower == -torch.inf, upper == torch.inf
    # Finite stand-ins, so that no gradient is infinity times 0.
    high = torch.where(open_above, 0.0, upper)
    low = torch.where(open_below, -40.0, lower)
    top = torch.where(open_above, 0.0, torch.special.log_ndtr(high))
    fall = torch.where(open_below, -torch.inf, torch.special.log_ndtr(low) - top)
    return top + torch.where(
        open_below, 0.0, torch.log(-torch.expm1(torch.where(open_below, -1.0, fall)))
    )

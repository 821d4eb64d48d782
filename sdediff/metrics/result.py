"""What a metric returns: a number and what it would be without a difference."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Floor", "Metric"]


@dataclass(frozen=True)
class Floor:
    """What a metric gives between independent samples of one law, with as many rows as it was
    given.
    """

    mean: float
    std: float
    quantile: float
    """The 95 % quantile: above it lies one value in 20 where there is no difference."""
    repeats: int
    """From how many splits it was estimated; 0 for a closed form."""


@dataclass(frozen=True)
class Metric:
    """A number; ``float(metric)`` is its value.

    floor: the noise floor, None where none was asked for. p_value: probability of a value at least
    as large as this one where there is no difference, None where there is no test.
    """

    value: float
    floor: Floor | None = None
    p_value: float | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        notes = []
        if self.floor is not None:
            notes.append(f"floor {self.floor.mean:.4g} ± {self.floor.std:.2g}")
        if self.p_value is not None:
            notes.append(f"p = {self.p_value:.2g}")
        return f"{self.value:.4g}" + (f" ({', '.join(notes)})" if notes else "")

"""A measured number with its standard error and its bias, both by leaving out groups of samples."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from sdediff.metrics.samples import Metric

__all__ = ["GROUPS", "Jackknife", "Measured", "Reference", "group_of"]

GROUPS: Final = 40
"""Groups that are left out in turn by default."""

Reference = Literal["fixed", "sampled"]
"""Whether errors and biases are for these reference data, or those of the data are in them."""


@dataclass(frozen=True, kw_only=True)
class Measured(Metric):
    """A number measured on n samples and m reference data; ``float(measured)`` is its value.

    ``stderr``: the standard error, None where none is known.
    ``bias``: by how much the value is too large on average because n (and m, if the reference is
    sampled) are finite, estimated by extrapolation in 1 / n. It is 0 for an unbiased estimator, and
    None where no estimate is known: compare equal n there.
    ``n``, ``m``: how many samples and how many reference data there were.
    ``reference``: ``"fixed"`` where both errors are for these reference data, ``"sampled"`` where
    the data are taken as a sample too.
    ``note``: what to be careful of.
    """

    stderr: float | None
    bias: float | None
    n: int
    m: int = 0
    reference: Reference = "fixed"
    note: str = ""

    @property
    def at_infinity(self) -> float | None:
        """The value extrapolated to infinitely many samples, value - bias; its standard error is
        ``stderr`` to first order. None where the bias is not known.
        """
        return None if self.bias is None else self.value - self.bias

    def __str__(self) -> str:
        error = "" if self.stderr is None else f" ± {self.stderr:.2g}"
        return f"{self.value:.4g}{error} ({', '.join(self.remarks())})"

    def remarks(self) -> list[str]:
        """What is said beside the number: its bias, n and m, the reference, and the note."""
        if self.bias is None:
            words = ["bias not known"]
        elif self.bias == 0:
            words = ["unbiased"]
        else:
            words = [f"bias {self.bias:+.2g}", f"extrapolated to infinite n {self.at_infinity:.4g}"]
        words.append(f"n = {self.n}")
        if self.m:
            words.append(f"reference of {self.m} {self.reference}")
        return [*words, self.note] if self.note else words

    def record(self) -> dict[str, Any]:
        """The fields and the extrapolated value, as JSON takes them."""
        return {**asdict(self), "at_infinity": self.at_infinity}


def group_of(count: int, groups: int, device: torch.device | None = None) -> Tensor:
    """(count,): the group of each row. Row i is in group i mod ``groups``, however the rows come in
    batches.
    """
    return torch.arange(count, device=device) % groups


@dataclass(frozen=True)
class Jackknife:
    """Values without each of g groups, T_(j), beside the value T of all n samples.

    variance = (g - 1) / g sum_j (T_(j) - mean T_(j))^2
    bias     = (mean T_(j) - T) / (n mean 1 / n_(j) - 1)

    n_(j) samples are left without group j. The bias is the slope of T in 1 / n between n and
    n (g - 1) / g samples, divided by n: T - bias is the line's value at 1 / n = 0. Chong & Forsyth
    2020 fit that line to random subsets; leaving out each group in turn takes each sample equally
    often, and adds next to no noise.

    Efron & Stein 1981; Chong & Forsyth 2020, arXiv 1911.07023, section 3.
    """

    variance: float
    bias: float

    @classmethod
    def of(cls, value: Tensor, without: Tensor, left: Tensor) -> Jackknife:
        """From T, T_(j) (g,) and n_(j) (g,)."""
        g = len(without)
        n = float(left.sum()) / (g - 1)
        mean = without.mean()
        variance = float((without - mean).square().sum()) * (g - 1) / g
        stretch = n * float(left.double().reciprocal().mean()) - 1
        return cls(variance, float(mean - value) / stretch)

    @staticmethod
    def total(parts: list[Jackknife]) -> tuple[float | None, float | None]:
        """Standard error and bias of independent parts; None, None if there are none."""
        if not parts:
            return None, None
        return math.sqrt(sum(part.variance for part in parts)), sum(part.bias for part in parts)

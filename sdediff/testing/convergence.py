"""Orders of convergence read off errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sdediff.testing.report import Comparison

__all__ = ["fitted_order", "measured"]


def fitted_order(errors: Sequence[float], factor: float = 2.0) -> float:
    """Order of convergence from errors on grids refined by ``factor``, by least squares in the
    logarithm.
    """
    logs = torch.tensor(errors, dtype=torch.float64).log()
    n = torch.arange(len(errors), dtype=torch.float64)
    n = n - n.mean()
    return float(-(n * logs).sum() / (n**2).sum() / math.log(factor))


def measured(
    what: str,
    errors: list[float],
    claim: float,
    *,
    where: str = "",
    hint: str = "",
    places: str = "each at twice the steps",
) -> Comparison:
    """By how much the order that errors on grids refined by 2 show falls short of the claim."""
    order = fitted_order([max(error, 1e-300) for error in errors])
    shown = ", ".join(f"{error:.2g}" for error in errors)
    gap = max(0.0, claim - order) if errors[-1] >= 1e-10 else 0.0
    if order < 0.3:
        hint = "the errors do not fall: a wrong factor or sign in the drift, or in the noise"
    elif gap > 0.25:
        hint = hint or (
            f"order {max(1, round(2 * order) / 2):g} for a claim of {claim:g}: a stage at the "
            "wrong place, or too high a claim"
        )
    detail = f"{what} is {order:.2f}, not {claim:g} (errors {shown}, {places})"
    return Comparison(gap, 0.25, where, detail, hint, note=f"{order:.2f} for a claim of {claim:g}")

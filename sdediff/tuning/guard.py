"""Is one solver better than another, sure enough? Paired errors of held-out starts decide."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

__all__ = ["QUANTILES", "Bound", "bounds"]

QUANTILES: Final = {"median": 0.5, "p90": 0.9}
"""The quantiles of the errors that are compared."""
_RESAMPLES: Final = 2000


class Bound(NamedTuple):
    """A ratio of quantiles, and the number that it is below at the confidence asked for."""

    ratio: float
    upper: float


def bounds(
    errors: Tensor,
    of_start: Tensor,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = _RESAMPLES,
) -> dict[str, Bound]:
    """For each of `QUANTILES` the ratio of that of ``errors`` (n,) to that of ``of_start`` (n,),
    and its upper bound by the bootstrap.

    The errors are those of the same n starts: each resample takes the same starts for both. That
    all bounds hold together has the ``confidence`` (Bonferroni). 0 / 0 is 1.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(errors)
    drawn = torch.randint(count, (resamples, count), generator=generator)
    pair = torch.stack([errors, of_start]).double().cpu()
    some = pair[:, drawn].sort(dim=-1).values
    pair = pair.sort(dim=-1).values
    level = 1 - (1 - confidence) / len(QUANTILES)
    found = {}
    for name, share in QUANTILES.items():
        place = min(count - 1, int(share * count))
        resampled = _ratio(some[0, :, place], some[1, :, place]).sort().values
        upper = float(resampled[min(resamples - 1, int(level * resamples))])
        found[name] = Bound(float(_ratio(pair[0, place], pair[1, place])), upper)
    return found


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a == b, 1.0, a / b)

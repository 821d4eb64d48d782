"""The noise floor and the p-value of any statistic of two samples, by random splits of the pooled
sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

from sdediff.metrics.result import Floor, Metric
from sdediff.metrics.samples import Pool, check_count, generator

__all__ = ["FLOOR", "Statistic", "check_floor", "measure"]

FLOOR: Final = 1
"""Stream of the random splits."""
_LABELS: Final = 2**27  # bytes
_AT_ONCE: Final = 4096
_SAME: Final = 1e-9  # relative; the same split, summed in another order, is as large

Statistic = Callable[[Tensor], Tensor]
"""From labels (r, n + m), True where a row of the pooled sample counts as one of x, to r values."""


def measure(statistic: Statistic, pool: Pool, floor: int, seed: int) -> Metric:
    """The statistic of x and y; its floor and p-value from ``floor`` splits of the pooled sample
    into n and m rows.

    p = (1 + #{T_i >= T}) / (1 + floor) for the values T_i of the splits: P(p <= a) <= a where x and
    y have one law, for any sizes and any statistic. It cannot fall below 1 / (1 + floor).
    """
    values = torch.cat(
        [
            statistic(labels.to(pool.rows.device)).cpu().double()
            for labels in _labels(pool, floor, seed)
        ]
    )
    value, split = values[0], values[1:]
    if floor == 0:
        return Metric(float(value))
    reached = int((split >= value - _SAME * value.abs()).sum())
    law = Floor(float(split.mean()), float(split.std()), float(split.quantile(0.95)), floor)
    return Metric(float(value), law, (1 + reached) / (1 + floor))


def check_floor(floor: int, seed: int) -> int:
    """Return the number of splits, none or enough for a standard deviation; there is a seed for
    them.
    """
    generator(seed, FLOOR)
    return check_count("floor", floor, 2, zero=True)


def _labels(pool: Pool, floor: int, seed: int) -> Iterator[Tensor]:
    """Row 0 is x and y themselves, ``floor`` rows are splits; in groups of bounded size."""
    size = len(pool.rows)
    at_once = min(_AT_ONCE, max(1, _LABELS // size))
    random = generator(seed, FLOOR)
    for start in range(0, 1 + floor, at_once):
        labels = torch.zeros(min(at_once, 1 + floor - start), size, dtype=torch.bool)
        for i, row in enumerate(labels, start):
            row[torch.randperm(size, generator=random)[: pool.n] if i else slice(pool.n)] = True
        yield labels

"""Optimal transport along random directions."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from sdediff.metrics.permutation import check_floor, measure
from sdediff.metrics.result import Metric
from sdediff.metrics.samples import Pool, blocks, check_count, generator

__all__ = ["sliced_wasserstein"]

_DIRECTIONS: Final = 0
"""Stream of the directions."""


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, projections: int = 256, floor: int = 0, seed: int = 0
) -> Metric:
    """Sliced Wasserstein-2 distance, in the units of x.

    SW_2^2 = mean over unit directions u of W_2^2(u . x, u . y),    W_2^2 = int_0^1 (F^{-1}(q) -
    G^{-1}(q))^2 dq

    between the empirical laws of x (n, *event) and y (m, *event), flattened to d numbers: the
    integral is exact for any n and m, the mean is over ``projections`` directions drawn uniformly
    from the sphere (for d = 1 there is one, and the value is W_2). A shift by v gives about |v| /
    sqrt(d). Between samples of one law it is not zero but of order n^{-1/2}: see ``floor``, the
    number of random splits of the pooled sample. ValueError on samples of different shape or with
    NaN or inf.

    Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures.
    """
    projections = check_count("projections", projections, 1)
    floor = check_floor(floor, seed)
    random = generator(seed, _DIRECTIONS)
    pool = Pool.of(x, y)
    d = pool.rows.shape[1]
    if d == 1:
        directions = torch.ones(1, 1, dtype=torch.float64)
    else:
        directions = torch.randn(projections, d, generator=random, dtype=torch.float64)
        directions /= directions.norm(dim=1, keepdim=True)
    directions = directions.to(pool.center)
    rows_x, rows_y, weights = _coupling(pool.n, pool.m)
    rows_x = rows_x.to(pool.rows.device)
    rows_y = rows_y.to(pool.rows.device)
    weights = weights.to(pool.center)

    def statistic(labels: Tensor) -> Tensor:
        total = torch.zeros(len(labels), dtype=weights.dtype, device=labels.device)
        for part in blocks(len(directions), len(pool.rows)):
            values, order = _project(pool, directions[part]).sort(dim=1)
            for i, label in enumerate(labels):
                is_x = label[order]
                sorted_x = values[is_x].view(len(values), pool.n)
                sorted_y = values[~is_x].view(len(values), pool.m)
                total[i] += ((sorted_x[:, rows_x] - sorted_y[:, rows_y]).square() @ weights).sum()
        return (total / len(directions)).sqrt()

    return measure(statistic, pool, floor, seed)


def _coupling(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which sorted x goes to which sorted y with what weight: both quantile functions are constant
    between the i / n and j / m.
    """
    # In units of 1 / nm, where all are integers and equal ones are equal.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    return starts // m, starts // n, (ends - starts).double() / (n * m)


def _project(pool: Pool, directions: Tensor) -> Tensor:
    return torch.cat(
        [directions @ pool.centred(part).T for part in blocks(*pool.rows.shape)], dim=1
    )

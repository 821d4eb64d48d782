"""The size of the details of a model's data, from how its network answers at low noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from sdediff.calls import Condition, check_condition, check_states
from sdediff.masks import check_mask, kept, mean_over
from sdediff.modules import evaluating
from sdediff.predict import predict
from sdediff.protocols import Model, check_model, facts
from sdediff.sampling import sample
from sdediff.solvers import White, seeds
from sdediff.solvers.arithmetic import at_least_float32
from sdediff.solvers.given import integer

__all__ = ["measure"]

_LEVELS: Final = 16
"""How many levels of noise the network is asked at."""
_LEAST: Final = 1e-4
"""The least level of noise, in units of the standard deviation of the data."""
_SHARE: Final = 1 / 9
"""The share of the noise that a network keeps at the level of noise that is sought. For details of
one size r it is r^2 / (r^2 + w^2), so that this level is sqrt(8) r. It is as low as it can be if
levels at which a few samples are between two parts of the data are not to count; and with it,
details of a ninth of the coordinates count, where the others have none.
"""
_DRAWS: Final = 16
"""Coordinates that the share of one sample is a mean over, at least."""
_STEPS: Final = 20
"""Steps of the solve that draws samples where none are given."""


@torch.no_grad()
def measure(
    model: Model,
    samples: Tensor | Sequence[int],
    *,
    condition: Condition | None = None,
    mask: Tensor | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """The standard deviation of the details of the data, in the units of ``model.data_std``: how
    far from each other samples are that the model takes for one as soon as there is more noise.

    At a level w = sigma / alpha of the noise a network keeps the share

        rho(w) = tr(dD/dx) / d = E|x_0 - D|^2 / (d w^2),    D(x) = E[x_0 | x_0 + w noise],

    of it. This is 1 where w is small beside the details, and r^2 / (r^2 + w^2) for details of one
    size r, until at larger w the parts of the data merge. The median of rho over the samples is
    found at 16 levels, spaced evenly in log-SNR from that of t_min to w = ``data_std``, as the mean
    of noise (D(x_0 + w noise) - D(x_0 - w noise)) / (2 w); r follows from the level from which on
    it is below 1/9. If it is below from the first level on, details are hidden by the noise at
    t_min, and r is the most that they can be. If it never is, the data have no details smaller than
    themselves, and r is ``data_std``.

    ``samples``: data (B, *event) in the user's units, 64 are enough; or a shape, (64, 2) say, for
    samples that the model draws by the default solver in 20 steps. ``condition``, ``mask``: as in
    `sdediff.sample`, of these samples. ``batch_size``: how many samples are looked at together.
    ``seed``: of the noise.

    `sdediff.fit` measures at its end and keeps the result as ``model.detail_std``, from which the
    default solver takes its form and its grid if it is below 0.04 of ``data_std``
    (docs/solvers.md). Of another model write ``model.detail_std = measure(model, (64, 2))``.

    Raises ValueError or TypeError before the first evaluation, for a model without a Gaussian
    kernel too.
    """
    check_model(model)
    sde = model.sde
    if "kernel" not in sde.offers:
        raise ValueError(f"measure needs a Gaussian kernel, which {sde!r} does not have")
    known = facts(model)
    batch_size = integer("batch_size", batch_size, 1)
    seed = integer("seed", seed, kind="a non-negative int")
    if not isinstance(samples, Tensor):
        drawn = sample(model, samples, steps=_STEPS, seed=seed, condition=condition, mask=mask)
        samples = drawn.x
    x_0 = at_least_float32(check_states("samples", samples)).to(known.device)
    condition = check_condition(condition, len(x_0), known.net, known.device, event=x_0.shape[1:])
    exist = check_mask(mask, x_0.shape, known.device)
    if known.normalizer is not None:
        x_0 = kept(known.normalizer.normalize(x_0), exist)
    copies = -(-_DRAWS // max(1, x_0[0].numel()))
    rows = torch.arange(len(x_0)).repeat_interleave(copies).split(copies * batch_size)
    keys = torch.arange(len(x_0) * copies).split(copies * batch_size)
    levels, times = _levels(model, known.data_std)
    every = seeds(seed, len(x_0) * copies)
    shares = []
    with evaluating(model):
        for some, own in zip(rows, keys, strict=True):
            noise = White(
                [every[i] for i in own.tolist()],
                x_0.shape[1:],
                dtype=x_0.dtype,
                device=known.device,
            )
            part = some.to(known.device)
            given = {name: value[part] for name, value in condition.items()}
            there = None if exist is None else exist[part]
            normals = kept(noise.at(0).normal("probe"), there)
            each = [_share(model, x_0[part], normals, t, given, there) for t in times]
            shares.append(torch.stack(each).reshape(len(levels), -1, copies).mean(dim=2))
    median = torch.cat(shares, dim=1).double().median(dim=1).values.tolist()
    return _size(levels, median, known.data_std)


def _levels(model: Model, unit: float) -> tuple[list[float], list[float]]:
    """The levels of the noise, sigma / alpha, rising, and their times."""
    sde = model.sde
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    most, least = sde.log_snr(ends).tolist()
    first = min(most, -2 * math.log(_LEAST * unit))
    last = min(first, max(least, -2 * math.log(unit)))
    log_snr = torch.linspace(first, last, _LEVELS, dtype=torch.float64)
    times = sde.time_of(log_snr).clamp(sde.t_min, sde.t_max)
    return (-0.5 * log_snr).exp().tolist(), times.tolist()


def _share(
    model: Model,
    x_0: Tensor,
    noise: Tensor,
    time: float,
    condition: dict[str, Tensor],
    mask: Tensor | None,
) -> Tensor:
    """An estimate of rho for each row of x_0."""
    sde, t = model.sde, torch.tensor(time, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    states = alpha * torch.cat([x_0, x_0]) + sigma * torch.cat([noise, -noise])
    both = {name: torch.cat([value, value]) for name, value in condition.items()}
    exist = None if mask is None else torch.cat([mask, mask])
    up, down = predict(model, "data", states, t, both, exist).chunk(2)
    return mean_over(noise * (up - down), mask) * (alpha / (2 * sigma))


def _size(levels: list[float], shares: list[float], unit: float) -> float:
    """r, where the shares fall below `_SHARE`, between two levels by a straight line of logs."""
    per_level = math.sqrt(1 / _SHARE - 1)
    first = next((i for i, share in enumerate(shares) if share < _SHARE), None)
    if first is None:
        return unit
    if first == 0:
        return levels[0] / per_level
    high, low = (max(share, 1e-3 * _SHARE) for share in shares[first - 1 : first + 1])
    part = math.log(high / _SHARE) / math.log(high / low)
    return levels[first - 1] * (levels[first] / levels[first - 1]) ** part / per_level

"""The size of the details of a model's data, from how its network answers at low noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdediff.calls import Condition, check_condition, check_states
from sdediff.masks import check_mask, kept
from sdediff.modules import evaluating
from sdediff.predict import predict
from sdediff.processes import in_parts
from sdediff.protocols import Model, check_model, facts
from sdediff.sampling import sample
from sdediff.solvers import StepNoise, White, expand, rowwise, seeds
from sdediff.solvers.arithmetic import at_least_float32
from sdediff.solvers.given import integer

__all__ = ["measure"]

_LEVELS: Final = 20
"""How many levels of noise the network is asked at."""
_LEAST, _MOST = 1e-4, 8.0
"""The least and the most of them, in units of the standard deviation of the data."""
_SHARE: Final = 1 / 2
"""The share of the noise that is kept at the level of noise that is sought: the level is the size
of the details.
"""
_HIDDEN: Final = 1 / 4
"""Where the share at the last level is below this, the noise there hides the details."""
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
    """The standard deviation r of the details of the data, in the units of ``model.data_std``.

    Details are what is left open of a sample when much about it is known. They are lost first when
    noise is added: from some level of noise on, the model answers with the mean of samples that
    differ by less. r is the size of these differences in the directions in which samples differ:
    the median over samples.

    Take noise of level w = sigma / alpha. Of the noise in a direction u a network keeps the share

        lambda(w) = u^T (dD/dx) u = Var[u^T x_0 | x] / w^2,    D(x) = E[x_0 | x_0 + w noise].

    The share is 1 where w is small beside the details. It is r^2 / (r^2 + w^2) for details of size
    r, until at larger w the parts of the data merge. The network is asked at 20 levels, spaced
    evenly in log-SNR from w = 8 ``data_std`` down to t_min, by two evaluations of each sample:
    lambda = u^T (D(x + w u) - D(x - w u)) / (2 w). The direction u is that from one sample to
    another, so that directions count by how much the data differ in them.

    r is the largest level of noise below which half of the samples have a lambda of 1/2 or more at
    all levels. If lambda is below 1/2 at t_min, r follows from lambda there; if it is below 1/4,
    the noise hides the details, and r is 0.58 of that noise, the most that they can be. r exceeds
    ``data_std`` if the data differ mostly in few directions, as pictures do; it is at most 8 times
    as large, or as large as the most noise of the SDE.

    ``samples``: data (B, *event) in the user's units, 64 are enough; or a shape, (64, 2) say, for
    samples that the model draws by the default solver in 20 steps.
    ``condition``, ``mask``: as in `sdediff.sample`, of these samples.
    ``batch_size``: how many samples are looked at together.
    ``seed``: the seed of the noise.

    `sdediff.fit` measures at its end and keeps the result as ``model.detail_std``. The default
    solver takes its form from it if it is below 0.07 or above 0.15 of ``data_std``, and in the
    first case from 4 steps on its grid (docs/solvers.md). Of another model write
    ``model.detail_std = measure(model, (64, 2))``.

    Raises ValueError or TypeError before the first evaluation, for a model without a Gaussian
    kernel too; and a ValueError if the model's answers are not finite.
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
    x_0 = at_least_float32(check_states("samples", samples))
    x_0 = (x_0.float() if known.device.type == "mps" else x_0).to(known.device)
    condition = check_condition(condition, len(x_0), known.net, known.device, event=x_0.shape[1:])
    exist = check_mask(mask, x_0.shape, known.device)
    if known.normalizer is not None:
        x_0 = known.normalizer.normalize(x_0)
    x_0 = kept(x_0, exist)
    levels, times = _levels(model, known.data_std)
    half = len(x_0) // 2  # not the next one: data are often sorted
    away = x_0 - x_0.roll(half, 0)
    if exist is not None:
        away = kept(kept(away, exist), exist.roll(half, 0))
    every = seeds(seed, len(x_0))

    def part(rows: range) -> Tensor:
        some = slice(rows.start, rows.stop)
        normals = White(every[some], x_0.shape[1:], dtype=x_0.dtype, device=known.device).at(0)
        probe = _Probe(
            model,
            x_0[some],
            away[some],
            {name: value[some] for name, value in condition.items()},
            None if exist is None else exist[some],
        )
        return probe.shares(times, normals)

    with evaluating(model):
        shares = in_parts(len(x_0), batch_size, part)
    middle = torch.cat(shares, dim=1).cpu().double().quantile(0.5, dim=1).tolist()
    lost = [level for level, share in zip(levels, middle, strict=True) if not math.isfinite(share)]
    if lost:
        raise ValueError(
            f"the model's answers at the noise level {lost[0]:.3g} are not finite: its details "
            "cannot be measured; look at the network, or at the samples"
        )
    return _size(levels, middle)


def _levels(model: Model, unit: float) -> tuple[list[float], list[float]]:
    """The levels of the noise, sigma / alpha, falling, and their times."""
    sde = model.sde
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    most, least = sde.log_snr(ends).tolist()
    last = min(most, -2 * math.log(_LEAST * unit))
    first = min(last, max(least, -2 * math.log(_MOST * unit)))
    log_snr = torch.linspace(first, last, _LEVELS, dtype=torch.float64)
    times = sde.time_of(log_snr).clamp(sde.t_min, sde.t_max)
    return (-0.5 * log_snr).exp().tolist(), times.tolist()


class _Probe(NamedTuple):
    """Samples, how far each is from another one, and what the model is asked about them."""

    model: Model
    x_0: Tensor
    away: Tensor
    condition: Mapping[str, Tensor]
    mask: Tensor | None

    def shares(self, times: Sequence[float], normals: StepNoise) -> Tensor:
        """lambda at falling times, (times, B); in any direction where both samples are the same."""
        noise, other = (kept(normals.normal("probe", k), self.mask) for k in range(2))
        apart = rowwise(self.away).norm(dim=1) > 0
        u = torch.where(apart.reshape(-1, *[1] * (other.ndim - 1)), self.away, other)
        u = u / expand(rowwise(u).norm(dim=1).clamp(min=torch.finfo(u.dtype).tiny), u)
        answers = [rowwise(self.slope(time, noise, u)) for time in times]
        return torch.stack([(rowwise(u) * each).sum(dim=1) for each in answers])

    def slope(self, time: float, noise: Tensor, u: Tensor) -> Tensor:
        """(dD/dx) u at the states with this noise, by a difference of the noise's own size."""
        sde, t = self.model.sde, torch.tensor(time, dtype=torch.float64)
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        states = alpha * self.x_0 + sigma * noise
        both = {name: torch.cat([value, value]) for name, value in self.condition.items()}
        exist = None if self.mask is None else torch.cat([self.mask, self.mask])
        pair = torch.cat([states + sigma * u, states - sigma * u])
        up, down = predict(self.model, "data", pair, t, both, exist).chunk(2)
        return kept(up - down, self.mask) * (alpha / (2 * sigma))


def _size(levels: list[float], shares: list[float]) -> float:
    """r, from the level below which all shares exceed `_SHARE`, between two levels by a straight
    line of logs; from the share at the last level where that is below.
    """
    last = next((i for i in reversed(range(len(shares))) if shares[i] < _SHARE), None)
    if last is None:
        return levels[0]
    if last == len(shares) - 1:
        share = max(shares[last], _HIDDEN)
        return levels[last] * math.sqrt(share / (1 - share))
    low, high = (max(share, 1e-3 * _SHARE) for share in shares[last : last + 2])
    part = math.log(high / _SHARE) / math.log(high / low)
    return levels[last + 1] * math.pow(levels[last] / levels[last + 1], part)

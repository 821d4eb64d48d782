"""A solve and what is measured of it: errors to the reference, distances of laws, quality."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Unpack

import torch
from torch import Tensor

from sdediff.comparison.record import Errors, Law, Quality
from sdediff.metrics import Metric, energy_distance, frechet_distance, sliced_wasserstein
from sdediff.metrics.samples import Pool, measure
from sdediff.options import SolveOptions
from sdediff.protocols import Model
from sdediff.sampling import sample
from sdediff.solvers import Solution, Solver, rowwise
from sdediff.units import Units

__all__ = ["RealData", "Solve", "errors_of", "law_of", "quality_of"]

_SPLITS: Final = 200
_DIRECTIONS: Final = 64


@dataclass(frozen=True)
class Solve:
    """`sample` of one model and shape, with what all solves share."""

    model: Model
    shape: tuple[int, ...]
    units: Units
    shared: SolveOptions
    warned: dict[str, None] = field(default_factory=dict, compare=False)
    """What solves warned of, each once."""

    def __call__(
        self,
        *,
        solver: Solver | None = None,
        steps: int | None = None,
        seed: int,
        **options: Unpack[SolveOptions],
    ) -> Solution:
        taken: Any = {**self.shared, **options}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = sample(
                self.model,
                self.shape,
                solver=solver,
                steps=steps,
                seed=seed,
                on_fail="return",
                **taken,
            )
        self.warned.update(dict.fromkeys(" ".join(str(each.message).split()) for each in caught))
        return found

    def fewer(self, count: int) -> Solve:
        """The same of the first ``count`` samples."""
        shared: Any = dict(self.shared)
        condition = shared.get("condition")
        if condition is not None:
            shared["condition"] = {
                name: value[:count] if isinstance(value, Tensor) and value.ndim else value
                for name, value in condition.items()
            }
        if shared.get("mask") is not None and len(shared["mask"]) > count:
            shared["mask"] = shared["mask"][:count]
        return replace(self, shape=(count, *self.shape[1:]), shared=shared)

    def inside(self, x: Tensor) -> Tensor:
        """Flat states in units of the standard deviation of the data, float64 where there is
        one.
        """
        kind = torch.float32 if x.device.type == "mps" else torch.float64
        return rowwise(self.units.enter(x.detach().to(kind)))


def errors_of(x: Tensor, exact: Tensor, good: Tensor) -> Errors:
    """Root mean square over coordinates of x - exact, (B, d), for the samples ``good``; a sample
    that is not finite is infinitely far.
    """
    off = (x - exact).square().mean(dim=1).sqrt().cpu()[good.cpu()]
    off = off.nan_to_num(nan=math.inf, posinf=math.inf).double().sort().values
    rms = math.sqrt(float(off.square().mean()))
    return Errors(_quantile(off, 0.5), rms, _quantile(off, 0.9), float(off[-1]))


def _quantile(rising: Tensor, share: float) -> float:
    """The least of the values that so many do not exceed."""
    return float(rising[math.ceil(share * len(rising)) - 1])


def law_of(x: Tensor, drawn: Tensor, seed: int) -> Law:
    """Distances of flat samples from draws of the law asked for, with their floors."""
    pool = Pool.of(x, drawn, least=2, floor=_SPLITS, seed=seed)
    return Law(
        energy_distance(x, drawn, floor=_SPLITS, seed=seed),
        sliced_wasserstein(x, drawn, projections=_DIRECTIONS, floor=_SPLITS, seed=seed),
        _signed(measure(lambda labels: _spreads(pool, labels), pool)),
    )


def _spreads(pool: Pool, labels: Tensor) -> Tensor:
    """log of the ratio of the total standard deviations of the rows labelled and the others."""
    rows = pool.centred(slice(None))
    squares = rows.square().sum(dim=1)

    def variance(part: Tensor) -> Tensor:
        share = part.to(rows.dtype)
        count = share.sum(dim=1)
        mean = share @ rows / count[:, None]
        own = (share @ squares - count * mean.square().sum(dim=1)) / (count - 1)
        return own

    return 0.5 * (variance(labels) / variance(~labels)).log()


def _signed(metric: Metric) -> Metric:
    """Without a p-value, which is one-sided where 0 is right."""
    return Metric(metric.value, metric.floor)


@dataclass(frozen=True)
class RealData:
    """Data in two parts: samples are compared with ``known``, and ``unseen`` is what real data have
    in their place, as many of them.
    """

    known: Tensor
    unseen: Tensor
    features: Callable[[Tensor], Tensor] | None
    seed: int

    @classmethod
    def of(
        cls, data: Tensor, count: int, features: Callable[[Tensor], Tensor] | None, seed: int
    ) -> RealData:
        """Data (m, *event) at random in two, at most half of them unseen."""
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        held = min(count, len(data) // 2)
        mixed = data[order.to(data.device)]
        return cls(mixed[held:], mixed[:held], features, seed)


def quality_of(x: Tensor, real: RealData, inside: Callable[[Tensor], Tensor]) -> Quality:
    """Of samples x in the user's units, as many as there are unseen data."""
    x = x[: len(real.unseen)].to(real.known)
    frechet = frechet_distance(x, real.known, features=real.features)
    energy = energy_distance(inside(x), inside(real.known), floor=_SPLITS, seed=real.seed)
    return Quality(float(frechet), energy)

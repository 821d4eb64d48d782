"""Hypothesis strategies: random SDEs, grids, mixtures, shapes and predictions that shrink to small,
readable ones.

They need hypothesis, of the extra ``testing``. Numbers have two or three digits, so that what fails
can be copied from the report.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from sdediff._extras import require
from sdediff.exact import GaussianMixture
from sdediff.sde import EDM, VE, VP, Cosine, LinearSDE, RectifiedFlow, SubVP
from sdediff.testing.equivalences.case import NEEDS, Case, able, grid_of, span

if TYPE_CHECKING:
    from hypothesis import strategies as st

    Numbers = st.SearchStrategy[float]
    SDEs = st.SearchStrategy[LinearSDE]
else:
    st = require("hypothesis", "testing").strategies

__all__ = ["cases", "event_shapes", "grids", "mixtures", "predictions", "sdes"]


@dataclass(frozen=True)
class Preserving(LinearSDE):
    """f = -beta / 2 and g = sqrt(beta), beta = low + (high - low) (t / T)^power: unit variance, all
    else by quadrature.
    """

    low: float = 0.1
    high: float = 20.0
    power: float = 2.0
    T: float = 1.0

    def beta(self, t: Tensor) -> Tensor:
        """Noise rate."""
        return self.low + (self.high - self.low) * (t / self.T) ** self.power

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def g(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()


@dataclass(frozen=True)
class ByRates(LinearSDE):
    """f = -pull t / T and g = low + (high - low) t / T, of no special variance."""

    pull: float = 0.0
    low: float = 1.0
    high: float = 5.0
    sigma_0: float = 0.0
    T: float = 1.0

    def f(self, t: Tensor) -> Tensor:
        return -self.pull * t / self.T

    def g(self, t: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * t / self.T


@dataclass(frozen=True)
class BySchedule(LinearSDE):
    """alpha = 1 / (1 + fall (t / T)^2) and sigma = top (t / T)^power; f and g by autograd."""

    fall: float = 0.0
    top: float = 1.0
    power: float = 1.0
    T: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 / (1 + self.fall * (t / self.T) ** 2)

    def sigma(self, t: Tensor) -> Tensor:
        return self.top * (t / self.T) ** self.power


@dataclass(frozen=True)
class ByLevels(LinearSDE):
    """alpha = exp(-fall t / T), log_snr from first to last as t / T + bend sin(pi t / T) / pi; with
    noise on the data.
    """

    fall: float = 0.0
    first: float = 8.0
    last: float = -6.0
    bend: float = 0.0
    T: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.fall * t / self.T)

    def log_snr(self, t: Tensor) -> Tensor:
        """It falls from first to last."""
        u = t / self.T
        return self.first - (self.first - self.last) * (
            u + self.bend * torch.sin(torch.pi * u) / torch.pi
        )


def _tenths(low: float, high: float) -> Numbers:
    """Numbers of one decimal; they shrink to ``low``."""
    return st.integers(0, round(10 * (high - low))).map(lambda k: round(low + k / 10, 1))


def sdes(
    needs: Iterable[str] = (), *, built_in: bool = True, users: bool = True
) -> st.SearchStrategy[LinearSDE]:
    """Linear SDEs: every built-in family, and users' own by f and g, by alpha and sigma and by
    alpha and log_snr.

    ``needs`` are what an equivalence needs, names in `NEEDS`: ``("unit variance",)`` draws VP and
    users' like it. They shrink to the first there is, ``VP()`` as a rule.
    """
    wanted = frozenset(needs)
    if unknown := sorted(wanted - set(NEEDS)):
        raise ValueError(f"needs must be among {sorted(NEEDS)}, got {unknown}")
    if not (built_in or users):
        raise ValueError("sdes draws built-in families, users' own, or both: set built_in or users")
    horizon = st.sampled_from([1.0, 0.5, 3.0])
    drawn = [*(_built_in(horizon) if built_in else []), *(_users(horizon) if users else [])]
    kept = [strategy for kind, strategy in drawn if wanted <= set(kind)]
    if not kept:
        raise ValueError(
            f"none of these SDEs has {' and '.join(sorted(wanted))}: draw users' own too"
        )
    return st.one_of(*kept)


_VARIANCE: Final = ("unit variance", "unit variance or scale")
_SCALE: Final = ("constant scale", "unit variance or scale")
"""What an SDE of this kind has, names in `NEEDS`."""


def _built_in(horizon: Numbers) -> list[tuple[tuple[str, ...], SDEs]]:
    """The families that ship, with their kind."""
    return [
        (_VARIANCE, st.just(VP())),
        (_VARIANCE, st.builds(VP, beta_min=_tenths(0.1, 1.0), beta_max=_tenths(2.0, 20.0))),
        (
            _SCALE,
            st.builds(
                VE,
                sigma_min=st.sampled_from([0.01, 0.05, 0.2]),
                sigma_max=_tenths(1.0, 50.0),
                T=horizon,
            ),
        ),
        ((), st.builds(SubVP, beta_min=_tenths(0.1, 1.0), beta_max=_tenths(4.0, 20.0))),
        (
            _SCALE,
            st.builds(EDM, sigma_min=st.sampled_from([0.01, 0.1]), sigma_max=_tenths(2.0, 80.0)),
        ),
        ((), st.builds(Cosine, offset=st.sampled_from([0.008, 0.02]))),
        ((), st.builds(RectifiedFlow, t_min=st.sampled_from([1e-3, 1e-2]))),
    ]


def _users(horizon: Numbers) -> list[tuple[tuple[str, ...], SDEs]]:
    """As users write them, with their kind."""
    rising, share = st.sampled_from([1.0, 2.0, 0.5, 3.0]), st.just(0.0)
    schedule = {"top": _tenths(1.0, 10.0), "power": st.sampled_from([1.0, 0.5, 2.0]), "T": horizon}
    rates = {
        "low": _tenths(0.2, 2.0),
        "high": _tenths(2.0, 8.0),
        "sigma_0": _tenths(0.0, 0.3),
        "T": horizon,
    }
    levels = {
        "first": _tenths(3.0, 12.0),
        "last": _tenths(-10.0, -2.0),
        "bend": _tenths(-0.8, 0.8),
        "T": horizon,
    }
    return [
        (
            _VARIANCE,
            st.builds(Preserving, low=_tenths(0.1, 2.0), high=_tenths(2.0, 12.0), power=rising),
        ),
        ((), st.builds(ByRates, pull=_tenths(0.1, 8.0), **rates)),
        (_SCALE, st.builds(ByRates, pull=share, **rates)),
        ((), st.builds(BySchedule, fall=_tenths(0.1, 20.0), **schedule)),
        (_SCALE, st.builds(BySchedule, fall=share, **schedule)),
        ((), st.builds(ByLevels, fall=_tenths(0.0, 4.0), **levels)),
    ]


def grids(sde: LinearSDE, *, max_steps: int = 8) -> st.SearchStrategy[tuple[float, ...]]:
    """Falling times in the SDE's usable range: whole or a part of it, with intervals of any sizes
    in log-SNR.

    They shrink to one step over the whole range, which is cut where log-SNR lies more than 16 from
    0.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    start, end = span(sde)
    first, last = (
        float(level) for level in sde.log_snr(torch.tensor([start, end], dtype=torch.float64))
    )

    def made(weights: list[int], cut: int) -> tuple[float, ...]:
        low = (
            start
            if not cut
            else float(f"{float(sde.time_of(first + 0.05 * cut * (last - first))):.6g}")
        )
        return grid_of(sde, [float(w) for w in weights], low, end)

    weights = st.lists(st.integers(1, 6), min_size=1, max_size=max_steps)
    return st.builds(made, weights, st.sampled_from([0, 0, 0, 2, 8]))


def event_shapes(*, max_dims: int = 3, max_side: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of one sample; they shrink to (1,)."""
    return st.lists(st.integers(1, max_side), min_size=1, max_size=max_dims).map(tuple)


def mixtures(
    event: tuple[int, ...] | None = None, *, max_components: int = 3
) -> st.SearchStrategy[GaussianMixture]:
    """Gaussian mixtures over events of that shape, of any by default; they shrink to one standard
    normal.
    """
    if event is None:
        return event_shapes().flatmap(lambda shape: mixtures(shape, max_components=max_components))
    size = int(torch.Size(event).numel())

    @st.composite
    def drawn(draw: st.DrawFn) -> GaussianMixture:
        count = draw(st.integers(1, max_components))
        flat = [
            draw(st.lists(st.integers(-10, 10), min_size=size, max_size=size)) for _ in range(count)
        ]
        stds = [draw(st.sampled_from([1.0, 0.5, 0.2])) for _ in range(count)]
        parts = [draw(st.integers(1, 4)) for _ in range(count)]
        means = torch.tensor(flat, dtype=torch.float64).reshape(count, *event) / 10
        return GaussianMixture(means, stds, [part / sum(parts) for part in parts])

    return drawn()


def predictions(sde: LinearSDE, grid: tuple[float, ...] | None = None) -> st.SearchStrategy[str]:
    """What a network may predict, such that noise and data follow at all times of ``grid``, by
    default `span`; noise first.
    """
    return st.sampled_from(
        able(sde, torch.tensor(span(sde) if grid is None else grid, dtype=torch.float64))
    )


def cases(
    needs: Iterable[str] = (), *, sde: LinearSDE | None = None, max_steps: int = 8
) -> st.SearchStrategy[Case]:
    """Settings for an equivalence: SDE (yours, or one of `sdes`), mixture, grid, prediction and
    seed.

    ``@given(cases(sde=Mine()))`` and ``evaluate(name, case)`` are a property of your SDE.
    """
    wanted = tuple(needs)

    @st.composite
    def drawn(draw: st.DrawFn) -> Case:
        process = draw(sdes(wanted)) if sde is None else sde
        grid = draw(grids(process, max_steps=max_steps))
        return Case(
            process,
            draw(mixtures()),
            grid,
            draw(predictions(process, grid)),
            draw(st.integers(0, 999)),
        )

    return drawn()

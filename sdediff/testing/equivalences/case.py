"""What an equivalence is checked at: an SDE, a law of the data, a grid, and how the model is
seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.exact import GaussianMixture
from sdediff.exact.law import Law
from sdediff.model import ScoreModel
from sdediff.predictions import PREDICTIONS, canonical, conversion
from sdediff.reverse import Reverse
from sdediff.sde import SDE
from sdediff.solvers import Options, Problem, Solver, White, check_grid, expand, seeds

__all__ = [
    "FARTHEST",
    "NEEDS",
    "Case",
    "able",
    "default_cases",
    "grid_of",
    "shown",
    "span",
    "usual",
]

FARTHEST: Final = 16.0
"""Beyond this log-SNR, to either side, one of data and noise is lost to rounding."""


def _unit_variance(sde: Any) -> bool:
    t = torch.linspace(0, sde.T, 65, dtype=torch.float64)
    whole = float((sde.alpha(t) ** 2 + sde.sigma(t) ** 2 - 1).abs().max()) < 1e-9
    return (
        whole
        and float(sde.sigma_0) == 0
        and float(sde.t_max) == float(sde.T)
        and float(sde.alpha(sde.T)) > 1e-8
    )


def _constant_scale(sde: Any) -> bool:
    t = torch.linspace(sde.t_min, sde.t_max, 65, dtype=torch.float64)
    return float((sde.alpha(t) - 1).abs().max()) < 1e-9


NEEDS: Final[dict[str, tuple[str, Callable[[Any], bool]]]] = {
    "unit variance": (
        "alpha^2 + sigma^2 = 1 from no noise at t = 0 to some signal at T",
        _unit_variance,
    ),
    "constant scale": ("alpha = 1", _constant_scale),
    "unit variance or scale": (
        "alpha^2 + sigma^2 = 1 or alpha = 1",
        lambda sde: _unit_variance(sde) or _constant_scale(sde),
    ),
}
"""What an equivalence may need of an SDE beyond a Gaussian kernel, in words and as a test."""


def span(sde: Any) -> tuple[float, float]:
    """(start, end): the usable range, as far as log-SNR lies within 16 of 0."""
    ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
    levels = sde.log_snr(ends)
    start, end = (
        float(t)
        if abs(float(level)) <= FARTHEST
        else float(sde.time_of(max(-FARTHEST, min(FARTHEST, float(level)))))
        for t, level in zip(ends, levels, strict=True)
    )
    return start, end


def grid_of(
    sde: Any, weights: Sequence[float], start: float | None = None, end: float | None = None
) -> tuple[float, ...]:
    """Falling times from ``start`` to ``end``, those of `span` by default, intervals in log-SNR
    being as ``weights``.
    """
    whole = span(sde)
    first, last = whole[0] if start is None else start, whole[1] if end is None else end
    level, final = sde.log_snr(torch.tensor([first, last], dtype=torch.float64))
    shares = torch.tensor(weights, dtype=torch.float64).cumsum(dim=0)[:-1] / sum(weights)
    inside = sde.time_of(level + shares * (final - level)).tolist() if len(weights) > 1 else []
    return (first, *(float(f"{t:.6g}") for t in inside), last)


def able(sde: Any, times: Tensor, sigma_data: float = 0.5) -> tuple[str, ...]:
    """The predictions from which noise and data follow at all of these times."""
    return tuple(
        name
        for name in PREDICTIONS
        if all(
            bool(torch.isfinite(c).all())
            for target in ("noise", "data")
            for c in conversion(sde, name, target, times, sigma_data)
        )
    )


def shown(law: Law) -> str:
    """A small mixture with its numbers, another law by its repr."""
    if (
        not isinstance(law, GaussianMixture)
        or law.means.numel() > 8
        or law.components.variances.ndim != 1
    ):
        return repr(law)
    numbers = {"means": law.means, "stds": law.components.variances.sqrt(), "weights": law.weights}
    digits = {name: _rounded(value.tolist()) for name, value in numbers.items()}
    return f"GaussianMixture({', '.join(f'{name}={value}' for name, value in digits.items())})"


def _rounded(value: Any) -> Any:
    return [_rounded(item) for item in value] if isinstance(value, list) else float(f"{value:.6g}")


@dataclass(frozen=True, repr=False)
class Case:
    """One setting: the exact model of ``law`` under ``sde``, seen as a network that predicts
    ``predicts``, on the falling ``grid``.

    ``rows`` samples start at x = alpha x_0 + sigma noise at grid[0], x_0 drawn from the law; start
    and noise follow from ``seed``.
    """

    sde: Any
    law: Law
    grid: tuple[float, ...]
    predicts: str = "noise"
    seed: int = 0
    rows: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.sde, SDE) or "kernel" not in self.sde.offers:
            raise TypeError(
                f"a case takes a LinearSDE, which has a Gaussian kernel; got {self.sde!r}"
            )
        grid = check_grid(torch.tensor(self.grid, dtype=torch.float64))
        if len(grid) < 2 or grid[1] > grid[0]:
            raise ValueError(
                f"the grid goes from noise to data: at least two falling times, got {self.grid}"
            )
        self.sde.check_time(grid)
        object.__setattr__(self, "predicts", canonical(self.predicts))

    def __repr__(self) -> str:
        """As it can be written, but for laws with many numbers."""
        grid = ", ".join(f"{t:.6g}" for t in self.grid)
        return (
            f"Case({self.sde!r}, {shown(self.law)}, ({grid}), predicts={self.predicts!r}, "
            f"seed={self.seed}, rows={self.rows})"
        )

    @property
    def times(self) -> Tensor:
        """The grid, float64 (N + 1,)."""
        return torch.tensor(self.grid, dtype=torch.float64)

    @cached_property
    def noise(self) -> White:
        """The noise of all solves."""
        return White(seeds(self.seed, self.rows), self.law.event, dtype=torch.float64)

    def model(self, predicts: str | None = None, sde: Any = None) -> ScoreModel:
        """The law as a network with that prediction, under ``sde``; those of the case by
        default.
        """
        return usual(
            self.law,
            self.sde if sde is None else sde,
            self.predicts if predicts is None else predicts,
        )

    def start(self, t: float | Tensor | None = None) -> Tensor:
        """(rows, *event) from the law at time t, grid[0] by default."""
        time = self.times[0] if t is None else torch.as_tensor(t, dtype=torch.float64)
        x_0 = self.law.sample(self.rows, seed=self.seed)
        z = self.noise.at(0).normal("prior")
        x: Tensor = self.sde.alpha(time) * x_0 + self.sde.sigma(time) * z
        return x

    def problem(self, lam: float = 0.0, model: ScoreModel | None = None) -> Problem:
        """The reverse process at stochasticity ``lam``."""
        return Reverse(self.model() if model is None else model, self.rows, lam)

    def solve(
        self,
        solver: Solver,
        lam: float | None = None,
        *,
        model: ScoreModel | None = None,
        x: Tensor | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """States at all times of the grid, (N + 1, rows, *event); ``lam`` is 1 for a solver that
        diffuses, else 0.
        """
        problem = self.problem((1.0 if solver.diffuses else 0.0) if lam is None else lam, model)
        times = self.times if times is None else times
        x = self.start(times[0]) if x is None else x
        out = solver.solve(problem, x, times, self.noise, Options(trajectory=True)).trajectory
        if out is None:
            raise ValueError(f"{solver!r} kept no trajectory")
        return out

    def lacks(self, needs: frozenset[str]) -> Iterator[str]:
        """In words, what of ``needs`` the SDE has not."""
        for name in sorted(needs):
            words, holds = NEEDS[name]
            if not holds(self.sde):
                yield f"needs {words}"


def usual(law: Law, sde: Any, predicts: str, sigma_data: float = 0.5) -> ScoreModel:
    """The exact model of a law, whose network returns p E[x_0 | x] + q E[noise | x] as ``predicts``
    says.
    """

    def net(x: Tensor, t: Tensor) -> Tensor:
        if predicts == "edm":
            alpha, sigma = sde.alpha(t), sde.sigma(t)
            x = x * expand((sigma**2 + (sigma_data * alpha) ** 2).sqrt(), x)
        p, q = PREDICTIONS[predicts](sde, t, sigma_data)
        values, _, sigma = law._at(sde, x, t)
        data, noise = law._like(values.data, x), law._like(-sigma * values.score, x)
        return expand(p, x) * data + expand(q, x) * noise

    return ScoreModel(net, sde, predicts, sigma_data=sigma_data, time_dtype=torch.float64)


def default_cases(sde: Any) -> list[Case]:
    """Three settings in which `check_equivalences` looks at an SDE: points, images and a list, each
    seen in another way.
    """
    flat = GaussianMixture([[-0.8, 0.4], [0.9, 0.1], [0.0, -1.0]], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2])
    square = GaussianMixture([[[0.5, -0.2], [0.1, 0.0]], [[-0.5, 0.3], [-0.7, 0.4]]], 0.4)
    one = GaussianMixture([[0.3]], 0.7)
    grids = [grid_of(sde, [1.0] * 8), grid_of(sde, [3.0, 1.0, 2.0, 1.0]), grid_of(sde, [1.0])]
    ways = able(sde, torch.tensor(sorted({t for grid in grids for t in grid}), dtype=torch.float64))
    return [
        Case(sde, law, grid, ways[(2 * i) % len(ways)], seed=i)
        for i, (law, grid) in enumerate(zip((flat, square, one), grids, strict=True))
    ]

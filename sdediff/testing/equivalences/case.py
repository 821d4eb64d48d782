"""What an equivalence is checked at: an SDE, a law of the data, a grid, and how the model is seen;
and the table of equivalences, each a function of such a case that yields what it compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from sdediff.exact import GaussianMixture
from sdediff.exact.law import Law
from sdediff.model import ScoreModel
from sdediff.predictions import PREDICTIONS, canonical, conversion
from sdediff.reverse import Reverse
from sdediff.sde import SDE, LinearSDE
from sdediff.solvers import Noise, Options, Solver, White, check_grid, expand, seeds
from sdediff.testing.report import Check, Comparison, Finding, Skip, likely_slip, require, settle

__all__ = [
    "EQUIVALENCES",
    "EXACT",
    "NEEDS",
    "POINTS",
    "Case",
    "Equivalence",
    "able",
    "agree",
    "default_cases",
    "equivalence",
    "evaluate",
    "grid_of",
    "markdown",
    "span",
    "usual",
]

EXACT: Final = 1e-10
"""Bound of what is one thing written in two ways."""
FARTHEST: Final = 16.0
"""Beyond this log-SNR, to either side, one of data and noise is lost to rounding."""
POINTS: Final = GaussianMixture(
    [[-0.8, 0.4], [0.9, 0.1], [0.0, -1.0]], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2]
)


class Equivalence(NamedTuple):
    """One line of the table."""

    check: Check
    """A function of a `Case` that yields comparisons."""
    statement: str
    """What holds, in words, without the sign | that ends a cell of a table."""
    bound: float
    """What every comparison is held to: largest deviation over the size of the states, or as the
    statement says.
    """
    needs: frozenset[str]
    """What the SDE must have, names in `NEEDS`."""
    costly: bool
    """Whether one case takes about a second, so that `check_equivalences` looks at one only."""


EQUIVALENCES: Final[dict[str, Equivalence]] = {}


def equivalence(
    name: str,
    *,
    statement: str,
    bound: float = EXACT,
    needs: tuple[str, ...] = (),
    costly: bool = False,
) -> Callable[[Check], Check]:
    """Enter a function into the table under that name."""

    def enter(check: Check) -> Check:
        EQUIVALENCES[name] = Equivalence(check, statement, bound, frozenset(needs), costly)
        return check

    return enter


def evaluate(name: str, case: Case) -> Finding:
    """Check one equivalence at one case. Whatever raises makes it fail; skipped where the SDE has
    not what it needs.
    """
    entry = EQUIVALENCES[name]

    def comparisons() -> Iterator[Comparison]:
        for words, holds in (NEEDS[need] for need in sorted(entry.needs)):
            if not holds(case.sde):
                raise Skip(f"needs {words}")
        for item in entry.check(case):
            yield item._replace(bound=entry.bound)

    with torch.inference_mode(False), torch.no_grad():
        return settle(name, comparisons())


def agree(
    what: str,
    given: Tensor,
    expected: Tensor,
    times: Tensor,
    bound: float = EXACT,
    *,
    hint: str = "",
    steps: bool = True,
) -> Comparison:
    """Whether states (K, rows, *event) are those expected, each at its time of ``times`` (K,).

    The deviation is the largest of |given - expected| over the largest |expected| of that time, or
    of an earlier one where that is larger. ``where`` is the first time at which it exceeds
    ``bound``, with sample and coordinate, and the step unless ``steps`` is false. A hint names a
    common factor between the two there; failing that it is ``hint``.
    """
    if given.shape != expected.shape:
        shapes = f"{tuple(given.shape)}, not {tuple(expected.shape)}"
        return require(False, f"{what} has shape {shapes}", hint=hint)
    given, expected = (x.detach().cpu().double() for x in (given, expected))
    size = expected.abs().reshape(len(times), -1).amax(dim=1).cummax(dim=0).values
    gap = (given - expected).abs().reshape(len(times), -1)
    gap = (gap / size.clamp(min=torch.finfo(torch.float64).tiny)[:, None]).nan_to_num(
        torch.inf, torch.inf
    )
    worst = gap.amax(dim=1)
    largest = float(worst.max())
    k = int((worst > bound).float().argmax() if largest > bound else worst.argmax())
    index = torch.unravel_index(gap[k].argmax(), given.shape[1:])
    sample, *coordinate = (int(i) for i in index)
    where = f"step {k} of {len(times) - 1}, " if steps else ""
    where += f"t = {float(times[k]):.6g}, sample {sample}"
    if coordinate:
        where += f", coordinate {tuple(coordinate) if len(coordinate) > 1 else coordinate[0]}"
    found, due = (float(states[k][index]) for states in (given, expected))
    slip = "" if largest <= bound else likely_slip(given[k], expected[k], None, hint)
    detail = f"{what} is {found:.9g}, not {due:.9g}, first at {where}"
    return Comparison(largest, bound, where, detail, slip)


def markdown() -> str:
    """The table for the docs: name, statement, bound."""
    rows = [
        f"| {name} | {entry.statement} | {entry.bound:g} |" for name, entry in EQUIVALENCES.items()
    ]
    return "\n".join(["| name | statement | bound |", "|---|---|---|", *rows])


def _unit_variance(sde: LinearSDE) -> bool:
    t = torch.linspace(0, sde.T, 65, dtype=torch.float64)
    whole = float((sde.alpha(t) ** 2 + sde.sigma(t) ** 2 - 1).abs().max()) < 1e-9
    return (
        whole
        and float(sde.sigma_0) == 0
        and float(sde.t_max) == float(sde.T)
        and float(sde.alpha(sde.T)) > 1e-8
    )


def _constant_scale(sde: LinearSDE) -> bool:
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


def span(sde: LinearSDE) -> tuple[float, float]:
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
    sde: LinearSDE, weights: Sequence[float], start: float | None = None, end: float | None = None
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


def able(sde: LinearSDE, times: Tensor, sigma_data: float = 0.5) -> tuple[str, ...]:
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


def _shown(law: Law) -> str:
    """A small mixture with its numbers, another law by its repr."""
    if (
        not isinstance(law, GaussianMixture)
        or law.means.numel() > 8
        or law.components.variances.ndim != 1
    ):
        return repr(law)

    def rounded(value: Any) -> Any:
        return [rounded(v) for v in value] if isinstance(value, list) else float(f"{value:.6g}")

    numbers = {"means": law.means, "stds": law.components.variances.sqrt(), "weights": law.weights}
    digits = (f"{name}={rounded(value.tolist())}" for name, value in numbers.items())
    return f"GaussianMixture({', '.join(digits)})"


@dataclass(frozen=True, repr=False)
class Case:
    """One setting: the exact model of ``law`` under ``sde``, seen as a network that predicts
    ``predicts``, on the falling ``grid``.

    ``rows`` samples start at x = alpha x_0 + sigma noise at grid[0], x_0 drawn from the law; start
    and noise follow from ``seed``.
    """

    sde: LinearSDE
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
        grid = ", ".join(f"{t:.6g}" for t in self.grid)
        return (
            f"Case({self.sde!r}, {_shown(self.law)}, ({grid}), predicts={self.predicts!r}, "
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

    def model(self, predicts: str | None = None, sde: LinearSDE | None = None) -> ScoreModel:
        """The law as a network with that prediction, under ``sde``; those of the case by
        default.
        """
        process = self.sde if sde is None else sde
        return usual(self.law, process, predicts or self.predicts)

    def start(self, t: float | Tensor | None = None) -> Tensor:
        """(rows, *event) from the law at time t, grid[0] by default."""
        time = self.times[0] if t is None else torch.as_tensor(t, dtype=torch.float64)
        x_0 = self.law.sample(self.rows, seed=self.seed)
        z = self.noise.at(0).normal("prior")
        x: Tensor = self.sde.alpha(time) * x_0 + self.sde.sigma(time) * z
        return x

    def solve(
        self,
        solver: Solver,
        lam: float | Callable[[Tensor], Tensor] | None = None,
        *,
        model: ScoreModel | None = None,
        x: Tensor | None = None,
        times: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Tensor:
        """States at all times of the grid, (N + 1, rows, *event); ``lam`` is 1 for a solver of
        the reverse SDE, else 0.
        """
        lam = float(solver.solves_sde) if lam is None else lam
        problem = Reverse(self.model() if model is None else model, self.rows, lam)
        times = self.times if times is None else times
        x = self.start(times[0]) if x is None else x
        noise = self.noise if noise is None else noise
        out = solver.solve(problem, x, times, noise, Options(trajectory=True)).trajectory
        if out is None:
            raise ValueError(f"{solver!r} kept no trajectory")
        return out


def usual(law: Law, sde: LinearSDE, predicts: str, sigma_data: float = 0.5) -> ScoreModel:
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


def default_cases(sde: LinearSDE) -> list[Case]:
    """Three settings in which `check_equivalences` looks at an SDE: points, images and a list, each
    seen in another way.
    """
    square = GaussianMixture([[[0.5, -0.2], [0.1, 0.0]], [[-0.5, 0.3], [-0.7, 0.4]]], 0.4)
    laws = (POINTS, square, GaussianMixture([[0.3]], 0.7))
    grids = [grid_of(sde, weights) for weights in ([1.0] * 8, [3.0, 1.0, 2.0, 1.0], [1.0])]
    ways = able(sde, torch.tensor(sorted({t for grid in grids for t in grid}), dtype=torch.float64))
    return [
        Case(sde, law, grid, ways[(2 * i) % len(ways)], seed=i)
        for i, (law, grid) in enumerate(zip(laws, grids, strict=True))
    ]

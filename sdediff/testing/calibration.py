"""Simulation-based calibration: whether what is said to be drawn from a posterior is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from sdediff._extras import require
from sdediff.arguments import check_shape
from sdediff.posterior import Measurement, Particles, sample_posterior
from sdediff.posterior.measurements import as_measurement
from sdediff.protocols import Model
from sdediff.sampling import sample
from sdediff.solvers import Solver, rowwise, seeds
from sdediff.solvers.given import integer, real, reals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Calibrated", "Calibration", "Draw", "calibrate", "posterior_draws"]

Draw = Callable[[Tensor, int, int], Tensor]
"""A method: outcomes y (R, *outcome), a number n and a seed to draws (R, n, *event)."""
Quantity = Callable[[Tensor], Tensor]

_LIKELIHOOD: Final = "log-likelihood of y"
_COORDINATES: Final = 8
_DEGREE: Final = 4
_LEVELS: Final = (0.5, 0.9)
_SIGNIFICANT: Final = 3.0


def calibrate(
    method: Draw,
    model: Model | None,
    measurement: Any,
    *,
    event: Sequence[int] | None = None,
    data: Tensor | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    simulate: Callable[[Tensor, int], Tensor] | None = None,
    draws: int = 99,
    replications: int = 500,
    batch_size: int = 50,
    level: float = 0.01,
    seed: int = 0,
    verbose: bool = True,
) -> Calibration:
    """Rank x_0 among draws of the posterior of an outcome of it, over and over; no closed form is
    needed.

    For each of ``replications`` x_0, an outcome y of it is made, and ``method(y, draws, seed)``
    draws from the posterior of y: it takes y (R, *outcome) and returns (R, draws, *event).
    `posterior_draws` makes one of `Particles` or of `MMPS` and the like. If the draws are from the
    posterior, then x_0 is one more of them, so that for any function q the rank of q(x_0) among
    the q of the draws is uniform on 0, ..., draws. Draws that are too wide put it in the middle,
    too narrow ones at the ends, and draws that are too low put it high.

    Without ``data``, x_0 are samples of ``model``, whose shape is ``event``: this tests the method.
    With ``data`` (N, *event), that the network was not trained on, ``replications`` of them are
    x_0, and the network is tested too; ``model`` may then be None.

    ``quantities`` are functions of x (N, *event) that return (N,), by name; by default the
    coordinates of events of up to 8, or else 8 projections on random directions. The
    log-likelihood of y is always one more: ranks of x_0 alone would pass a method that ignores y.
    ``simulate(x, seed)`` makes outcomes of a measurement that is not linear.

    Ranks are compared with the uniform law by Neyman's smooth test of degree 4, whose first two
    components are bias and spread, and p-values are corrected for the number of quantities by
    Holm's method: a method that is right fails with probability ``level``. ``batch_size``
    replications are drawn at a time. The report is printed if ``verbose``. Raises ValueError or
    TypeError where arguments do not meet, before anything is drawn, or where the method returns
    something else. (Talts et al. 2018, Validating Bayesian Inference Algorithms with
    Simulation-Based Calibration, arXiv 1804.06788; for the log-likelihood Modrak et al. 2023, arXiv
    2211.02383.)
    """
    n = integer("draws", draws, 2 * _DEGREE + 1)
    count = integer("replications", replications, 2)
    size = integer("batch_size", batch_size, 1)
    if not 0 < real("level", level) < 1:
        raise ValueError(f"level is the probability of a false alarm, in (0, 1), got {level!r}")
    if not callable(method):
        raise TypeError(
            "method must be a function (y, n, seed) that returns draws (R, n, *event); "
            f"posterior_draws(method, model, measurement, event) makes one; got {method!r}"
        )
    known = as_measurement(measurement)
    simulate = _simulator(known) if simulate is None else simulate
    one, two, three, *own = seeds(seed, 3 + -(-count // size))
    x, source = _truths(model, event, data, count, one)
    y = simulate(x, two)
    asked = dict(_default(x.shape[1:]) if quantities is None else quantities)
    if _LIKELIHOOD in asked or not all(map(callable, asked.values())):
        raise ValueError(
            "quantities must be functions of x (N, *event) by name, and none is called "
            f"{_LIKELIHOOD!r}, which is always there"
        )
    generator = torch.Generator().manual_seed(three)
    ranks = []
    for rows, each in zip(torch.arange(count).split(size), own, strict=True):
        found = method(y[rows], n, each)
        _check_draws(found, (len(rows), n, *x.shape[1:]))
        ranks.append(_ranks(x[rows].to(found), found, y[rows].to(found), known, asked, generator))
    names = (*asked, _LIKELIHOOD)
    report = Calibration(source, names, n, torch.cat(ranks, dim=1), float(level))
    if verbose:
        print(report)
    return report


def posterior_draws(
    method: Callable[[Model, Any, Tensor], Model] | Particles,
    model: Model,
    measurement: Any,
    event: Sequence[int],
    *,
    solver: Solver | None = None,
    steps: int | None = None,
) -> Draw:
    """A function (y, n, seed) that returns draws (R, n, *event) of the posteriors of R outcomes.

    ``method`` is a function (model, measurement, y) that returns a model, such as the classes
    `MMPS`, `PiGDM` and `DPS`, or ``partial(MMPS, iterations=20)``: n samples of it are drawn for
    each outcome by ``solver`` and ``steps``, as in `sample`. Or it is ``Particles(N)``: of its N
    equally weighted draws n are chosen at random, n <= N. For anything else write such a function.
    """
    event = check_shape((1, *event))[1:]

    def sampled(y: Tensor, n: int, seed: int) -> Tensor:
        each = y.repeat_interleave(n, dim=0)
        given: Any = method
        found = sample(
            given(model, measurement, each), (len(each), *event), solver=solver, steps=steps,
            seed=seed,
        )  # fmt: skip
        return found.x.reshape(len(y), n, *event)

    def chosen(y: Tensor, n: int, seed: int) -> Tensor:
        particles: Any = method
        if particles.n < n:
            raise ValueError(f"{n} draws of {particles.n} particles: take Particles({n}) or more")
        found = sample_posterior(
            model, measurement, y, (len(y), *event), particles=particles, steps=steps or 100,
            seed=seed,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(found.draws.shape[:2], generator=generator).argsort(dim=1)[:, :n]
        rows = torch.arange(len(order))[:, None]
        return found.draws[rows, order]

    if callable(method):
        return sampled
    if solver is not None:
        raise ValueError(f"{method!r} is the solver: leave out solver={solver!r}")
    return chosen


class Calibrated(NamedTuple):
    """What the ranks of one quantity say."""

    name: str
    p_value: float
    adjusted: float
    """The p-value by Holm's method, of all quantities together."""
    bias: float
    """How high the ranks are, in standard errors: above 0 where draws are too low."""
    spread: float
    """How far the ranks are from the middle, in standard errors: above 0 where draws are too
    narrow.
    """
    coverage: tuple[float, ...]
    """The share of x_0 inside the central intervals of `Calibration.levels`."""

    @property
    def words(self) -> str:
        """What is wrong with the draws, as far as bias and spread tell."""
        said = []
        if abs(self.bias) > _SIGNIFICANT:
            said.append("too low" if self.bias > 0 else "too high")
        if abs(self.spread) > _SIGNIFICANT:
            said.append("too narrow" if self.spread > 0 else "too wide")
        return " and ".join(said)


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Ranks of x_0 among the draws, and what follows from them; printed as a table."""

    source: Literal["model", "data"]
    """Where x_0 is from: the model tests the method alone, data test the network too."""
    names: tuple[str, ...]
    """The quantities."""
    draws: int
    """The number of draws of each rank."""
    ranks: Tensor
    """int64 (quantities, replications), from 0 to ``draws``."""
    level: float
    """The probability with which a method that is right fails."""

    @property
    def passed(self) -> bool:
        """Whether all quantities have ranks that are uniform, as far as the test can tell."""
        return not self.failures

    @property
    def failures(self) -> tuple[Calibrated, ...]:
        """The quantities whose adjusted p-value is below ``level``."""
        return tuple(each for each in self.findings if each.adjusted < self.level)

    @property
    def levels(self) -> tuple[float, ...]:
        """The share of uniform ranks in each of the central intervals, close to 50 and 90 %."""
        return tuple(1 - 2 * first / (self.draws + 1) for first in self._firsts)

    @property
    def _firsts(self) -> list[int]:
        """The first rank of each central interval."""
        return [round((1 - level) / 2 * (self.draws + 1)) for level in _LEVELS]

    def coverage_error(self, level: float) -> float:
        """The standard error of a coverage that is ``level``, sqrt(level (1 - level) / R)."""
        return math.sqrt(level * (1 - level) / self.ranks.shape[1])

    @property
    def findings(self) -> tuple[Calibrated, ...]:
        """What each quantity comes to."""
        from scipy.stats import chi2

        components = _components(self.ranks, self.draws)
        p = torch.from_numpy(chi2.sf(components.square().sum(dim=1).numpy(), _DEGREE))
        inside = [
            (self.ranks >= first) & (self.ranks <= self.draws - first) for first in self._firsts
        ]
        shares = torch.stack([each.double().mean(dim=1) for each in inside], dim=1)
        rows = zip(self.names, p, holm(p), components, shares, strict=True)
        return tuple(
            Calibrated(
                name, float(p), float(adjusted), float(z[0]), float(z[1]), tuple(share.tolist())
            )
            for name, p, adjusted, z, share in rows
        )

    def __str__(self) -> str:
        """A table: p-value, its adjustment, bias and spread of the ranks, coverage, verdict."""
        head = ["quantity", "p-value", "adjusted", "bias", "spread"]
        rows = [[*head, *(f"within {level:.0%}" for level in self.levels), "verdict"]]
        for each in self.findings:
            covered = [
                f"{share:.1%} +- {self.coverage_error(level):.1%}"
                for share, level in zip(each.coverage, self.levels, strict=True)
            ]
            failed = each.adjusted < self.level
            verdict = f"fail{': draws are ' * bool(each.words)}{each.words}" if failed else "ok"
            numbers = [f"{each.p_value:.2g}", f"{each.adjusted:.2g}"]
            numbers += [f"{each.bias:+.1f}", f"{each.spread:+.1f}"]
            rows.append([each.name, *numbers, *covered, verdict])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if 0 < i < len(row) - 1 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        tested = {
            "model": "samples of the model, which tests the method",
            "data": "data, which tests the method and the network",
        }[self.source]
        count = self.ranks.shape[1]
        return "\n".join([f"{count} ranks among {self.draws} draws; x_0 are {tested}", *lines])

    __repr__ = __str__

    def plot(self) -> Figure:
        """Histograms of the ranks with the band that holds 99 % of the bars of uniform ones."""
        from scipy.stats import binom

        bins = max(k for k in range(2, 21) if (self.draws + 1) % k == 0 or k == 2)
        count, across = self.ranks.shape[1], min(len(self.names), 4)
        down = -(-len(self.names) // across)
        make = require("matplotlib.figure", "plots").Figure
        figure: Figure = make(
            figsize=(2.6 * across, 0.4 + 1.9 * down), dpi=150, layout="constrained"
        )
        panels = figure.subplots(down, across, squeeze=False).flatten()
        edges = torch.linspace(0, 1, bins + 1).tolist()
        low, high = binom.interval(0.99, count, 1 / bins)
        for axes, finding, ranks in zip(panels, self.findings, self.ranks, strict=False):
            places = (ranks + 0.5) / (self.draws + 1)
            colour = "#c05621" if finding.adjusted < self.level else "#2b6cb0"
            axes.axhspan(low, high, color="#dfe4ea", zorder=0)
            axes.hist(places.numpy(), bins=edges, color=colour, alpha=0.8)
            axes.set_title(f"{finding.name}, p = {finding.adjusted:.2g}", fontsize=8, loc="left")
            axes.set_xlim(0, 1)
            axes.tick_params(labelsize=6, length=2)
            axes.spines[["top", "right"]].set_visible(False)
        for axes in panels[len(self.names) :]:
            axes.set_visible(False)
        figure.supxlabel(f"rank of x_0 among {self.draws} draws, as a share", fontsize=8)
        return figure


def holm(p: Tensor) -> Tensor:
    """p-values (K,) adjusted so that the least is below a level with at most that probability."""
    order = p.argsort()
    factors = torch.arange(len(p), 0, -1, dtype=p.dtype)
    return torch.empty_like(p).scatter(
        0, order, (factors * p[order]).cummax(dim=0).values.clamp(max=1)
    )


def _components(ranks: Tensor, n: int) -> Tensor:
    """(K, 4), standard normal for many uniform ranks (K, R): sums of the polynomials of degree 1
    to 4 that are orthonormal on 0, ..., n.
    """
    places = torch.linspace(-1, 1, n + 1, dtype=torch.float64)
    basis, _ = torch.linalg.qr(places[:, None] ** torch.arange(_DEGREE + 1))
    values = (n + 1) ** 0.5 * (basis * basis[-1].sign())[:, 1:]
    found: Tensor = values[ranks].sum(dim=1) / ranks.shape[1] ** 0.5
    return found


def _truths(
    model: Model | None, event: Sequence[int] | None, data: Tensor | None, count: int, seed: int
) -> tuple[Tensor, Literal["model", "data"]]:
    """x_0 (count, *event), and where they are from."""
    if (event is None) == (data is None) or (data is None and model is None):
        raise ValueError(
            "x_0 are samples of the model, whose shape event= says, or data=, (N, *event): pass "
            "one of the two"
        )
    if data is None:
        given: Any = model
        return sample(given, (count, *(event or ())), seed=seed).x, "model"
    if not isinstance(data, Tensor) or not data.is_floating_point() or len(data) < count:
        got = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(
            f"data must be a floating-point tensor (N, *event) with N >= {count}, got {got}; pass "
            "fewer replications=, or more data"
        )
    generator = torch.Generator().manual_seed(seed)
    return data[torch.randperm(len(data), generator=generator)[:count].to(data.device)], "data"


def _simulator(measurement: Any) -> Callable[[Tensor, int], Tensor]:
    """Outcomes of a linear measurement."""
    std = getattr(measurement, "noise_std", None)
    if std is None:
        raise ValueError(
            f"{type(measurement).__name__} does not say how its noise is drawn: pass "
            "simulate=, a function (x, seed) that returns outcomes (R, *outcome)"
        )
    size = reals("noise_std", std)
    if not bool((size > 0).all()):
        raise ValueError(
            "calibrate compares log-likelihoods, which a noise_std of 0 does not have: give the "
            "noise of the measurement"
        )

    def simulate(x: Tensor, seed: int) -> Tensor:
        clean: Tensor = measurement.forward(x)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        return clean + (size * noise).to(clean)

    return simulate


def _default(event: Sequence[int]) -> dict[str, Quantity]:
    """The coordinates of small events, projections of large ones."""
    d = math.prod(event)
    if d <= _COORDINATES:
        return {f"x[{i}]": lambda x, i=i: rowwise(x)[:, i] for i in range(d)}  # type: ignore[misc]
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(d, _COORDINATES, generator=generator, dtype=torch.float64)
    directions, _ = torch.linalg.qr(wide)
    return {
        f"projection {i}": lambda x, v=directions[:, i]: rowwise(x) @ v.to(x)  # type: ignore[misc]
        for i in range(_COORDINATES)
    }


def _check_draws(found: object, shape: tuple[int, ...]) -> None:
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"method must return draws (R, n, *event) = {shape}, got {got}")
    if not bool(torch.isfinite(found).all()):
        raise ValueError("method returned draws that are not finite")


def _ranks(
    x: Tensor,
    draws: Tensor,
    y: Tensor,
    measurement: Measurement,
    quantities: Mapping[str, Quantity],
    generator: torch.Generator,
) -> Tensor:
    """int64 (quantities, R): how many draws are below x_0; ties are broken at random."""
    n = draws.shape[1]
    flat, each = draws.flatten(0, 1), y.repeat_interleave(n, dim=0)
    with torch.no_grad():
        values = [(name, f(x), f(flat)) for name, f in quantities.items()]
        likelihoods = (measurement.log_likelihood(x, y), measurement.log_likelihood(flat, each))
    found = []
    for name, own, others in [*values, (_LIKELIHOOD, *likelihoods)]:
        if own.shape != (len(x),) or others.shape != (len(flat),):
            raise ValueError(
                f"quantity {name!r} must return one number for each of x (N, *event), "
                f"({len(x)},), got {tuple(own.shape)}"
            )
        others = others.reshape(-1, n)
        below = (others < own[:, None]).sum(dim=1).cpu()
        equal = (others == own[:, None]).sum(dim=1).cpu()
        place = torch.rand(len(x), generator=generator, dtype=torch.float64)
        found.append(below + (place * (equal + 1)).long())
    return torch.stack(found)

"""What the ranks of simulation-based calibration say: p-values, bias, spread and coverage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from sdediff._extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DEGREE", "Calibrated", "Calibration", "holm"]

DEGREE: Final = 4
"""Of the polynomials whose sums over the ranks are tested."""
_LEVELS: Final = (0.5, 0.9)
_SIGNIFICANT: Final = 3.0


class Calibrated(NamedTuple):
    """What the ranks of one quantity say."""

    name: str
    """The quantity, as the table names it."""
    p_value: float
    """The p-value of the test that the ranks are uniform."""
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
        p = torch.from_numpy(chi2.sf(components.square().sum(dim=1).numpy(), DEGREE))
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
        make: Any = require("matplotlib.figure", "plots").Figure
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
    basis, _ = torch.linalg.qr(places[:, None] ** torch.arange(DEGREE + 1))
    values = (n + 1) ** 0.5 * (basis * basis[-1].sign())[:, 1:]
    found: Tensor = values[ranks].sum(dim=1) / ranks.shape[1] ** 0.5
    return found

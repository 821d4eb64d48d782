"""Work-precision diagrams: error against evaluations on logarithmic axes, with the names at the
lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from sdediff._extras import require
from sdediff.comparison.record import MEASURES, Comparison, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["picture"]

_COLOURS: Final = (
    "#2b6cb0 #c05621 #2f855a #b83280 #6b46c1 #975a16 #2c7a7b #c53030 #4a5568 #1a365d #744210 "
    "#22543d #702459 #44337a #d69e2e #3fa7c9 #e2709b #7f8fa3 #68a63a #a4745a"
).split()
_INK: Final = "#22313f"
_QUIET: Final = "#6b7785"
_FLOOR: Final = "#e8ecf0"
_GAP: Final = 0.042
"""Of the height of a panel, between two names."""
_HIGHEST: Final = 300.0
"""Of the floor: laws farther away are not told apart, and leave the panel."""


def picture(found: Comparison) -> Figure:
    """One panel for errors, one for laws, one for quality, as far as there are some."""
    panels = [
        measure
        for measure in ("median", "energy", "frechet" if found.features else "data_energy")
        if any(row.value(measure) is not None for row in found.measured)
    ]
    if not panels:
        raise ValueError("no row has an error, a law or a quality: there is nothing to draw")
    figure: Figure = require("matplotlib.figure", "plots").Figure(
        figsize=(7.2 * len(panels), 5.2), dpi=150, layout="constrained", facecolor="white"
    )
    names = sorted({row.solver for row in found.measured})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, measure in zip(axes, panels, strict=True):
        _panel(panel, found, measure, colours)
    return figure


def _drawn(found: Comparison, measure: str) -> list[Row]:
    """The rows of a panel: in that of laws those without noise only where the law asked for is not
    that of their own errors.
    """
    own = measure == "energy" and any(row.stochastic for row in found.measured) and found.flow
    rows = [row for row in found.measured if row.stochastic or not own]
    return [row for row in rows if math.isfinite(_value(row, measure))]


def _value(row: Row, measure: str) -> float:
    found = row.value(measure)
    return math.inf if found is None else found


def _panel(panel: Any, found: Comparison, measure: str, colours: dict[str, str]) -> None:
    rows = _drawn(found, measure)
    floor = found.floor(measure)
    positive = [value for row in rows if (value := _value(row, measure)) > 0] or [floor or 1.0]
    bottom = max(min(positive), 0.3 * floor) / 1.8
    highest = _HIGHEST * floor if floor and measure != "median" else math.inf
    top = min(max(positive), highest) * 1.8
    names = sorted({row.solver for row in rows})
    ends: list[tuple[str, float, float]] = []
    for name in names:
        own = sorted((row for row in rows if row.solver == name), key=lambda row: row.nfe or 0)
        x = [row.nfe or 1.0 for row in own]
        y = [max(_value(row, measure), bottom * 1.1) for row in own]
        dashed = any(row.tolerance is not None for row in own)
        panel.plot(
            x, y, color=colours[name], linewidth=1.4, marker="o", markersize=3.5,
            linestyle="--" if dashed else "-",
        )  # fmt: skip
        ends.append((name, x[-1], min(y[-1], top)))
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(bottom, top)
    if floor > bottom:
        panel.axhspan(bottom, floor, color=_FLOOR, zorder=0)
        panel.text(
            0.01, max(0.01, _share(floor, bottom, top) - 0.03), "floor", va="bottom",
            transform=panel.transAxes, fontsize=7, color=_QUIET,
        )  # fmt: skip
    _names(panel, ends, colours, lambda value: _share(value, bottom, top))
    _dress(panel, found, measure)


def _share(value: float, bottom: float, top: float) -> float:
    """The height of a value in a panel, 0 to 1."""
    return math.log(value / bottom) / math.log(top / bottom)


def _names(
    panel: Any,
    ends: Sequence[tuple[str, float, float]],
    colours: dict[str, str],
    share: Callable[[float], float],
) -> None:
    """Names to the right of the panel at the heights of their lines' ends, moved apart where they
    would overlap, with a thin line to the end.
    """
    ordered = sorted(ends, key=lambda end: end[2])
    heights = _apart([share(y) for _, _, y in ordered])
    for (name, x, y), height in zip(ordered, heights, strict=True):
        panel.annotate(
            name, xy=(x, y), xycoords="data", xytext=(1.03, height),
            textcoords="axes fraction", fontsize=7.5, color=colours[name], va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colours[name], "linewidth": 0.5, "alpha": 0.5,
                "shrinkA": 0, "shrinkB": 2,
            },
        )  # fmt: skip


def _apart(heights: Sequence[float]) -> list[float]:
    """Rising heights at least `_GAP` apart, as near to the given ones as groups that touch can
    be.
    """
    groups: list[tuple[float, int]] = []  # middle and number of names
    for height in heights:
        groups.append((_inside(height, 1), 1))
        while len(groups) > 1 and _touch(groups[-2], groups[-1]):
            (low, n), (high, m) = groups[-2:]
            groups[-2:] = [(_inside((low * n + high * m) / (n + m), n + m), n + m)]
    return [middle + (i - (count - 1) / 2) * _GAP for middle, count in groups for i in range(count)]


def _inside(middle: float, count: int) -> float:
    """The middle of so many names, moved so that none is outside of the panel."""
    half = min(0.5, (count - 1) / 2 * _GAP)
    return min(max(middle, half), 1 - half)


def _touch(low: tuple[float, int], high: tuple[float, int]) -> bool:
    return high[0] - low[0] < _GAP * (low[1] + high[1]) / 2


def _dress(panel: Any, found: Comparison, measure: str) -> None:
    panel.set_xlabel("evaluations of the network", fontsize=9, color=_QUIET)
    words = MEASURES[measure]
    unit = "" if measure == "frechet" else ", in units of the data's standard deviation"
    panel.set_ylabel(f"{words}{unit}", fontsize=9, color=_QUIET)
    title = words.capitalize()
    if measure == "energy":
        title = f"{title} from {found.against}"
    panel.set_title(title, fontsize=11, color=_INK, loc="left")
    panel.tick_params(which="both", labelsize=7, colors=_QUIET)
    panel.spines[["top", "right"]].set_visible(False)
    budgets = sorted({row.budget for row in found.measured if row.budget is not None})
    if budgets:
        panel.set_xticks(budgets, [str(budget) for budget in budgets])
        panel.minorticks_off()

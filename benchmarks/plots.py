"""Pictures of what the scripts measured: one of each, from its tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from timing import Row, Tables

OURS, REFERENCE = "#d1495b", "0.6"
OTHERS = ("#00798c", "#30638e", "#edae49", "#66a182", "#8d6a9f", "#7f7f7f", "#a5673f", "#2f4858")
MARKERS = "osD^vPX*"
Rows = list[Row]


def number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def groups(rows: Rows, key: str) -> dict[str, Rows]:
    """The rows by what they have there, in order."""
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(str(row[key]), []).append(row)
    return found


def panels(count: int, width: float, height: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    columns = min(count, columns)
    lines = math.ceil(count / columns)
    size = (max(6.4, width * columns), height * lines)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for each in axes[count:]:
        each.set_axis_off()
    return figure, axes[:count]


def plain(axis: Axis) -> None:
    """Ticks of a logarithmic axis as numbers, at 1, 2 and 5 where there is room for them."""
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def lines(
    rows: Rows, panel: str, x: str, y: str, labels: tuple[str, str, str], floor: str = ""
) -> Figure:
    """A line for each ``series`` of the rows, on logarithmic axes; ours are red. ``labels`` are the
    title and those of the axes.
    """
    found = groups(rows, panel)
    figure, axes = panels(len(found), 4.6, 3.6)
    every = list(dict.fromkeys(str(row["series"]) for row in rows))
    ours = [name for name in every if name.startswith("sdediff")]
    colors = dict(zip([name for name in every if name not in ours], OTHERS * 4, strict=False))
    for axis, (name, here) in zip(axes, found.items(), strict=True):
        for i, series in enumerate(every):
            points = [(number(row, x), number(row, y)) for row in here if row["series"] == series]
            points = sorted(p for p in points if all(math.isfinite(c) and c > 0 for c in p))
            if points:
                mine = series in ours
                axis.plot(
                    *zip(*points, strict=True),
                    color=OURS if mine else colors[series],
                    linestyle="-" if series in ours[:1] or not mine else "--",
                    linewidth=2.2 if mine else 1.3,
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=4.5,
                    label=series,
                )
        if floor:
            axis.axhline(number(here[0], floor), color="0.5", linewidth=1, linestyle=":")
        axis.set(xscale="log", yscale="log", title=name, xlabel=labels[1], ylabel=labels[2])
        plain(axis.xaxis)
        plain(axis.yaxis)
        axis.grid(True, which="major", color="0.9")
    handles = {}
    for axis in axes:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    names = [name for name in every if name in handles]
    shown = [handles[name] for name in names]
    across = 2 if len(axes) == 1 else 4
    figure.legend(shown, names, loc="outside lower center", ncols=across, fontsize=9)
    figure.suptitle(labels[0])
    return figure


def bars(
    rows: Rows,
    panel: str,
    label: str,
    value: str,
    labels: tuple[str, str],
    *,
    one: bool = True,
    log: bool = False,
) -> Figure:
    """A bar for each row, with its quartiles where it has them, and a line at 1 where that is par.
    Ours are red, what is compared with (``kind`` "reference") is grey. ``labels`` are the title and
    that of the axis.
    """
    found = groups(rows, panel)
    most = max(map(len, found.values()))
    columns = 2 if most > 8 else 3
    figure, axes = panels(len(found), 13.5 / columns, 1.2 + 0.24 * most, columns)
    colors = {"ours": OURS, "other": OTHERS[0], "reference": REFERENCE}
    for axis, (name, here) in zip(axes, found.items(), strict=True):
        values = [number(row, value) for row in here]
        spread = None
        if all("low" in row for row in here):
            below = [v - number(row, "low") for v, row in zip(values, here, strict=True)]
            above = [number(row, "high") - v for v, row in zip(values, here, strict=True)]
            spread = [[max(0.0, each) for each in side] for side in (below, above)]
        color = [colors[str(row.get("kind", "ours"))] for row in here]
        axis.barh(range(len(here)), values, color=color, xerr=spread, ecolor="0.3", height=0.7)
        axis.set_yticks(range(len(here)), [str(row[label]) for row in here], fontsize=8)
        axis.invert_yaxis()
        axis.set(title=name, xlabel=labels[1])
        if log:
            axis.set_xscale("log")
            plain(axis.xaxis)
        if one:
            axis.axvline(1.0, color="0.2", linewidth=1, linestyle=":")
        axis.grid(True, axis="x", color="0.9")
        axis.set_axisbelow(True)
    kinds = {str(row.get("kind", "ours")) for row in rows}
    if "other" in kinds:
        names = {"ours": "sdediff", "other": "other libraries", "reference": "reference"}
        shown = [kind for kind in names if kind in kinds]
        patches = [Patch(color=colors[kind], label=names[kind]) for kind in shown]
        figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(labels[0])
    return figure


# -- the picture of each script --------------------------------------------------------------------


def best_of(rows: Rows, by: str, value: str, solver: str = "solver") -> Rows:
    """A series for the default, one for the best other solver of ours, one for the best of each
    library, at every number of evaluations.
    """
    found: Rows = []
    for here in groups([row | {"at": f"{row['task']} {row[by]}"} for row in rows], "at").values():
        default = [row for row in here if str(row[solver]).startswith("default")]
        found += [row | {"series": "sdediff, default"} for row in default]
        rest = [
            row | {"library": str(row["by"]).partition(",")[0]}
            for row in here
            if row not in default
        ]
        for library, some in groups(rest, "library").items():
            name = "sdediff, best other" if library == "sdediff" else f"{library}, best"
            found.append(min(some, key=lambda row: number(row, value)) | {"series": name})
    order = {"sdediff, default": 0, "sdediff, best other": 1}
    return sorted(found, key=lambda row: order.get(str(row["series"]), 2))


def named(rows: Rows, key: str, peers: tuple[str, ...]) -> Rows:
    """A series for each solver; those that are not peers are ours."""
    return [
        row
        | {"series": str(row[key]) if str(row[key]).startswith(peers) else f"sdediff, {row[key]}"}
        for row in rows
    ]


def marked(rows: Rows, key: str, references: tuple[str, ...]) -> Rows:
    """Rows that know whether they are ours, of another library, or a reference."""

    def kind(name: str) -> str:
        return "other" if name.startswith(PEERS) else "reference" if name in references else "ours"

    return [row | {"kind": kind(str(row[key]))} for row in rows]


def melted(rows: Rows) -> Rows:
    """A row for each path and kind of query, with its microseconds."""
    found = [
        {"panel": f"{row['shape']}, {row['queries']}", "path": key[: -len(" us")], "us": value}
        for row in rows
        for key, value in row.items()
        if key.endswith(" us")
    ]
    names = {"BrownianPath": "ours", "area=False": "ours", "randn": "reference"}
    return [row | {"kind": names.get(str(row["path"]), "other")} for row in found]


PEERS = (
    "torchdiffeq", "torchode", "torchsde", "scipy", "azula", "deepinv", "diffusers", "k-diffusion"
)  # fmt: skip
EVALUATIONS = "evaluations of the network"


def work_precision(rows: Rows) -> Figure:
    labels = ("Error of fixed steps on mixtures", EVALUATIONS, "error of the median sample")
    return lines(best_of(rows, "NFE", "median"), "task", "NFE", "median", labels)


def sample_quality(rows: Rows) -> Figure:
    title = "Law of stochastic samples (dotted: two sets of true samples)"
    labels = (title, EVALUATIONS, "energy distance to true samples")
    raised = [
        row | {"energy": max(number(row, "energy"), number(row, "energy floor"))} for row in rows
    ]
    told = best_of(raised, "at most", "energy")
    return lines(told, "task", "at most", "energy", labels, "energy floor")


def step(rows: Rows) -> Figure:
    labels = ("Time of a step outside the network", "times that of a loop in place")
    return bars(rows, "shape", "solver", "ratio", labels)


def step_peers(rows: Rows) -> Figure:
    told = [row | {"panel": f"{row['kind']}, {row['shape']}"} for row in rows]
    told = marked(told, "by", ("loop in place",))
    labels = ("Time of a step outside the network", "times that of the loop in place")
    return bars(told, "panel", "by", "ratio", labels)


def noise(rows: Rows) -> Figure:
    told = [row | {"panel": "normals of a step"} for row in rows]
    return bars(told, "panel", "shape", "ratio", ("Time of White", "times that of torch.randn"))


def schedule(rows: Rows) -> Figure:
    told = [row | {"panel": "an SDE told by f and g alone"} for row in rows]
    labels = ("Time of schedules, steps and plans", "times that of the built-in VP")
    return bars(told, "panel", "what", "ratio", labels, log=True)


def brownian(rows: Rows) -> Figure:
    labels = ("Queries of Brownian paths", "microseconds a query")
    return bars(melted(rows), "panel", "path", "us", labels, one=False, log=True)


def likelihood(rows: Rows) -> Figure:
    labels = ("Log-densities", f"{EVALUATIONS}, mean over samples", "error in nats a dimension")
    return lines(named(rows, "solver", PEERS), "task", "rows", "reached", labels)


def adaptive(rows: Rows) -> Figure:
    labels = ("Whole adaptive solves", f"{EVALUATIONS}, slowest sample", "root mean square error")
    some = ("RK45", "RK23", "DOP853", "ExponentialPair(3, straight)")
    few = [row for row in rows if str(row["solver"]) in some or is_peer(row)]
    return lines(named(few, "solver", PEERS), "task", "NFE", "reached", labels)


def is_peer(row: Row) -> bool:
    return str(row["solver"]).startswith(PEERS)


def equations(rows: Rows) -> Figure:
    told = [row | {"panel": f"{row['task']}, error {row['error']}"} for row in rows]
    labels = ("Plain ODEs and SDEs", "evaluations of a sample")
    told = marked(told, "method", ())
    return bars(told, "panel", "method", "evaluations", labels, one=False)


def posterior(rows: Rows) -> Figure:
    told = marked(rows, "method", ("exact draws",))
    labels = ("Methods for inverse problems", "distance to the posterior, exact draws have 1")
    return bars(told, "case", "method", "SW2 ratio", labels, log=True)


def few_steps(rows: Rows) -> Figure:
    names = {
        "recognised": "share recognised",
        "Frechet": "Frechet distance",
        "apart": "distance to most evaluations",
    }
    told: Rows = [
        {"panel": name, "run": f"{row['solver']}, {row['NFE']} evaluations", "value": row[key]}
        for key, name in names.items()
        for row in rows
    ]
    labels = ("Digits by a small network", "")
    return bars(told, "panel", "run", "value", labels, one=False)


def restoration(rows: Rows) -> Figure:
    some = [row for row in rows if "PSNR" in row and math.isfinite(number(row, "PSNR"))]
    told = marked(some, "method", ())
    return bars(told, "problem", "method", "PSNR", ("Restored digits", "PSNR in dB"), one=False)


PICTURES: dict[str, Callable[[Rows], Figure]] = {
    each.__name__: each
    for each in (
        work_precision, sample_quality, step, step_peers, noise, schedule, brownian, likelihood,
        adaptive, equations, posterior, few_steps, restoration,
    )
}  # fmt: skip


def picture(script: str, tables: Tables | dict[str, Any]) -> Figure | None:
    """The picture of a script's first table, None where there is none of it."""
    draw = PICTURES.get(script)
    return None if draw is None or not tables else draw(next(iter(tables.values())))

"""A comparison as tables: plain text, Markdown, and by rich in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from sdediff.comparison.record import Comparison, Errors, Quality, Row
from sdediff.metrics import Metric

__all__ = ["Table", "markdown", "plain", "show", "tables"]

_NOTHING: Final = "-"
_WHY: Final = "why"


@dataclass(frozen=True)
class Table:
    """Words in columns; the first is aligned to the left, and so is the last of notes."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


_Column = tuple[str, Callable[[Row], str]]


def tables(found: Comparison) -> list[Table]:
    """Errors and cost of each row; then laws and quality, where there are some."""
    rows = found.measured
    made = []
    if any(row.error is not None for row in rows):
        some = [row for row in rows if row.error is not None]
        title = "Error of each sample, in units of the standard deviation of the data"
        made.append(_table(title, some, [*_costs(some), *_errors(found)]))
    if any(row.law is not None for row in rows):
        some = [row for row in rows if row.law is not None]
        title = f"Distance of laws from {found.against}; floors: 95 % of what equal laws have"
        made.append(_table(title, some, [*_costs(some), *_laws()]))
    if any(row.quality is not None for row in rows):
        some = [row for row in rows if row.quality is not None]
        where = f"features by {found.features}" if found.features else "values"
        title = f"Distance from the data, Frechet between {where}"
        made.append(_table(title, some, [*_costs(some), *_qualities()], found.real))
    bare = [row for row in rows if row.error is None and row.law is None and row.quality is None]
    if bare:
        made.append(_table("Cost", bare, _costs(bare)))
    noted = [row for row in found.rows if row.note]
    if noted:
        columns: list[_Column] = [("solver", lambda row: row.solver), ("at", _at)]
        title = "What is missing or failed"
        made.append(_table(title, noted, [*columns, (_WHY, lambda row: row.note)]))
    return made


def _table(
    title: str, rows: Sequence[Row], columns: Sequence[_Column], real: Quality | None = None
) -> Table:
    words = [tuple(word(row) for _, word in columns) for row in rows]
    if real is not None:
        blank = (_NOTHING,) * (len(columns) - 1 - len(_QUALITIES))
        own = [word(real) for word in _QUALITIES.values()]
        words.append(("real data, held out", *blank, *own))
    return Table(title, tuple(name for name, _ in columns), tuple(words))


def _costs(rows: Sequence[Row]) -> list[_Column]:
    made: list[_Column] = [
        ("solver", lambda row: row.solver),
        ("at", _at),
        ("steps", lambda row: _NOTHING if row.steps is None else str(row.steps)),
        ("NFE", lambda row: f"{row.nfe:.4g}"),
    ]
    if any(row.nfe != row.slowest for row in rows):
        made.append(("slowest", lambda row: str(row.slowest)))
    if any(row.backward for row in rows):
        made.append(("backward", lambda row: f"{row.backward:.4g}"))
    return [*made, ("s", lambda row: f"{row.seconds:.2g}")]


def _at(row: Row) -> str:
    """What the row was given."""
    if row.tolerance is not None:
        return f"tol {row.tolerance:g}"
    return _NOTHING if row.budget is None else f"{row.budget}"


def _errors(found: Comparison) -> list[_Column]:
    def word(name: str) -> Callable[[Row], str]:
        def of(row: Row) -> str:
            error: Any = row.error
            return ("~" if name in found.near(row) else "") + _short(getattr(error, name))

        return of

    titles = {"median": "median", "rms": "RMS", "p90": "90 %", "worst": "worst"}
    return [(title, word(name)) for name, title in titles.items()]


def _laws() -> list[_Column]:
    def value(name: str) -> Callable[[Row], str]:
        return lambda row: _short(float(getattr(row.law, name)))

    def floor(name: str) -> Callable[[Row], str]:
        return lambda row: _limit(getattr(row.law, name))

    def spread(row: Row) -> str:
        metric: Metric = row.law.spread  # type: ignore[union-attr]  # rows with a law alone
        width = _NOTHING if metric.floor is None else f"{2 * metric.floor.std:.2g}"
        return f"{metric.value:+.3f} ±{width}"

    return [
        ("energy", value("energy")),
        ("floor", floor("energy")),
        ("sliced W2", value("sliced_w2")),
        ("floor", floor("sliced_w2")),
        ("log spread", spread),
    ]


def _limit(metric: Metric) -> str:
    return _NOTHING if metric.floor is None else _short(metric.floor.quantile)


_QUALITIES: Final[dict[str, Callable[[Quality], str]]] = {
    "Frechet": lambda quality: _short(quality.frechet),
    "energy": lambda quality: _short(float(quality.energy)),
    "floor": lambda quality: _limit(quality.energy),
}


def _qualities() -> list[_Column]:
    def of(word: Callable[[Quality], str]) -> Callable[[Row], str]:
        return lambda row: _NOTHING if row.quality is None else word(row.quality)

    return [(name, of(word)) for name, word in _QUALITIES.items()]


def _short(value: float) -> str:
    return f"{value:.3g}"


def preface(found: Comparison) -> list[str]:
    """What was compared, by what, and what a reader has to know."""
    lines = [
        f"{found.model}, {found.shape[0]} samples of shape {found.shape[1:]}, seed {found.seed}, "
        f"data_std {found.data_std:.3g}, {found.seconds:.0f} s"
    ]
    known = found.reference
    if known.error is not None:
        off: Errors = known.error
        lines.append(
            f"reference: {known.solver} ({known.nfe:.0f} evaluations), which {known.checked_by} "
            f"meets to {off.median:.1g} (median), {off.worst:.1g} (worst); ~ marks errors below "
            "three times that"
        )
    if known.note:
        lines.append(f"reference: {known.note}")
    return [*lines, *(f"note: {each}" for each in found.notes)]


def plain(found: Comparison) -> str:
    """Everything as lines of text."""
    parts = ["\n".join(preface(found))]
    for table in tables(found):
        left = table.header[-1] == _WHY
        widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
        lines = [_line(words, widths, left) for words in (table.header, *table.rows)]
        parts.append(
            "\n".join([table.title, lines[0], "-" * sum(w + 2 for w in widths), *lines[1:]])
        )
    return "\n\n".join(parts)


def _line(words: Sequence[str], widths: Sequence[int], left: bool) -> str:
    """The first to the left, and the last too where it holds sentences."""
    cells = [words[0].ljust(widths[0])]
    cells += [word.rjust(width) for word, width in zip(words[1:], widths[1:], strict=True)]
    if left:
        cells[-1] = words[-1]
    return "  ".join(cells).rstrip()


def markdown(found: Comparison) -> str:
    """Everything in Markdown."""
    parts = ["\n".join(f"{line}  " for line in preface(found))]
    for table in tables(found):
        lines = [f"**{table.title}**", ""]
        lines.append(f"| {' | '.join(table.header)} |")
        sides = ["---", *["---:"] * (len(table.header) - 1)]
        if table.header[-1] == _WHY:
            sides[-1] = "---"
        lines.append(f"|{'|'.join(sides)}|")
        lines += [f"| {' | '.join(_escaped(words))} |" for words in table.rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _escaped(words: Sequence[str]) -> list[str]:
    return [word.replace("|", "\\|") for word in words]


def show(found: Comparison) -> None:
    """Print, by rich where it is installed."""
    if find_spec("rich") is None:
        print(plain(found))
        return
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console = Console()
    console.print(Text("\n".join(preface(found))))
    # lines that are too long for the terminal are wrapped by it: a column cut short says nothing
    wide = Console(width=max(console.width, *map(len, plain(found).splitlines())) + 4)
    for table in tables(found):
        drawn = Drawn(
            title=table.title,
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
            header_style="dim",
        )
        for i, name in enumerate(table.header):
            right = i > 0 and name != _WHY
            drawn.add_column(name, justify="right" if right else "left", no_wrap=True)
        for words in table.rows:
            drawn.add_row(*(Text(word) for word in words))
        wide.print(drawn)
        wide.print()

"""How figures are written, in the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

Row = Mapping[str, object]


def text(value: object) -> str:
    """A number with three digits, everything else as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def cell(value: object) -> str:
    """A cell of a Markdown table; what is not finite is a dash."""
    if isinstance(value, float) and not math.isfinite(value):
        return "-"
    return text(value).replace("|", "\\|")


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table with the keys of the first row as heads; columns of numbers stand to the
    right.
    """
    keys = list(rows[0])
    right = [all(isinstance(row.get(key), (int, float)) for row in rows) for key in keys]
    yield f"| {' | '.join(keys)} |"
    yield f"|{'|'.join('---:' if number else '---' for number in right)}|"
    for row in rows:
        yield f"| {' | '.join(cell(row.get(key, '')) for key in keys)} |"

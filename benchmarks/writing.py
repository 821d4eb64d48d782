"""How figures are written: in the terminal, in Markdown and in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, object]


def text(value: object) -> str:
    """A number with three digits, everything else as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def cell(value: object) -> str:
    """A cell of a Markdown table; what is not finite is a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return text(value).replace("|", "\\|")


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table with the keys of the first row as heads; columns of numbers stand to the
    right.
    """
    keys = list(rows[0])
    right = [
        all(isinstance(row.get(key), (int, float, type(None))) for row in rows) for key in keys
    ]
    yield f"| {' | '.join(keys)} |"
    yield f"|{'|'.join('---:' if number else '---' for number in right)}|"
    for row in rows:
        yield f"| {' | '.join(cell(row.get(key, '')) for key in keys)} |"


def short(found: Any) -> Any:
    """Numbers with six digits, and None for what is not finite and has no place in JSON."""
    if isinstance(found, float):
        return float(f"{found:.6g}") if math.isfinite(found) else None
    if isinstance(found, Mapping):
        return {key: short(value) for key, value in found.items()}
    return [short(each) for each in found] if isinstance(found, list) else found


def json_lines(found: Mapping[str, Any]) -> str:
    """JSON with a line for each row of its ``tables``."""

    def table(title: str, rows: Sequence[Row]) -> str:
        lines = [json.dumps(short(row)) for row in rows]
        return f"  {json.dumps(title)}: [\n   " + ",\n   ".join(lines) + "\n  ]"

    facts = json.dumps({key: value for key, value in found.items() if key != "tables"}, indent=1)
    tables = ",\n".join(table(title, rows) for title, rows in found["tables"].items())
    return facts[:-2] + ',\n "tables": {\n' + tables + "\n }\n}\n"

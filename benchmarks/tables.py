"""The tables of the docs, made from the results in ``benchmarks/results``.

    python benchmarks/tables.py           # says which are stale, and exits with 1 if any is
    python benchmarks/tables.py --write   # writes them into the pages

A page has a table between the lines ``<!-- table: NAME -->`` and ``<!-- end of table -->``;
`TABLES` says what it is made of. A result is the JSON file of one script: ``python
benchmarks/noise.py --json benchmarks/results/noise.json`` measures it anew, and ``--take
build/bench/results.json`` takes those that `bench.py` measured. ``--quick`` ones are refused.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from writing import Row, cell, json_lines, markdown, text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("benchmarks/results")
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
Found = dict[str, list[dict[str, Any]]]
"""The tables of a result by their titles."""


class Table(NamedTuple):
    """A table of a page: the result that it is made of, and its rows."""

    result: str
    rows: Callable[[Found], Sequence[Row]]


def first(found: Found) -> list[dict[str, Any]]:
    return next(iter(found.values()))


def columns(*names: str, title: str | None = None) -> Callable[[Found], Sequence[Row]]:
    """Some columns of a table, ``"name=head"`` under another head; the first table of a result, or
    the one of that title.
    """
    heads = dict(name.split("=") if "=" in name else (name, name) for name in names)

    def rows(found: Found) -> Sequence[Row]:
        every = first(found) if title is None else found[title]
        return [{head: row.get(name, "") for name, head in heads.items()} for row in every]

    return rows


def everything(title: str | None = None) -> Callable[[Found], Sequence[Row]]:
    return lambda found: first(found) if title is None else found[title]


def spread_within(bound: str) -> Callable[[Found], Sequence[Row]]:
    """Evaluations from which on the spread is right to that."""

    def rows(found: Found) -> Sequence[Row]:
        return [
            {"problem": f"{line['task']}d"}
            | {name: nfe for name, nfe in line.items() if name not in ("task", "within", "ratio")}
            for line in found["evaluations until the spread is right"]
            if line["within"] == bound
        ]

    return rows


def by_evaluations(
    task: str, key: str, value: str, *, faults: bool = False
) -> Callable[[Found], Sequence[Row]]:
    """A row for each solver of ours and the best of each library (or for each sampler with a
    fault), a column for each number of evaluations, which the rows have as ``key``.
    """

    def rows(found: Found) -> Sequence[Row]:
        lines: dict[str, dict[str, object]] = {}
        for row in first(found):
            best = row["by"] == "sdediff" or row["by"].endswith("best")
            if row["task"] != task or best == faults:
                continue
            name = row["by"] if row["by"].endswith("best") else f"{row['by']}, {row['solver']}"
            line = lines.setdefault(name, {"solver": name})
            line |= {"fault": row["note"]} if faults else {}
            line[str(row[key])] = row[value]
        return list(lines.values())

    return rows


def laws(task: str) -> Callable[[Found], Sequence[Row]]:
    """Energy distance by the number of evaluations, of every sampler on the best of its grids."""

    def rows(found: Found) -> Sequence[Row]:
        lines: dict[str, dict[str, object]] = {}
        floors = set()
        for row in first(found):
            if row["task"] == task:
                line = lines.setdefault(f"{row['by']}, {row['solver']}", {})
                line[str(row["at most"])] = max(row["energy"], row["energy floor"])
                line["fault"] = row["note"]
                floors.add(row["energy floor"])
        named = [{"sampler": name} | line for name, line in lines.items()]
        for line in named:
            line["fault"] = line.pop("fault")
        floor: Row = {"sampler": "two sets of true samples"} | dict.fromkeys(
            list(named[0])[1:-1], max(floors)
        )
        return [*named, floor]

    return rows


def shards(found: Found) -> Iterator[Row]:
    """Both policies in one row."""
    rows = found["sampling"]
    for here, shared in zip(rows[::2], rows[1::2], strict=True):
        yield {
            "a device fails after": f"{here['hours']} h",
            "shard size": f"{here['size']:,}",
            "shards": f"{here['shards']:,}",
            "hours, ratio": f"{here['time']:.2f}, {here['ratio']:.2f}",
            "failures": f"{here['failures']:.0f}",
            "work lost": f"{here['lost']:.2%}",
            "hours, ratio by shares": f"{shared['time']:.2f}, {shared['ratio']:.2f}",
            "left for a second launch by shares": f"{shared['left']:,.0f}",
        }


def checkpoints(found: Found) -> Iterator[Row]:
    for row in found["training"]:
        young = "" if row["every"] % 60 == 0 else ", as Young has it"
        yield {
            "a checkpoint every": f"{row['every']:,.0f} s{young}",
            "ratio": f"{row['ratio']:.3f} ± {row['stderr']:.3f}",
            "by the formula": f"{row['daly']:.3f}",
        }


def paths(found: Found) -> Iterator[Row]:
    """Microseconds a query, and ours over each."""
    for row in first(found):
        line: dict[str, object] = {"shape": row["shape"], "queries": row["queries"]}
        for key, value in row.items():
            name, _, unit = key.rpartition(" ")
            if unit == "us":
                over = row.get(f"ratio to {name}")
                line[name] = cell(value) if over is None else f"{cell(value)} ({text(over)})"
        yield line


def posteriors(case: str) -> Callable[[Found], Sequence[Row]]:
    """Our methods on one case; those of other libraries have grids and weights of their own."""
    heads = {
        "SW2 ratio": "SW2",
        "mean": "mean",
        "variance ratio": "variance",
        "modes": "modes",
        "NFE": "evaluations",
        "backward": "backward passes",
    }

    def rows(found: Found) -> Sequence[Row]:
        return [
            {"method": _named(row["method"])} | {head: row[key] for key, head in heads.items()}
            for row in found["posterior"]
            if row["case"] == case and not row["method"].startswith("azula")
        ]

    return rows


def _named(method: str) -> str:
    return method if method.startswith("exact") else f"`{method}`"


def evidence(found: Found) -> Iterator[Row]:
    """Log evidences in nats."""
    for row in found["evidence"]:
        yield {
            "posterior": row["case"],
            "method": f"`{row['method']}`",
            "off by": f"{row['log evidence off by']:+.3f}",
            "its error bar": f"{row['its error']:.3f}",
        }


TIMES = "ratio", "low", "high"
TABLES = {
    "step": Table(
        "step", columns("solver", "shape", "loop us=loop, µs", "ours us=ours, µs", *TIMES, "target")
    ),
    "step-peers": Table("step_peers", columns("kind", "shape", "by", "us=µs", *TIMES, "note")),
    "noise": Table("noise", columns("shape", "randn us=randn, µs", "White us=White, µs", *TIMES)),
    "schedule": Table("schedule", columns("what", "VP us=VP, µs", "own us=own, µs", *TIMES)),
    "paths": Table("brownian", lambda found: list(paths(found))),
    "objectives": Table("objectives", everything()),
    "shards": Table("scale", lambda found: list(shards(found))),
    "checkpoints": Table("scale", lambda found: list(checkpoints(found))),
    "libraries-2d": Table("work_precision", by_evaluations("VP-2d", "NFE", "median")),
    "faults-2d": Table("work_precision", by_evaluations("VP-2d", "NFE", "median", faults=True)),
    "laws-2d": Table("sample_quality", laws("VP-2d")),
    "equations": Table("equations", everything()),
    "posterior-ring": Table("posterior", posteriors("ring, noise 0.3")),
    "posterior-ring-precise": Table("posterior", posteriors("ring, noise 0.05")),
    "posterior-16d": Table("posterior", posteriors("16-D, noise 0.2")),
    "evidence": Table("posterior", lambda found: list(evidence(found))),
    "spread-5": Table("adaptive_sde", spread_within("5%")),
    "spread-2": Table("adaptive_sde", spread_within("2%")),
}


def read(root: Path, result: str) -> dict[str, Any]:
    """A result, which has to be of a whole run."""
    path = RESULTS / f"{result}.json"
    if not (root / path).exists():
        raise ValueError(f"{path} is missing: python benchmarks/{result}.py --json {path}")
    found: dict[str, Any] = json.loads((root / path).read_text())
    if found["quick"]:
        raise ValueError(f"{path} is of a --quick run, which measures nothing")
    return found


def made(root: Path, name: str) -> str:
    """The lines between the marks."""
    if name not in TABLES:
        raise ValueError(f"no table is called {name!r}; there are {', '.join(TABLES)}")
    table = TABLES[name]
    found = read(root, table.result)
    day = datetime.date.fromisoformat(found["date"])
    when = f"{day.day} {day:%B %Y}"
    where = f"{found['device']}, torch {found['torch'].partition('+')[0]}"
    said = f"Measured on {when} by `{found['command']}` ({where}):"
    return "\n".join(["", said, "", *markdown(table.rows(found["tables"])), "", ""])


def written(root: Path, page: str) -> str:
    """The page with its tables made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{made(root, block[2])}{block[4]}", page)


def stale(root: Path) -> list[str]:
    """The pages whose tables are not those of the results, and tables that no page has."""
    pages = {path: path.read_text() for path in pages_of(root)}
    found = [
        f"{path.relative_to(root)}: its tables are not those of {RESULTS}"
        for path, page in pages.items()
        if written(root, page) != page
    ]
    shown = {block[2] for page in pages.values() for block in BLOCK.finditer(page)}
    return found + [f"no page shows the table {name}" for name in TABLES if name not in shown]


def pages_of(root: Path) -> list[Path]:
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("benchmarks/*.md")])


def take(root: Path, results: Path) -> list[str]:
    """Copy what `bench.py` measured of the scripts that tables are made of; which they are."""
    wanted = {table.result for table in TABLES.values()}
    names = []
    for part in json.loads(results.read_text())["parts"].values():
        for script, record in part["scripts"].items():
            if script in wanted and "tables" in record:
                if record["quick"]:
                    raise ValueError(f"{results} is of a --quick run, which measures nothing")
                path = root / RESULTS / f"{script}.json"
                path.write_text(json_lines(record))
                names.append(script)
    return names


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the tables into the pages")
    parser.add_argument("--take", type=Path, metavar="PATH", help="results.json of bench.py")
    args = parser.parse_args(argv)
    try:
        if args.take is not None:
            print(f"taken: {', '.join(take(ROOT, args.take)) or 'nothing'}")
        for path in pages_of(ROOT) if args.write else []:
            path.write_text(written(ROOT, path.read_text()))
        wrong = stale(ROOT)
    except ValueError as error:
        wrong = [str(error)]
    for each in wrong:
        print(each, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

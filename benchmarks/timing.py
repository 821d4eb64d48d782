"""What the benchmarks share: their options, rounds in which every candidate runs in turn, ratios
within a round, tables and a JSON file.
"""

from __future__ import annotations

import argparse
import datetime
import math
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from writing import json_lines, text

Run = Callable[[int], object]
Row = dict[str, object]
Tables = dict[str, list[Row]]
"""Rows by the title of their table; those of a table have the same keys."""


def least_in_turn(
    candidates: Sequence[tuple[float, Callable[[], float]]], rounds: int
) -> list[float]:
    """The least time of each candidate, (group, run that returns seconds), those of a group running
    in turn in every round.
    """
    least = [math.inf] * len(candidates)
    for group in dict.fromkeys(group for group, _ in candidates):
        for _ in range(rounds):
            for i, (own, run) in enumerate(candidates):
                least[i] = min(least[i], run()) if own == group else least[i]
    return least


def options(
    doc: str,
    more: dict[str, dict[str, Any]] | None = None,
    argv: Sequence[str] | None = None,
    quick: str = "one small task: shows that it runs, measures nothing",
) -> argparse.Namespace:
    """``--quick``, ``--json`` and ``more``, as of argparse, read from ``argv`` or the command line;
    sets one thread. `report` collects the tables in ``tables``.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    for name, option in (more or {}).items():
        parser.add_argument(name, **option)
    args = parser.parse_args(argv)
    args.device = getattr(args, "device", None) or "cpu"
    args.tables = {}
    torch.set_num_threads(1)
    return args


def arguments(
    doc: str,
    rounds: int,
    more: dict[str, dict[str, Any]] | None = None,
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """`options`, with a number of rounds."""
    told = {"type": int, "default": rounds}
    told["help"] = f"rounds in which all candidates run once (default {rounds})"
    quick = "two short rounds: shows that it runs, measures nothing"
    args = options(doc, {"--rounds": told} | (more or {}), argv, quick)
    if args.rounds < 1:
        raise SystemExit(f"--rounds must be at least 1, got {args.rounds}")
    if args.quick:
        args.rounds = min(args.rounds, 2)
    return args


def on_mixtures(tasks: Sequence[str] | None = None, chosen: str = "") -> dict[str, dict[str, Any]]:
    """The options of what runs on mixtures with a known law."""
    some = f"some of {','.join(tasks)}" if tasks else "VP-2,VE-64 and so on"
    return {
        "--seed": {"type": int, "default": 100, "help": f"of the mixtures{chosen}"},
        "--tasks": {"help": f"{some}; all of them by default"},
    }


def seconds(run: Run, n: int) -> float:
    """CPU time of this thread, so that what other programs take does not count; where a GPU is
    used, time until it is done.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        start = time.perf_counter()
        run(n)
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.thread_time()
    run(n)
    return time.thread_time() - start


def slope(run: Run, few: int, many: int) -> float:
    """Seconds a step: what many - few more steps cost; the set-up of a solve drops out, planning a
    step does not.
    """
    return (seconds(run, many) - seconds(run, few)) / (many - few)


def race(runs: dict[str, Run], few: int, many: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each candidate, a list with one entry a round; the candidates alternate,
    every second round backwards.
    """
    for run in runs.values():
        run(many)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            times[name].append(slope(runs[name], few, many))
    return times


def ratios(times: list[float], reference: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios within a round; rounds with a time that is not positive
    (preempted) are left out.
    """
    each = [a / b for a, b in zip(times, reference, strict=True) if a > 0 and b > 0]
    if len(each) < 2:
        only = each[0] if each else float("nan")
        return {"ratio": only, "low": only, "high": only, "rounds": len(each)}
    low, _, high = statistics.quantiles(each, n=4, method="inclusive")
    return {"ratio": statistics.median(each), "low": low, "high": high, "rounds": len(each)}


def micro(times: list[float]) -> float:
    return 1e6 * statistics.median(times)


def facts(device: str = "cpu") -> dict[str, object]:
    """What the figures depend on beside the code."""
    gpu = torch.device(device).type == "cuda"
    return {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if gpu else device,
    }


def show(title: str, rows: list[Row]) -> None:
    """Print the rows as a table."""
    cells = [list(rows[0])] + [[text(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(title)
    for row in cells:
        placed = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(placed).rstrip())
    print(flush=True)


def report(title: str, rows: list[Row], args: argparse.Namespace) -> None:
    """Print the rows as a table, keep them in ``args.tables``, and write all tables as JSON."""
    known = facts(args.device)
    rounds = f"{args.rounds} rounds, " if hasattr(args, "rounds") else ""
    where = f"{known['device']}, one thread, torch {torch.__version__}"
    show(f"{title}: {rounds}{where}", rows)
    args.tables[title] = rows
    if args.json is not None:
        called = [word for word in sys.argv[1:] if word not in ("--json", str(args.json))]
        command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *called])
        write(args.json, command, args.tables, quick=args.quick, device=args.device)


def write(path: Path, command: str, tables: Tables, *, quick: bool, device: str = "cpu") -> None:
    """A JSON file with the tables, the command that made them and what they depend on."""
    found = {"command": command, "quick": quick, **facts(device), "tables": tables}
    path.write_text(json_lines(found))


def shape_name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))

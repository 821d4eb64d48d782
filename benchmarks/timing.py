"""What the benchmarks share: rounds in which every candidate runs in turn, ratios within a round, a
table and a JSON file.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Run = Callable[[int], object]


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


def arguments(
    doc: str, rounds: int, more: dict[str, dict[str, Any]] | None = None
) -> argparse.Namespace:
    """The options that all benchmarks take, and ``more``, as of argparse; sets one thread."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(
        "--rounds",
        type=int,
        default=rounds,
        help=f"rounds in which all candidates run once (default {rounds})",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two short rounds: shows that it runs, measures nothing",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    parser.set_defaults(device="cpu")
    for name, option in (more or {}).items():
        parser.add_argument(name, **option)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    if args.quick:
        args.rounds = min(args.rounds, 2)
    torch.set_num_threads(1)
    return args


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


def report(title: str, rows: list[dict[str, object]], args: argparse.Namespace) -> None:
    """Print the rows as a table; write them as JSON."""
    cells = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    facts = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": 1,
    }
    device = getattr(args, "device", "cpu")
    facts["device"] = (
        torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device
    )
    print(
        f"{title}: {args.rounds} rounds, {facts['device']}, one thread, torch {torch.__version__}"
    )
    for row in cells:
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    print()
    if args.json is not None:
        text = json.dumps(
            {"benchmark": title, "rounds": args.rounds, "quick": args.quick, **facts, "rows": rows},
            indent=2,
        )
        args.json.write_text(text + "\n")


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shape_name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))

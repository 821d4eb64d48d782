"""Write or compare a table of numbers over every solver, SDE, prediction and way to call.

`python tools/golden/golden.py` computes every case again, by the public names alone, and compares
it with tests/tables/golden.npz; `--write` writes that file. Counts (evaluations, accepted and
rejected steps, status) have to be equal; numbers of a case that has states in float32 up to 1e-5,
of other cases up to 1e-12, of the larger of 1 and the largest number of the array. Where an
argument is refused, the table says so. Another processor, or another version of torch, may differ
by more: write the table there, from the commit to compare with, `--table` naming another file, and
compare on that machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

TABLE = ROOT / "tests" / "tables" / "golden.npz"
TOLERANCES = {"float64": 1e-12, "float32": 1e-5}
"""By the least precise array of a case: a log-density in float64 of states in float32 is no
better.
"""
REFUSED: tuple[type[Exception], ...] = (TypeError, ValueError)

Row = dict[str, np.ndarray]
"""Arrays by name: float64, float32 or int64."""


def result(run: Callable[[], Mapping[str, torch.Tensor]]) -> Row:
    """What a case comes to; ``refused`` says that a ValueError (1) or TypeError (0) was raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = run()
        except REFUSED as error:
            return {"refused": np.array(int(isinstance(error, ValueError)))}
    row = {name: part.detach().cpu().numpy() for name, part in found.items()}
    return {name: part if part.dtype.kind == "f" else counted(part) for name, part in row.items()}


def counted(part: np.ndarray) -> np.ndarray:
    """Whole numbers and flags as int64."""
    if part.dtype.kind not in "iub":
        raise TypeError(f"a result is a state or a count, got {part.dtype}")
    return part.astype(np.int64)


def described(name: str, part: np.ndarray) -> tuple[str, str, list[int]]:
    """What the index has of an array."""
    return name, str(part.dtype), list(part.shape)


def save(path: Path, table: Mapping[str, Row]) -> None:
    """One file: an index in JSON, and all numbers of a kind one after another."""
    index = {key: [described(*item) for item in row.items()] for key, row in table.items()}
    parts = [part for row in table.values() for part in row.values()]
    numbers = {
        kind: np.concatenate(
            [part.ravel() for part in parts if part.dtype == kind] or [np.empty(0, kind)],
        )
        for kind in ("float64", "float32", "int64")
    }
    text = np.frombuffer(json.dumps(index, separators=(",", ":")).encode(), dtype=np.uint8)
    np.savez_compressed(path, index=text, **numbers)


def load(path: Path) -> dict[str, Row]:
    """What `save` has written."""
    with np.load(path) as file:
        index = json.loads(file["index"].tobytes())
        numbers = {kind: file[kind] for kind in ("float64", "float32", "int64")}
    at = dict.fromkeys(numbers, 0)
    table: dict[str, Row] = {}
    for key, row in index.items():
        table[key] = {}
        for name, kind, shape in row:
            size = int(np.prod(shape))
            table[key][name] = numbers[kind][at[kind] : at[kind] + size].reshape(shape)
            at[kind] += size
    return table


def difference(was: np.ndarray, now: np.ndarray) -> float:
    """The largest difference over the larger of 1 and the largest number; infinite where one of the
    two is not finite alone."""
    if was.shape != now.shape or was.dtype != now.dtype:
        return np.inf
    same = (was == now) | (np.isnan(was) & np.isnan(now))
    if bool(same.all()):
        return 0.0
    if not bool((np.isfinite(was) & np.isfinite(now))[~same].all()):
        return np.inf
    size = max(1.0, float(np.abs(was[np.isfinite(was)]).max()))
    return float(np.abs(was - now)[~same].max()) / size


def complaints(was: Row, now: Row) -> tuple[list[str], float, bool]:
    """(what differs, the largest difference of a state, whether all is equal to the bit)."""
    found, largest, equal = [], 0.0, was.keys() == now.keys()
    if not equal:
        found.append(f"results were {', '.join(was)} and are {', '.join(now)}")
    kinds = {str(each.dtype) for each in was.values()}
    tolerance = TOLERANCES["float32" if "float32" in kinds else "float64"]
    for name in was.keys() & now.keys():
        old, new = was[name], now[name]
        if old.dtype.kind != "f":
            if old.shape != new.shape or old.dtype != new.dtype or bool((old != new).any()):
                found.append(f"{name} was {old.tolist()} and is {new.tolist()}")
                equal = False
            continue
        off = difference(old, new)
        equal = equal and off == 0 and bool((np.signbit(old) == np.signbit(new)).all())
        largest = max(largest, off)
        if not off <= tolerance:
            found.append(f"{name} differs by {off:.3g}, more than {tolerance:g}")
    return sorted(found), largest, equal


def compare(
    was: Mapping[str, Row],
    now: Mapping[str, Row],
    say: Callable[[str], object] = print,
) -> bool:
    """Say what differs, a line a failed case and a line a family; whether nothing did."""
    families: dict[str, list[tuple[bool, float, bool]]] = defaultdict(list)
    for key in [*was, *(key for key in now if key not in was)]:
        family = key.partition("/")[0]
        if key not in now or key not in was:
            say(f"FAILED {key}: {'missing now' if key in was else 'not in the table: write it'}")
            families[family].append((False, np.inf, False))
            continue
        found, largest, equal = complaints(was[key], now[key])
        if found:
            say(f"FAILED {key}: {'; '.join(found)}")
        families[family].append((not found, largest, equal))
    say(f"{'family':14} {'cases':>6} {'bit for bit':>17} {'largest difference':>19} {'failed':>7}")
    rows = [(family, results) for family, results in families.items()]
    for family, results in [*rows, ("all", [one for _, of_family in rows for one in of_family])]:
        good, sizes, same = zip(*results, strict=True) if results else ((), (), ())
        largest, failed = max(sizes, default=0.0), good.count(False)
        say(f"{family:14} {len(results):6} {sum(same):17} {largest:19.2g} {failed:7}")
    return all(good for _, results in rows for good, _, _ in results)


def computed(wanted: str, *, say: Callable[[str], object] | None = None) -> dict[str, Row]:
    """The rows of the cases whose key contains ``wanted``."""
    from golden_cases import cases

    table = {}
    for key, case in cases().items():
        if wanted in key:
            start = time.perf_counter()
            table[key] = result(case.run)
            if say is not None:
                say(f"{time.perf_counter() - start:7.3f} s  {key}")
    return table


def main(arguments: Iterable[str] | None = None) -> int:
    """0, or 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--write",
        action="store_true",
        help="write the table (with -k: those cases of it)",
    )
    parser.add_argument("-k", default="", metavar="TEXT", help="only cases whose key contains this")
    parser.add_argument(
        "--table",
        type=Path,
        default=TABLE,
        help="the file, tests/tables/golden.npz by default",
    )
    parser.add_argument("--times", action="store_true", help="say how long each case takes")
    parser.add_argument(
        "--nudge",
        type=float,
        default=0.0,
        help="multiply the network's outputs by 1 + this: shows what amplifies rounding",
    )
    options = parser.parse_args(None if arguments is None else list(arguments))
    from golden_models import Closed

    start = time.perf_counter()
    Closed.nudge = options.nudge
    table = computed(options.k, say=print if options.times else None)
    print(f"{len(table)} cases in {time.perf_counter() - start:.0f} s, torch {torch.__version__}")
    if not table:
        print(f"no case contains {options.k!r}")
        return 1
    if options.write:
        old = load(options.table) if options.k and options.table.exists() else {}
        kept = {key: row for key, row in old.items() if options.k not in key}
        save(options.table, kept | table)
        refused = sum("refused" in row for row in table.values())
        size = options.table.stat().st_size / 1000
        print(f"{options.table}: {len(kept | table)} cases, {size:.0f} kB, {refused} refused now")
        return 0
    was = {key: row for key, row in load(options.table).items() if options.k in key}
    return 0 if compare(was, table) else 1


if __name__ == "__main__":
    sys.exit(main())

"""``sdediff sample``: to a folder, as a set in shards by any number of processes, or to a file."""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sdediff import __version__
from sdediff.checkpoint import read_config
from sdediff.cli.processes import own_device
from sdediff.cli.sample import (
    Asked,
    Drawing,
    batch_of,
    check_memory,
    check_writable,
    complete,
    event_of,
)
from sdediff.cli.sample import run as to_file
from sdediff.interruption import raising, signal_of
from sdediff.processes import Processes
from sdediff.progress import Bar, progress_bar
from sdediff.run_folder import WEIGHTS, locate
from sdediff.shards import MANIFEST, SET, Shards
from sdediff.solvers.solution import merge

__all__ = ["run", "to_folder"]

_BATCHES: Final = 4
"""Batches in a shard by default."""


def run(asked: Asked, out: Path, shard_size: int | None) -> int:
    """Draw samples to a folder, which is a path without an ending, or to a file; the exit code."""
    if not out.suffix or (out / SET).is_file():
        return to_folder(asked, out, shard_size)
    if shard_size is not None:
        raise ValueError(
            f"--shard-size is of a folder of shards, and --out {out} is a file: drop --shard-size, "
            "or name a folder, without an ending"
        )
    return to_file(asked, out)


def to_folder(asked: Asked, out: Path, shard_size: int | None = None, *, wait: bool = False) -> int:
    """Draw what is missing of the set in a folder; the exit code.

    Shards that are complete when a signal comes, or when a process is killed, are kept: the same
    command goes on. The process that finds the set complete writes the manifest; with ``wait`` it
    stays until then, and draws what others leave.
    """
    here = Processes.here()
    config = read_config(asked.folder)
    event = event_of(asked.folder, config)
    batch = asked.batch_size or batch_of(event)
    size = _BATCHES * batch if shard_size is None else shard_size
    check_memory(min(size, asked.count), event)
    check_writable(out / "shard" if out.is_dir() else out)
    _check_room(out, asked.count, event)
    device = own_device(asked.device)
    drawing = replace(asked, device=device).drawing(held=min(size, asked.count))
    about = {"run": config.get("run"), **_about(asked, drawing, device)}
    shards = Shards.begin(out, asked.count, size, about, rounding=("threads",))
    began = time.perf_counter()
    with raising():
        try:
            drawn = _fill(shards, drawing, here, wait=wait)
            manifest = shards.finish()
        except KeyboardInterrupt as stop:
            there = len(shards) - len(shards.missing())
            print(
                f"stopped; {there} of {len(shards)} shards are in {out}: the same command goes on",
                file=sys.stderr,
            )
            return 128 + signal_of(stop)
    if manifest is None:
        if not asked.quiet:
            print(
                f"drew {drawn} shards; {len(shards.missing())} of {len(shards)} are missing, which "
                "other processes draw, or else the same command",
                file=sys.stderr,
            )
        return 0
    return _tell(shards, manifest["samples"], drawn, time.perf_counter() - began, asked.quiet)


def _fill(shards: Shards, drawing: Drawing, here: Processes, *, wait: bool) -> int:
    """Look at the shards that are there, and draw those that are missing; how many those were."""
    damaged = shards.remove_damaged(here.index, here.count)
    if damaged:
        print(
            f"damaged, and drawn anew: {', '.join(map(str, damaged[:8]))}"
            f"{', ...' if len(damaged) > 8 else ''} of the {len(shards)} shards in {shards.folder}",
            file=sys.stderr,
        )
    show = here.first and not drawing.quiet
    with progress_bar("sampling", total=shards.count, show=show) as whole:

        def draw(rows: range) -> dict[str, Tensor]:
            before = (
                shards.count - sum(len(shards.rows(k)) for k in shards.missing()) if show else 0
            )
            bar = Bar(lambda made, note: whole.update(before + made - rows.start, note))
            return _drawn(drawing, rows, bar)

        return shards.fill(draw, process=here.index, processes=here.count, wait=wait)


def _drawn(drawing: Drawing, rows: range, bar: Bar) -> dict[str, Tensor]:
    """The tensors of a shard: the samples ``rows``, but for those that failed."""
    parts = [
        drawing.batch(range(first, min(first + drawing.size, rows.stop)), bar)
        for first in range(rows.start, rows.stop, drawing.size)
    ]
    solution = merge(parts)
    if solution.failures:
        first, more = solution.failures[0], len(solution.failures) - 1
        also = f" ({more} more of this shard failed)" if more else ""
        print(f"{replace(first, sample=rows.start + first.sample)}{also}", file=sys.stderr)
    good = torch.nonzero(solution.status == 0).flatten()
    kept = complete(solution, good)
    index = rows.start + good
    conditions = drawing.conditions.of(index.tolist())
    return {
        "x": kept.x,
        "index": index,
        "seed": torch.from_numpy(np.array(kept.seeds or (), dtype=np.uint64)),
        "nfe": kept.nfe,
        **{f"condition.{name}": value for name, value in conditions.items()},
    }


def _about(asked: Asked, drawing: Drawing, device: str) -> dict[str, Any]:
    """What decides the samples, to the bit."""
    with locate(asked.folder, WEIGHTS).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "weights": weights,
        "event": list(drawing.event),
        "seed": drawing.seed,
        "solver": None if drawing.solver is None else repr(drawing.solver),
        "steps": drawing.steps,
        "max_nfe": drawing.max_nfe,
        "condition": list(asked.condition),
        "guidance": asked.guidance,
        "batch_size": drawing.size,
        "device": torch.device(device).type,
        "torch": torch.__version__,
        "sdediff": __version__,
        **({"threads": torch.get_num_threads()} if torch.device(device).type == "cpu" else {}),
    }


def _check_room(out: Path, count: int, event: tuple[int, ...]) -> None:
    """Refuse a new set for which the disk has no room."""
    need = count * (4 * math.prod(event) + 24)
    free = shutil.disk_usage(out if out.is_dir() else out.parent).free
    if need > free and not (out / SET).is_file():
        raise ValueError(
            f"{count} samples of shape {event} take {need / 1e9:.3g} GB, and there are "
            f"{free / 1e9:.3g} GB free at {out}: lower --count, or choose another disk"
        )


def _tell(shards: Shards, samples: int, drawn: int, seconds: float, quiet: bool) -> int:
    """Say what is in a complete folder; the exit code."""
    what = f"{samples} samples in {len(shards)} shards; {shards.folder / MANIFEST} lists them"
    if samples < shards.count:
        print(f"{shards.count - samples} of {shards.count} samples failed: {what}", file=sys.stderr)
        return 2
    if not quiet:
        how = f"drew {drawn} shards in {seconds:.1f} s" if drawn else "nothing was missing"
        print(f"{how}: {what}", file=sys.stderr)
    return 0

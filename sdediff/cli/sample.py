"""``sdediff sample``."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sdediff.checkpoint import load, read_config
from sdediff.cli.app import spoken
from sdediff.cli.conditions import Conditions, guided, read_conditions
from sdediff.cli.names import check_tolerances, make_solver
from sdediff.cli.processes import own_device
from sdediff.files import write_atomically
from sdediff.interruption import raising, signal_of
from sdediff.plots import image_grid, save_png
from sdediff.processes import current, in_parts, together
from sdediff.progress import Bar, progress_bar
from sdediff.protocols import Model, facts
from sdediff.run_folder import CONFIG
from sdediff.sampling import sample
from sdediff.sde import SDE
from sdediff.solvers import Solution, Solver, seeds
from sdediff.solvers.solution import merge

__all__ = [
    "Asked",
    "Drawing",
    "batch_of",
    "check_memory",
    "check_place",
    "check_writable",
    "complete",
    "draw",
    "event_of",
    "run",
    "write",
]

_VALUES: Final = 2**17
"""Values of the samples that are solved at a time by default."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be drawn of a run, and how: the options of the command line."""

    folder: Path
    solver: str | None
    steps: int | None
    count: int
    batch_size: int | None
    rtol: float | None
    atol: float | None
    max_nfe: int | None
    condition: Sequence[str]
    guidance: float | None
    seed: int
    device: str | None
    quiet: bool

    def drawing(self, held: int | None = None) -> Drawing:
        """All checked, and nothing drawn yet; ``held`` samples at a time are in memory, by default
        all.
        """
        config = read_config(self.folder)
        event = event_of(self.folder, config)
        check_memory(self.count if held is None else held, event)
        model: Model = load(self.folder, device=own_device(self.device))
        _check_prior(self.folder, model.sde)
        conditions = read_conditions(self.folder, config, model, self.condition)
        if self.guidance is not None:
            model = guided(self.folder, config, model, self.guidance)
        method: Solver | None
        given: int | None
        if self.solver is None and (self.steps is not None or model.sde.solver is not None):
            check_tolerances("the default solver for --steps takes", self.rtol, self.atol)
            method, given = None, self.steps
        else:
            method, given = make_solver(
                self.solver or "ode",
                model.sde,
                self.steps,
                self.rtol,
                self.atol,
                facts(model).data_std,
                config,
                self.guidance,
            )
        return Drawing(
            model,
            event,
            self.count,
            self.batch_size or batch_of(event),
            method,
            given,
            self.max_nfe,
            conditions,
            self.seed,
            self.quiet,
        )


def run(asked: Asked, out: Path) -> int:
    """Draw samples and write them; the exit code.

    Samples that are complete when a signal comes, or when others fail, are written: the first so
    many of the set. Of several processes, which share the samples, the first one writes.
    """
    config = read_config(asked.folder)
    event_of(asked.folder, config)  # a damaged one is told first
    check_place(out, bool(config["data"].get("image", False)))
    drawing = asked.drawing()
    with together():
        return draw(drawing, out)


def _check_prior(folder: Path, process: SDE) -> None:
    """Refuse a process without a law to start from."""
    try:
        _ = process.prior
    except NotImplementedError as error:
        raise ValueError(
            f"{folder} was trained on {process!r}, which has no law of fully degraded data to draw "
            f"from: restore a picture, sdediff restore {folder} --image picture.png --degrade "
            "--out restored.png, or train with --sde blur, whose colours have a law"
        ) from error


def batch_of(event: Sequence[int]) -> int:
    """How many samples are solved at a time by default."""
    return max(64, _VALUES // math.prod(event))


@dataclass
class Drawing:
    """A set of samples, drawn batch by batch; each sample depends on its own seed alone."""

    model: Model
    event: tuple[int, ...]
    count: int
    size: int
    solver: Solver | None
    steps: int | None
    max_nfe: int | None
    conditions: Conditions
    seed: int
    quiet: bool
    tiled: bool = True
    """Whether a picture has a frame and large pixels; without, one sample is written as it is."""
    start: tuple[Tensor, float] | None = None
    """States (count, *event) that the samples start from, and their time; None: drawn ones."""
    parts: list[Solution] = field(default_factory=list)

    def run(self) -> int | None:
        """Draw all, or as many batches as are complete when a signal comes, which is returned; of
        several processes each then has its own.
        """
        show = not self.quiet and current().first
        try:
            with progress_bar("sampling", total=self.count, show=show) as bar:

                def part(rows: range) -> Solution:
                    self.parts.append(self.batch(rows, bar))
                    return self.parts[-1]

                self.parts = in_parts(self.count, self.size, part)
        except KeyboardInterrupt as stop:
            return signal_of(stop)
        return None

    def batch(self, rows: range, bar: Bar) -> Solution:
        """The samples of these numbers."""
        begin: dict[str, Any] = {}
        if self.start is not None:
            begin = {"x_init": self.start[0][rows.start : rows.stop], "t_start": self.start[1]}
        return sample(
            self.model,
            (len(rows), *self.event),
            solver=self.solver,
            steps=self.steps,
            max_nfe=self.max_nfe,
            condition=self.conditions.of(rows),
            seed=seeds(self.seed, rows),
            callback=lambda snapshot: bar.update(rows.start + snapshot.done * len(rows)),
            on_fail="return",
            **begin,
        )


def draw(drawing: Drawing, out: Path) -> int:
    """Draw samples and write those that are complete; the exit code."""
    began = time.perf_counter()
    conditions, count = drawing.conditions, drawing.count
    with raising():
        signum = drawing.run()
        if not current().first:
            return 0 if signum is None else 128 + signum
        if signum is not None:
            kept = merge(drawing.parts) if drawing.parts else None
            return _partial(kept, None, conditions, out, count, "stopped", 128 + signum)
    solution = merge(drawing.parts)
    if solution.failures:
        more = f" ({len(solution.failures) - 1} more failed)" if len(solution.failures) > 1 else ""
        why = spoken(ValueError(f"{solution.failures[0]}{more}"), ["sample"])
        good = torch.nonzero(solution.status == 0).flatten()
        kept = complete(solution, good)
        return _partial(kept, good.tolist(), conditions, out, count, f"error: {why}", 2)
    write(out, solution, conditions, range(count), tiled=drawing.tiled)
    if not drawing.quiet:
        nfe, seconds = solution.nfe.double(), time.perf_counter() - began
        by = drawing.solver or "the default solver"
        print(
            f"{count} samples by {by} in {seconds:.1f} s, {nfe.mean():.1f} evaluations each; "
            f"wrote {out}",
            file=sys.stderr,
        )
    return 0


def _partial(
    kept: Solution | None,
    rows: Sequence[int] | None,
    conditions: Conditions,
    out: Path,
    count: int,
    why: str,
    code: int,
) -> int:
    """Write what there is, the samples ``rows`` or the first ones, beside a file that is there
    already, and say so; the exit code.
    """
    if kept is None or not len(kept.x):
        print(f"{why}; nothing was written", file=sys.stderr)
        return code
    place = out.with_name(f"{out.stem}.partial{out.suffix}") if out.exists() else out
    write(place, kept, conditions, range(len(kept.x)) if rows is None else rows)
    print(f"{why}; wrote {len(kept.x)} of {count} samples to {place}", file=sys.stderr)
    return code


def complete(solution: Solution, good: Tensor) -> Solution:
    """The samples ``good``, which did not fail."""
    counts = {
        name: getattr(solution, name)[good] for name in ("nfe", "accepted", "rejected", "status")
    }
    kept = None if solution.seeds is None else tuple(solution.seeds[i] for i in good.tolist())
    return replace(
        solution, x=solution.x[good.to(solution.x.device)], seeds=kept, failures=(), **counts
    )


def event_of(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of a sample of a run."""
    event = config["data"].get("event")
    sizes = event if isinstance(event, list) else []
    if not sizes or not all(
        isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes
    ):
        raise ValueError(
            f"{folder / CONFIG} is damaged: data event is {json.dumps(event)}, where the shape "
            "of a sample is expected, "
            "[2] or [1, 28, 28] say; train again or restore the file"
        )
    return tuple(sizes)


def check_memory(count: int, event: tuple[int, ...]) -> None:
    """Refuse more samples than this machine can hold."""
    names = getattr(os, "sysconf_names", {})
    known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 2**40
    need = count * (8 * math.prod(event) + 200)  # float32 and a copy; seeds and counts
    if need > memory:
        raise ValueError(
            f"{count} samples of shape {event} take {need / 1e9:.3g} GB, and this machine has "
            f"{memory / 1e9:.3g}: "
            "lower --count, and draw the rest with another --seed into another file"
        )


def check_place(out: Path, image: bool) -> None:
    """Refuse a path that cannot be written before any work is done."""
    suffixes = [".png", ".npy", ".npz"] if image else [".npy", ".npz"]
    if out.suffix not in suffixes:
        raise ValueError(
            f"--out {out} must end in {' or '.join(suffixes)}"
            + ("" if image else " (the data are no images)")
            + ", or have no ending, for a folder"
        )
    check_writable(out)


def check_writable(out: Path) -> None:
    """Refuse a file for which there is no folder, or none that can be written to."""
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise IsADirectoryError(f"--out {out} is a folder; name a file")
    try:
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise OSError(
            f"--out {out}: cannot write to {out.parent} ({error.strerror}); choose another place"
        ) from error


def write(
    out: Path,
    solution: Solution,
    conditions: Conditions,
    rows: Sequence[int],
    *,
    tiled: bool = True,
) -> None:
    """Write the samples, which are those of the numbers ``rows``."""
    if out.suffix == ".png":
        look: dict[str, Any] = {} if tiled else {"scale": 1, "pad": 0}
        save_png(image_grid(solution.x.cpu(), conditions.columns(len(rows)), **look), out)
        return
    buffer = io.BytesIO()
    x = solution.x.cpu().numpy()
    if out.suffix == ".npy":
        np.save(buffer, x, allow_pickle=False)
    else:
        own = np.array(solution.seeds or (), dtype=np.uint64)
        more: dict[str, Any] = {
            **conditions.called(rows),
            "seeds": own,
            "nfe": solution.nfe.numpy(),
        }
        np.savez(buffer, x=x, **more)
    write_atomically(out, buffer.getvalue())

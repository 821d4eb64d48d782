"""``sdediff sample``."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import numpy as np

from sdediff.checkpoint import load, read_config
from sdediff.cli.names import check_device, make_solver
from sdediff.files import write_atomically
from sdediff.plots import image_grid, save_png
from sdediff.sampling import sample
from solvers import Solution, Solver

__all__ = ["run"]


def run(
    *,
    folder: Path,
    out: Path,
    solver: str | None,
    steps: int | None,
    count: int,
    batch_size: int | None,
    rtol: float | None,
    atol: float | None,
    seed: int,
    device: str | None,
    quiet: bool,
) -> None:
    """Draw samples and write them."""
    config = read_config(folder)
    event, image = tuple(config["data"]["event"]), bool(config["data"].get("image", False))
    _check_out(out, image)
    model = load(folder, device=check_device(device))
    method: Solver | None
    given: int | None
    if solver is None and steps is not None:
        method, given = None, steps
    else:
        method, given = make_solver(solver or "ode", model.sde, steps, rtol, atol)
    began = time.perf_counter()
    solution = sample(model, (count, *event), solver=method, steps=given, seed=seed, batch_size=batch_size, progress=not quiet)
    seconds = time.perf_counter() - began
    _write(out, solution)
    if not quiet:
        nfe = solution.nfe.double()
        by = method or "the default solver"
        print(f"{count} samples by {by} in {seconds:.1f} s, {nfe.mean():.1f} evaluations each; wrote {out}", file=sys.stderr)


def _check_out(out: Path, image: bool) -> None:
    """Refuse a path that cannot be written before any work is done."""
    suffixes = [".png", ".npy", ".npz"] if image else [".npy", ".npz"]
    if out.suffix not in suffixes:
        raise ValueError(f"--out {out} must end in {' or '.join(suffixes)}" + ("" if image else " (the data are no images)"))
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise IsADirectoryError(f"--out {out} is a folder; name a file")
    try:
        write_atomically(out.parent / f".{out.name}.writable", b"")
        (out.parent / f".{out.name}.writable").unlink()
    except OSError as error:
        raise OSError(f"--out {out}: cannot write to {out.parent} ({error.strerror}); choose another place") from error


def _write(out: Path, solution: Solution) -> None:
    if out.suffix == ".png":
        save_png(image_grid(solution.x.cpu()), out)
        return
    buffer = io.BytesIO()
    x = solution.x.cpu().numpy()
    if out.suffix == ".npy":
        np.save(buffer, x, allow_pickle=False)
    else:
        seeds = np.array(solution.seeds or (), dtype=np.uint64)
        np.savez(buffer, x=x, seeds=seeds, nfe=solution.nfe.numpy())
    write_atomically(out, buffer.getvalue())

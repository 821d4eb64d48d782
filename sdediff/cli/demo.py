"""``sdediff demo``: from real digits to samples by every family of solver."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from sdediff.checkpoint import load, read_config
from sdediff.cli.names import check_device
from sdediff.cli.quality import Judge, Quality
from sdediff.cli.train import about
from sdediff.data import Dataset, load_data, split
from sdediff.discrete import DDPM
from sdediff.files import write_atomically
from sdediff.model import ScoreModel
from sdediff.networks import UNet, initialised
from sdediff.objectives import DenoisingScoreMatching
from sdediff.plots import image_grid, image_rows, reverse_process, save_png
from sdediff.progress import progress_bar
from sdediff.protocols import Model
from sdediff.run_folder import CONFIG, TRAINING, WEIGHTS, check_ours
from sdediff.sampling import sample
from sdediff.sde import VP
from sdediff.solvers import (
    RK45,
    AdaptiveSDE,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    Solver,
)
from sdediff.training import fit

__all__ = ["run"]

_STEPS = 900
_BATCH = 32
_WIDTHS = (48, 96)
_PATCH = 4
_CLASSES = 10
_HELD_OUT = 500
_TIMES = (1.0, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05, 1e-3)
_TABLES = ("results.json", "table.txt")
_ODE = RK45(rtol=1e-3, atol=1e-3)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    title: str
    nfe: float
    seconds: float
    right: float
    """Share of samples whose most likely class is the digit that was asked for."""
    quality: Quality


class Family(NamedTuple):
    """One family of solvers."""

    name: str
    title: str
    solver: Solver
    steps: int | None = None
    grid: str | None = None


def families(sde: VP) -> list[Family]:
    """The five families. Fixed steps are finer near the data, where the digits take shape."""
    pair = PredictorCorrector(ReverseDiffusion(), Langevin())
    return [
        Family("euler-maruyama", "reverse SDE, Euler-Maruyama", EulerMaruyama(), 50, "quadratic"),
        Family("adaptive-sde", "reverse SDE, a step size a sample", AdaptiveSDE()),
        Family("predictor-corrector", "predictor-corrector, Langevin", pair, 25, "quadratic"),
        Family("ode", "probability-flow ODE, RK45", _ODE),
        Family("ddpm", "DDPM, ancestral steps", DDPM.from_sde(sde, 50)),
    ]


def run(
    *, out: Path, steps: int | None, count: int, seed: int, device: str | None, quiet: bool
) -> None:
    """Train, sample, judge and write ``out``."""
    _check_free(out)
    place = check_device(device)
    began = time.perf_counter()
    train, held_out = split(load_data("mnist"), _HELD_OUT)
    judge = Judge.fit(train, held_out)
    # Frechet distances are biased by the number of samples: the real ones are compared in the same
    # number.
    real = replace(judge.reference, frechet=judge.floor(min(count, len(train.x))))
    known = f"the classifier is sure of {real.recognised:.3f} of them"
    _say(quiet, f"{len(train.x)} digits to train on, {len(held_out.x)} held out; {known}")
    model = ScoreModel(
        initialised(lambda: UNet(widths=_WIDTHS, classes=_CLASSES, patch=_PATCH), seed),
        VP(),
        "edm",
        sigma_data=round(float(train.x.std()), 3),
    )
    fit(
        model,
        train.x,
        out=out,
        steps=steps or _STEPS,
        batch_size=_BATCH,
        lr=3e-3,
        condition={"label": _labels(train)},
        ema=0.99,
        loss=DenoisingScoreMatching("edm", "logit-normal", stratified=True),
        seed=seed,
        overwrite=True,
        device=place,
        progress=not quiet,
        about={**about(train), "demo": True},
    )
    trained = load(out, device=place)
    drawn = [_family(trained, family, count, seed, out, judge, quiet) for family in families(VP())]
    rows = [row for row, _ in drawn]
    # The same seeds give the same samples: the first rows of the ODE's, stopped at the times of the
    # figure.
    few = sample(
        trained,
        (6, *judge.event),
        solver=_ODE,
        grid=_TIMES,
        seed=seed,
        trajectory=True,
        condition={"label": torch.arange(6)},
    )
    if few.trajectory is not None:
        save_png(reverse_process(few.trajectory.cpu(), _TIMES), out / "process.png")
    _side_by_side(drawn, held_out, real, out)
    _report(rows, real, _right(judge, held_out.x, _labels(held_out)), out, quiet)
    _say(
        quiet,
        f"wrote {out} in {time.perf_counter() - began:.0f} s: solvers.png, a grid of samples for "
        "each solver, process.png, results.json",
    )


def _check_free(out: Path) -> None:
    """Refuse a folder in which something else than an earlier demo would be overwritten."""
    names = [f"{family.name}.png" for family in families(VP())] + [
        "process.png",
        "real.png",
        "solvers.png",
        *_TABLES,
    ]
    if not check_ours(out, [CONFIG, WEIGHTS, TRAINING, *names]):
        return
    # A demo of format 1 is known by its tables.
    if not read_config(out)["data"].get("demo") and not all(
        (out / name).is_file() for name in _TABLES
    ):
        raise ValueError(f"{out} holds a run that is no demo: choose another folder by --out")


def _family(
    model: Model, family: Family, count: int, seed: int, out: Path, judge: Judge, quiet: bool
) -> tuple[Row, Tensor]:
    """The row of one family, and its samples."""
    began = time.perf_counter()
    label = torch.arange(count) % _CLASSES
    with progress_bar(family.title, total=1.0, show=not quiet) as bar:
        solution = sample(
            model,
            (count, *judge.event),
            solver=family.solver,
            steps=family.steps,
            grid=family.grid,
            seed=seed,
            condition={"label": label},
            callback=lambda snapshot: bar.update(
                snapshot.done, f"evaluations {int(snapshot.nfe.max())}"
            ),
        )
    seconds = time.perf_counter() - began
    x = solution.x.cpu()
    nfe = float(solution.nfe.double().mean())
    row = Row(family.name, family.title, nfe, seconds, _right(judge, x, label), judge.score(x))
    caption = _caption(row).replace("\n", ": ")
    save_png(image_grid(x[:100], _CLASSES, caption=caption), out / f"{family.name}.png")
    return row, x


def _labels(digits: Dataset) -> Tensor:
    return cast(Tensor, digits.labels)  # "mnist" has them


def _right(judge: Judge, x: Tensor, label: Tensor) -> float:
    """The share of digits (N, C, H, W) whose most likely class is their label (N,)."""
    guessed = torch.from_numpy(judge.probabilities(x).argmax(axis=1))
    return float((guessed == label).double().mean())


def _side_by_side(
    drawn: Sequence[tuple[Row, Tensor]], held_out: Dataset, real: Quality, out: Path
) -> None:
    """Real digits in a picture of their own, and in one with a row of each solver's samples."""
    count = len(drawn[0][1])
    name = "real digits, held out"
    save_png(image_grid(held_out.x[: min(count, 100)], _CLASSES, caption=name), out / "real.png")
    across = min(count, _CLASSES)
    rows = {_caption(row): x[:across] for row, x in drawn}
    labels = _labels(held_out)
    first = [int((labels == digit).int().argmax()) for digit in range(across)]
    rows[f"{name}\n{real.recognised:.0%} recognised"] = held_out.x[first]
    save_png(image_rows(rows), out / "solvers.png")


def _caption(row: Row) -> str:
    share = f"{row.quality.recognised:.0%} recognised"
    return f"{row.title}\n{row.nfe:.0f} evaluations, {share}"


def _report(rows: Sequence[Row], real: Quality, right: float, out: Path, quiet: bool) -> None:
    held_out = {**asdict(real), "right": right}
    content = {"held_out": held_out, "solvers": [asdict(row) for row in rows]}
    write_atomically(out / "results.json", (json.dumps(content, indent=2) + "\n").encode())
    head = f"{'solver':<32}{'NFE':>7}{'seconds':>9}{'as asked':>10}"
    head += f"{'recognised':>12}{'of real':>9}{'entropy':>9}{'Frechet':>9}{'rarest class':>14}"
    lines = [head, "-" * len(head)]
    for row in rows:
        lines.append(
            f"{row.title:<32}{row.nfe:>7.1f}{row.seconds:>9.1f}{row.right:>10.3f}"
            f"{_columns(row.quality, real)}"
        )
    lines.append(f"{'real digits, held out':<48}{right:>10.3f}{_columns(real, real)}")
    write_atomically(out / "table.txt", ("\n".join(lines) + "\n").encode())
    if not quiet:
        print("\n".join(lines))


def _columns(q: Quality, real: Quality) -> str:
    ratio = q.recognised / max(real.recognised, 1e-9)
    return (
        f"{q.recognised:>12.3f}{ratio:>9.2f}{q.entropy:>9.3f}{q.frechet:>9.2f}{min(q.counts):>14d}"
    )


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)

"""Few evaluations against two hundred: digits of 8 x 8 pixels by several solvers, judged, and drawn
for the same seeds.

    python benchmarks/few_steps.py --run runs/few_steps --png few_steps.png

The network is trained first where there is no run yet (1,650 steps, some minutes on two cores). The
judge is that of the demo: *recognised* is the share of samples of which a classifier trained on
real digits is sure, *Frechet* the distance to the held-out digits; *apart* is the median distance
of a sample from the one of the same seed at most evaluations.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from restoration_networks import trained
from timing import Row, Tables, options, report
from torch import Tensor

import sdediff as sd
from sdediff.cli.quality import Judge
from sdediff.data import Dataset, load_data, split
from sdediff.networks import UNet, initialised
from sdediff.plots import image_grid, save_png
from sdediff.solvers import Solver

SHOWN = 16


class Way(NamedTuple):
    solver: Solver | None
    grid: str | None = None
    evaluations: int = 1  # of a step


WAYS = {
    "default": Way(None),
    "default, quadratic grid": Way(None, "quadratic"),
    "IPNDM(4), quadratic grid": Way(sd.solvers.IPNDM(4, startup="published"), "quadratic"),
    "DDIM, uniform grid": Way(sd.DDIM(), "uniform"),
    "SDEDPMSolverPP(2)": Way(sd.solvers.SDEDPMSolverPP(2)),
}


def learned(digits: Dataset, folder: Path) -> sd.ScoreModel:
    """A small U-Net that has learned the digits, in a run folder."""
    net = initialised(lambda: UNet(widths=(24, 48)), 0)
    model = sd.ScoreModel(net, sd.VP(), "edm", sigma_data=round(float(digits.x.std()), 3))
    loss = sd.DenoisingScoreMatching("edm", "logit-normal", stratified=True)
    return sd.fit(
        model, digits.x, out=folder, steps=1650, lr=5e-3, ema=0.99, loss=loss, progress=True
    )


def trained_model(args: argparse.Namespace, digits: Dataset) -> sd.ScoreModel:
    """The run, the small network, or with ``--quick`` an untrained one."""
    if args.quick:
        return sd.ScoreModel(UNet(widths=(8, 16)), sd.VP(), "edm", sigma_data=0.75)
    if args.small is not None:
        return trained("digits", args.small)
    if not args.run.exists():
        return learned(digits, args.run)
    return sd.load(args.run)  # type: ignore[return-value]


def main(argv: Sequence[str] | None = None) -> Tables:
    more: dict[str, dict[str, Any]] = {
        "--run": {
            "type": Path,
            "default": Path("runs/few_steps"),
            "help": "folder of a run on the digits; trained there if it is not there yet",
        },
        "--small": {
            "type": Path,
            "metavar": "FOLDER",
            "help": "in place of a run the small network of restoration_networks.py, kept there",
        },
        "--count": {"type": int, "default": 1024, "help": "samples of each"},
        "--budgets": {
            "type": int,
            "nargs": "+",
            "default": [10, 200],
            "metavar": "NFE",
            "help": "evaluations of the network",
        },
        "--png": {
            "type": Path,
            "help": "write a picture: a row for each budget of the default solver",
        },
    }
    quick = "a few samples of an untrained network: shows that it runs"
    args = options(__doc__ or "", more, argv, quick)
    if args.quick:
        args.count, args.budgets = 32, [3, 5]
    train, held_out = split(load_data("digits"), 360)
    model, judge = trained_model(args, train), Judge.fit(train, held_out)
    rows: list[Row] = []
    drawn = []
    for name, way in WAYS.items():
        best = None
        for budget in sorted(args.budgets, reverse=True):
            # One evaluation is the last step's, E[x_0 | x].
            out = sd.sample(
                model,
                (args.count, *judge.event),
                solver=way.solver,
                steps=budget - 1,
                grid=way.grid,
                seed=0,
            )
            best = out.x if best is None else best
            rows.append({"solver": name, "NFE": int(out.nfe.max()), **judged(judge, out.x, best)})
            if name == "default":
                drawn.insert(0, out.x[:SHOWN])
    if args.png is not None:
        save_png(image_grid(torch.cat(drawn), columns=min(SHOWN, args.count)), args.png)
    report("few_steps", rows, args)
    return args.tables


def judged(judge: Judge, x: Tensor, best: Tensor) -> Row:
    """What the judge says of the samples, and how far they are from those at most evaluations."""
    quality = judge.score(x)
    return {
        "recognised": quality.recognised,
        "entropy": quality.entropy,
        "Frechet": quality.frechet,
        "apart": float((x - best).square().flatten(1).mean(dim=1).sqrt().median()),
    }


if __name__ == "__main__":
    main()

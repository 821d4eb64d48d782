"""Few evaluations against two hundred: the digits of ``make demo`` by several solvers, judged, and
drawn for the same seeds.

    python benchmarks/few_steps.py --run runs/demo --png few_steps.png

The judge is that of the demo: *recognised* is the share of samples of which a classifier trained on
real digits is sure, *Frechet* the distance to the held-out digits; *apart* is the median distance
of a sample from the one of the same seed at most evaluations.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from timing import report

import sdediff as sd
from sdediff.cli.quality import Judge
from sdediff.data import load_data, split
from sdediff.networks import UNet
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/demo"),
        help="folder of a run on the digits, as `make demo` leaves it",
    )
    parser.add_argument("--count", type=int, default=1024, help="samples of each")
    parser.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[10, 200],
        metavar="NFE",
        help="evaluations of the network",
    )
    parser.add_argument(
        "--png", type=Path, help="write a picture: a row for each budget of the default solver"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few samples of an untrained network: shows that it runs",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, held_out = split(load_data("digits"), 360)
    if args.quick:
        args.count, args.budgets, args.rounds = 32, [3, 5], 1
        model = sd.ScoreModel(UNet(widths=(8, 16)), sd.VP(), "edm", sigma_data=0.75)
    else:
        args.rounds, model = 1, sd.load(args.run)
    judge = Judge.fit(train, held_out)
    rows: list[dict[str, object]] = []
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
            quality, apart = (
                judge.score(out.x),
                (out.x - best).square().flatten(1).mean(dim=1).sqrt().median(),
            )
            found = {
                "recognised": quality.recognised,
                "entropy": quality.entropy,
                "Frechet": quality.frechet,
                "apart": float(apart),
            }
            rows.append({"solver": name, "NFE": int(out.nfe.max()), **found})
            if name == "default":
                drawn.insert(0, out.x[:SHOWN])
    if args.png is not None:
        save_png(image_grid(torch.cat(drawn), columns=min(SHOWN, args.count)), args.png)
    report("few_steps", rows, args)


if __name__ == "__main__":
    main()

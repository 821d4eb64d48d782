"""Tuned solvers on trained networks of digits, beside the default and every published solver.

    python benchmarks/tune_networks.py --network digits

The networks are trained where they are not there yet: that of the digits of 8x8 as `few_steps.py`
does it, that of MNIST is the one of `restoration_networks.py` after 3,000 steps.
Of the samples of a solver, *distance* is the median distance (root mean square over pixels) from
those of the same seeds at 200 evaluations, and *Frechet* the Frechet distance to the held-out
digits, between their first 24 principal components. *published* are the solvers of ``default.py``,
on grids uniform in t, uniform in log-SNR, and of Karras et al.: the least of each column, chosen in
hindsight for each, and whose it is. All make the same number of evaluations, the last of which is
E[x_0 | x]. *over* is the tuned solver's Frechet distance less the least published one, and *+-* the
standard error of that, by a jackknife over 16 groups of samples.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from default import peers
from few_steps import learned
from restoration_networks import TASKS, data, trained
from timing import Row, options, report
from torch import Tensor

import sdediff as sd
from sdediff.cli.quality import Judge
from sdediff.networks import UNet
from sdediff.tuning import tune

MOST = 200
"""Evaluations of the samples that others are compared with."""
MNIST_STEPS = 3000
GROUPS = 16
TEST_SEED, TUNE_SEED = 11, 5


class Scores(NamedTuple):
    """Of a solver's samples."""

    name: str
    x: Tensor
    distance: float
    frechet: float


def network(name: str, args: argparse.Namespace) -> sd.ScoreModel:
    """The trained network, or with ``--quick`` an untrained one."""
    if args.quick:
        net = UNet(widths=(8, 16))
        return sd.ScoreModel(lambda x, t: 0.1 * net(x, t), sd.VP(), "edm", sigma_data=0.75)
    if name == "mnist":
        return trained(name, args.runs / "tune", MNIST_STEPS)
    run = args.runs / "few_steps"
    if run.exists():
        return sd.load(run)  # type: ignore[return-value]
    return learned(data(name)[0], run)


class Problem:
    """A network, its judge, and what it draws with many evaluations."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        train, held_out = data(name)
        self.model = network(name, args)
        self.judge = Judge.fit(train, held_out)
        self.shape = (args.count, *self.judge.event)
        self.reference = self.drawn(None, MOST // 20 if args.quick else MOST)

    def drawn(self, solver: sd.Solver | None, nfe: int | None, **more: object) -> Tensor:
        """Samples by ``nfe`` evaluations, the last of which is the last step's E[x_0 | x]."""
        steps = None if nfe is None else nfe - 1
        out = sd.sample(self.model, self.shape, solver=solver, steps=steps, seed=TEST_SEED, **more)
        return out.x

    def scores(self, name: str, x: Tensor) -> Scores:
        apart = (x - self.reference).square().flatten(1).mean(dim=1).sqrt().nan_to_num(nan=1e9)
        return Scores(name, x, float(apart.median()), self.frechet(x))

    def frechet(self, x: Tensor) -> float:
        return self.judge.score(x).frechet if bool(torch.isfinite(x).all()) else float("inf")

    def published(self, nfe: int) -> Iterator[Scores]:
        """Of every published solver on every grid that makes so many evaluations at most."""
        pairs = itertools.product(peers().items(), ("uniform", "log_snr", "karras"))
        for (name, (solver, cost)), grid in pairs:
            if steps := (nfe - 1) // cost:
                x = self.drawn(solver, steps + 1, grid=grid, on_fail="return")
                yield self.scores(f"{name}/{grid}", x)

    def apart(self, one: Tensor, other: Tensor) -> tuple[float, float]:
        """The Frechet distance of one less that of the other, and its standard error."""
        found = []
        for group in range(GROUPS):
            kept = torch.arange(len(one)) % GROUPS != group
            found.append(self.frechet(one[kept]) - self.frechet(other[kept]))
        spread = torch.tensor(found, dtype=torch.float64).std(correction=0)
        return self.frechet(one) - self.frechet(other), float(spread) * (GROUPS - 1) ** 0.5


def row(problem: Problem, nfe: int, args: argparse.Namespace) -> Row:
    """The figures of one number of evaluations."""
    began = time.process_time()
    name, _, grid = (args.start or "").partition("/")
    solver = tune(
        problem.model,
        (args.rows, *problem.judge.event),
        nfe=nfe,
        solver=peers()[name][0] if name else None,
        grid=grid or None,
        method="all",
        seconds=args.seconds,
        seed=TUNE_SEED,
        dtype=torch.float32,
        progress=not args.quick,
    )
    spent = time.process_time() - began
    tuned = problem.scores("tuned", problem.drawn(solver, None))
    default = problem.scores("default", problem.drawn(None, nfe))
    every = list(problem.published(nfe))
    nearest = min(every, key=lambda each: each.distance)
    best = min(every, key=lambda each: each.frechet)
    over, error = problem.apart(tuned.x, best.x)
    return {
        "NFE": nfe,
        "distance tuned": tuned.distance,
        "distance default": default.distance,
        "distance published": nearest.distance,
        "distance whose": nearest.name,
        "Frechet tuned": tuned.frechet,
        "Frechet default": default.frechet,
        "Frechet published": best.frechet,
        "Frechet whose": best.name,
        "over": over,
        "+-": error,
        f"at {MOST}": problem.frechet(problem.reference),
        "CPU s": spent,
    }


def main() -> None:
    more: dict[str, dict[str, Any]] = {
        "--runs": {"type": Path, "default": Path("runs"), "help": "where networks are kept"},
        "--network": {"choices": list(TASKS), "default": "digits"},
        "--nfes": {"type": int, "nargs": "+", "default": [4, 5, 8], "metavar": "NFE"},
        "--count": {"type": int, "default": 1024, "help": "samples of each solver"},
        "--rows": {"type": int, "default": 256, "help": "training starts; as many held out"},
        "--start": {
            "metavar": "SOLVER/GRID",
            "help": "what is tuned: a published solver, DEIS2/uniform, say, not the default one",
        },
        "--seconds": {"type": float, "default": 100.0, "help": "for each tuning, wall clock"},
    }
    args = options(__doc__ or "", more, quick="an untrained network, few samples")
    if args.quick:
        args.nfes, args.count, args.rows, args.seconds = [3], 32, 32, 3.0
    problem = Problem(args.network, args)
    rows: list[Row] = []
    for nfe in args.nfes:
        rows.append(row(problem, nfe, args))
        report(f"tuned on {args.network}", rows, args)


if __name__ == "__main__":
    main()

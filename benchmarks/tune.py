"""Error of a tuned solver over that of the default solver it was made from, on mixtures with a
known flow, one mixture a problem.

Training, held-out and test starts are apart. *tuned* and *default* are medians over the test
starts of the root mean square over coordinates; the ratios are of medians and of 90th percentiles.
With ``--last noisy``, by default, all evaluations are steps and the result is the state at t_min,
as in ``default.py``; with ``denoise`` the last one of the default is that of E[x_0 | x], as in
`sdediff.sample`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any, NamedTuple

import torch
from default import SDES, Mixtures, named
from timing import on_mixtures, options, report
from torch import Tensor

import sdediff as sd
from sdediff.tuning import tune

TEST_SEED, TUNE_SEED = 11, 5


class Errors(NamedTuple):
    """Of a solver on the test starts."""

    median: float
    p90: float


def law_of(d: int, seed: int) -> sd.exact.GaussianMixture:
    """The mixture of ``default.py`` with this seed, alone."""
    made = Mixtures(d, 1, seed)
    return sd.exact.GaussianMixture(means=made.means[0], stds=made.stds[0], weights=made.weights[0])


class Problem:
    """A mixture under an SDE, test starts, and where the exact flow takes them."""

    def __init__(self, name: str, d: int, args: argparse.Namespace) -> None:
        self.name = f"{name}-{d}d"
        self.model = law_of(d, args.seed).model(SDES[name][0])
        self.last = args.last
        self.shape = (args.test, d)
        tight = sd.solvers.DOP853(1e-8, 1e-8)
        self.exact = self.drawn(tight, last=self.last)

    def drawn(self, solver: sd.Solver | None, **options: object) -> Tensor:
        out = sd.sample(
            self.model, self.shape, solver=solver, seed=TEST_SEED, dtype=torch.float64, **options
        )
        return out.x

    def errors(self, x: Tensor) -> Errors:
        error = (x - self.exact).square().mean(dim=1).sqrt()
        return Errors(float(error.median()), float(error.quantile(0.9)))

    def default(self, nfe: int) -> Errors:
        steps = nfe - (self.last == "denoise")
        return self.errors(self.drawn(None, steps=steps, last=self.last))

    def tuned(self, nfe: int, args: argparse.Namespace) -> dict[str, object]:
        """The figures of one tuning."""
        began = time.process_time()
        solver = tune(
            self.model,
            (args.rows, self.shape[1]),
            nfe=nfe,
            method=args.method,
            last=self.last,
            seconds=args.seconds,
            seed=TUNE_SEED,
        )
        spent = time.process_time() - began
        before, after = self.default(nfe), self.errors(self.drawn(solver))
        held_out = {name: pair[0] for name, pair in solver.made["bounds"].items()}
        kept = solver.made["improved"]
        return {
            "problem": self.name,
            "NFE": nfe,
            "default": before.median,
            "tuned": after.median,
            "median": after.median / before.median,
            "p90": after.p90 / before.p90,
            "held-out median": held_out.get("median", 1.0) if kept else 1.0,
            "held-out p90": held_out.get("p90", 1.0) if kept else 1.0,
            "how": solver.made["how"] if kept else "start",
            "CPU s": spent,
        }


def summary(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Geometric means over the problems and the worst ratios, a row for each number of
    evaluations.
    """
    found: list[dict[str, object]] = []
    for nfe in sorted({int(str(row["NFE"])) for row in rows}):
        some = [row for row in rows if row["NFE"] == nfe]
        line: dict[str, object] = {"NFE": nfe, "problems": len(some)}
        for key in ("median", "p90", "held-out median", "held-out p90"):
            ratios = [float(str(row[key])) for row in some]
            line[key] = math.exp(sum(map(math.log, ratios)) / len(ratios))
            line[f"worst {key}"] = max(ratios)
        line["most CPU s"] = max(float(str(row["CPU s"])) for row in some)
        found.append(line)
    return found


def main() -> None:
    more: dict[str, dict[str, Any]] = on_mixtures() | {
        "--nfes": {"type": int, "nargs": "+", "default": [5, 8, 10], "metavar": "NFE"},
        "--method": {"choices": ("dp", "grid", "all"), "default": "all"},
        "--last": {"choices": ("noisy", "denoise"), "default": "noisy"},
        "--rows": {"type": int, "default": 512, "help": "training starts; as many held out"},
        "--test": {"type": int, "default": 2048, "help": "test starts"},
        "--seconds": {"type": float, "default": 100.0, "help": "for each tuning, wall clock"},
    }
    args = options(__doc__ or "", more, quick="one small problem, a few seconds")
    if args.quick:
        args.nfes, args.rows, args.test, args.seconds = [4], 64, 64, 3.0
    rows: list[dict[str, object]] = []
    for name, d in named(args.tasks, args.quick):
        problem = Problem(name, d, args)
        for nfe in args.nfes:
            rows.append(problem.tuned(nfe, args))
            print(json.dumps(rows[-1]), flush=True)
    report("tune", rows, args)
    report("tune, over the problems", summary(rows), args)


if __name__ == "__main__":
    main()

"""The reverse SDE with a step size for each sample against fixed steps: evaluations until the
spread of the samples is right.

The spread is the distance to the nearest mean over the component's standard deviation, root mean
square, over that of true samples. A row is a solver with a tolerance or a number of steps. The
summary has the fewest evaluations (mean over samples) from which on the spread is within 5 % and
within 2 % in every dearer run, and the ratio of Euler-Maruyama's to ours.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
from default import Task
from timing import Row, Tables, on_mixtures, options, report, show
from torch import Tensor

import sdediff as sd

TASKS = ("VP-2", "VE-2", "SubVP-2", "VP-64", "VE-64")
TOLERANCES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
STEPS = (10, 20, 30, 50, 100, 200, 500, 1000)


class Rows(Task):
    """A task whose rows have times of their own."""

    def net(self, x: Tensor, t: Tensor) -> Tensor:
        return self.mixtures.data(x, self.sde.alpha(t), self.sde.sigma(t))


def table(name: str, args: argparse.Namespace) -> list[Row]:
    sde, d = name.split("-")
    task = Rows(
        sde, int(d), count=1, rows=args.rows if d == "2" else args.rows // 4, seed=args.seed
    )
    right = task.spread(task.mixtures.draw(20000, *task.kernel(task.end), task.generator))
    runs: list[
        tuple[str, str, sd.EulerMaruyama | sd.solvers.EulerTrapezoid, list[float] | Tensor]
    ] = [
        ("AdaptiveSDE", f"{tol:g}", sd.AdaptiveSDE(tol, tol), [task.start, task.end])
        for tol in args.tolerances
    ]
    fixed = (
        ("EulerTrapezoid, logistic", sd.solvers.EulerTrapezoid(), "logistic"),
        ("EulerMaruyama, uniform", sd.EulerMaruyama(), "uniform"),
        ("EulerMaruyama, logistic", sd.EulerMaruyama(), "logistic"),
    )
    runs += [
        (label, f"{n}", solver, task.grid(grid, n))
        for label, solver, grid in fixed
        for n in args.steps
    ]
    rows: list[Row] = []
    for label, setting, solver, grid in runs:
        out = sd.sample(
            task.model,
            tuple(task.x.shape),
            solver=solver,
            grid=grid,
            x_init=task.x,
            seed=0,
            last="noisy",
            dtype=torch.float64,
            on_fail="return",
        )
        nfe, rejected = (
            out.nfe.double(),
            float(out.rejected.sum() / (out.accepted + out.rejected).sum()),
        )
        row = {
            "task": name,
            "solver": label,
            "tolerance or steps": setting,
            "NFE": float(nfe.mean()),
            "slowest": int(nfe.max()),
        }
        rows.append({**row, "rejected": rejected, "spread": task.spread(out.x) / right})
    return rows


def summary(name: str, rows: list[Row]) -> list[Row]:
    found = {}
    for solver in dict.fromkeys(row["solver"] for row in rows):
        runs = sorted((row["NFE"], row["spread"]) for row in rows if row["solver"] == solver)
        for bound in (0.05, 0.02):
            good = [all(abs(s - 1) <= bound for _, s in runs[i:]) for i in range(len(runs))]
            found[solver, bound] = next(
                (nfe for (nfe, _), fine in zip(runs, good, strict=True) if fine), math.inf
            )
    lines = []
    for bound in (0.05, 0.02):
        line: Row = {"task": name, "within": f"{bound:.0%}"}
        line |= {solver: nfe for (solver, b), nfe in found.items() if b == bound}
        euler = min(found["EulerMaruyama, uniform", bound], found["EulerMaruyama, logistic", bound])
        lines.append({**line, "ratio": euler / found["AdaptiveSDE", bound]})
    return lines


def main(argv: Sequence[str] | None = None) -> Tables:
    args = options(__doc__ or "", on_mixtures(TASKS), argv)
    args.tolerances, args.steps, args.rows = (
        ((0.5, 0.2), (10, 20), 64) if args.quick else (TOLERANCES, STEPS, 4000)
    )
    rows: list[Row] = []
    lines: list[Row] = []
    for name in args.tasks.split(",") if args.tasks else TASKS[:1] if args.quick else TASKS:
        part = table(name, args)
        show(f"{name}, mixture {args.seed}", part)
        rows, lines = rows + part, lines + summary(name, part)
    report("adaptive_sde", rows, args)
    report("evaluations until the spread is right", lines, args)
    return args.tables


if __name__ == "__main__":
    main()

"""Error of fixed steps against evaluations: our solvers beside diffusers, k-diffusion and azula.

The network is exact: E[x_0 | x] of a mixture of Gaussians (`default.py` has them). All start from
the same noise and end at the same time, and all are run on three grids: uniform in t, uniform in
log-SNR, Karras et al.'s. Only the default is on its own. An error is the root mean square over
coordinates of the distance to the end of the exact flow: its median over samples, and its 90th
percentile. A row has a solver of ours, or the best of a library by the median, on the best of its
grids; *ratio* is its median over that of our default. Samplers whose own code has a fault that
changes the result have a row of their own beside, with a note.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from default import Task, named
from peers import THROWN, Sampler, samplers, solve, versions
from timing import Row, Tables, on_mixtures, options, report
from torch import Tensor

from sdediff import solvers
from sdediff.arguments import default_solver

NFES = (5, 8, 10, 15, 20, 30, 50, 100)
GRIDS = ("uniform", "log_snr", "karras")
OURS: dict[str, solvers.Solver] = {
    "DDIM()": solvers.DDIM(),
    "DPMSolverPP(2)": solvers.DPMSolverPP(2),
    "DEIS(3)": solvers.DEIS(3),
    "UniPC(3)": solvers.UniPC(3),
    "Heun(variable='sigma')": solvers.Heun(variable="sigma"),
}
Solve = Callable[[str, int], Tensor]
"""The end of a grid, by its name and the number of steps."""


class Found(NamedTuple):
    """The errors of a solver on the best of its grids."""

    by: str
    solver: str
    grid: str
    median: float
    p90: float
    note: str = ""


def by_us(task: Task, solver: solvers.Solver) -> Solve:
    return lambda grid, steps: task.solve(solver, task.grid(grid, steps))[0]


def by_peer(task: Task, sampler: Sampler) -> Solve:
    def run(grid: str, steps: int) -> Tensor:
        times = task.grid(grid, steps)
        alpha, sigma = task.sde.alpha(times), task.sde.sigma(times)
        return solve(sampler, task.mixtures.data, task.x, alpha, sigma)

    return run


def errors(task: Task, x: Tensor) -> tuple[float, float]:
    """The median and the 90th percentile."""
    found = task.errors(x)
    return found.median, found.p90


def best(task: Task, run: Solve, steps: int) -> tuple[str, float, float]:
    """The grid that has the least median, that, and its 90th percentile."""
    found = []
    for grid in GRIDS:
        try:
            found.append((grid, *errors(task, run(grid, steps))))
        except (ValueError, IndexError, RuntimeError):  # a peer's own, at few steps
            found.append((grid, math.inf, math.inf))
    return min(found, key=lambda each: each[1])


def candidates(task: Task, nfe: int) -> Iterator[Found]:
    """The default first, then ours, the best of each library, and the samplers with a fault."""
    own = default_solver(task.sde, nfe, stochastic=False)
    x, _ = task.solve(own, task.grid(own.spacing, nfe))
    yield Found("sdediff", "default", "its own", *errors(task, x))
    for name, solver in OURS.items():
        steps = nfe // solver.evaluations
        yield Found("sdediff", name, *best(task, by_us(task, solver), steps))
    scores: dict[str, list[Found]] = {}
    for each in samplers(stochastic=False):
        if nfe >= each.evaluations:
            score = best(task, by_peer(task, each), nfe // each.evaluations)
            note = "" if each.fault == THROWN else each.fault  # that costs time alone
            scores.setdefault(each.library, []).append(Found(each.library, each.name, *score, note))
    for library, every in scores.items():
        fairest = min(every, key=lambda found: found.median)
        yield fairest._replace(by=f"{library}, best")
        yield from (each for each in every if each.note and "lower" not in each.solver)


def table(name: str, d: int, args: argparse.Namespace) -> Iterator[Row]:
    """The rows of a problem."""
    task = Task(name, d, count=1, rows=args.rows, seed=args.seed)
    task.reference(args.reference)
    for nfe in args.nfes:
        every = list(candidates(task, nfe))
        for each in every:
            row: Row = {"task": f"{name}-{d}d", "NFE": nfe, **each._asdict()}
            yield row | {"ratio": each.median / every[0].median}


def own(row: Row) -> bool:
    return row["by"] == "sdediff"


def is_best(row: Row) -> bool:
    return str(row["by"]).endswith("best")


def summary(rows: list[Row]) -> list[Row]:
    """Geometric means over the problems of the median over that of the default."""
    lines: list[Row] = []
    for nfe in dict.fromkeys(row["NFE"] for row in rows):
        line: Row = {"NFE": nfe}
        some = [row for row in rows if row["NFE"] == nfe and (own(row) or is_best(row))]
        ratios: dict[str, list[float]] = {}
        for row in some:
            who = str(row["solver"] if own(row) else row["by"])
            ratios.setdefault(who, []).append(float(str(row["ratio"])))
        line |= {who: math.exp(sum(map(math.log, x)) / len(x)) for who, x in ratios.items()}
        lines.append(line)
    return lines


def main(argv: Sequence[str] | None = None) -> Tables:
    told = {"type": int, "nargs": "+", "metavar": "NFE", "help": "evaluations"}
    args = options(__doc__ or "", on_mixtures() | {"--nfes": told}, argv)
    args.rows, args.reference = (32, 200) if args.quick else (256, 1500)
    args.nfes = args.nfes or ((5, 10, 20) if args.quick else NFES)
    absent = [name for name in ("diffusers", "k-diffusion", "azula") if not versions()[name]]
    if absent:
        print(f"not installed: {', '.join(absent)}\n")
    rows = [row for name, d in named(args.tasks, args.quick) for row in table(name, d, args)]
    report(f"work-precision, mixtures {args.seed}", rows, args)
    report("median over that of the default, geometric mean over the problems", summary(rows), args)
    return args.tables


if __name__ == "__main__":
    main()

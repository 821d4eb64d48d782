"""Law of stochastic samples: ours beside diffusers, k-diffusion and azula, by their own code.

The network is exact: E[x_0 | x] of a mixture of Gaussians. All start from the same noise and have
as many evaluations, the last of which takes the state to E[x_0 | x]. Every sampler is run on five
grids (uniform in t, uniform in log-SNR, Karras et al.'s, ``"logistic"`` and ``"central"``), and the
best one counts, by the energy distance; the default has its own. A row has a sampler; *ratio* is
its energy distance over that of our default, both raised to what true samples have (*energy
floor*). *log spread* is the log of the distance to the nearest mean over that of true samples.
`stochastic.py` has the distances, and more published solvers in our own implementation.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from default import named
from peers import Sampler, samplers, solve, versions
from stochastic import GRIDS, Apart, Known
from timing import Row, Tables, on_mixtures, options, report
from torch import Tensor

from sdediff import solvers

NFES = (8, 10, 15, 20, 50)
OURS: dict[str, solvers.Solver] = {
    "EulerMaruyama()": solvers.EulerMaruyama(),
    "SDEDPMSolverPP(2)": solvers.SDEDPMSolverPP(2),
    "ERSDE(3)": solvers.ERSDE(3),
}
Draw = Callable[[str], Tensor | None]
"""Samples on a grid of that name, None where not one step fits."""


class Found(NamedTuple):
    """How far the samples of a solver are from the law, on the best of its grids."""

    by: str
    solver: str
    grid: str
    apart: Apart
    note: str = ""


def by_us(task: Known, solver: solvers.Solver, nfe: int, rows: int) -> Draw:
    def draw(grid: str) -> Tensor | None:
        got = task.drawn(solver, nfe, grid, rows)
        return None if got is None else got[0]

    return draw


def by_peer(task: Known, sampler: Sampler, nfe: int, rows: int) -> Draw:
    def draw(grid: str) -> Tensor | None:
        steps = (nfe - 1) // sampler.evaluations
        if steps < 1:
            return None
        times = task.grid(grid, steps)
        alpha, sigma = task.sde.alpha(times), task.sde.sigma(times)
        x = solve(sampler, task.mixtures.data, task.x[:rows].float(), alpha, sigma)
        return task.mixtures.data(x, float(alpha[-1]), float(sigma[-1]))

    return draw


def best(task: Known, draw: Draw) -> tuple[str, Apart]:
    """The grid with the least energy distance, and how far its samples are."""
    found = []
    for grid in GRIDS:
        try:
            x = draw(grid)
        except (ValueError, IndexError, RuntimeError):  # a peer's own, at few steps
            x = None
        if x is not None and bool(torch.isfinite(x).all()):
            found.append((grid, task.apart(x)))
    if not found:
        return "-", Apart(math.inf, math.inf, math.inf)
    return min(found, key=lambda each: each[1].energy)


def candidates(task: Known, nfe: int, rows: int) -> Iterator[Found]:
    """The default first, then ours, then every sampler of the libraries."""
    got = task.drawn(None, nfe, None, rows)
    if got is not None:
        yield Found("sdediff", "default, stochasticity=1", "its own", task.apart(got[0]))
    for name, solver in OURS.items():
        yield Found("sdediff", name, *best(task, by_us(task, solver, nfe, rows)))
    for each in samplers(stochastic=True):
        score = best(task, by_peer(task, each, nfe, rows))
        yield Found(each.library, each.name, *score, each.fault)


def table(name: str, d: int, args: argparse.Namespace) -> Iterator[Row]:
    """The rows of a problem."""
    task = Known(name, d, rows=args.rows, few=args.rows, seed=args.seed)
    for nfe in args.nfes:
        every = list(candidates(task, nfe, args.rows))
        least = max(every[0].apart.energy, task.floor.energy)
        for each in every:
            row: Row = {"task": f"{name}-{d}d", "at most": nfe, "by": each.by}
            row |= {"solver": each.solver, "grid": each.grid, "energy": each.apart.energy}
            row["ratio"] = max(each.apart.energy, task.floor.energy) / least
            row |= {"energy floor": task.floor.energy, "SW2": max(each.apart.square, 0.0) ** 0.5}
            yield row | {"log spread": each.apart.spread, "note": each.note}


def main(argv: Sequence[str] | None = None) -> Tables:
    told = {"type": int, "nargs": "+", "metavar": "NFE", "help": "the last one included"}
    rows_told = {"type": int, "default": 20_000, "help": "samples of each"}
    args = options(__doc__ or "", on_mixtures() | {"--nfes": told, "--rows": rows_told}, argv)
    args.rows = 500 if args.quick else args.rows
    args.nfes = args.nfes or ((10, 20) if args.quick else NFES)
    absent = [name for name in ("diffusers", "k-diffusion", "azula") if not versions()[name]]
    if absent:
        print(f"not installed: {', '.join(absent)}\n")
    rows = [row for name, d in named(args.tasks, args.quick) for row in table(name, d, args)]
    report(f"sample quality, mixtures {args.seed}", rows, args)
    return args.tables


if __name__ == "__main__":
    main()

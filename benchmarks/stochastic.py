"""Law of the stochastic default against the best of the published stochastic solvers, each on its
best grid, on mixtures with a known law.

A row is an SDE and a number of evaluations, the last one of which takes the state to E[x_0 | x].
The energy distance and the sliced W2 are those of the samples from 20,000 true ones, over the same
directions for all solvers; both are unbiased, W2 in its square (what true samples have is taken
off it). *floor* is what two true samples have, at most of sixteen; a ratio is of two numbers that
are raised to it. *log spread* is the log of the distance to the nearest mean, root mean square,
over that of true samples. All published solvers are run with few samples; those that are best
there, with all.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from default import Task, named
from timing import Row, Tables, on_mixtures, options, report
from torch import Tensor

import sdediff as sd
from sdediff import solvers
from sdediff.arguments import default_solver

NFES = (5, 8, 10, 15, 20, 30)
GRIDS = ("uniform", "log_snr", "karras", "logistic", "central")
DIRECTIONS = {2: 16, 64: 64}
TRUE = 16
"""How many sets of true samples make the floor: of four it was low by half."""
BEST = 2
"""How many of the published solvers are run with all samples."""
PEERS: dict[str, solvers.Solver] = {
    "Euler-Maruyama": solvers.EulerMaruyama(),
    "Ancestral": solvers.Ancestral(),
    "SDE-DPM++2M": solvers.SDEDPMSolverPP(2),
    "SDE-DPM++3M": solvers.SDEDPMSolverPP(3),
    "SA2": solvers.SASolver(2),
    "SA3": solvers.SASolver(3),
    "ER-SDE2": solvers.ERSDE(2),
    "ER-SDE3": solvers.ERSDE(3),
    "SEEDS2": solvers.SEEDS(2),
    "DPM2 ancestral": solvers.Renoise(solvers.DPMSolver(2), eta=1.0),
    "DPM++2S ancestral": solvers.Renoise(solvers.DPMSolverPPSinglestep(2), eta=1.0),
    "EDM": solvers.Churn(solvers.Heun(variable="sigma")),
}


class Apart(NamedTuple):
    """How far samples are from the law."""

    energy: float
    square: float  # of sliced W2
    spread: float  # log


class Known(Task):
    """A mixture, states at the start, and true samples along random directions."""

    def __init__(self, name: str, d: int, *, rows: int, few: int, seed: int) -> None:
        super().__init__(name, d, count=1, rows=rows, seed=seed)
        self.few = few
        u = torch.randn(DIRECTIONS[d], d, generator=self.generator, dtype=torch.float64)
        if d == 2:  # evenly: all that there is to a plane
            angle = (torch.arange(len(u), dtype=torch.float64) + 0.5) * math.pi / len(u)
            u = torch.stack([angle.cos(), angle.sin()], dim=1)
        self.directions = u / u.norm(dim=1, keepdim=True)
        # E|x . u| of a random direction is this share of |x|
        self.share = math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)
        truth = self.true(rows)
        self.right = 0.0
        self.right = self.log_spread(truth)
        self.sorted = self.along(truth)
        start = self.sorted.new_zeros(len(u), 1)
        self.sums = torch.cat([start, self.sorted.cumsum(dim=1)], dim=1)
        self.own = within(self.sorted)
        self.square = 0.0
        true = [self.apart(self.true(rows)) for _ in range(TRUE)]
        self.square = sum(each.square for each in true) / len(true)
        self.floor = Apart(
            max(abs(each.energy) for each in true),
            max(abs(each.square - self.square) for each in true),
            max(abs(each.spread) for each in true),
        )

    def true(self, rows: int) -> Tensor:
        return self.mixtures.draw(rows, 1.0, 0.0, self.generator)[0]

    def along(self, x: Tensor) -> Tensor:
        return (self.directions @ x.double().T).sort(dim=1).values

    def log_spread(self, x: Tensor) -> float:
        least, k = self.mixtures.apart(x[None].double(), 1.0).min(dim=-1)
        variance = torch.gather(self.mixtures.stds**2, 1, k)
        return 0.5 * math.log(float((least / variance).mean()) / self.mixtures.d) - self.right

    def apart(self, x: Tensor) -> Apart:
        """Energy distance is the mean over directions of that in one dimension, but for a factor;
        there, sums over all pairs are sums over sorted numbers.
        """
        a, b = self.along(x), self.sorted
        n, m = a.shape[1], b.shape[1]
        below = torch.searchsorted(b, a)
        both = a * (2 * below - m) - 2 * torch.gather(self.sums, 1, below) + self.sums[:, -1:]
        energy = 2 * both.sum(dim=1) / (n * m) - within(a) - self.own
        square = (a - b.reshape(len(b), n, -1).mean(dim=2)).square().mean()
        spread = self.log_spread(x)
        return Apart(float(energy.mean()) / self.share, float(square) - self.square, spread)

    def drawn(
        self, solver: solvers.Solver | None, nfe: int, grid: str | None, rows: int
    ) -> tuple[Tensor, int] | None:
        """Samples by at most ``nfe`` evaluations, the last of them at the end; None where not one
        step fits. The solver None is the default.
        """

        def cost(steps: int) -> int:
            one = default_solver(self.sde, steps, stochastic=True) if solver is None else solver
            return steps * one.evaluations + 1

        steps = next((n for n in range(nfe - 1, 0, -1) if cost(n) <= nfe), 0)
        if not steps:
            return None
        own = default_solver(self.sde, steps, stochastic=True).spacing
        out = sd.sample(
            self.model,
            (rows, self.mixtures.d),
            solver=solver,
            grid=self.grid(grid or own, steps),
            stochasticity=1.0 if solver is None else None,
            x_init=self.x[:rows],
            seed=0,
            last="denoise",
            on_fail="return",
        )
        return out.x, int(out.nfe.max())

    def screened(self, nfe: int, peers: list[str]) -> list[tuple[str, str]]:
        """Which of the published solvers, and grids, are best with few samples, by either
        distance.
        """
        found: list[tuple[float, float, tuple[str, str]]] = []
        for name, grid in itertools.product(peers, GRIDS):
            got = self.drawn(PEERS[name], nfe, grid, self.few)
            if got is not None and bool(torch.isfinite(got[0]).all()):
                energy, square, _ = self.apart(got[0])
                found.append((energy, square, (name, grid)))
        best = [sorted(found, key=lambda each: each[i])[:BEST] for i in (0, 1)]
        return list(dict.fromkeys(each[2] for some in best for each in some))


def within(ordered: Tensor) -> Tensor:
    """The mean of |x - x'| over pairs of different rows, along each direction."""
    n = ordered.shape[1]
    weight = 2.0 * torch.arange(n, dtype=ordered.dtype) - n + 1
    return 2 * (ordered @ weight) / (n * (n - 1))


def table(name: str, d: int, args: argparse.Namespace) -> list[Row]:
    task = Known(name, d, rows=args.rows, few=args.few, seed=args.seed)
    rows: list[Row] = []
    for nfe in args.nfes:
        got = task.drawn(None, nfe, None, args.rows)
        if got is None:
            continue
        ours, peers = task.apart(got[0]), dict[str, Apart]()
        for peer, grid in task.screened(nfe, args.peers):
            other = task.drawn(PEERS[peer], nfe, grid, args.rows)
            if other is not None:
                peers[f"{peer}/{grid}"] = task.apart(other[0])
        row: Row = {"task": f"{name}-{d}d", "at most": nfe, "NFE": got[1]}
        for key, part, root in (("energy", 0, 1.0), ("SW2", 1, 0.5)):
            best = min(peers, key=lambda each: peers[each][part])
            mine, least, floor = (each[part] for each in (ours, peers[best], task.floor))
            ratio = (max(mine, floor) / max(least, floor)) ** root
            row |= {
                key: max(mine, 0.0) ** root if root < 1 else mine,
                f"{key} ratio": ratio,
                f"{key} floor": floor**root,
                f"best {key}": best,
            }
            row[f"spread of best {key}"] = peers[best].spread
        rows.append({**row, "log spread": ours.spread, "spread floor": task.floor.spread})
    return rows


def summary(rows: list[Row]) -> list[Row]:
    """Geometric mean and worst of the ratios over the problems."""
    lines: list[Row] = []
    for nfe in dict.fromkeys(row["at most"] for row in rows):
        some = [row for row in rows if row["at most"] == nfe]
        line: Row = {"at most": nfe}
        for key in ("energy ratio", "SW2 ratio"):
            ratios = [float(str(row[key])) for row in some]
            line[key] = math.exp(sum(map(math.log, ratios)) / len(ratios))
            line[f"{key}, worst"] = max(ratios)
        for key in ("log spread", "spread of best energy", "spread of best SW2"):
            line[f"|{key}|"] = sum(abs(float(str(row[key]))) for row in some) / len(some)
        lines.append(line)
    return lines


def main(argv: Sequence[str] | None = None) -> Tables:
    more = on_mixtures(chosen="; 0 and 1 are those that the rule was chosen on")
    more["--nfes"] = {
        "type": int, "nargs": "+", "metavar": "NFE", "help": "evaluations, the last one included"
    }  # fmt: skip
    more["--peers"] = {
        "default": ",".join(PEERS), "help": "published solvers; all of them by default"
    }  # fmt: skip
    args = options(__doc__ or "", more, argv)
    args.rows, args.few = (500, 250) if args.quick else (20_000, 2_000)
    args.peers = args.peers.split(",")
    args.nfes = args.nfes or ((5, 8) if args.quick else NFES)
    rows: list[Row] = []
    for name, d in named(args.tasks, args.quick):
        rows += table(name, d, args)
    report(f"stochastic default over the best published solver, mixtures {args.seed}", rows, args)
    report("over the problems", summary(rows), args)
    return args.tables


if __name__ == "__main__":
    main()

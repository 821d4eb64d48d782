"""Time of a schedule's evaluation, one time and a thousand, and of a step, for a built-in SDE and
for a user's own f and g.

The user's SDE gives f and g alone, so alpha, sigma and log-SNR come out of quadrature: dearer to
evaluate. Solvers evaluate schedules once, for the whole grid, so the time of a step must not depend
on it. ``plan`` is the set-up of a solve, which may.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timing import Run, Tables, arguments, micro, race, ratios, report, seconds
from torch import Tensor

import sdediff as sd
from sdediff.reverse import Reverse

FEW, MANY = 64, 320
SHAPE = (16, 2)
PLANNED = {"UniPC-3": sd.solvers.UniPC(), "DEIS-3": sd.solvers.DEIS()}
SOLVERS = {"Euler": sd.solvers.Euler(), "DDIM": sd.DDIM(), "EulerMaruyama": sd.EulerMaruyama()}


class Own(sd.LinearSDE):
    """VP again, told by f and g alone."""

    def beta(self, t):
        return 0.1 + 19.9 * t

    def f(self, t):
        return -0.5 * self.beta(t)

    def g(self, t):
        return self.beta(t).sqrt()


def evaluation(sde: sd.LinearSDE, times: Tensor) -> Run:
    def run(calls: int) -> None:
        for _ in range(calls):
            sde.alpha(times)
            sde.sigma(times)

    return run


def solve(sde: sd.LinearSDE, solver: sd.Solver) -> Run:
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    model = sd.ScoreModel(lambda x, t: eps, sde, predicts="noise")

    def run(steps: int) -> None:
        sd.sample(
            model,
            SHAPE,
            solver=solver,
            steps=steps,
            grid="uniform",
            x_init=start,
            seed=0,
            last="noisy",
        )

    return run


def plan(sde: sd.LinearSDE, solver: sd.solvers.UniPC | sd.solvers.DEIS, grid: torch.Tensor) -> Run:
    model = sd.ScoreModel(lambda x, t: x, sde, predicts="noise")

    def run(calls: int) -> None:
        for _ in range(calls):
            with torch.no_grad():  # as a solve does, which keeps no graph unless it is asked to
                solver.plan(Reverse(model, 1), grid)

    return run


def main(argv: Sequence[str] | None = None) -> Tables:
    args = arguments(__doc__ or "", rounds=40, argv=argv)
    kinds = {"VP": sd.VP(), "own": Own()}
    scalar, vector = (
        torch.tensor(0.5, dtype=torch.float64),
        torch.linspace(0.001, 1, 1000, dtype=torch.float64),
    )
    rows: list[dict[str, object]] = []

    def add(what: str, runs: dict[str, Run], few: int, many: int) -> None:
        times = race(runs, few, many, args.rounds)
        shown = {"what": what, "VP us": micro(times["VP"]), "own us": micro(times["own"])}
        rows.append({**shown, **ratios(times["own"], times["VP"])})

    add("alpha, sigma at one time", {k: evaluation(sde, scalar) for k, sde in kinds.items()}, 2, 22)
    add(
        "alpha, sigma at 1000 times",
        {k: evaluation(sde, vector) for k, sde in kinds.items()},
        2,
        22,
    )
    for name, solver in SOLVERS.items():
        runs = {k: solve(sde, solver) for k, sde in kinds.items()}
        add(f"step of {name}", runs, FEW, MANY)
        # A solve of one step is all set-up.
        alone = {k: [seconds(run, 1) for _ in range(args.rounds)] for k, run in runs.items()}
        setup = {
            "what": f"set-up of {name}",
            "VP us": micro(alone["VP"]),
            "own us": micro(alone["own"]),
        }
        rows.append({**setup, **ratios(alone["own"], alone["VP"])})
    grid = torch.linspace(1.0, 1e-3, 51, dtype=torch.float64)
    for name, solver in PLANNED.items():
        runs = {k: plan(sde, solver, grid) for k, sde in kinds.items()}
        add(f"plan of {name}, 50 steps", runs, 1, 6)
    report("schedule", rows, args)
    return args.tables


if __name__ == "__main__":
    main()

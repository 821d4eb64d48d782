"""Cost of a log-density to a given error, against torchdiffeq's dopri8 and dopri5 with the exact
trace, on mixtures.

Samples of a mixture of Gaussians at t_min get their log-density with the exact divergence, by every
solver at many tolerances; the prior's own error is taken out. For each root mean square error in
nats per dimension a solver has the run that reaches it with the fewest rows of the network: *rows*
are the mean of the samples' evaluations, *NFE* the slowest's, *ms* the CPU time of the whole call,
least of three in turn with the others'. torchdiffeq integrates the drift in t with the trace by
vectorised vector-Jacobian products from the one forward pass, as ours: what differs is the solver,
its variables and its steps, one for all.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torchdiffeq
from timing import Row, Tables, least_in_turn, on_mixtures, options, report, show
from torch import Tensor

import sdediff as sd

SDES = {"VE": sd.VE(), "VP": sd.VP(), "SubVP": sd.SubVP()}
TASKS = ("VP-2", "VP-64", "VE-2", "VE-64", "SubVP-2", "SubVP-64")
TARGETS = (1e-3, 1e-5, 1e-7)


class Run(NamedTuple):
    error: float
    slowest: int
    rows: float
    tolerance: float
    again: Callable[[], float]  # seconds


class Task:
    """A mixture under an SDE, samples at t_min and their log-density there."""

    def __init__(self, name: str, rows: int, seed: int) -> None:
        sde, d = name.split("-")
        self.sde, self.d, self.calls = SDES[sde], int(d), 0
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(8, self.d, generator=generator, dtype=torch.float64)
        self.law = sd.exact.GaussianMixture(means, 0.2)
        noise = torch.randn(rows, self.d, generator=generator, dtype=torch.float64)
        self.x = self.sde.perturb(self.law.sample(rows, seed=seed), self.sde.t_min, noise)
        self.model, self.exact = (
            self.law.model(self.sde),
            self.law.log_prob(self.sde, self.x, self.sde.t_min),
        )

    def ours(self, solver: sd.RK45 | sd.solvers.DOP853) -> tuple[Tensor, Tensor, Tensor]:
        out = sd.log_prob(self.model, self.x, solver=solver, max_nfe=20_000)
        return out.value, out.z, out.nfe

    def right_hand_side(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        with torch.enable_grad():
            x = y[0].detach().requires_grad_()
            v = self.model.flow(x, t.clamp(self.sde.t_min, self.sde.t_max))
            units = torch.eye(self.d, dtype=v.dtype)[:, None].expand(-1, len(x), -1)
            (rows,) = torch.autograd.grad(v, x, units, is_grads_batched=True)
        return v.detach(), torch.einsum("ibi->b", rows)

    @torch.no_grad()
    def torchdiffeq(self, method: str, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        self.calls, times = 0, torch.tensor([self.sde.t_min, self.sde.t_max], dtype=torch.float64)
        z, trace = torchdiffeq.odeint(
            self.right_hand_side,
            (self.x, self.x.new_zeros(len(self.x))),
            times,
            rtol=tolerance,
            atol=tolerance,
            method=method,
            options={"step_t": times[1:]},
        )
        return self.sde.prior.log_prob(z[-1]) + trace[-1], z[-1], torch.tensor([self.calls])

    def run(self, solve: Callable[[float], tuple[Tensor, Tensor, Tensor]], tolerance: float) -> Run:
        value, z, nfe = solve(tolerance)
        gap = self.law.log_prob(self.sde, z, self.sde.t_max) - self.sde.prior.log_prob(z)
        error = float((value + gap - self.exact).square().mean().sqrt()) / self.d

        def again() -> float:
            start = time.thread_time()
            solve(tolerance)
            return time.thread_time() - start

        return Run(error, int(nfe.max()), float(nfe.double().mean()), tolerance, again)


def table(name: str, args: argparse.Namespace) -> list[Row]:
    task = Task(name, 4 if args.quick else 32, args.seed)
    solvers: dict[str, Callable[[float], tuple[Tensor, Tensor, Tensor]]] = {
        "RK45": lambda tol: task.ours(sd.RK45(tol, tol)),
        "DOP853": lambda tol: task.ours(sd.solvers.DOP853(tol, tol)),
        "torchdiffeq dopri8": lambda tol: task.torchdiffeq("dopri8", tol),
        "torchdiffeq dopri5": lambda tol: task.torchdiffeq("dopri5", tol),
    }
    found: list[tuple[float, str, Run]] = []
    for solver, solve in solvers.items():
        runs: list[Run] = []
        for i in range(args.decades * args.density + 1):
            runs.append(task.run(solve, 10 ** (-1 - i / args.density)))
            if runs[-1].error < 0.3 * args.targets[-1]:
                break
        for target in args.targets:
            reached = [run for run in runs if run.error <= target]
            if reached:
                found.append((target, solver, min(reached, key=lambda run: run.rows)))
    seconds = least_in_turn(
        [(target, best.again) for target, _, best in found], 1 if args.quick else 3
    )
    return [
        {
            "task": name,
            "solver": solver,
            "error": f"{target:.0e}",
            "NFE": best.slowest,
            "rows": best.rows,
        }
        | {"ms": 1e3 * least, "tolerance": best.tolerance, "reached": best.error}
        for (target, solver, best), least in zip(found, seconds, strict=True)
    ]


def summary(rows: list[Row]) -> list[Row]:
    """The better of ours by rows, over dopri8."""
    lines = []
    for key in dict.fromkeys((row["task"], row["error"]) for row in rows):
        here = {str(row["solver"]): row for row in rows if (row["task"], row["error"]) == key}
        ours = [row for solver, row in here.items() if not solver.startswith("torchdiffeq")]
        peer = here.get("torchdiffeq dopri8")
        if not ours or peer is None:
            continue
        best = min(ours, key=lambda row: float(row["rows"]))
        line = {"task": key[0], "error": key[1], "by": best["solver"]}
        lines.append(
            {
                **line,
                **{
                    f"{what} ratio": float(best[what]) / float(peer[what])
                    for what in ("NFE", "rows", "ms")
                },
            }
        )
    return lines


def main(argv: Sequence[str] | None = None) -> Tables:
    density = {"--density": {"type": int, "default": 2, "help": "tolerances a decade"}}
    args = options(__doc__ or "", on_mixtures(TASKS) | density, argv)
    args.targets, args.decades = ((1e-2, 1e-3), 3) if args.quick else (TARGETS, 9)
    names = args.tasks.split(",") if args.tasks else TASKS[:1] if args.quick else TASKS
    rows: list[Row] = []
    for name in names:
        part = table(name, args)
        show(f"{name}, mixture {args.seed}", part)
        rows += part
    report("likelihood", rows, args)
    lines = summary(rows) or [{"ratio": math.nan}]
    report("the better of ours over torchdiffeq dopri8", lines, args)
    return args.tables


if __name__ == "__main__":
    main()

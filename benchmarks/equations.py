"""Cost of plain ODEs and SDEs to a given error, against torchdiffeq, torchsde and SciPy.

Every library's method runs at a ladder of tolerances (steps, for SDEs); of the runs that reach a
root mean square error the one with the fewest evaluations counts. *evaluations* are those of a
sample, the mean over samples for solvers with a step size each, *ms* the CPU time of the solve,
least of the rounds, candidates in turn. The two ratios are to ours in the first row of a task, so
that above 1 the peer costs more. Functions are the same for all, with t made to fit x.

- ``pendulum``: 128 pendulums of frequencies from 1 to 10, over the time 10.
- ``van der Pol``: mu = 50, one sample, over the time 50: stiff.
- ``GBM``: 1000 paths of dx = 0.5 x dt + 0.8 x dw; the error is that along the path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torchdiffeq
import torchsde
from scipy.integrate import solve_ivp
from timing import Tables, arguments, least_in_turn, report
from torch import Tensor

import solvers

Solve = Callable[[float], tuple[Tensor, float]]


class Task(NamedTuple):
    """A problem: its candidates, ours first, as functions of a tolerance or a number of steps."""

    exact: Callable[[Tensor], float]
    ladder: tuple[float, ...]
    targets: tuple[float, ...]
    candidates: dict[str, Solve]


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.function(x, t)


def ours(f: Callable[..., Tensor], x: Tensor, end: float, make: Callable[[float], object]) -> Solve:
    def solve(tolerance: float) -> tuple[Tensor, float]:
        out = solvers.solve_ode(f, x, [0.0, end], make(tolerance), max_nfe=10**6)
        return out.x, float(out.nfe.double().mean())

    return solve


def by_torchdiffeq(f: Callable[..., Tensor], x: Tensor, end: float, method: str) -> Solve:
    @torch.no_grad()
    def solve(tolerance: float) -> tuple[Tensor, float]:
        own, times = Counted(f), torch.tensor([0.0, end], dtype=torch.float64)
        y = torchdiffeq.odeint(
            lambda t, x: own(x, t), x, times, rtol=tolerance, atol=tolerance, method=method
        )
        return y[-1], own.calls

    return solve


def by_scipy(f: Callable[..., Tensor], x: Tensor, end: float, method: str) -> Solve:
    @torch.no_grad()
    def solve(tolerance: float) -> tuple[Tensor, float]:
        own = Counted(f)

        def g(t: float, y: np.ndarray) -> np.ndarray:
            return own(torch.from_numpy(y).reshape(x.shape), torch.tensor(t)).reshape(-1).numpy()

        start = x.reshape(-1).numpy()
        out = solve_ivp(g, (0.0, end), start, method=method, rtol=tolerance, atol=tolerance)
        return torch.from_numpy(out.y[:, -1]).reshape(x.shape), own.calls

    return solve


def against(wanted: Tensor) -> Callable[[Tensor], float]:
    return lambda x: float((x - wanted).square().mean().sqrt())


def pendulum(*, quick: bool) -> Task:
    rows = 8 if quick else 128
    k = torch.linspace(1, 10, rows, dtype=torch.float64)[:, None].square()
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(rows, 1)
    end = 1.0 if quick else 10.0

    def slope(x: Tensor, t: Tensor, k: Tensor) -> Tensor:
        return torch.cat([x[:, 1:], -k * x[:, :1].sin()], dim=1)

    def own(x: Tensor, t: Tensor) -> Tensor:
        return slope(x, t, k)

    def mine(make: Callable[[float], object]) -> Solve:
        def solve(tolerance: float) -> tuple[Tensor, float]:
            out = solvers.solve_ode(
                slope, x, [0.0, end], make(tolerance), condition={"k": k}, max_nfe=10**6
            )
            return out.x, float(out.nfe.double().mean())

        return solve

    wanted = mine(lambda _: solvers.DOP853(1e-13, 1e-13))(0.0)[0]
    found = {
        "RK45": mine(lambda tol: solvers.RK45(tol, tol)),
        "DOP853": mine(lambda tol: solvers.DOP853(tol, tol)),
        "torchdiffeq dopri5": by_torchdiffeq(own, x, end, "dopri5"),
        "torchdiffeq dopri8": by_torchdiffeq(own, x, end, "dopri8"),
        "scipy RK45": by_scipy(own, x, end, "RK45"),
        "scipy DOP853": by_scipy(own, x, end, "DOP853"),
    }
    ladder = tuple(10 ** (-i / 2) for i in range(4, 25))
    return Task(against(wanted), ladder, (1e-3, 1e-6), found)


def van_der_pol(*, quick: bool) -> Task:
    mu, end = (5.0, 5.0) if quick else (50.0, 50.0)
    x = torch.tensor([[2.0, 0.0]], dtype=torch.float64)

    def slope(x: Tensor, t: Tensor) -> Tensor:
        return torch.stack([x[:, 1], mu * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]], dim=1)

    wanted = ours(slope, x, end, lambda _: solvers.SciPy("Radau", 1e-11, 1e-11))(0.0)[0]
    found = {
        "SciPy('Radau')": ours(slope, x, end, lambda tol: solvers.SciPy("Radau", tol, tol)),
        "scipy Radau": by_scipy(slope, x, end, "Radau"),
        "SciPy('BDF')": ours(slope, x, end, lambda tol: solvers.SciPy("BDF", tol, tol)),
        "RK45": ours(slope, x, end, lambda tol: solvers.RK45(tol, tol)),
        "torchdiffeq dopri5": by_torchdiffeq(slope, x, end, "dopri5"),
    }
    ladder = tuple(10 ** (-i / 2) for i in range(4, 19))
    return Task(against(wanted), ladder, (1e-4,), found)


class Geometric(torch.nn.Module):
    """dx = 0.5 x dt + 0.8 x dw as torchsde wants it."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def f(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return 0.5 * x

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        return 0.8 * x


def geometric(*, quick: bool) -> Task:
    rows = 50 if quick else 1000
    x = torch.ones(rows, 1, dtype=torch.float64)

    def exact(w: Tensor) -> Tensor:
        return torch.exp(0.5 - 0.32 + 0.8 * w)

    def mine(solver: solvers.Solver) -> Solve:
        def solve(steps: float) -> tuple[Tensor, float]:
            times = torch.linspace(0, 1, int(steps) + 1, dtype=torch.float64)
            path = solvers.BrownianPath(
                range(rows), (1,), 0.0, 1.0, intervals=times, dtype=torch.float64
            )
            out = solvers.solve_sde(
                lambda x, t: 0.5 * x, lambda x, t: 0.8 * x, x, times, solver, noise=path
            )
            return out.x / exact(path.increment(times[0], times[-1])), float(out.nfe[0])

        return solve

    def theirs(method: str) -> Solve:
        @torch.no_grad()
        def solve(steps: float) -> tuple[Tensor, float]:
            sde, times = Geometric(), torch.tensor([0.0, 1.0], dtype=torch.float64)
            path = torchsde.BrownianInterval(
                0.0,
                1.0,
                size=(rows, 1),
                dtype=torch.float64,
                entropy=0,
                dt=1 / steps,
                levy_area_approximation="space-time" if method == "srk" else "none",
            )
            y = torchsde.sdeint(sde, x, times, bm=path, method=method, dt=1 / steps)
            return y[-1] / exact(path(0.0, 1.0)), sde.calls

        return solve

    found = {
        "Milstein": mine(solvers.Milstein()),
        "EulerMaruyama": mine(solvers.EulerMaruyama()),
        "torchsde milstein": theirs("milstein"),
        "torchsde euler": theirs("euler"),
        "torchsde srk": theirs("srk"),
    }
    ladder = tuple(2.0**i for i in range(2, 7 if quick else 10))
    return Task(against(torch.ones(1, dtype=torch.float64)), ladder, (0.1, 0.02), found)


TASKS = {"pendulum": pendulum, "van der Pol": van_der_pol, "GBM": geometric}


def cheapest(task: Task, solve: Solve, target: float) -> tuple[float, float] | None:
    """(evaluations, rung) of the first rung of the ladder that reaches the error."""
    for rung in task.ladder:
        try:
            x, evaluations = solve(rung)
        except (solvers.SolveError, AssertionError, ValueError):
            continue
        if task.exact(x) <= target:
            return evaluations, rung
    return None


def table(name: str, rounds: int, *, quick: bool) -> list[dict[str, object]]:
    task = TASKS[name](quick=quick)
    rows: list[dict[str, object]] = []
    for target in task.targets[:1] if quick else task.targets:
        found = {
            label: best
            for label, solve in task.candidates.items()
            if (best := cheapest(task, solve, target)) is not None
        }

        def timed(label: str, rung: float) -> Callable[[], float]:
            def run() -> float:
                start = time.thread_time()
                task.candidates[label](rung)
                return time.thread_time() - start

            return run

        runs = [(0.0, timed(label, rung)) for label, (_, rung) in found.items()]
        times = dict(zip(found, least_in_turn(runs, rounds), strict=True))
        first = next(iter(found), "")
        rows += [
            {
                "task": name,
                "error": target,
                "method": label,
                "evaluations": evaluations,
                "ratio": evaluations / found[first][0],
                "ms": 1e3 * times[label],
                "time ratio": times[label] / times[first],
            }
            for label, (evaluations, _) in found.items()
        ]
    return rows


def main(argv: Sequence[str] | None = None) -> Tables:
    tasks = {"--tasks": {"help": f"some of {','.join(TASKS)}"}}
    args = arguments(__doc__ or "", 5, tasks, argv)
    names = args.tasks.split(",") if args.tasks else list(TASKS)
    rows = [row for name in names for row in table(name, args.rounds, quick=args.quick)]
    report("equations", rows, args)
    return args.tables


if __name__ == "__main__":
    main()

"""Cost of an adaptive solve to a given error, against SciPy, torchdiffeq and, where they are
installed, torchode and k-diffusion, on mixtures with a known flow.

256 samples of a mixture of Gaussians (`default.py` has its kind) are taken along the probability
flow by every solver at many tolerances. For each root mean square error, over samples and
coordinates, a solver has the run that reaches it with the fewest evaluations of the slowest sample:
*NFE* are those, *rows* is the mean over samples, what the network computes, *ms* the CPU time of
the whole solve with the exact model, least of seven in turn with the others'. SciPy and torchdiffeq
take one step for all. torchdiffeq is told to step on the end of time (``step_t``); *past the end*
is how it is by default, which is NaN at most tolerances. An error that a library does not reach at
any tolerance has no evaluations (inf).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

import torch
import torchdiffeq
from default import SDES, Mixtures
from peers import k_diffusion, versions
from scipy.integrate import solve_ivp
from timing import Row, Tables, least_in_turn, on_mixtures, options, report, show
from torch import Tensor

import sdediff as sd
from sdediff import solvers

TARGETS = (1e-2, 1e-3, 1e-4, 1e-6)
TASKS = ("VP-2", "VP-64", "SubVP-2", "VE-2", "VE-64")
# The fewest NFE of any adaptive solver of nine libraries, on mixtures drawn in the same way (not
# these): a guide.
ENVELOPE = {
    "VP-2": (54, 75, 104, 242),
    "VP-64": (50, 50, 74, 194),
    "VE-2": (62, 63, 104, 218),
    "VE-64": (42, 57, 86, 200),
    "SubVP-2": (54, 80, 116, 254),
}
# torchdiffeq asserts that a step does not underflow
REFUSED = (sd.SolveError, ValueError, AssertionError)


class Run(NamedTuple):
    error: float
    slowest: float
    rows: float
    tolerance: float
    again: Callable[[], float]  # seconds


NEVER = Run(math.inf, math.inf, math.inf, math.nan, lambda: math.inf)
"""No run of a solver reached the error."""


class Flow:
    """A mixture under an SDE, states at the start, and where the exact flow takes them."""

    def __init__(self, name: str, rows: int, seed: int) -> None:
        sde, d = name.split("-")
        self.sde, end = SDES[sde]
        self.start, self.end = self.sde.t_max, self.sde.t_min if end is None else end
        self.mixtures = Mixtures(int(d), 1, seed)
        self.model = sd.ScoreModel(self.net, self.sde, predicts="data", data_std=1.0)
        generator = torch.Generator().manual_seed(seed + 1)
        self.x = self.mixtures.draw(rows, *self.kernel(self.start), generator).reshape(-1, int(d))
        self.exact, _ = self.ours(sd.solvers.DOP853(1e-12, 1e-12, variable="t"))

    def kernel(self, t: float | Tensor) -> tuple[float, float]:
        return float(self.sde.alpha(t)), float(self.sde.sigma(t))

    def net(self, x: Tensor, t: Tensor) -> Tensor:
        return self.mixtures.data(x, self.sde.alpha(t), self.sde.sigma(t))

    def ours(self, solver: solvers.Solver) -> tuple[Tensor, Tensor]:
        out = sd.sample(
            self.model,
            tuple(self.x.shape),
            solver=solver,
            grid=[self.start, self.end],
            x_init=self.x,
            seed=0,
            last="noisy",
            dtype=torch.float64,
            max_nfe=20_000,
        )
        return out.x, out.nfe

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        alpha, sigma = self.kernel(t)
        f, square = float(self.sde.f(t)), float(self.sde.g(t)) ** 2
        return f * x - 0.5 * square / sigma**2 * (alpha * self.mixtures.data(x, alpha, sigma) - x)

    def slope(self, y: Tensor, u: float) -> Tensor:
        """d(x / alpha) / d log(sigma / alpha)."""
        self.calls += 1
        alpha, sigma = self.kernel(self.sde.time_of(-2 * u))
        return y - self.mixtures.data(alpha * y, alpha, sigma)

    @torch.no_grad()
    def scipy(self, method: str, variable: str, tolerance: float) -> tuple[Tensor, Tensor]:
        self.calls, shape, scales, span = 0, self.x.shape, (1.0, 1.0), (self.start, self.end)
        if variable != "t":
            scales = (self.kernel(self.start)[0], self.kernel(self.end)[0])
            span = tuple(-0.5 * float(self.sde.log_snr(t)) for t in span)

        def f(u: float, y):
            state = torch.from_numpy(y).reshape(shape)
            out = (
                self.drift(state, torch.tensor(u, dtype=torch.float64))
                if variable == "t"
                else self.slope(state, float(u))
            )
            return out.reshape(-1).numpy()

        out = solve_ivp(
            f,
            span,
            (self.x / scales[0]).reshape(-1).numpy(),
            method=method,
            rtol=tolerance,
            atol=tolerance,
        )
        return scales[1] * torch.from_numpy(out.y[:, -1]).reshape(shape), torch.tensor([self.calls])

    @torch.no_grad()
    def torchdiffeq(
        self, method: str, tolerance: float, *, past: bool = False
    ) -> tuple[Tensor, Tensor]:
        self.calls, times = 0, torch.tensor([self.start, self.end], dtype=torch.float64)
        y = torchdiffeq.odeint(
            lambda t, x: self.drift(x, t),
            self.x,
            times,
            rtol=tolerance,
            atol=tolerance,
            method=method,
            # without it steps go past the end, where there is no SDE
            options=None if past else {"step_t": times[1:]},
        )
        return y[-1], torch.tensor([self.calls])

    @torch.no_grad()
    def torchode(self, method: str, tolerance: float) -> tuple[Tensor, Tensor]:
        """Every sample has a step size of its own here too, but all are evaluated until the last
        one has reached its end.
        """
        library = import_module("torchode")

        def drift(t: Tensor, x: Tensor) -> Tensor:
            pull = 0.5 * self.sde.g(t) ** 2 / self.sde.sigma(t) ** 2
            clean = self.sde.alpha(t)[:, None] * self.net(x, t)
            return self.sde.f(t)[:, None] * x - pull[:, None] * (clean - x)

        term = library.ODETerm(drift)
        controller = library.IntegralController(atol=tolerance, rtol=tolerance, term=term)
        solver = library.AutoDiffAdjoint(
            getattr(library, method)(term=term), controller, max_steps=2000
        )
        times = torch.tensor([[self.start, self.end]], dtype=torch.float64).expand(len(self.x), 2)
        out = solver.solve(library.InitialValueProblem(y0=self.x, t_eval=times))
        if int(out.status.max()) > 0:
            raise ValueError("torchode did not reach the end")
        return out.ys[:, -1], out.stats["n_f_evals"]

    def k_diffusion(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """DPM-Solver 23 in log(sigma / alpha), one step size for all."""
        self.calls = 0
        (alpha, first), (size, last) = self.kernel(self.start), self.kernel(self.end)

        def denoised(y: Tensor, s: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 20_000:  # its steps can become too short for its float32 times
                raise ValueError("k-diffusion does not reach the end")
            return self.mixtures.data(y, 1.0, float(s[0]))

        y = k_diffusion().sample_dpm_adaptive(
            denoised,
            self.x / alpha,
            last / size,
            first / alpha,
            rtol=tolerance,
            atol=tolerance,
            disable=True,
        )
        return size * y, torch.tensor([self.calls])

    def run(self, solve: Callable[[float], tuple[Tensor, Tensor]], tolerance: float) -> Run:
        x, nfe = solve(tolerance)

        def again() -> float:
            start = time.thread_time()
            solve(tolerance)
            return time.thread_time() - start

        return Run(
            float((x - self.exact).square().mean().sqrt()),
            int(nfe.max()),
            float(nfe.double().mean()),
            tolerance,
            again,
        )


def candidates(flow: Flow, *, quick: bool) -> dict[str, Callable[[float], tuple[Tensor, Tensor]]]:
    ours: dict[str, Callable[[float], solvers.Solver]] = {}
    for cls in (
        (sd.RK45,) if quick else (sd.RK45, sd.solvers.RK23, sd.solvers.Tsit5, sd.solvers.DOP853)
    ):
        for variable in (None,) if quick else (None, "t", "log_snr", "sigma"):
            name = cls.__name__ + (f", {variable}" if variable else "")
            ours[name] = lambda tol, cls=cls, variable=variable: cls(tol, tol, variable=variable)
    for order in () if quick else (2, 3, 4):
        for form in ("noise", "data", 0.4):
            make = lambda tol, order=order, form=form: sd.solvers.ExponentialPair(  # noqa: E731
                order, form, rtol=tol, atol=tol
            )
            ours[f"ExponentialPair({order}, {form!r})"] = make
        make = lambda tol, order=order: sd.solvers.ExponentialPair(  # noqa: E731
            order, sd.solvers.Straight(0.1), "angle", rtol=tol, atol=tol
        )
        ours[f"ExponentialPair({order}, straight)"] = make
    found = {name: (lambda tol, make=make: flow.ours(make(tol))) for name, make in ours.items()}
    peers = {
        "scipy RK45": lambda tol: flow.scipy("RK45", "t", tol),
        "torchdiffeq dopri5": lambda tol: flow.torchdiffeq("dopri5", tol),
    }
    peers["torchdiffeq dopri5, past the end"] = lambda tol: flow.torchdiffeq(
        "dopri5", tol, past=True
    )
    if versions()["k-diffusion"]:
        peers["k-diffusion dpm_adaptive"] = flow.k_diffusion
    if versions()["torchode"]:
        peers["torchode dopri5"] = lambda tol: flow.torchode("Dopri5", tol)
    if not quick:
        peers["scipy RK45, log sigma"] = lambda tol: flow.scipy("RK45", "log_snr", tol)
        peers["scipy DOP853"] = lambda tol: flow.scipy("DOP853", "t", tol)
        peers["scipy DOP853, log sigma"] = lambda tol: flow.scipy("DOP853", "log_snr", tol)
        peers["torchdiffeq dopri8"] = lambda tol: flow.torchdiffeq("dopri8", tol)
    return found | peers


def sweep(
    flow: Flow, solve: Callable[[float], tuple[Tensor, Tensor]], args: argparse.Namespace
) -> list[Run]:
    runs: list[Run] = []
    for i in range(math.ceil(args.decades * args.density) + 1):
        try:
            runs.append(flow.run(solve, 10 ** (-i / args.density)))
        except REFUSED:
            continue
        if runs[-1].error < 0.3 * args.targets[-1] or runs[-1].slowest > args.most:
            break
    return runs


def is_peer(name: str) -> bool:
    return name.startswith(("scipy", "torchdiffeq", "torchode", "k-diffusion"))


def table(name: str, args: argparse.Namespace) -> list[Row]:
    flow = Flow(name, 16 if args.quick else 256, args.seed)
    found: list[tuple[float, str, Run]] = []
    for solver, solve in candidates(flow, quick=args.quick).items():
        if (
            args.solvers is not None
            and not is_peer(solver)
            and solver not in args.solvers.split(";")
        ):
            continue
        runs = sweep(flow, solve, args)
        for target in args.targets:
            reached = [run for run in runs if run.error <= target]
            if reached:
                found.append(
                    (target, solver, min(reached, key=lambda run: (run.slowest, run.rows)))
                )
            elif is_peer(solver):
                found.append((target, solver, NEVER))
    seconds = least_in_turn(
        [(target, best.again) for target, _, best in found], 1 if args.quick else 7
    )
    return [
        {"task": name, "solver": solver, "rmse": target, "NFE": best.slowest, "rows": best.rows}
        | {"ms": 1e3 * least, "tolerance": best.tolerance, "reached": best.error}
        for (target, solver, best), least in zip(found, seconds, strict=True)
    ]


def summary(name: str, rows: list[Row], targets: tuple[float, ...]) -> list[Row]:
    """RK45 as it is by default against the best peer."""
    found: list[Row] = []
    for target in targets:
        here = {str(row["solver"]): row for row in rows if row["rmse"] == target}
        peers = {solver: row for solver, row in here.items() if is_peer(solver)}
        if "RK45" not in here or not peers:
            continue
        mine, best = here["RK45"], min(peers, key=lambda solver: peers[solver]["NFE"])
        line: Row = {
            "task": name,
            "rmse": f"{target:.0e}",
            "NFE": mine["NFE"],
            "best peer": peers[best]["NFE"],
        }
        envelope = dict(zip(TARGETS, ENVELOPE.get(name, ()), strict=False))
        line |= {"whose": best, "envelope": envelope.get(target, "-"), "rows": mine["rows"]}
        line["rows ratio"] = mine["rows"] / peers[best]["NFE"]
        for peer in ("scipy RK45", "torchdiffeq dopri5"):
            line[f"ms ratio to {peer}"] = (
                mine["ms"] / peers[peer]["ms"] if peer in peers else math.nan
            )
        ours = {solver: row for solver, row in here.items() if not is_peer(solver)}
        fewest = min(ours, key=lambda solver: ours[solver]["NFE"])
        found.append({**line, "fewest of ours": ours[fewest]["NFE"], "by": fewest})
    return found


def main(argv: Sequence[str] | None = None) -> Tables:
    which = "which of ours, by the table's names, 'RK45;DOP853, t'; all by default"
    more = on_mixtures(TASKS) | {
        "--solvers": {"help": which},
        "--density": {"type": int, "default": 5, "help": "tolerances a decade"},
    }
    args = options(__doc__ or "", more, argv)
    args.targets, args.decades, args.most = (
        ((1e-2, 1e-3), 4, 200) if args.quick else (TARGETS, 10, 800)
    )
    names = args.tasks.split(",") if args.tasks else TASKS[:1] if args.quick else TASKS
    rows: list[Row] = []
    lines: list[Row] = []
    for name in names:
        part = table(name, args)
        show(f"{name}, mixture {args.seed}", part)
        rows, lines = rows + part, lines + summary(name, part, args.targets)
    report("adaptive", rows, args)
    if lines:
        report("RK45() against the best peer", lines, args)
    return args.tables


if __name__ == "__main__":
    main()

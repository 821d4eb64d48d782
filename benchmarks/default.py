"""Error of the default solver against the best of the published ones, each on three grids, on
mixtures with a known flow.

A row is an SDE and a number of evaluations. It has the error of the state at the end of the grid,
by sample, as root mean square over coordinates: its median, 90th and 99th percentile, over those of
the *envelope*, the least that any of the published solvers reaches on any of the grids uniform in
t, uniform in log-SNR and Karras et al.'s. *elsewhere* is the share of samples whose nearest mean is
not that of the exact flow's end, beside the least of the published ones. With ``--data`` there are
also the ratios of *measured*, the default with the size of the details that
`sdediff.tuning.measure` finds for each mixture by 64 samples.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from timing import Row, Tables, on_mixtures, options, report
from torch import Tensor

import sdediff as sd
from sdediff import solvers
from sdediff.arguments import Span, default_solver, make_times
from sdediff.solvers import GRIDS, LogSNR
from sdediff.solvers.exponential.flow import Flow, gauss_legendre, lagrange
from sdediff.solvers.exponential.forms import Points
from sdediff.tuning import measure

NFES = (5, 8, 10, 15, 20, 30, 50, 100, 200)
SDES = {
    "VP": (sd.VP(), 1e-3),
    "VE": (sd.VE(), 1e-5),
    "SubVP": (sd.SubVP(), 1e-3),
    "Cosine": (sd.Cosine(), None),
    "RectifiedFlow": (sd.RectifiedFlow(), None),
    "EDM": (sd.EDM(), None),
}


class Mixtures:
    """``count`` mixtures side by side, (count, components, d): a batch has rows of all of them, so
    that one solve serves many.
    """

    least, range = 0.05, 0.15
    """The standard deviations of components are the first, or more by up to the second."""

    def __init__(self, d: int, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        k = 8 if d == 2 else 10
        means = torch.randn(count, k, d, generator=g, dtype=torch.float64)
        weights = torch.rand(count, k, generator=g, dtype=torch.float64) + 0.5
        self.weights = weights / weights.sum(dim=1, keepdim=True)
        share = torch.rand(count, k, generator=g, dtype=torch.float64)
        self.stds = self.least + self.range * share
        means = means - (self.weights[..., None] * means).sum(dim=1, keepdim=True)
        between = (self.weights[..., None] * means**2).sum(dim=1).mean(dim=1)
        within = (self.weights * self.stds**2).sum(dim=1)
        # a coordinate's variance is 1
        self.means = means * ((1 - within) / between).sqrt()[:, None, None]
        self.count, self.d = count, d

    def apart(self, x: Tensor, alpha: float | Tensor) -> Tensor:
        """|x - alpha m_k|^2, (count, n, components)."""
        if self.d == 2:
            scale = alpha[..., None] if isinstance(alpha, Tensor) else alpha
            return (x[:, :, None] - scale * self.means[:, None]).square().sum(dim=-1)
        cross = x @ self.means.transpose(1, 2)
        return (
            x.square().sum(dim=-1, keepdim=True)
            - 2 * alpha * cross
            + alpha**2 * self.means.square().sum(dim=-1)[:, None]
        )

    def data(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """E[x_0 | x], for numbers or one of each for every row (rows,)."""
        rows = x.double().reshape(self.count, -1, self.d)
        alpha, sigma = (
            c.reshape(self.count, -1, 1) if isinstance(c, Tensor) else c for c in (alpha, sigma)
        )
        squares = (self.stds**2)[:, None]
        variance = alpha**2 * squares + sigma**2
        logits = (
            self.weights.log()[:, None]
            - 0.5 * self.d * variance.log()
            - 0.5 * self.apart(rows, alpha) / variance
        )
        share = torch.softmax(logits, dim=-1)
        pull = share * (alpha * squares / variance)
        return (
            ((share - alpha * pull) @ self.means + pull.sum(dim=-1, keepdim=True) * rows)
            .reshape(x.shape)
            .to(x.dtype)
        )

    def draw(self, n: int, alpha: float, sigma: float, generator: torch.Generator) -> Tensor:
        """Samples of x_t, (count, n, d)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(2, self.count, n, self.d, generator=generator, dtype=torch.float64)
        clean = (
            torch.gather(self.means, 1, k[..., None].expand(-1, -1, self.d))
            + torch.gather(self.stds, 1, k)[..., None] * z[0]
        )
        return alpha * clean + sigma * z[1]

    def law(self, k: int) -> sd.exact.GaussianMixture:
        """One of them alone."""
        return sd.exact.GaussianMixture(self.means[k], self.stds[k], self.weights[k])


class Wide(Mixtures):
    """Components of 0.25 to 0.5."""

    least, range = 0.25, 0.25


class Small(Mixtures):
    """Components of 0.01 to 0.04."""

    least, range = 0.01, 0.03


class Axes(Mixtures):
    """Components have another standard deviation along every axis, 0.01 to 0.5."""

    def __init__(self, d: int, count: int, seed: int) -> None:
        super().__init__(d, count, seed)
        g = torch.Generator().manual_seed(seed + 1000)
        share = torch.rand(*self.means.shape, generator=g, dtype=torch.float64)
        self.widths = 0.01 * 50**share
        self.scale()

    def scale(self) -> None:
        """Let the mean over the coordinates of their variance be 1."""
        moments = (self.means**2 + self.widths**2).mean(dim=2)
        size = (self.weights * moments).sum(dim=1).sqrt()[:, None, None]
        self.means, self.widths = self.means / size, self.widths / size

    def data(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        rows = x.double().reshape(self.count, -1, 1, self.d)
        variance = (alpha**2 * self.widths**2 + sigma**2)[:, None]
        away = rows - alpha * self.means[:, None]
        logits = self.weights.log()[:, None] - 0.5 * (away**2 / variance + variance.log()).sum(-1)
        near = self.means[:, None] + alpha * self.widths[:, None] ** 2 / variance * away
        share = torch.softmax(logits, dim=-1)[..., None]
        return (share * near).sum(dim=2).reshape(x.shape).to(x.dtype)

    def draw(self, n: int, alpha: float, sigma: float, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(2, self.count, n, self.d, generator=generator, dtype=torch.float64)
        k = k[..., None].expand(-1, -1, self.d)
        clean = self.means.gather(1, k) + self.widths.gather(1, k) * z[0]
        return alpha * clean + sigma * z[1]

    def law(self, k: int) -> sd.exact.GaussianMixture:
        covariances = torch.diag_embed(self.widths[k] ** 2)
        return sd.exact.GaussianMixture(
            self.means[k], covariances=covariances, weights=self.weights[k]
        )


class Spectrum(Axes):
    """The standard deviation of coordinate j falls as 1 / j, within components and between."""

    def __init__(self, d: int, count: int, seed: int) -> None:
        super().__init__(d, count, seed)
        falling = 1 / torch.arange(1, d + 1, dtype=torch.float64)
        self.means, self.widths = self.means * falling, 0.5 * falling.expand_as(self.means)
        self.scale()


DATA = {"usual": Mixtures, "wide": Wide, "small": Small, "axes": Axes, "spectrum": Spectrum}


class Errors(NamedTuple):
    """Of the samples, and the share of them that end in another basin."""

    median: float
    p90: float
    p99: float
    elsewhere: float


class Task:
    """An SDE and mixtures, states at the start of the grid, and where the exact flow takes them."""

    def __init__(
        self,
        name: str,
        d: int,
        *,
        count: int,
        rows: int,
        seed: int,
        kind: type[Mixtures] = Mixtures,
    ) -> None:
        self.sde, end = SDES[name]
        self.start, self.end = self.sde.t_max, self.sde.t_min if end is None else end
        self.mixtures = kind(d, count, seed)
        self.model = sd.ScoreModel(self.net, self.sde, predicts="data", data_std=1.0)
        self.known: dict[float, tuple[float, float]] = {}
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.x = self.mixtures.draw(rows, *self.kernel(self.start), self.generator).reshape(-1, d)

    def kernel(self, t: float) -> tuple[float, float]:
        if t not in self.known:
            self.known[t] = float(self.sde.alpha(t)), float(self.sde.sigma(t))
        return self.known[t]

    def net(self, x: Tensor, t: Tensor) -> Tensor:
        return self.mixtures.data(x, *self.kernel(float(t.flatten()[0])))

    def grid(self, name: str, steps: int) -> Tensor:
        return GRIDS[name](steps, self.start, self.end, LogSNR(self.sde.log_snr, self.sde.time_of))

    def solve(self, solver: solvers.Solver, times: Tensor) -> tuple[Tensor, int]:
        out = sd.sample(
            self.model,
            tuple(self.x.shape),
            solver=solver,
            grid=times,
            x_init=self.x,
            seed=0,
            last="noisy",
            dtype=torch.float64,
            on_fail="return",
        )
        return out.x, int(out.nfe.max())

    def reference(self, steps: int) -> float:
        """Find the exact flow by Dormand and Prince's method in log-SNR; how far RK4 in sigma /
        alpha is from it (median).
        """
        times = self.grid("log_snr", steps)
        self.exact, _ = self.solve(solvers.DormandPrince(variable="log_snr"), times)
        other, _ = self.solve(solvers.RungeKutta4(variable="sigma"), times)
        return float((other - self.exact).square().mean(dim=1).sqrt().median())

    def errors(self, x: Tensor) -> Errors:
        error = (x - self.exact).square().mean(dim=1).sqrt().nan_to_num(nan=math.inf)
        elsewhere = (self.basin(x) != self.basin(self.exact)).double().mean()
        high = [float(error.quantile(share)) for share in (0.9, 0.99)]
        return Errors(float(error.median()), *high, float(elsewhere))

    def basin(self, x: Tensor) -> Tensor:
        """The nearest mean, (count, rows)."""
        rows = x.nan_to_num().reshape(self.mixtures.count, -1, self.mixtures.d)
        return self.mixtures.apart(rows, self.kernel(self.end)[0]).argmin(dim=-1)

    def spread(self, x: Tensor) -> float:
        alpha, sigma = self.kernel(self.end)
        least, k = self.mixtures.apart(
            x.reshape(self.mixtures.count, -1, self.mixtures.d), alpha
        ).min(dim=-1)
        variance = torch.gather(alpha**2 * self.mixtures.stds**2 + sigma**2, 1, k)
        return float((least / variance / self.mixtures.d).mean().sqrt())


def measured(task: Task, count: int = 64) -> list[float]:
    """What is found of the details of each mixture by so many samples, over its data_std."""
    found = []
    for k in range(task.mixtures.count):
        law = task.mixtures.law(k)
        model = law.model(task.sde)
        found.append(measure(model, law.sample(count, seed=k)) / model.data_std)
    return found


def by_details(task: Task, steps: int, details: Sequence[float | None]) -> Tensor:
    """Where the default takes the rows of every mixture, with these details of theirs."""
    x = torch.empty_like(task.x)
    rows = torch.arange(len(x)).reshape(len(details), -1)
    for size in dict.fromkeys(details):
        solver = default_solver(task.sde, steps, stochastic=False, details=size)
        span = Span(task.sde, task.start, task.end, details=size)
        found, _ = task.solve(solver, make_times(span, solver, steps, None, None, None))
        here = rows[[k for k, each in enumerate(details) if each == size]].flatten()
        x[here] = found[here]
    return x


class _Lacking(Flow):
    def weights(self, a: Points, b: Points, nodes, moments="exact") -> list[tuple[Tensor, ...]]:
        if len(nodes) < 3:
            return super().weights(a, b, nodes, moments)
        h = b.v - a.v
        near, far = (a.v - nodes[1]) / h, (nodes[1] - nodes[2]) / h
        if self.form.quantity == "data":
            e = torch.expm1(-h)
            total, first, second = (
                -b.alpha * e,
                b.alpha * (e / h + 1),
                -b.alpha * ((e + h) / h**2 - 0.5),
            )
        else:
            e = torch.expm1(h)
            total, first, second = (
                -b.sigma * e,
                -b.sigma * (e / h - 1),
                -b.sigma * ((e - h) / h**2 - 0.5),
            )
        part = near / (near + far)
        one, two = first * (1 + part) + second / (near + far), -first * part - second / (near + far)
        return [(total + one / near,), (two / far - one / near,), (-two / far,)]


@dataclass(frozen=True, repr=False)
class Lacking(solvers.ExponentialMultistep):
    """DPM-Solver(++) 3M as the official code and diffusers have it: its second difference lacks a
    factor 2.
    """

    def flow(self, problem: solvers.Problem) -> Flow:
        return _Lacking(problem, self.form, self.variable)


class _Step(NamedTuple):
    t: Tensor
    # what is kept of x and of the data in the quantity that polynomials are of
    look: tuple[float, float]
    keep: float
    weights: list[float]  # of the quantity here, one step back, ...


@dataclass(frozen=True)
class Azula(solvers.Solver):
    """azula's vAB and REAB: Adams and Bashforth's methods for the velocity in sigma / (alpha +
    sigma) and v in log(sigma / alpha).

    The latter as it is meant, with sigma_s where azula's code has sigma_t by mistake, or ``as_is``.
    """

    order: int = 3
    quantity: str = "velocity"
    as_is: bool = False

    needs = frozenset({"data", "marginal"})

    def plan(self, problem: solvers.Problem, times: Tensor) -> list[_Step]:
        alpha, sigma = problem.marginal(times)
        straight = self.quantity == "velocity"
        size = alpha + sigma if straight else torch.hypot(alpha, sigma)
        u = sigma / size if straight else sigma.log() - alpha.log()
        found, (x, w) = [], gauss_legendre()
        for i, t in enumerate(times[:-1]):
            at = u[i] + x * (u[i + 1] - u[i])
            density = w * (u[i + 1] - u[i]) * (1 if straight else 0.5 / at.cosh())
            nodes = [u[i - k] for k in range(min(self.order, i + 1))]
            scale = torch.hypot(alpha[i + 1], sigma[i]) if self.as_is else size[i + 1]
            look = (
                (1 / sigma[i], -size[i] / sigma[i])
                if straight
                else (alpha[i] / sigma[i] / size[i], -size[i] / sigma[i])
            )
            weights = [float(scale * (density * each).sum()) for each in lagrange(nodes, at)]
            found.append(
                _Step(t, (float(look[0]), float(look[1])), float(size[i + 1] / size[i]), weights)
            )
        return found

    def step(
        self,
        problem: solvers.Problem,
        x: Tensor,
        plan: _Step,
        noise: object,
        state: tuple[Tensor, ...],
    ) -> solvers.Step:
        here = plan.look[0] * x + plan.look[1] * problem.data(x, plan.t)
        known = (here, *state)[: len(plan.weights)]
        moved = plan.keep * x + sum(
            weight * each for weight, each in zip(plan.weights, known, strict=True)
        )
        return solvers.Step(moved, moved, known)


def peers() -> dict[str, tuple[solvers.Solver, int]]:
    """The published solvers, and how many evaluations a step takes."""
    multi = solvers.ExponentialMultistep
    found: dict[str, tuple[solvers.Solver, int]] = {"DDIM": (solvers.DDIM(), 1)}
    for low in (False, True):
        ends = {"startup": "published", "lower_final": low}
        some = {
            "DPM++2M": solvers.DPMSolverPP(2, **ends),
            "DPM++3M": Lacking(3, moments="half", **ends),
            "DPM2M": multi(2, form="noise", moments="half", **ends),
            "DPM3M": Lacking(3, form="noise", moments="half", **ends),
            "UniPC2bh1": solvers.UniPC(2, moments="half-h", **ends),
            "UniPC2bh2": solvers.UniPC(2, **ends),
            "UniPC3bh1": solvers.UniPC(3, moments="half-h", **ends),
            "UniPC3bh2": solvers.UniPC(3, **ends),
            "DEIS2": multi(2, form="noise", **ends),
            "DEIS3": multi(3, form="noise", **ends),
        }
        found |= {name + ("-lower" if low else ""): (solver, 1) for name, solver in some.items()}
    more = {
        "tAB3": solvers.DEIS(3, startup="published"),
        "LMS3": solvers.LMS(3, startup="published"),
        "LMS4": solvers.LMS(4, startup="published"),
        "iPNDM3": solvers.IPNDM(3, startup="published"),
        "iPNDM4": solvers.IPNDM(4, startup="published"),
        **{f"vAB{k}": Azula(k) for k in (2, 3)},
        **{f"REAB{k}": Azula(k, "v", as_is=True) for k in (2, 3)},
        **{f"REAB{k}, mended": Azula(k, "v") for k in (2, 3)},
    }
    single = {
        "Heun": solvers.Heun(variable="sigma"),
        "RK4": solvers.RungeKutta4(variable="log_snr"),
        "DPM-2S": solvers.DPMSolver(2),
        "DPM-3S": solvers.DPMSolver(3),
        "DPM++2S": solvers.DPMSolverPPSinglestep(2),
        "DPM++3S": solvers.DPMSolverPPSinglestep(3),
    }
    return (
        found
        | {k: (v, 1) for k, v in more.items()}
        | {k: (v, v.evaluations) for k, v in single.items()}
    )


def envelope(task: Task, nfe: int) -> tuple[Errors, list[str]]:
    """The least that the peers have of each, and whose it is."""
    scores: list[tuple[Errors, str]] = []
    for (name, (solver, cost)), grid in itertools.product(
        peers().items(), ("uniform", "log_snr", "karras")
    ):
        if nfe // cost:
            x, used = task.solve(solver, task.grid(grid, nfe // cost))
            if used > nfe:
                raise ValueError(f"{name} took {used} evaluations, {nfe} are allowed")
            scores.append((task.errors(x), f"{name}/{grid}"))
    best = [min((each[k], whose) for each, whose in scores) for k in range(len(Errors._fields))]
    return Errors(*(least for least, _ in best)), [whose for _, whose in best]


def deterministic(name: str, d: int, args: argparse.Namespace) -> list[Row]:
    kind = DATA[args.data]
    task = Task(name, d, count=args.mixtures, rows=args.rows, seed=args.seed, kind=kind)
    check = task.reference(60 if args.quick else 1500)
    details = None if args.data == "usual" else measured(task)
    rows: list[Row] = []
    for nfe in args.nfes:
        solver = default_solver(task.sde, nfe, stochastic=False)
        x, used = task.solve(solver, task.grid(solver.spacing, nfe))
        ours = task.errors(x)
        best, whose = envelope(task, nfe)
        row: dict[str, object] = {"task": f"{name}-{d}d", "NFE": used}
        row |= {"median": ours.median, "ratio": ours.median / best.median}
        for key, mine, least in zip(Errors._fields[1:3], ours[1:3], best[1:3], strict=True):
            row |= {key: mine, f"{key} ratio": mine / least}
        if details is not None:
            better = task.errors(by_details(task, nfe, details))
            row |= {"measured ratio": better.median / best.median}
            row |= {"measured p90 ratio": better.p90 / best.p90}
        row |= {"elsewhere": ours.elsewhere, "least elsewhere": best.elsewhere}
        row |= {"best": whose[0], "best p90": whose[1], "best p99": whose[2]}
        rows.append({**row, "best elsewhere": whose[3], "reference": check})
    return rows


def named(tasks: str | None, quick: bool) -> list[tuple[str, int]]:
    """The SDE and the dimensions of each task of the command line."""
    every = [f"{name}-{d}" for d, name in itertools.product((2, 64), SDES)]
    some = tasks.split(",") if tasks else every[:1] if quick else every
    return [(name, int(d)) for name, _, d in (task.partition("-") for task in some)]


def summary(rows: list[Row]) -> list[Row]:
    """Geometric means of the ratios, and means of the shares, over the problems."""
    lines: list[Row] = []
    for nfe in dict.fromkeys(row["NFE"] for row in rows):
        some = [row for row in rows if row["NFE"] == nfe]

        def over(key: str, some: list[Row] = some) -> list[float]:
            return [float(str(row[key])) for row in some]

        line: dict[str, object] = {"NFE": nfe}
        means = ("ratio", "p90 ratio", "p99 ratio", "measured ratio", "measured p90 ratio")
        for key in (each for each in means if each in some[0]):
            line[key] = math.exp(sum(map(math.log, over(key))) / len(some))
            line[f"{key}, worst"] = max(over(key))
        for key in ("elsewhere", "least elsewhere"):
            line[key] = sum(over(key)) / len(some)
        lines.append(line)
    return lines


def main(argv: Sequence[str] | None = None) -> Tables:
    more = on_mixtures(chosen="; 0 are those that the rule was chosen on")
    more["--nfes"] = {"type": int, "nargs": "+", "metavar": "NFE", "help": "evaluations"}
    more["--data"] = {"choices": list(DATA), "default": "usual", "help": "the mixtures' components"}
    args = options(__doc__ or "", more, argv)
    nfes, args.mixtures, args.rows = ((5, 10), 1, 16) if args.quick else (NFES, 4, 64)
    args.nfes = args.nfes or nfes
    rows: list[Row] = []
    for name, d in named(args.tasks, args.quick):
        rows += deterministic(name, d, args)
    report(
        f"default solver over the envelope of the published ones, mixtures {args.seed}", rows, args
    )
    report("over the problems", summary(rows), args)
    return args.tables


if __name__ == "__main__":
    main()

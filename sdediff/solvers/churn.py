"""Noise added and taken away again: EDM's churn, Restart and re-noising, around any solver with
fixed steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.given import Count, NotNegative, Positive
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver, Step

__all__ = ["Churn", "Renoise", "Restart"]


def check_inner(name: str, solver: Solver, *, noisy: bool = False) -> None:
    """An error unless it is a solver with fixed steps that carries nothing from one step to the
    next; only if ``noisy`` one that adds noise.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"{name}: the solver must be a solver value such as Heun(), got {solver!r}")
    if solver.adaptive or solver.times is not None:
        raise ValueError(
            f"{name}: {solver!r} chooses its own steps; take a solver with fixed steps, Heun() say"
        )
    if solver.external:
        raise ValueError(
            f"{name}: {solver!r} is another library's driver, without steps of its own; take "
            "Heun(), say"
        )
    if solver.stochastic and not noisy:
        raise ValueError(
            f"{name}: {solver!r} adds noise itself; take a deterministic solver, Heun() say"
        )
    if solver.has_memory:
        raise ValueError(
            f"{name}: {solver!r} carries history from step to step, which is stale where "
            "the state is changed between steps; take Heun(), say"
        )


class _Noised(NamedTuple):
    ratio: Number
    std: Number
    inner: Any  # the plan of the step that follows


def _path(problem: Problem, solver: Solver, points: list[Tensor]) -> list[Any]:
    """The solver's plans for consecutive pairs (t, s) of ``points``, all coefficients at once: the
    pairs between are let go.
    """
    return list(solver.plan(problem, torch.stack(points)))[::2]


class PassedOn:
    """What a solver around another says as the one inside it does."""

    solver: Solver

    @property
    def spacing(self) -> str:
        """The default grid of the solver inside."""
        return self.solver.spacing

    @property
    def group(self) -> int:
        """How many rows the solver inside keeps together."""
        return self.solver.group

    @property
    def evaluations(self) -> int:
        """Of a step of the solver inside."""
        return self.solver.evaluations


@dataclass(frozen=True)
class Around(PassedOn, Solver):
    """What solvers around a solver share that add noise by the forward kernel; the one inside is
    deterministic and has fixed steps.
    """

    solver: Solver

    @property
    def stochastic(self) -> bool:
        """Whether it adds noise."""
        return True

    def __post_init__(self) -> None:
        check_inner(type(self).__name__, self.solver)

    @property
    def needs(self) -> frozenset[str]:
        return self.solver.needs | {"kernel", "marginal"}

    @property
    def order(self) -> float:
        return self.solver.order


@dataclass(frozen=True)
class Churn(Around):
    """Before each step from t, noise is added up to sigma^ = (1 + gamma) sigma: EDM's sampler.

    gamma = min(churn / N, sqrt(2) - 1) where sigma / alpha lies in ``between``, else 0, with N the
    number of steps. The added noise is multiplied by ``noise``, and ``solver`` steps from sigma^ to
    s (Karras et al. 2022, arXiv 2206.00364, Algorithm 2: S_churn, S_tmin, S_tmax, S_noise).
    ``Churn(Heun(variable="sigma"))`` is the published sampler, for any linear SDE: noise is added
    by the SDE's own kernel, and sigma stands for sigma / alpha. ``churn=0`` is ``solver`` itself.

    The noise does not rise above that at the start of the grid, with one exception: on a grid that
    starts at T, the last time of the SDE, sigma^ exceeds the first sigma as published under `EDM`
    and `VE`, whose sigma goes on after T, and under an SDE whose own `invert` does. The network is
    then evaluated after T.

    The published N counts the step from the last sigma to 0. A grid that ends above 0 has one step
    less: multiply ``churn`` by (N - 1) / N for the published gamma.
    """

    churn: NotNegative = 40.0
    between: tuple[float, float] = (0.0, float("inf"))
    noise: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.between[0] <= self.between[1]:
            raise ValueError(
                "Churn: between must be (low, high), 0 <= low <= high, in units of sigma / "
                f"alpha; got {self.between!r}"
            )

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Noised]:
        """Where each step starts, and the solver's plan from there."""
        u, t = torch.exp(-0.5 * problem.log_snr(times)), times[:-1]
        steps = len(t) if problem.grid is None else len(problem.grid) - 1
        low, high = (bound / problem.unit for bound in self.between)
        inside = (u[:-1] >= low) & (u[:-1] <= high)
        gamma = inside.to(torch.float64) * min(self.churn / steps, 2**0.5 - 1)
        above = (1 + gamma) * u[:-1]
        inside = problem.time_of(-2 * torch.minimum(above, u[0]).log())
        beyond = problem.time_beyond(-2 * torch.maximum(above, u[0]).log(), times[0])
        hat = torch.where(above > u[0], beyond, inside)
        hat = torch.where(above > u[:-1], torch.maximum(hat, t), t)
        ratio, std = problem.kernel(hat, t)
        inner = _path(
            problem,
            self.solver,
            [time for pair in zip(hat, times[1:], strict=True) for time in pair],
        )
        sizes = problem.coefs(len(t), ratio, self.noise * std)
        return [_Noised(*row) for row in zip(*sizes, inner, strict=True)]

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: _Noised,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        noisy = weighted((plan.ratio, x), (plan.std, noise.normal("churn")))
        return self.solver.step(problem, noisy, plan.inner, noise, ())


class _Restarted(NamedTuple):
    inner: Any
    again: _Noised | None  # its inner: the plans of the way back
    rounds: int


@dataclass(frozen=True)
class Restart(Around):
    """Solve on; at t_low add the noise of the forward process up to t_high, and solve back to
    t_low, ``rounds`` times.

    Restart sampling (Xu et al. 2023, arXiv 2306.14878, Algorithm 2) around any deterministic
    ``solver`` for any linear SDE. ``between`` is (t_low, t_high); the time of the grid nearest to
    t_low takes its place. The way back takes ``steps`` steps, uniform in log(sigma / alpha), where
    the authors' code spaces ``steps`` + 1 levels of sigma as the grid ``"karras"`` does. What
    discretization errors the solver has made above t_low, the added noise contracts.
    """

    between: tuple[float, float]
    rounds: Count = 1
    steps: Count = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.between[0] < self.between[1]:
            raise ValueError(
                "Restart: between must be (t_low, t_high) with t_low < t_high, got "
                f"{self.between!r}"
            )

    @property
    def evaluations(self) -> int:
        """Of the step that restarts."""
        return self.solver.evaluations * (1 + self.rounds * self.steps)

    def cost(self, plan: _Restarted) -> int:
        return self.evaluations if plan.again is not None else self.solver.evaluations

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Restarted]:
        """The solver's plan, and the way back after the step that ends nearest to t_low."""
        if times.ndim > 1:
            raise ValueError(
                "Restart goes back at one time of the grid: it takes one grid for all samples"
            )
        whole = times if problem.grid is None else problem.grid
        low = whole[1:][(whole[1:] - self.between[0]).abs().argmin()]
        high = torch.tensor(self.between[1], dtype=torch.float64)
        if not low < high <= whole[0]:
            raise ValueError(
                f"Restart: t_high = {self.between[1]:g} must lie above {float(low):.6g}, the "
                "grid's time next to t_low, "
                f"and not above the grid's start, {float(whole[0]):.6g}"
            )
        plans = self.solver.plan(problem, times)
        # of the whole grid, of which this may be a piece
        here = torch.nonzero(times[1:] == low).flatten().tolist()
        if not here:
            return [_Restarted(inner, None, self.rounds) for inner in plans]
        if any(float(low) < jump < float(high) for jump in problem.breaks):
            raise ValueError(
                f"Restart: the model jumps between t_low = {float(low):.6g} and t_high = "
                f"{float(high):.6g}, so that the way back "
                "would step over it; choose both on one side"
            )
        ends = problem.log_snr(torch.stack([high, low]))
        back = problem.time_of(
            torch.linspace(float(ends[0]), float(ends[1]), self.steps + 1, dtype=torch.float64)
        )
        back[0], back[-1] = high, low
        ratio, std = problem.kernel(high, low)
        again = _Noised(ratio, std, self.solver.plan(problem, back))
        return [
            _Restarted(inner, again if i == here[0] else None, self.rounds)
            for i, inner in enumerate(plans)
        ]

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: _Restarted,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        x = self.solver.step(problem, x, plan.inner, noise, ()).x
        again = plan.again
        if again is None:
            return Step(x)
        for k in range(plan.rounds):
            x = weighted((again.ratio, x), (again.std, noise.normal("churn", k)))
            for inner in again.inner:
                x = self.solver.step(problem, x, inner, noise, ()).x
        return Step(x)


class _Renoised(NamedTuple):
    t: Tensor
    s: Tensor
    noised: _Noised  # its inner: the plan of the step before


@dataclass(frozen=True)
class Renoise(Around):
    """A step of ``solver`` from t to a time s' beyond s, and then the forward process from s' back
    to s: x_s = ratio x_s' + std z, with z standard normal.

    At s' log(alpha / sigma) is larger than at s by the integral of lambda^2 over the step, but s'
    is never beyond the end of the grid. As steps shrink this is the reverse SDE at the problem's
    stochasticity lambda, and at lambda = 0 it is ``solver``.

    ``eta``: with r = sigma / alpha, s' is where r'^2 = r_s^2 (1 - eta^2 (1 - r_s^2 / r_t^2))
    instead: the noise has eta times the deviation of x_s given x_t and x_0, as in `DDIM` (which is
    ``Renoise(DDIM(), eta)``) and in the ancestral steps of k-diffusion. The problem's stochasticity
    plays no part then. ``Renoise(DPMSolver(2), eta)`` is DPM2 ancestral,
    ``Renoise(DPMSolverPPSinglestep(2), eta)`` DPM-Solver++(2S) ancestral. 0 is ``solver``, 1 is
    lambda = 1. Larger ones add more noise, up to where r' is 0, at the latest at the grid's end.

    The law of the samples has the order of the ODE ``solver``: 4 with `RungeKutta4`, where methods
    that discretize the SDE have weak order 1 or 2. This holds if the samples have the exact law p_t
    at the start, and if the score is that of p_t. Both parts of a step then map one marginal to
    another, and the noise is exact.

    Otherwise there is a second error. It is of order 1 in the step, and proportional to how far the
    start or the score is from the exact one. It arises from another law at the start (an ``x_init``
    of yours, a prior that is not p_t), and from a score that belongs to no law of the process
    (guidance, a network's error), because a step then splits the reverse SDE in two. The last step
    adds no noise, so that single paths are followed to order 1/2 only.
    """

    eta: NotNegative | None = None

    @property
    def solves_sde(self) -> bool:
        """Whether lambda says how much noise there is."""
        return self.eta is None

    @property
    def stochastic(self) -> bool:
        """Unless eta is 0."""
        return self.eta != 0

    @property
    def deterministic_order(self) -> float:
        return self.solver.deterministic_order

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Renoised]:
        """Where each step ends before noise is added, and the solver's plan to there."""
        u, ends = 0.5 * problem.log_snr(times), times[1:]
        if self.eta is None:
            farther = problem.mixing(times).diff(dim=0)
        else:
            left = 1 + self.eta**2 * torch.expm1(-2 * u.diff(dim=0))
            farther = -0.5 * left.clamp(min=0).log()
        beyond = torch.minimum(u[1:] + farther, u[-1])
        past = torch.where(
            beyond > u[1:], torch.minimum(problem.time_of(2 * beyond), ends), ends
        ).clamp(min=times[-1])
        ratio, std = problem.kernel(ends, past)
        points = [time for pair in zip(times[:-1], past, strict=True) for time in pair]
        inner = _path(problem.without_noise(), self.solver, points)
        noised = (
            _Noised(*row) for row in zip(*problem.coefs(len(ends), ratio, std), inner, strict=True)
        )
        return [_Renoised(*row) for row in zip(times[:-1], ends, noised, strict=True)]

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: _Renoised,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        ratio, std, inner = plan.noised
        mean = weighted((ratio, self.solver.step(problem.without_noise(), x, inner, noise, ()).x))
        if not self.stochastic:
            return Step(mean)
        return Step(weighted((1.0, mean), (std, noise.over(plan.t, plan.s))), mean)

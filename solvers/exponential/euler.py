"""The first-order exponential integrator in its data form, stochastic and deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from solvers.noise import StepNoise
from solvers.problem import Problem, expand
from solvers.solver import Solver, Step

__all__ = ["DDIM", "Ancestral"]


class _Plan(NamedTuple):
    t: Tensor
    keep: Tensor  # scale_s / scale_t
    push: Tensor  # scale_s (clock_s - clock_t)
    noise: Tensor  # scale_s sqrt(variance_s - variance_t)


class _ExponentialEuler(Solver):
    """x_s = scale_s (x / scale_t + (clock_s - clock_t) nonlinear(x, t) + sqrt(variance_s - variance_t) z)."""

    needs = frozenset({"semilinear:data"})

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The exact coefficients of each interval."""
        problem.prepare(times)
        form = problem.semilinear("data")
        scale, clock, variance = form.scale(times), form.clock(times), form.variance(times)
        keep, push = scale[1:] / scale[:-1], scale[1:] * clock.diff(dim=0)
        noise = scale[1:] * variance.diff(dim=0).clamp(min=0).sqrt()
        return [_Plan(times[i], keep[i], push[i], noise[i]) for i in range(len(keep))]

    def step(self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """One step."""
        held = problem.semilinear("data").nonlinear(x, plan.t)
        mean = expand(plan.keep, x) * x + expand(plan.push, x) * held
        if not self.stochastic:
            return Step(mean, mean)
        return Step(mean + expand(plan.noise, x) * noise.normal("path"), mean)


@dataclass(frozen=True)
class Ancestral(_ExponentialEuler):
    """x_s ~ q(x_s | x_t, x_0) at x_0 = E[x_0 | x_t], the exact Gaussian posterior of the forward process.

    DDPM's ancestral step with the posterior variance (Ho et al. 2020, eq. 6 and 7) between any two times of any linear SDE;
    equally, the reverse SDE with the data prediction held over the step and everything else integrated exactly
    (SDE-DPM-Solver++ of order 1). With ``stochasticity`` lambda it is that step of the family lambda; 0 is `DDIM`. Order 1.
    """

    stochastic = True
    diffuses = True


@dataclass(frozen=True)
class DDIM(_ExponentialEuler):
    """x_s = alpha_s x_0 + sigma_s (x - alpha_t x_0) / sigma_t at x_0 = E[x_0 | x_t].

    Deterministic DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 with eta = 0) for any linear SDE: the exponential Euler
    step of the probability flow. Order 1, one evaluation a step.
    """

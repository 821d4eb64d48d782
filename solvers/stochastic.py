"""Solvers for the reverse SDE that draw one increment a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from solvers.noise import StepNoise
from solvers.problem import Problem, expand
from solvers.solver import Solver, Step

__all__ = ["EulerMaruyama", "ReverseDiffusion"]


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """x_s = x + (s - t) drift(x, t) + diffuse(w_s - w_t).

    For the reverse SDE the drift is f x - (1 + lambda^2)/2 g^2 score and the noise lambda g dw (Song et al. 2021,
    arXiv 2011.13456, eq. 6). The noise being additive, strong and weak order are 1; lambda = 0 is `Euler`.
    """

    needs = frozenset({"drift", "diffusion"})
    stochastic = True
    diffuses = True

    def step(self, problem: Problem, x: Tensor, plan: tuple[Tensor, Tensor], noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """One step."""
        t, s = plan
        mean = x + expand(s - t, x) * problem.drift(x, t)
        return Step(mean + problem.diffuse(noise.increment(t, s), t), mean)


class _Kernel(NamedTuple):
    t: Tensor
    keep: Tensor  # 2 - ratio
    push: Tensor  # (1 + lambda^2)/2 std^2
    noise: Tensor  # lambda std


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """x_s = (2 - a) x + (1 + lambda^2)/2 v score(x, t) + lambda sqrt(v) z, where x_t = a x_s + sqrt(v) noise is the forward kernel.

    Song et al.'s reverse diffusion sampler (arXiv 2011.13456, eq. 46): the forward chain on the grid, reversed with its own
    discretization. The kernel is the SDE's exact one, so that any number of steps is stable. Order 1.
    """

    needs = frozenset({"score", "kernel"})
    stochastic = True
    diffuses = True

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Kernel]:
        """The forward kernel of each interval."""
        problem.prepare(times)
        t, s = times[:-1], times[1:]
        ratio, std = problem.kernel(t, s)
        lam = problem.stochasticity(t)
        push, size = 0.5 * (1 + lam**2) * std**2, lam * std
        return [_Kernel(t[i], 2 - ratio[i], push[i], size[i]) for i in range(len(t))]

    def step(self, problem: Problem, x: Tensor, plan: _Kernel, noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """One step."""
        mean = expand(plan.keep, x) * x + expand(plan.push, x) * problem.score(x, plan.t)
        return Step(mean + expand(plan.noise, x) * noise.normal("path"), mean)

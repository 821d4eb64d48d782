"""Solvers for SDEs with additive noise: one or two Gaussian draws a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from solvers.noise import StepNoise
from solvers.problem import Problem, expand
from solvers.solver import Solver, Step

__all__ = ["SRA1", "SRA3", "EulerMaruyama", "ReverseDiffusion", "StochasticHeun"]


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """x_s = x + (s - t) drift(x, t) + diffuse(w_s - w_t).

    For the reverse SDE the drift is f x - (1 + lambda^2)/2 g^2 score and the noise lambda g dw (Song et al. 2021,
    arXiv 2011.13456, eq. 6). The noise being additive, strong and weak order are 1; lambda = 0 is `Euler` in t.
    """

    needs = frozenset({"drift", "diffusion"})
    stochastic = True
    diffuses = True

    def step(self, problem: Problem, x: Tensor, plan: tuple[Tensor, Tensor], noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """One step."""
        t, s = plan
        mean = x + expand(s - t, x) * problem.drift(x, t)
        return Step(mean + problem.diffuse(noise.increment(t, s), t), mean)


@dataclass(frozen=True)
class StochasticHeun(Solver):
    """x^ = x + h drift(x, t) + noise, x_s = x + h / 2 (drift(x, t) + drift(x^, s)) + noise, noise = (g_t + g_s) / 2 (w_s - w_t).

    The trapezoidal rule along the path: weak order 2 and strong order 1 for additive noise, two evaluations a step; lambda = 0 is
    `Heun` in t.
    """

    needs = frozenset({"drift", "diffusion"})
    order = 2.0
    stochastic = True
    diffuses = True
    evaluations = 2

    def step(self, problem: Problem, x: Tensor, plan: tuple[Tensor, Tensor], noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """One step."""
        t, s = plan
        h, dw = expand(s - t, x), noise.increment(t, s)
        shock = 0.5 * (problem.diffuse(dw, t) + problem.diffuse(dw, s))
        first = problem.drift(x, t)
        mean = x + 0.5 * h * (first + problem.drift(x + h * first + shock, s))
        return Step(mean + shock, mean)


class _SRATableau(NamedTuple):
    a: tuple[tuple[float, ...], ...]  # drift into the stages
    b: tuple[tuple[float, ...], ...]  # noise into the stages
    c: tuple[float, ...]  # times of the drift
    d: tuple[float, ...]  # times of the noise
    alpha: tuple[float, ...]
    beta: tuple[float, ...]  # weights of the increment
    gamma: tuple[float, ...]  # weights of the time integral over h


class _SRAPlan(NamedTuple):
    t: Tensor
    s: Tensor
    drift: tuple[Tensor, ...]
    noise: tuple[Tensor, ...]


class _SRA(Solver):
    """H_i = x + h sum_j a_ij drift(H_j, t + c_j h) + sum_j b_ij g(t + d_j h) Z / |h|,
    x_s = x + h sum_i alpha_i drift(H_i, t + c_i h) + sum_i (beta_i W + gamma_i Z / |h|) g(t + d_i h),

    with W the increment of the path and Z the integral of w - w_t over the step.
    """

    tableau: ClassVar[_SRATableau]

    needs = frozenset({"drift", "diffusion"})
    order = 2.0
    stochastic = True
    diffuses = True

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_SRAPlan]:
        """Times of the stages."""
        h = times.diff(dim=0)

        def at(c: float) -> Tensor:
            return times[:-1] if c == 0 else times[1:] if c == 1 else times[:-1] + c * h

        drift, noise = [at(c) for c in self.tableau.c], [at(d) for d in self.tableau.d]
        for stage in (*drift, *noise):
            problem.prepare(stage)
        return [_SRAPlan(times[i], times[i + 1], tuple(r[i] for r in drift), tuple(r[i] for r in noise)) for i in range(len(h))]

    def step(self, problem: Problem, x: Tensor, plan: _SRAPlan, noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """One step."""
        tab, h = self.tableau, expand(plan.s - plan.t, x)
        w, z = noise.pair(plan.t, plan.s)
        z = z / h.abs()
        k: list[Tensor] = []
        for row, spread, time in zip(tab.a, tab.b, plan.drift, strict=True):
            at = x
            for weight, stage in zip(row, k, strict=True):
                at = at + weight * h * stage if weight else at
            for weight, when in zip(spread, plan.noise, strict=False):
                at = at + problem.diffuse(weight * z, when) if weight else at
            k.append(problem.drift(at, time))
        mean = x + h * sum(weight * stage for weight, stage in zip(tab.alpha, k, strict=True) if weight)
        shocks = [
            problem.diffuse(b * w + c * z, when) for b, c, when in zip(tab.beta, tab.gamma, plan.noise, strict=True) if b or c
        ]
        return Step(mean + torch.stack(shocks).sum(dim=0), mean)


@dataclass(frozen=True)
class SRA1(_SRA):
    """Roessler's SRA1 for additive noise: strong order 1.5, weak order 2, two evaluations a step; lambda = 0 is Ralston's method.

    Roessler 2010 (SIAM Journal on Numerical Analysis 48, Table 6.3). It takes the pair (increment, time integral) of the path.
    """

    tableau = _SRATableau(
        a=((), (3 / 4,)), b=((), (3 / 2,)), c=(0, 3 / 4), d=(1, 0), alpha=(1 / 3, 2 / 3), beta=(1, 0), gamma=(-1, 1)
    )
    evaluations = 2


@dataclass(frozen=True)
class SRA3(_SRA):
    """Roessler's SRA3 for additive noise: strong order 1.5, weak order 2, three evaluations a step, of order 3 at lambda = 0.

    Roessler 2010 (SIAM Journal on Numerical Analysis 48, Table 6.3).
    """

    tableau = _SRATableau(
        a=((), (1,), (1 / 4, 1 / 4)),
        b=((), (0,), (1, 1 / 2)),
        c=(0, 1, 1 / 2),
        d=(1, 0, 0),
        alpha=(1 / 6, 1 / 6, 2 / 3),
        beta=(1, 0, 0),
        gamma=(-1, 1, 0),
    )
    evaluations = 3


class _Kernel(NamedTuple):
    t: Tensor
    keep: Tensor  # 2 - ratio
    push: Tensor  # (1 + lambda^2)/2 std^2
    noise: Tensor  # lambda std


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """x_s = (2 - a) x + (1 + lambda^2)/2 v score(x, t) + lambda sqrt(v) z, where x_t = a x_s + sqrt(v) noise is the forward kernel.

    Song et al.'s reverse diffusion sampler (arXiv 2011.13456, eq. 46): the forward chain on the grid, reversed with its own
    discretization. ``rule="kernel"`` takes the SDE's exact kernel; ``"song"`` that of their code, a = sqrt(1 - beta h) and
    v = g^2 h with beta = -2 f, which needs beta h < 1. Order 1. At lambda = 0 and few steps it is poor: 2 - a grows faster
    than 1 / a.
    """

    rule: Literal["kernel", "song"] = "kernel"

    stochastic = True
    diffuses = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.rule not in ("kernel", "song"):
            raise ValueError(f"ReverseDiffusion: rule must be 'kernel' or 'song', got {self.rule!r}")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The score, and what the rule is made from."""
        return frozenset({"score", "kernel" if self.rule == "kernel" else "coefficients"})

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Kernel]:
        """The forward kernel of each interval."""
        problem.prepare(times)
        t, s = times[:-1], times[1:]
        if self.rule == "kernel":
            ratio, std = problem.kernel(t, s)
            variance = std**2
        else:
            f, g = problem.coefficients(t)
            left = 1 + 2 * f * (t - s)
            if bool((left <= 0).any()):
                raise ValueError(
                    f"ReverseDiffusion(rule='song') needs beta h < 1, and beta h = {float((1 - left).max()):.3g}: take "
                    f"{float((1 - left).max()):.2g} times as many steps, or rule='kernel'"
                )
            ratio, variance = left.sqrt(), g**2 * (t - s)
        lam = problem.stochasticity(t)
        push, size = 0.5 * (1 + lam**2) * variance, lam * variance.sqrt()
        return [_Kernel(t[i], 2 - ratio[i], push[i], size[i]) for i in range(len(t))]

    def step(self, problem: Problem, x: Tensor, plan: _Kernel, noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """One step."""
        mean = expand(plan.keep, x) * x + expand(plan.push, x) * problem.score(x, plan.t)
        return Step(mean + expand(plan.noise, x) * noise.normal("path"), mean)

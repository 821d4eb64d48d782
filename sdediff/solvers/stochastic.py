"""Solvers for SDEs with additive noise: one or two Gaussian draws a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.coefficients import Coef
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver, Step

__all__ = ["SRA1", "SRA3", "EulerMaruyama", "ReverseDiffusion", "StochasticHeun"]

_ROUNDED: Final = 1e-9


class _Maruyama(NamedTuple):
    at: Any  # x + h drift
    spread: Coef  # of the normal z by which the path moves
    t: Tensor
    s: Tensor


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """x_s = x + (s - t) drift(x, t) + diffuse(w_s - w_t).

    For the reverse SDE the drift is f x - (1 + lambda^2)/2 g^2 score and the noise lambda g dw
    (Song et al. 2021, arXiv 2011.13456, eq. 6). Where noise is additive, strong and weak order are
    1; where it depends on the state (`solve_sde`), the sense is Ito's and the strong order 1/2.
    lambda = 0 is `Euler` in t.
    """

    needs = frozenset({"drift", "diffusion"})
    solves_sde = True
    senses = frozenset({"ito"})
    structures = frozenset({"diagonal", "commutative", "general"})

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Maruyama]:
        """The drift and the size of the noise of each interval."""
        t, h = times[:-1], times.diff(dim=0)
        rows = zip(
            problem.at(t, "drift", 1.0, h),
            problem.spread(t, h.abs().sqrt()),
            t.unbind(),
            times[1:].unbind(),
            strict=True,
        )
        return [_Maruyama(*row) for row in rows]

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: _Maruyama,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        mean = problem.evaluate(x, plan.at)
        spread = problem.spread_at(x, plan.spread)
        return Step(weighted((1.0, mean), (spread, noise.over(plan.t, plan.s))), mean)


class _Heun(NamedTuple):
    start: Any  # the drift at t
    end: Any  # the drift at s
    first: Coef  # half of what z is multiplied by, at t
    second: Coef  # and at s
    h: Number
    half: Number  # h / 2
    t: Tensor
    s: Tensor


@dataclass(frozen=True)
class StochasticHeun(Solver):
    """x^ = x + h drift(x, t) + noise, x_s = x + h / 2 (drift(x, t) + drift(x^, s)) + noise, noise =
    (g_t + g_s) / 2 (w_s - w_t).

    The trapezoidal rule along the path: weak order 2 and strong order 1 for additive noise, two
    evaluations a step; lambda = 0 is `Heun` in t.
    """

    needs = frozenset({"drift", "diffusion"})
    order = 2.0
    solves_sde = True
    evaluations = 2

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Heun]:
        """The drift and the size of the noise at both ends of each interval."""
        t = times[:-1]
        s = times[1:]
        h = times.diff(dim=0)
        half = 0.5 * h.abs().sqrt()
        rows = zip(
            problem.at(t, "drift"),
            problem.at(s, "drift"),
            problem.spread(t, half),
            problem.spread(s, half),
            *problem.coefs(len(h), h, 0.5 * h),
            t.unbind(),
            s.unbind(),
            strict=True,
        )
        return [_Heun(*row) for row in rows]

    def step(
        self, problem: Problem, x: Tensor, plan: _Heun, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        z = noise.over(plan.t, plan.s)
        h = plan.h
        half = plan.half
        shock = weighted((plan.first, z), (plan.second, z))
        first = problem.evaluate(x, plan.start)
        guess = weighted((1.0, x), (h, first), (1.0, shock))
        second = problem.evaluate(guess, plan.end)
        mean = weighted((1.0, x), (half, first), (half, second))
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
    h: Number
    inverse: Number  # 1 / |h|
    drift: tuple[Any, ...]  # at each stage
    spread: tuple[Coef, ...]  # lambda g at each time of the noise


class _SRA(Solver):
    """H_i = x + h sum_j a_ij drift(H_j, t + c_j h) + sum_j b_ij g(t + d_j h) Z / |h|, x_s = x + h
    sum_i alpha_i drift(H_i, t + c_i h) + sum_i (beta_i W + gamma_i Z / |h|) g(t + d_i h),

    with W the increment of the path and Z the integral of w - w_t over the step.
    """

    tableau: ClassVar[_SRATableau]

    needs = frozenset({"drift", "diffusion"})
    order = 2.0
    solves_sde = True

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_SRAPlan]:
        """The drift and the size of the noise at the stages."""
        t = times[:-1]
        s = times[1:]
        h = times.diff(dim=0)

        def at(c: float) -> Tensor:
            return t if c == 0 else s if c == 1 else t + c * h

        drift = zip(*(problem.at(at(c), "drift") for c in self.tableau.c), strict=True)
        spread = zip(*(problem.spread(at(d)) for d in self.tableau.d), strict=True)
        lengths = problem.coefs(len(h), h, 1.0 / h.abs())
        rows = zip(t.unbind(), s.unbind(), *lengths, drift, spread, strict=True)
        return [_SRAPlan(*row) for row in rows]

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: _SRAPlan,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        tab, h = self.tableau, plan.h
        w, z = noise.pair(plan.t, plan.s)
        z = weighted((plan.inverse, z))
        k: list[Tensor] = []
        for row, sizes, at in zip(tab.a, tab.b, plan.drift, strict=True):
            stages = [(weight * h, stage) for weight, stage in zip(row, k, strict=True)]
            shocks = [
                (size * weight, z)
                for weight, size in zip(sizes, plan.spread, strict=False)
                if weight
            ]
            k.append(problem.evaluate(weighted((1.0, x), *stages, *shocks), at))
        mean = weighted(
            (1.0, x), *((weight * h, stage) for weight, stage in zip(tab.alpha, k, strict=True))
        )
        ends = zip(tab.beta, tab.gamma, plan.spread, strict=True)
        noises = [(size, weighted((b, w), (c, z))) for b, c, size in ends if b or c]
        return Step(weighted((1.0, mean), *noises), mean)


@dataclass(frozen=True)
class SRA1(_SRA):
    """Roessler's SRA1 for additive noise: strong order 1.5, weak order 2, two evaluations a step;
    lambda = 0 is Ralston's method.

    Roessler 2010 (SIAM Journal on Numerical Analysis 48, Table 6.3). It takes the pair (increment,
    time integral) of the path.
    """

    tableau = _SRATableau(
        a=((), (3 / 4,)),
        b=((), (3 / 2,)),
        c=(0, 3 / 4),
        d=(1, 0),
        alpha=(1 / 3, 2 / 3),
        beta=(1, 0),
        gamma=(-1, 1),
    )
    evaluations = 2


@dataclass(frozen=True)
class SRA3(_SRA):
    """Roessler's SRA3 for additive noise: strong order 1.5, weak order 2, three evaluations a step,
    of order 3 at lambda = 0.

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
    at: Any  # (2 - a) x + (1 + lambda^2)/2 v score
    spread: Number  # lambda sqrt(v)
    t: Tensor
    s: Tensor


def _preserving(problem: Problem, t: Tensor, f: Tensor, g: Tensor) -> bool:
    """Whether the SDE preserves a variance c^2, in any unit: alpha^2 + sigma^2 / c^2 = 1 at all
    times with c^2 = -g^2 / (2 f)."""
    alpha, sigma = problem.marginal(t)
    excess = (1 - alpha**2) * g**2 + 2 * f * sigma**2
    return bool((excess.abs() <= _ROUNDED * g**2).all())


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """x_s = (2 - a) x + (1 + lambda^2)/2 v score(x, t) + lambda sqrt(v) z.

    Song et al.'s reverse diffusion sampler (arXiv 2011.13456, eq. 46): x_t = a x_s + sqrt(v) noise
    is one step of the forward chain, reversed with its own discretization.

    ``rule="kernel"`` takes the SDE's exact kernel for every SDE. ``rule="song"`` takes the chain of
    their code, with h = t - s:

    - where alpha is constant (VE), SMLD's: a = 1 and v = sigma_t^2 - sigma_s^2, the exact kernel;
    - where the SDE preserves the variance (VP), DDPM's: a = sqrt(1 - beta h) and v = g^2 h with
      beta = -2 f, which needs beta h < 1;
    - else (sub-VP) Euler and Maruyama's: a = 1 + f h and v = g^2 h; the solver is then
      `EulerMaruyama`.

    Their steps of VP and sub-VP have h = T / N, those of VE go between levels sigma(T i / (N - 1)).
    Their tables of beta and sigma are read at T floor(t (N - 1) / T) / (N - 1): the step is the
    same where t is one of these times, and differs by O(h) of beta elsewhere. Order 1. At
    lambda = 0 and few steps it is poor, because 2 - a grows faster than 1 / a.
    """

    rule: Literal["kernel", "song"] = "kernel"

    solves_sde = True

    @property
    def needs(self) -> frozenset[str]:
        """The score, and what the rule is made from."""
        song = {"marginal", "coefficients"} if self.rule == "song" else set()
        return frozenset({"score", "kernel"} | song)

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Kernel]:
        """The step of the forward chain over each interval."""
        t, s = times[:-1], times[1:]
        ratio, variance = self._chain(problem, t, s)
        lam = problem.stochasticity(t)
        at = problem.at(t, "score", 2 - ratio, 0.5 * (1 + lam**2) * variance)
        (sizes,) = problem.coefs(len(t), lam * variance.sqrt())
        rows = zip(at, sizes, t.unbind(), s.unbind(), strict=True)
        return [_Kernel(*row) for row in rows]

    def _chain(self, problem: Problem, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(a, v) of each interval."""
        if self.rule == "kernel" or problem.unscaled:
            ratio, std = problem.kernel(t, s)
            return ratio, std**2
        h = t - s
        f, g = problem.coefficients(t)
        if not bool(torch.isfinite(f + g).all()):
            raise ValueError(
                f"ReverseDiffusion(rule='song') needs f and g, which are not finite at t = "
                f"{float(t.max()):.6g}: start inside the SDE's default range, or take rule='kernel'"
            )
        if not _preserving(problem, t, f, g):
            return 1 + f * h, g**2 * h
        left = 1 + 2 * f * h
        if bool((left <= 0).any()):
            most = float((1 - left).max())
            raise ValueError(
                f"ReverseDiffusion(rule='song') needs beta h < 1, and beta h = {most:.3g}: take "
                f"{most:.2g} times as many steps, or rule='kernel'"
            )
        return left.sqrt(), g**2 * h

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: _Kernel,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        mean = problem.evaluate(x, plan.at)
        return Step(weighted((1.0, mean), (plan.spread, noise.over(plan.t, plan.s))), mean)

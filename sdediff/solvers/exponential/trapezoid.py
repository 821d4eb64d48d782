"""The reverse SDE in v form: an exponential Euler predictor and a trapezoidal corrector, one
evaluation a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.coefficients import Coef
from sdediff.solvers.exponential.flow import gauss_legendre
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Adaptive, Solver, Step

__all__ = ["AdaptiveSDE", "EulerTrapezoid"]


class _Plan(NamedTuple):
    t: Tensor
    s: Tensor
    # v at s; None in a step to sigma = 0, where it need not be known: that is not corrected
    at: Any
    keep: Number
    push: Number  # of v at t
    give: Number  # of v at t in the correction
    correct: Number  # of v at s in it
    stds: tuple[Coef, ...]  # of the step's normal: their sum


class _Angles(NamedTuple):
    """Where times lie on the way from data (0) to noise (pi / 2)."""

    size: Tensor  # sqrt(alpha^2 + sigma^2)
    phi: Tensor  # atan(sigma / alpha)
    log_cos: Tensor
    t: Tensor
    u: Tensor
    mixing: Tensor  # L, where lambda is no constant

    def part(self, which: slice) -> _Angles:
        """Some of the times."""
        return _Angles(*(each[which] for each in self))


def _angles(problem: Problem, t: Tensor) -> _Angles:
    alpha, sigma, log_snr = problem.levels(t)
    # ln cos = -log(1 + sigma^2 / alpha^2) / 2, which loses no digits at either end. torch's
    # logaddexp, hypot and atan2 round an entry by its place in the tensor, and so a sample by its
    # batch.
    log_cos = -0.5 * ((-log_snr).clamp(min=0) + torch.log1p(torch.exp(-log_snr.abs())))
    mixing = problem.mixing(t) if problem.constant_stochasticity is None else t
    size = (alpha.square() + sigma.square()).sqrt()
    return _Angles(size, (sigma / alpha).arctan(), log_cos, t, 0.5 * log_snr, mixing)


def _square(problem: Problem, a: _Angles, b: _Angles) -> Tensor:
    """lambda^2 from a to b: its mean over u, where it is no constant."""
    constant = problem.constant_stochasticity
    if constant is not None:
        return torch.full_like(a.t, constant**2)
    mean = (b.mixing - a.mixing) / (b.u - a.u)
    end = problem.stochasticity(b.t) ** 2
    return torch.where(torch.isfinite(mean), mean, end).clamp(min=0)


def _decay(square: Tensor, a: _Angles, b: _Angles) -> Tensor:
    """m = lambda^2 (ln cos phi_b - ln cos phi_a)."""
    return torch.where(square > 0, square * (b.log_cos - a.log_cos), 0.0)


@dataclass(frozen=True)
class EulerTrapezoid(Solver):
    """A predicted state x^ at time s, and the state x_s that is corrected by it:

        x^  = keep x_t + push v(x_t, t) + std z
        x_s = x^ + push / 2 (v(x^, s) - v(x_t, t))

    with z standard normal. With phi = atan(sigma / alpha), c = sqrt(alpha^2 + sigma^2) and
    v = (alpha noise - sigma data) / c the reverse process is

        d(x / c) = [lambda^2 tan(phi) x / c + (1 + lambda^2) v] dphi + lambda sqrt(2 tan(phi)) dw,

    phi falling. Everything but v is integrated exactly: for data of unit variance v is 0 on
    average, which is why long steps serve. v at the predicted state is kept for the next step (PEC
    mode), so that a step costs one evaluation, and the first one more. Order 2 without noise,
    strong order 1 and weak order 2. A function lambda(t) is replaced by its mean over each step.
    Under an SDE without a Gaussian kernel the same is done with the drift in t: Euler-Maruyama and
    the trapezoidal rule.
    """

    needs = frozenset({"drift", "diffusion"})
    order = 2.0
    solves_sde = True
    has_memory = True
    init_evaluations = 1
    spacing = "logistic"

    @property
    def deterministic_order(self) -> float:
        return 2.0

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        t = times[:-1].unbind()
        s = times[1:].unbind()
        count = len(times) - 1
        if "v" not in problem.offers:
            h = times.diff(dim=0)
            half = 0.5 * h.abs().sqrt()
            columns = problem.coefs(count, 1.0, h, -0.5 * h, 0.5 * h)
            at = problem.at(times[1:], "drift")
            both = zip(
                problem.spread(times[:-1], half), problem.spread(times[1:], half), strict=True
            )
            return [_Plan(*row) for row in zip(t, s, at, *columns, both, strict=True)]
        angles = _angles(problem, times)
        a, b = angles.part(slice(None, -1)), angles.part(slice(1, None))
        square = _square(problem, a, b)
        decay = _decay(square, a, b)
        keep = b.size / a.size * (-decay).exp()
        std = b.size * (-torch.expm1(-2 * decay)).clamp(min=0).sqrt()
        push = b.size * _integral(square, a.phi, b.phi)
        first = push / a.size
        *columns, sizes = problem.coefs(count, keep, first, -0.5 * first, 0.5 * push / b.size, std)
        last = (b.phi == 0).reshape(count, -1).any(dim=1)
        if times.ndim > 1 and bool(last.any()):
            raise ValueError(
                f"{self!r} evaluates v at the end of each step, and at sigma = 0 there is none: "
                "end above that time (t_end)"
            )
        inside = iter(problem.at(times[1:][~last], "v"))
        at = [None if end else next(inside) for end in last.tolist()]
        stds = [(size,) for size in sizes]
        return [_Plan(*row) for row in zip(t, s, at, *columns, stds, strict=True)]

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """v at the start, or the drift where there is no v."""
        quantity = "v" if "v" in problem.offers else "drift"
        return (problem.evaluate(x, problem.at(t[None], quantity)[0]),)

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        (before,) = state
        z = noise.over(plan.t, plan.s)
        shock = weighted(*((std, z) for std in plan.stds))
        predicted = weighted((plan.keep, x), (plan.push, before), (1.0, shock))
        if plan.at is None:
            return Step(predicted, predicted - shock, state)
        after = problem.evaluate(predicted, plan.at)
        error = weighted((plan.correct, after), (plan.give, before))
        moved = predicted + error
        return Step(moved, moved - shock, (after,), error)

    def split(self, problem: Problem, a: Tensor, m: Tensor, b: Tensor) -> Tensor:
        """The share in the variance of the noise from a to b of what it is up to m, seen at b;
        times (n,).
        """
        if "v" not in problem.offers:
            return super().split(problem, a, m, b)
        start, middle, end = (_angles(problem, t) for t in (a, m, b))
        first = _decay(_square(problem, start, middle), start, middle)
        second = _decay(_square(problem, middle, end), middle, end)
        left = -torch.expm1(-2 * first) * (-2 * second).exp()
        right = -torch.expm1(-2 * second)
        return torch.where(left + right > 0, left / (left + right), 0.5)


def _integral(square: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(1 + lambda^2) times the integral of (cos phi / cos end)^(lambda^2) from ``start`` to
    ``end``.
    """
    at, weight = (each.reshape(-1, *(1,) * start.ndim) for each in gauss_legendre())
    ratio = torch.cos(start + at * (end - start)).clamp(min=0) / torch.cos(end)
    return (1 + square) * (end - start) * (weight * ratio**square).sum(dim=0)


@dataclass(frozen=True, repr=False)
class AdaptiveSDE(Adaptive, EulerTrapezoid):
    """The reverse SDE with a step size for each sample: `EulerTrapezoid`, whose correction is the
    estimate of the error.

    Steps are dyadic parts of the way, uniform in log(alpha / sigma) between the times of the grid,
    at most an eighth of it each. The noise is that of a Brownian path: a rejected step is split by
    the Brownian bridge, and nothing is thrown away, which would bias the law. The same seed gives
    nearby samples at all tolerances; asking for other times (``grid``) asks for another path. One
    evaluation an attempt, one to start. ``rtol``, ``atol`` bound the local error as in `RK45`.
    """

    rtol: float = 0.05
    atol: float | None = None

    default_atol = 0.05

    @property
    def error_order(self) -> float:
        """The local error is O(h^1.5), by the noise."""
        return 1.5

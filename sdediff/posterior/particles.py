"""Twisted particles: posteriors that are exact as particles and steps grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sdediff.posterior.resampling import Resampling
from sdediff.solvers import rowwise
from sdediff.solvers.arithmetic import Number, expand, weighted
from sdediff.solvers.given import Count, NotNegative
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Step

__all__ = ["Particles"]


class _Plan(NamedTuple):
    at: Any
    stay: Number
    """x_s given x_t and x_0 has the mean stay x_t + go x_0 and the standard deviation std."""
    go: Number
    std: Number
    push: Number
    """go / std, or 0 where there is no noise."""
    widen: Number
    """(go / std)^2 / 2 for covariances in the units of the model."""
    most: Number
    """(go / std)^2 sigma_t^2 / alpha_t^2, the most that (go / std)^2 C is for Gaussian data."""
    weighed: bool
    """Whether the twist at t is part of the weights."""
    t: Tensor
    s: Tensor


class _Spread:
    """I + V V^T, its roots and its determinant, for V^T (1 or rows, m, d).

    With K K^T = I + V^T V by Cholesky. (Andrews 1968, AIAA Journal 6, 1165.)
    """

    def __init__(self, transposed: Tensor) -> None:
        self.transposed = transposed
        one = torch.eye(transposed.shape[1], dtype=torch.float64, device=transposed.device)
        self.root_inside = torch.linalg.cholesky(one + (transposed @ transposed.mT).double())
        self.more = self.root_inside + one
        self.log_det = self.root_inside.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        """The half of log det(I + V V^T), (1,) or (rows,)."""

    def root(self, x: Tensor) -> Tensor:
        """R x with R R^T = I + V V^T: R = I + V (K + I)^{-1} V^T."""
        return x + self._outside(self._solved(x), x)

    def inverse_root(self, x: Tensor) -> Tensor:
        """R x with R R^T = (I + V V^T)^{-1}: R = I - V K^{-T} (K + I)^{-1} V^T."""
        inside = torch.linalg.solve_triangular(self.root_inside.mT, self._solved(x), upper=True)
        return x - self._outside(inside, x)

    def _solved(self, x: Tensor) -> Tensor:
        """(K + I)^{-1} V^T x, float64 (rows, m, 1)."""
        inside = (self.transposed @ rowwise(x)[..., None]).double()
        solved: Tensor = torch.linalg.solve_triangular(self.more, inside, upper=False)
        return solved

    def _outside(self, inside: Tensor, x: Tensor) -> Tensor:
        return (self.transposed.mT @ inside.to(self.transposed.dtype)).reshape(x.shape)


@dataclass(frozen=True)
class Particles(Resampling):
    """``n`` particles a sample: sequential Monte Carlo, exact as n and the number of steps grow.

    With x_s given x_t and x_0 ~ N(stay x_t + go x_0, std^2), the SDE's own kernel, a step from t to
    s and the factor of a particle's weight are

        x_s = stay x_t + go E[x_0 | x_t] + std (I + c C) v,    c = (go / std)^2 / 2,
        v = P (u + Q z),    z ~ N(0, I),    u = go / std (E[x_0 | x_t, y] - E[x_0 | x_t]),
        w = N(v; 0, I) / q(v) p~(y | x_s) / p~(y | x_t),

    where q is the density of v. C = Cov(x_0 | x_t) is that of Tweedie's formula, so that for v = z
    the mean of x_s given x_t is exact, and its covariance is up to second order in the step. u
    moves particles to the posterior of the ``twist`` p~, an approximation to p(y | x_t), and P and
    Q give them its spread: P P^T = (I + 2 c C)^{-1} and Q Q^T = I + 2 c Cov(x_0 | x_t, y), on the
    directions that y measures. For Gaussian data no direction has a variance above
    (sigma / alpha)^2. A larger variance means that the state is between modes. P and Q act less on
    such a direction: the larger the variance, the less they act. w corrects
    for all that is wrong with the twist: a better one keeps the weights even, and for Gaussian data
    they are equal but for the error of the step. ``twist="mmps"`` has the moments of
    x_0 given x_t, for as many backward passes a step as an outcome has entries, and two;
    ``"pigdm"`` has those of data N(0, d^2), for two, and P and Q are I.

    The particles are ``islands`` sets of n / islands. Before a step an island whose effective
    sample size is below half its number is resampled, systematically. Weights no longer change once
    sigma / alpha is below ``stop`` standard deviations of the data, though the steps go on: the
    twist's small errors, divided by ever smaller noise, would leave one particle with all of the
    weight.

    `sample_posterior` takes it, and returns what comes out. Rows come in groups of n, and a group
    depends on its seed alone. (Wu et al. 2023, Practical and Asymptotically Exact Conditional
    Sampling in Diffusion Models, arXiv 2306.17775: there the twist is N(y; A E[x_0 | x_t], .) with
    a variance that does not depend on the state, C is 0, v is z + u, and there is one island.)
    """

    n: Count = 1000
    twist: Literal["mmps", "pigdm"] = "mmps"
    islands: Count = 8
    stop: NotNegative = 0.02

    needs = frozenset({"data", "kernel", "marginal"})
    asks = frozenset({"prior", "log_likelihood"})

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The kernel of x_s given x_t and x_0 over each interval."""
        self.check(problem, times)
        t, s = times[:-1], times[1:]
        alpha, sigma = problem.marginal(times)
        ratio, std = problem.kernel(t, s)
        stay = ratio * (sigma[1:] / sigma[:-1]) ** 2
        go = alpha[1:] * (std / sigma[:-1]) ** 2
        noise = std * sigma[1:] / sigma[:-1]
        push = torch.where(noise > 0, go / noise, 0.0)
        widen = 0.5 * (push / problem.unit) ** 2
        most = (push * sigma[:-1] / alpha[:-1]) ** 2
        rows = zip(
            problem.at(t, "data"),
            *problem.coefs(len(t), stay, go, noise, push, widen, most),
            (sigma[:-1] >= self.stop * alpha[:-1]).tolist(),
            t.unbind(),
            s.unbind(),
            strict=True,
        )
        return [_Plan(*row) for row in rows]

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """As `begun`, with what u adds to the log weights, and the log-twist in them."""
        log_weight, *rest = self.begun(x)
        return log_weight, *rest, log_weight, log_weight

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        if plan.weighed:
            x, *rest = self.resampled(problem, noise, x, state)
            state = tuple(rest)
        log_weight, evidence, ancestor, drawn, twist = state
        found: Any = problem.outputs(x, plan.at)
        prior = weighted((1.0 / problem.unit, found.prior))
        if plan.weighed:
            new = problem.first(found.log_likelihood)
            log_weight, twist = log_weight + drawn + new - twist, new
        z = noise.over(plan.t, plan.s)
        u = weighted((plan.push, found.value - prior))
        v, drawn = self._aimed(z, u, found, plan)
        moved = weighted((1.0, v), (plan.widen, found.covariance(v)))
        x_s = weighted((plan.stay, x), (plan.go, prior), (plan.std, moved))
        return self.weighted(x_s, (log_weight, evidence, ancestor, drawn, twist))

    @staticmethod
    def _aimed(z: Tensor, u: Tensor, found: Any, plan: _Plan) -> tuple[Tensor, Tensor]:
        """v = P (u + Q z), and log N(v; 0, I) - log q(v) but for a constant, (rows,)."""
        wide = (2 * expand(plan.widen, found.spread)) ** 0.5 * found.spread
        size = wide.square().sum(dim=-1, keepdim=True)
        most = expand(plan.most, size)
        wide = torch.where(size > most, most / size, 1.0) * wide
        before, after = _Spread(wide), _Spread(wide * found.left[..., None].sqrt().to(wide))
        v = before.inverse_root(u + after.root(z))
        gap = rowwise((v - z) * (v + z)).double().sum(dim=1)
        return v, after.log_det - before.log_det - 0.5 * gap

"""Twisted particles: posteriors that are exact as particles and steps grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers import rowwise
from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.given import Count, NotNegative
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver, Step

__all__ = ["Particles", "systematic"]


def systematic(weights: Tensor, u: Tensor) -> Tensor:
    """Which of n are drawn, int64 (sets, n) on their device: each floor or ceil of n w_i times.

    ``weights`` (sets, n) sum to 1 in each set, and ``u`` (sets,) are uniform on [0, 1]: the places
    (u + j) / n are looked up in the sums of the weights.
    """
    n = weights.shape[1]
    places = (u[:, None] + torch.arange(n, device=weights.device)) / n
    return torch.searchsorted(weights.cumsum(dim=1), places).clamp(max=n - 1)


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
    weighed: bool
    """Whether the twist at t is part of the weights."""
    t: Tensor
    s: Tensor


@dataclass(frozen=True)
class Particles(Solver):
    """``n`` particles a sample: sequential Monte Carlo, exact as n and the number of steps grow.

    With x_s given x_t and x_0 ~ N(stay x_t + go x_0, std^2), the SDE's own kernel, a step from t to
    s and the factor of a particle's weight are

        x_s = stay x_t + go E[x_0 | x_t] + std (I + c C) (z + u),    z ~ N(0, I),
        u = go / std (E[x_0 | x_t, y] - E[x_0 | x_t]),    c = (go / std)^2 / 2,
        w = exp(-u z - u^2 / 2) p~(y | x_s) / p~(y | x_t).

    C = Cov(x_0 | x_t) is that of Tweedie's formula, so that without u the mean of x_s given x_t is
    exact, and its covariance is up to second order in the step. u moves particles to the posterior
    of the ``twist`` p~, an approximation to p(y | x_t), and w corrects for all that is wrong with
    it: a better twist keeps the weights even. ``twist="mmps"`` has the moments of x_0 given x_t,
    for as many backward passes a step as an outcome has entries, and two; ``"pigdm"`` has those of
    data N(0, d^2), for two.

    The particles are ``islands`` sets of n / islands. Before a step an island whose effective
    sample size is below half its number is resampled, systematically. Weights no longer change once
    sigma / alpha is below ``stop`` standard deviations of the data, though the steps go on: the
    twist's small errors, divided by ever smaller noise, would leave one particle with all of the
    weight.

    `sample_posterior` takes it, and returns what comes out. Rows come in groups of n, and a group
    depends on its seed alone. (Wu et al. 2023, Practical and Asymptotically Exact Conditional
    Sampling in Diffusion Models, arXiv 2306.17775: there the twist is N(y; A E[x_0 | x_t], .) with
    a variance that does not depend on the state, C is 0, and there is one island.)
    """

    n: Count = 1000
    twist: Literal["mmps", "pigdm"] = "mmps"
    islands: Count = 8
    stop: NotNegative = 0.02

    stochastic = True
    needs = frozenset({"data", "kernel", "marginal"})
    spacing = "log_snr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n % self.islands:
            raise ValueError(
                f"Particles: n must be a multiple of the {self.islands} islands, got {self.n}; "
                f"take {-(-self.n // self.islands) * self.islands}"
            )

    @property
    def group(self) -> int:
        """All particles of a sample."""
        return self.n

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The kernel of x_s given x_t and x_0 over each interval."""
        if not {"prior", "log_likelihood"} <= problem.offers:
            raise ValueError(
                "Particles need the twist of a measurement beside the model: call "
                "posterior.sample_posterior(model, measurement, y, shape, particles=Particles(n))"
            )
        if problem.breaks or times.ndim > 1:
            raise ValueError(
                "Particles have weights that go through the whole solve of a sample: take a model "
                "without breaks, and one grid for all samples"
            )
        t, s = times[:-1], times[1:]
        alpha, sigma = problem.marginal(times)
        ratio, std = problem.kernel(t, s)
        stay = ratio * (sigma[1:] / sigma[:-1]) ** 2
        go = alpha[1:] * (std / sigma[:-1]) ** 2
        noise = std * sigma[1:] / sigma[:-1]
        push = torch.where(noise > 0, go / noise, 0.0)
        widen = 0.5 * (push / problem.unit) ** 2
        rows = zip(
            problem.at(t, "data"),
            *problem.coefs(len(t), stay, go, noise, push, widen),
            (sigma[:-1] >= self.stop * alpha[:-1]).tolist(),
            t.unbind(),
            s.unbind(),
            strict=True,
        )
        return [_Plan(*row) for row in rows]

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Log weights, what u adds to them, the log-twist in them, the log evidence of islands,
        and which particle each comes from.
        """
        zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        return zero, zero, zero, zero, torch.arange(len(x), device=x.device) % self.n

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        log_weight, drawn, twist, evidence, ancestor = state
        if plan.weighed:
            place = torch.special.ndtr(problem.first(noise.normal("resampling")).double())
            rows, log_weight, gain = self._resampled(log_weight, place)
            x, drawn, twist, ancestor = (each[rows] for each in (x, drawn, twist, ancestor))
            evidence = evidence + gain
        found: Any = problem.outputs(x, plan.at)
        prior = weighted((1.0 / problem.unit, found.prior))
        if plan.weighed:
            new = problem.first(found.log_likelihood)
            log_weight, twist = log_weight + drawn + new - twist, new
        z = noise.over(plan.t, plan.s)
        u = weighted((plan.push, found.value - prior))
        drawn = -rowwise(u * (z + 0.5 * u)).double().sum(dim=1)
        moved = weighted((1.0, z + u), (plan.widen, found.covariance(z + u)))
        x_s = weighted((plan.stay, x), (plan.go, prior), (plan.std, moved))
        extras = {"log_weight": log_weight, "log_evidence": evidence, "ancestor": ancestor}
        return Step(x_s, None, (log_weight, drawn, twist, evidence, ancestor), extras=extras)

    def _resampled(self, log_weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows go on in place of each, their log weights, and what the log evidence of their
        islands gains. Nothing changes in islands whose weights are even.
        """
        size = self.n // self.islands
        logs = log_weight.reshape(-1, size)
        weights = logs.softmax(dim=1)
        uneven = (weights.square().sum(dim=1) > 2 / size)[:, None]
        total = (logs.logsumexp(dim=1, keepdim=True) - logs.new_tensor(size).log()).expand_as(logs)
        first = size * torch.arange(len(logs), device=logs.device)[:, None]
        own = torch.arange(size, device=logs.device)
        rows = first + torch.where(uneven, systematic(weights, u[::size]), own)
        kept = torch.where(uneven, 0.0, logs)
        return rows.flatten(), kept.flatten(), torch.where(uneven, total, 0.0).flatten()

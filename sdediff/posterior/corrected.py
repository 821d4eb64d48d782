"""Particles of products and powers of densities, by Feynman-Kac correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor

from sdediff.posterior.resampling import Resampling
from sdediff.solvers import rowwise
from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.given import Count, NotNegative
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Step

__all__ = ["FeynmanKac"]


_CORRECTIONS: Final = 2
"""Of N(0, v), v times 0.953, 1.007 and 1.021 is what 100 steps under VP have with 1, 2 and 3."""


class _Plan(NamedTuple):
    here: Any
    """The evaluations at t and at s."""
    there: Any
    keep: Number
    """x_s = keep x_t + go M(x_t) + bend M(x_s) + std z."""
    go: Number
    bend: Number
    std: Number
    length: Number
    """The half of log(sigma_t / alpha_t) - log(sigma_s / alpha_s); 0 where nothing is weighed."""
    growth: Number
    """(W - 1) log(sigma_t / sigma_s) likewise."""
    begin: Number
    """What the states are multiplied by before the step."""
    t: Tensor
    s: Tensor


@dataclass(frozen=True)
class FeynmanKac(Resampling):
    """``n`` particles of q ~ prod p_i^w_i for a `Product` or `Anneal`, exact as n and the steps
    grow.

    With W = sum w_i, the mean score m = sum w_i s_i / W of x_t, and any lambda >= 0, particles move
    backward in time by

        dx = [f x - (1 + lambda^2) / 2 g^2 m] dt + lambda g / sqrt(W) dw,

    from N(0, sigma_T^2 / W), and the log of their weights grows by

        [(W - 1) (div f - g^2 / 2 div m) - g^2 / 2 sum w_i |s_i - m|^2] |dt|,

    so that the weighted particles have the law q_t ~ prod p_i(., t)^w_i at every t, whatever
    lambda. ``stochasticity`` is lambda: a larger one makes the weights more even and needs more
    steps. Where the p_i are Gaussians of one covariance, all weights are equal. A step is a
    stochastic Heun step in log(sigma / alpha), exponential in the linear part, that is corrected
    twice, with three evaluations: corrected once, noise that is drawn and drawn back within a step
    leaves the variance too small, which the weights do not see. The weights are integrated by the
    trapezoidal rule over the first evaluation and the last. div m is
    needed for W != 1 alone, by at most ``probes`` backward passes of each model an evaluation:
    exactly if an event has no more entries, else by random signs (Hutchinson).

    For W = 1, as in p(x | c)^w p(x)^(1 - w), this is the weight of Skreta et al. 2025 (Feynman-Kac
    Correctors, arXiv 2503.02819), d log w = g^2 / 2 (|s|^2 - sum w_i |s_i|^2) |dt| with s = sum w_i
    s_i. For other W theirs, (W - 1) div f in addition, has the noise of |s|^2, which grows with the
    dimension: moving by m in place of s takes it away.

    ``islands`` and ``stop``: as in `Particles`. `sample_weighted` takes it, with ``last="noisy"``:
    the law and its normaliser are those of the product at the end of the solve.
    """

    n: Count = 1000
    islands: Count = 8
    stochasticity: NotNegative = 2.5
    probes: Count = 4
    stop: NotNegative = 0.02

    needs = frozenset({"noise", "marginal"})
    asks = frozenset({"center", "scatter"})
    ends = "noisy"
    evaluations = 1 + _CORRECTIONS

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The exponential Heun step over each interval, in log(sigma / alpha)."""
        self.check(problem, times)
        model: Any = cast(Any, problem).model
        power = float(model.power)
        alpha, sigma = problem.marginal(times)
        u = -0.5 * problem.log_snr(times)
        span = u[:-1] - u[1:]
        lam = self.stochasticity
        done = -torch.expm1(-(1 + lam**2) * span)
        bend = 1 - done / ((1 + lam**2) * span)
        weighed = sigma[:-1] >= self.stop * alpha[:-1]
        ratio, later = alpha[1:] / alpha[:-1], alpha[1:] / problem.unit
        columns = (
            ratio * (1 - done),
            later * (done - bend),
            later * bend,
            sigma[1:] * (-torch.expm1(-2 * lam**2 * span) / power).sqrt(),
            torch.where(weighed, 0.5 * span, 0.0),
            torch.where(weighed, (power - 1) * (sigma[:-1] / sigma[1:]).log(), 0.0),
        )
        begin = torch.ones(len(span), dtype=torch.float64)
        begin[0] = power**-0.5
        rows = zip(
            problem.at(times[:-1], "noise"),
            problem.at(times[1:], "noise"),
            *problem.coefs(len(span), *columns, begin),
            times[:-1].unbind(),
            times[1:].unbind(),
            strict=True,
        )
        return [_Plan(*row) for row in rows]

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """As `begun`, with the log normaliser of the product of priors as the evidence."""
        log_weight, evidence, ancestor = self.begun(x)
        model: Any = cast(Any, problem).model
        return log_weight, evidence + model.log_start(x.shape[1:]), ancestor

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        x, log_weight, evidence, ancestor, *_ = self.resampled(problem, noise, x, state)
        x = weighted((plan.begin, x))
        z = noise.over(plan.t, plan.s)
        probes = self._probes(x, noise)
        first: Any = problem.outputs(x, plan.here)
        moved = weighted((plan.keep, x), (plan.std, z))
        known = (plan.go, first.center)
        last: Any = first
        for _ in range(_CORRECTIONS):
            stage = weighted((1.0, moved), known, (plan.bend, last.center))
            last = problem.outputs(stage, plan.there)
        x_s = weighted((1.0, moved), known, (plan.bend, last.center))
        size = rowwise(x).shape[1]
        rates = sum(self._rate(problem, each, probes, size) for each in (first, last))
        log_weight = log_weight + size * plan.growth - plan.length * rates
        return self.weighted(x_s, (log_weight, evidence, ancestor))

    def _probes(self, x: Tensor, noise: StepNoise) -> list[Tensor]:
        """Vectors v (rows, *event) of which the sum of v^T A v, or its mean, is tr A."""
        event = x.shape[1:]
        if event.numel() <= self.probes:
            basis = torch.eye(event.numel(), dtype=x.dtype, device=x.device)
            return [each.reshape(event).expand(x.shape) for each in basis]
        signs = (noise.normal("probe", k) for k in range(self.probes))
        return [torch.where(each < 0, -1.0, 1.0).to(x.dtype) for each in signs]

    @staticmethod
    def _rate(problem: Problem, found: Any, probes: list[Tensor], size: int) -> Tensor:
        """sum w_i |alpha (E_i[x_0 | x_t] - M)|^2 / sigma^2 + (W - 1) alpha tr(dM / dx), (rows,)."""
        rate = problem.first(found.scatter).double()
        if found.back is None:
            return rate
        share = 1.0 if size <= len(probes) else 1.0 / len(probes)
        forms = [rowwise(v * found.back(v)).double().sum(dim=1) for v in probes]
        return rate + share * torch.stack(forms).sum(dim=0)

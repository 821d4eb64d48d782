"""DDPM (Ho, Jain and Abbeel 2020, arXiv 2006.11239) as an exact discretization of a variance-preserving SDE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sdediff.sde import LinearSDE
from solvers import Problem, Solver, Step, StepNoise, check_grid, expand

__all__ = ["DDPM"]


class _Plan(NamedTuple):
    t: Tensor
    s: Tensor
    data: Tensor  # coefficient of x_0 in the posterior mean
    keep: Tensor  # coefficient of x_t
    noise: Tensor


@dataclass(frozen=True, repr=False)
class DDPM(Solver):
    """The chain x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) noise, i = 1..N, at the times t_i of an SDE.

    As a solver it takes DDPM's ancestral steps from i = N to 1: x_{i-1} is drawn from q(x_{i-1} | x_i, x_0) at
    x_0 = E[x_0 | x_i] (eq. 6 and 7), the variance ``"beta_tilde"`` (the posterior's, exact for a point mass) or ``"beta"``
    (exact for unit Gaussian data). The last step, from i = 1 to data, is the ``last="denoise"`` of `sample`, so that N
    evaluations are made. Build it with `from_sde`.
    """

    betas: tuple[float, ...]
    grid: tuple[float, ...]
    variance: Literal["beta", "beta_tilde"] = "beta_tilde"

    needs = frozenset({"data"})
    stochastic = True
    diffuses = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not self.betas or not all(0 < beta < 1 for beta in self.betas):
            wrong = next((f"beta_{i + 1} = {beta:g}" for i, beta in enumerate(self.betas) if not 0 < beta < 1), "none")
            raise ValueError(f"DDPM: betas must lie in (0, 1), got {wrong}")
        if len(self.grid) != len(self.betas):
            raise ValueError(f"DDPM: needs one time for each of the {len(self.betas)} betas, got {len(self.grid)}")
        if self.variance not in ("beta", "beta_tilde"):
            raise ValueError(f"DDPM: variance must be 'beta' or 'beta_tilde', got {self.variance!r}")
        check_grid(torch.tensor(self.grid))

    @classmethod
    def from_sde(cls, sde: LinearSDE, N: int, *, variance: Literal["beta", "beta_tilde"] = "beta_tilde") -> DDPM:
        """The chain whose marginals are exactly the SDE's at t_i = T i / N: 1 - beta_i = (alpha(t_i) / alpha(t_{i-1}))^2.

        For SDEs with alpha^2 + sigma^2 = 1. T / N must not fall below t_min, where the network is not trained.
        """
        if isinstance(N, bool) or not isinstance(N, int) or N < 1:
            raise ValueError(f"N must be an int of at least 1, got {N!r}")
        times = torch.arange(N + 1, dtype=torch.float64) * (sde.T / N)
        alpha, sigma = sde.alpha(times), sde.sigma(times)
        gap = float((alpha**2 + sigma**2 - 1).abs().max())
        if gap > 1e-9:
            raise ValueError(
                f"DDPM needs alpha^2 + sigma^2 = 1, {sde!r} is off by {gap:.2g}; use Ancestral(), which takes any linear SDE"
            )
        if times[1] < sde.t_min * (1 - 1e-6):
            raise ValueError(
                f"N = {N} puts t_1 = {float(times[1]):.3g} below t_min = {sde.t_min:g}; take N <= {int(sde.T / sde.t_min + 1e-6)}"
            )
        # 1 - beta_i = (alpha_i / alpha_{i-1})^2, through the SDE's kernel, whose variance does not cancel.
        betas = sde.kernel(times[1:], times[:-1])[1] ** 2
        return cls(tuple(betas.tolist()), tuple(times[1:].tolist()), variance)

    def __repr__(self) -> str:
        """The number of steps, not all betas."""
        return f"DDPM(N={len(self.betas)}, variance={self.variance!r})"

    @property
    def times(self) -> Tensor:  # type: ignore[override]
        """t_N, ..., t_1."""
        return torch.tensor(self.grid, dtype=torch.float64).flip(0)

    @cached_property
    def alphas_bar(self) -> Tensor:
        """The products of 1 - beta_j over j <= i, float64 (N,)."""
        return torch.cumprod(1 - torch.tensor(self.betas, dtype=torch.float64), dim=0)

    def perturb(self, x_0: Tensor, i: int, noise: Tensor) -> Tensor:
        """x_i = sqrt(alpha_bar_i) x_0 + sqrt(1 - alpha_bar_i) noise, i = 1..N (eq. 4)."""
        bar = float(self.alphas_bar[self._index(i)])
        return math.sqrt(bar) * x_0 + math.sqrt(1 - bar) * noise

    def posterior(self, x: Tensor, x_0: Tensor, i: int) -> tuple[Tensor, float]:
        """Mean and variance of q(x_{i-1} | x_i = x, x_0), i = 1..N (eq. 7)."""
        data, keep, variance = (float(c[self._index(i)]) for c in self._posterior)
        return data * x_0 + keep * x, variance

    def _index(self, i: int) -> int:
        if not 1 <= i <= len(self.betas):
            raise ValueError(f"i must lie in 1..{len(self.betas)}, got {i!r}")
        return i - 1

    @cached_property
    def _posterior(self) -> tuple[Tensor, Tensor, Tensor]:
        beta, bar = torch.tensor(self.betas, dtype=torch.float64), self.alphas_bar
        before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
        data = before.sqrt() * beta / (1 - bar)
        keep = (1 - beta).sqrt() * (1 - before) / (1 - bar)
        return data, keep, beta * (1 - before) / (1 - bar)

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """Posterior coefficients of the steps from i to i - 1."""
        problem.prepare(times)
        data, keep, tilde = self._posterior
        size = (tilde if self.variance == "beta_tilde" else torch.tensor(self.betas, dtype=torch.float64)).sqrt()
        return [_Plan(times[n], times[n + 1], data[i], keep[i], size[i]) for n, i in enumerate(range(len(self.betas) - 1, 0, -1))]

    def step(self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """Draw x_{i-1}."""
        mean = expand(plan.data, x) * problem.data(x, plan.t) + expand(plan.keep, x) * x
        return Step(mean + expand(plan.noise, x) * noise.over(plan.t, plan.s), mean)

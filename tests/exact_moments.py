"""Mean and variance of a chain without Monte Carlo.

With Gaussian data the score is affine, so that a sampler's result is affine in its noises: x = m + sum_k c_k z_k. One run with
all noises zero gives m, one with z_k = 1 and the others zero gives c_k; the variance is the sum of c_k^2. All runs are the rows
of one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import sdediff as sd
from sdediff.reverse import Reverse
from solvers import Options, Problem, Solver, expand, integrate


@dataclass
class Impulses:
    """Noise of value 1 in one draw for each row, and none in row 0. Draws are numbered as they come."""

    rows: int
    keys: dict[tuple[int, str, int], int]

    def at(self, step: int) -> _Step:
        return _Step(self, step)

    def draw(self, key: tuple[int, str, int]) -> Tensor:
        row = self.keys.setdefault(key, len(self.keys) + 1)
        z = torch.zeros(self.rows, 1, dtype=torch.float64)
        if row < self.rows:
            z[row] = 1.0
        return z


@dataclass
class _Step:
    noise: Impulses
    step: int

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        return self.noise.draw((self.step, stream, k))

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        z = self.normal()
        return z * expand((b - a).abs().sqrt(), z)


def chain_moments(problem: Problem, solver: Solver, times: Tensor, mean: float, std: float, draws: int) -> tuple[float, float]:
    """Mean and standard deviation of the solver's result from N(mean, std^2), with at most ``draws`` draws of noise."""
    noise = Impulses(draws + 2, {(-1, "prior", 0): 1})
    x = torch.full((draws + 2, 1), mean, dtype=torch.float64)
    x[1] += std
    out = integrate(problem, solver, x, times, noise, Options()).x[:, 0]
    assert len(noise.keys) <= draws + 1, "more draws than rows"
    return float(out[0]), float((out[1:] - out[0]).square().sum().sqrt())


def reverse_moments(
    sde: sd.LinearSDE, solver: Solver, times: Tensor, *, mean: float, std: float, draws_a_step: int = 1, stochasticity: float = 1.0
) -> tuple[float, float]:
    """`chain_moments` of the reverse process for data N(mean, std^2), started from the exact law at times[0]."""
    data = sd.exact.Gaussian(mean, std**2)
    start_mean, start_cov = data.moments(sde, times[0])
    draws = draws_a_step * (len(times) - 1)
    problem = Reverse(data.model(sde), draws + 2, stochasticity)
    return chain_moments(problem, solver, times, float(start_mean), float(start_cov) ** 0.5, draws)


def slope(errors: list[float], factor: float = 2.0) -> float:
    """Order of convergence from errors on grids refined by ``factor``, by least squares in the logarithm."""
    logs = torch.tensor(errors, dtype=torch.float64).log()
    n = torch.arange(len(errors), dtype=torch.float64)
    n = n - n.mean()
    return float(-(n * logs).sum() / (n**2).sum() / torch.tensor(factor).log())

"""Mean and standard deviation of a chain in one dimension without Monte Carlo, by
`sdediff.exact.chain`.
"""

from __future__ import annotations

import torch
from torch import Tensor

import sdediff as sd
from sdediff.exact.chain import affine_moments
from sdediff.reverse import Reverse
from sdediff.solvers import Problem, Solver


def chain_moments(
    problem: Problem, solver: Solver, times: Tensor, mean: float, std: float, draws: int
) -> tuple[float, float]:
    """Mean and standard deviation of the solver's result from N(mean, std^2); ``draws`` is not
    needed.
    """
    start = torch.tensor([[mean], [std]], dtype=torch.float64)
    out_mean, variance = affine_moments(lambda rows: problem, solver, times, start[0], start[1])
    return float(out_mean), float(variance) ** 0.5


def reverse_moments(
    sde: sd.LinearSDE,
    solver: Solver,
    times: Tensor,
    *,
    mean: float,
    std: float,
    draws_a_step: int = 1,
    stochasticity: float = 1.0,
) -> tuple[float, float]:
    """`chain_moments` of the reverse process for data N(mean, std^2), started from the exact law at
    times[0].
    """
    data = sd.exact.Gaussian(mean, std**2)
    start_mean, start_cov = data.moments(sde, times[0])
    draws = draws_a_step * (len(times) - 1)
    problem = Reverse(data.model(sde), draws + 2, stochasticity)
    return chain_moments(problem, solver, times, float(start_mean), float(start_cov) ** 0.5, draws)

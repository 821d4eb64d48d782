"""DDPM and DDIM: the discrete chain is the SDE's kernel, its ancestral step the exact posterior."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from sdediff.discrete import DDPM
from sdediff.solvers import DDIM, Ancestral
from sdediff.testing.equivalences.case import Case
from sdediff.testing.equivalences.table import agree, equivalence
from sdediff.testing.identity import Comparison, compare

__all__ = ["chain_of"]

_KERNEL = 1e-12


def chain_of(case: Case) -> DDPM:
    """Two steps for each time of the grid, as far as t_1 = T / N is a usable time."""
    most = int(case.sde.T / case.sde.t_min + 1e-6) if case.sde.t_min > 0 else 1000
    return DDPM.from_sde(case.sde, max(1, min(2 * len(case.grid), most)))


@equivalence(
    "DDPM chain",
    statement="`DDPM.from_sde`: with 1 - beta_i = (alpha_i / alpha_{i-1})^2 the chain q(x_i given "
    "x_{i-1}) "
    "is the SDE's kernel",
    bound=_KERNEL,
    needs=("unit variance",),
)
def chain(case: Case) -> Iterator[Comparison]:
    """Kernels and marginals, absolute; Ho et al. 2020 (arXiv 2006.11239, eq. 2 and 4)."""
    ddpm = chain_of(case)
    times = torch.cat([torch.zeros(1, dtype=torch.float64), ddpm.times.flip(0)])
    betas = torch.tensor(ddpm.betas, dtype=torch.float64)
    ratio, std = case.sde.kernel(times[1:], times[:-1])
    at = {"t": times[1:], "s": times[:-1]}
    alpha = case.sde.alpha(times)
    yield compare("1 - beta_i", 1 - betas, (alpha[1:] / alpha[:-1]) ** 2, at, _KERNEL, scale=1.0)
    yield compare(
        "1 - beta_i, squared ratio of the kernel,", 1 - betas, ratio**2, at, _KERNEL, scale=1.0
    )
    yield compare("beta_i, variance of the kernel,", betas, std**2, at, _KERNEL, scale=1.0)
    x_0 = case.law.sample(case.rows, seed=case.seed)
    z = case.noise.at(0).normal("prior")
    given = torch.stack([ddpm.perturb(x_0, i, z) for i in range(1, len(times))])
    expected = torch.stack([case.sde.alpha(t) * x_0 + case.sde.sigma(t) * z for t in times[1:]])
    yield agree("x_i given x_0", given, expected, times[1:], _KERNEL, steps=False)


@equivalence(
    "DDPM sampling",
    statement="`DDPM` with beta_tilde draws x_{i-1} from q(x_{i-1} given x_i, E[x_0 given x_i]), "
    "and is "
    "`Ancestral` on the times "
    "T i / N",
    needs=("unit variance",),
)
def sampling(case: Case) -> Iterator[Comparison]:
    """Ho et al. 2020 (arXiv 2006.11239, eq. 6 and 7)."""
    ddpm = chain_of(case)
    out = case.solve(ddpm, times=ddpm.times)
    yield agree("DDPM, against the posterior step,", out, _posterior(case, ddpm.times), ddpm.times)
    yield agree(
        "DDPM, against Ancestral,", out, case.solve(Ancestral(), times=ddpm.times), ddpm.times
    )


@equivalence(
    "ancestral sampling",
    statement="`Ancestral` draws x_s from q(x_s given x_t, E[x_0 given x_t]), the exact "
    "posterior, and is "
    "`DDIM(eta=1)`",
)
def ancestral(case: Case) -> Iterator[Comparison]:
    """Song et al. 2021 (arXiv 2010.02502, Section 4.1), for any linear SDE."""
    expected = _posterior(case, case.times)
    for solver in (Ancestral(), DDIM(1.0)):
        yield agree(
            f"{solver!r}, against the posterior step,", case.solve(solver), expected, case.times
        )


def _posterior(case: Case, times: Tensor) -> Tensor:
    """x_s = mean + std z of `LinearSDE.posterior` at the law's own E[x_0 | x_t], along the grid."""
    x = case.start(times[0])
    states = [x]
    for i, (t, s) in enumerate(pairwise(times)):
        mean, std = case.sde.posterior(x, case.law.data(case.sde, x, t), t, s)
        x = mean + std * case.noise.at(i).over(t, s)
        states.append(x)
    return torch.stack(states)

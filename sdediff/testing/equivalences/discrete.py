"""Discrete models: DDPM's chain is the SDE's kernel and its step the exact posterior, by Song's
rule and on subsequences; NCSN; both as SDEs, and their losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sdediff.discrete import DDPM, NCSN, Chain, DDPMLoss, NCSNLoss
from sdediff.objectives import DenoisingScoreMatching
from sdediff.solvers import DDIM, Ancestral
from sdediff.testing.equivalences.case import Case, agree, equivalence
from sdediff.testing.orders import measured
from sdediff.testing.report import Comparison, Skip, compare

__all__ = ["chain_of"]

_CLOSE = 1e-12
_LEVELS = 1e-9
_SHORT = 0.25
_ROUNDED = 1e-8  # the noise is found from the data, over sigma


def chain_of(case: Case) -> DDPM:
    """Two steps for each time of the grid, as far as t_1 = T / N is a usable time."""
    most = int(case.sde.T / case.sde.t_min + 1e-6) if case.sde.t_min > 0 else 1000
    return DDPM.from_sde(case.sde, max(1, min(2 * len(case.grid), most)))


@equivalence(
    "DDPM chain",
    statement="`DDPM.from_sde`: with 1 - beta_i = (alpha_i / alpha_{i-1})^2 the chain q(x_i "
    "given x_{i-1}) is the SDE's kernel",
    bound=_CLOSE,
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
    yield compare("1 - beta_i", 1 - betas, (alpha[1:] / alpha[:-1]) ** 2, at, _CLOSE, scale=1.0)
    yield compare(
        "1 - beta_i, squared ratio of the kernel,", 1 - betas, ratio**2, at, _CLOSE, scale=1.0
    )
    yield compare("beta_i, variance of the kernel,", betas, std**2, at, _CLOSE, scale=1.0)
    x_0 = case.law.sample(case.rows, seed=case.seed)
    z = case.noise.at(0).normal("prior")
    given = torch.stack([ddpm.perturb(x_0, i, z) for i in range(1, len(times))])
    expected = torch.stack([case.sde.alpha(t) * x_0 + case.sde.sigma(t) * z for t in times[1:]])
    yield agree("x_i given x_0", given, expected, times[1:], _CLOSE, steps=False)


@equivalence(
    "DDPM sampling",
    statement="`DDPM` with beta_tilde draws x_{i-1} from q(x_{i-1} given x_i, E[x_0 given "
    "x_i]), and is `Ancestral` on the times T i / N",
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
    "posterior, and is `DDIM(eta=1)`",
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


def _ncsn(case: Case, n_steps: int = 2) -> NCSN:
    return NCSN.from_sde(
        case.sde,
        len(case.grid),
        n_steps=n_steps,
        step_size=0.05 * float(case.sde.sigma(case.sde.t_min)) ** 2,
    )


@equivalence(
    "Song's rule",
    statement="`DDPM.from_sde(rule='song')`: with beta_i = beta(T (i - 1) / (N - 1)) T / N the "
    "marginals of the chain are the SDE's at order 1 as N grows: by how much the "
    "measured order falls short of 1",
    bound=_SHORT,
    needs=("unit variance",),
)
def song(case: Case) -> Iterator[Comparison]:
    """Song et al. 2021 (arXiv 2011.13456, Appendix C, and the betas of their code)."""
    sde = case.sde
    times = torch.linspace(sde.t_min, sde.T, 257, dtype=torch.float64)
    least = max(float((sde.g(times) ** 2).max()) * sde.T, 16)
    counts = [int(factor * least) + 1 for factor in (8, 16, 32)]
    errors = []
    for n in counts:
        if sde.T / n < sde.t_min:
            raise Skip(f"N = {n} puts t_1 below t_min")
        chain = DDPM.from_sde(sde, n, rule="song")
        times = chain.level_times
        betas = sde.g(torch.linspace(0, sde.T, n, dtype=torch.float64)) ** 2 * (sde.T / n)
        yield compare("beta_i", chain.levels.variances, betas, {"t": times}, _SHORT)
        errors.append(float((chain.levels.alphas[1:] - sde.alpha(times)).abs().max()))
    yield measured("the order of alpha", errors, 1.0, places=f"at N = {counts}")


@equivalence(
    "respacing",
    statement="`DDPM.respaced`: the betas of a subsequence are the SDE's kernels over its "
    "intervals, and its ancestral step is `DDIM(eta=1)` there",
    needs=("unit variance",),
)
def respacing(case: Case) -> Iterator[Comparison]:
    """Nichol and Dhariwal 2021 (arXiv 2102.09672, section 4); Song et al. 2021 (arXiv 2010.02502,
    section 4.2).
    """
    whole = chain_of(case)
    few = whole.respaced(sorted({1, (whole.N + 1) // 2, whole.N}))
    times = torch.cat([torch.zeros(1, dtype=torch.float64), few.level_times])
    std = case.sde.kernel(times[1:], times[:-1])[1]
    yield compare(
        "beta_i of the subsequence",
        few.levels.variances,
        std**2,
        {"t": times[1:], "s": times[:-1]},
        1e-10,
        scale=1.0,
    )
    if few.N > 1:
        yield agree(
            "DDPM",
            case.solve(few, times=few.times),
            case.solve(DDIM(1.0), times=few.times),
            few.times,
        )


@equivalence(
    "a chain's SDE",
    statement="`to_sde` of `DDPM` and `NCSN`: the SDE has the chain's marginals and kernels at "
    "its levels, and its exact posterior step there is the chain's",
    bound=_LEVELS,
    needs=("unit variance or scale",),
)
def as_sde(case: Case) -> Iterator[Comparison]:
    """Alpha and sigma to the rounding of the larger of the two."""
    chain: Chain = chain_of(case) if float(case.sde.alpha(case.sde.t_max)) < 0.999 else _ncsn(case)
    if chain.N < 2:
        return
    sde, times = chain.to_sde(), chain.level_times
    at = {"t": times}
    yield compare("alpha(t_i)", sde.alpha(times), chain.levels.alphas[1:], at, _LEVELS, scale=1.0)
    yield compare("sigma(t_i)", sde.sigma(times), chain.levels.sigmas[1:], at, _LEVELS)
    ratio, std = sde.kernel(times[1:], times[:-1])
    pairs = {"t": times[1:], "s": times[:-1]}
    yield compare(
        "variance of the kernel", std**2, chain.levels.variances[1:], pairs, _LEVELS, scale=1.0
    )
    yield compare("ratio of the kernel", ratio, chain.levels.ratios[1:], pairs, _LEVELS, scale=1.0)
    given = case.solve(
        Ancestral(), model=case.model(sde=sde), x=case.start(times[-1]), times=times.flip(0)
    )
    x = given[0]
    states = [x]
    for step, i in enumerate(range(chain.N - 1, 0, -1)):
        data, keep, variance = (column[i] for column in chain.posterior_columns[:3])
        z = case.noise.at(step).over(times[i], times[i - 1])
        x = data * case.law.data(case.sde, x, times[i]) + keep * x + variance.sqrt() * z
        states.append(x)
    yield agree(
        "Ancestral under the chain's SDE", given, torch.stack(states), times.flip(0), _LEVELS
    )


@equivalence(
    "NCSN chain",
    statement="`NCSN.from_sde`: geometric levels, x_i = x_{i-1} + sqrt(sigma_i^2 - "
    "sigma_{i-1}^2) noise is the SDE's kernel",
    needs=("constant scale",),
)
def ncsn(case: Case) -> Iterator[Comparison]:
    """Song et al. 2021 (arXiv 2011.13456, eq. 8 and 20)."""
    chain = _ncsn(case)
    times, sigmas = chain.level_times, chain.levels.sigmas[1:]
    yield compare("sigma_i", sigmas, case.sde.sigma(times), {"t": times}, 1e-10)
    if chain.N > 1:
        ratio = sigmas[1:] / sigmas[:-1]
        yield compare(
            "sigma_i / sigma_{i-1}", ratio, ratio[:1].expand_as(ratio), {"t": times[1:]}, 1e-10
        )
        std = case.sde.kernel(times[1:], times[:-1])[1]
        yield compare(
            "sigma_i^2 - sigma_{i-1}^2",
            chain.levels.variances[1:],
            std**2,
            {"t": times[1:], "s": times[:-1]},
            1e-10,
        )


@equivalence(
    "NCSN sampling",
    statement="`NCSN` samples by annealed Langevin dynamics as its Algorithm 1 writes it, with "
    "epsilon = 2 step_size",
    needs=("constant scale",),
)
def ncsn_sampling(case: Case) -> Iterator[Comparison]:
    """Song and Ermon 2019 (arXiv 1907.05600, Algorithm 1): all levels, the first one included."""
    chain = _ncsn(case)
    if chain.N < 2:
        return
    x = case.start(chain.times[0])
    states = [x]
    for level, (t, sigma) in enumerate(zip(chain.times, chain.sigmas, strict=True)):
        alpha = 2 * (chain.step_size or math.nan) * sigma**2 / chain.sigmas[-1] ** 2
        step, first = max(level - 1, 0), chain.n_steps if level == 1 else 0
        for k in range(chain.n_steps):
            z = case.noise.at(step).normal("corrector", first + k)
            x = x + alpha / 2 * case.law.score(case.sde, x, t) + math.sqrt(alpha) * z
        if level:
            states.append(x)
    yield agree("NCSN", case.solve(chain, times=chain.times), torch.stack(states), chain.times)


@equivalence(
    "discrete losses",
    statement="L_simple and NCSN's loss are denoising score matching with the weighting "
    "sigma^2 at the chain's times",
    bound=_ROUNDED,
    needs=("unit variance or scale",),
)
def losses(case: Case) -> Iterator[Comparison]:
    """Ho et al. 2020 (arXiv 2006.11239, eq. 14); Song and Ermon 2019 (arXiv 1907.05600, eq. 6)."""
    ddpm = float(case.sde.alpha(case.sde.t_max)) < 0.999
    chain: Any = chain_of(case) if ddpm else _ncsn(case)
    x_0 = case.law.sample(case.rows, seed=case.seed)
    z = case.noise.at(0).normal("prior")
    i = torch.arange(case.rows) % chain.N + 1
    model, t = case.model(), chain.level_times[i - 1]
    given = (DDPMLoss(chain) if ddpm else NCSNLoss(chain))(model, x_0, i=i, noise=z)
    error = model.noise(case.sde.perturb(x_0, t, z), t) - z
    by_hand = error.reshape(case.rows, -1).square().mean(dim=1)
    yield compare("the loss", given, by_hand, {"t": t}, _ROUNDED, scale=1.0)
    matching = DenoisingScoreMatching("sigma2")(model, x_0, t=t, noise=z)
    yield compare("the loss", given, matching, {"t": t}, _ROUNDED, scale=1.0)

"""The variational bound of DDPM on Gaussian data, where every law is Gaussian."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sdediff.discrete import DDPM, DDPMLoss
from sdediff.discrete.bound import prior_term
from sdediff.exact import Gaussian
from sdediff.testing.equivalences.case import Case, equivalence
from sdediff.testing.equivalences.discrete import chain_of
from sdediff.testing.report import Comparison, compare

__all__: list[str] = []

_TERMS = 1e-7


@equivalence(
    "variational bound",
    statement="every term of L_vlb of Gaussian data with the exact score equals its closed form",
    bound=_TERMS,
    needs=("unit variance",),
)
def bound(case: Case) -> Iterator[Comparison]:
    """Ho et al. 2020 (arXiv 2006.11239, eq. 5), by a quadrature that is exact for what is quadratic
    in x_0 and noise.
    """
    for variance in ("beta", "beta_tilde"):
        chain = replace(chain_of(case), variance=variance)
        given = _measured(case, chain)
        terms = _terms(chain, *_normal(case))
        scale = float(terms.abs().max().clamp(min=1))
        at = {"i": range(1, chain.N + 1)}
        yield compare(
            f"L_(i-1) with the variance {variance}", given[:-1], terms[:-1], at, _TERMS, scale=scale
        )
        yield compare(
            f"L_N with the variance {variance}",
            given[-1:],
            terms[-1:],
            {"i": [chain.N]},
            _TERMS,
            scale=1.0,
        )


@equivalence(
    "bound and likelihood",
    statement="with the exact score of Gaussian data L_vlb exceeds the chain's mean -log "
    "p(x_0) by the mean of KL(q, p), where q and p are the two laws of x_1..N given x_0",
    bound=_TERMS,
    needs=("unit variance",),
)
def gap(case: Case) -> Iterator[Comparison]:
    """Every law of the chain is Gaussian: the divergence from the joint covariances of x_0, ...,
    x_N.
    """
    chain = replace(chain_of(case), variance="beta")
    total = float(_measured(case, chain).sum())
    likelihood, divergence = _joint(chain, *_normal(case))
    scale = max(1.0, abs(total))
    yield compare(
        "L_vlb less -log p(x_0)",
        [total - likelihood],
        [divergence],
        {"N": [chain.N]},
        _TERMS,
        scale=scale,
    )
    yield compare(
        "the part of the gap below 0",
        [min(0.0, divergence)],
        [0.0],
        {"N": [chain.N]},
        _TERMS,
        scale=scale,
    )


def _normal(case: Case) -> tuple[float, float]:
    """Mean and variance of the law's first coordinate."""
    mean, covariance = case.law.data_moments()
    return float(mean[0]), max(float(covariance[0, 0]), 1e-2)


def _measured(case: Case, chain: DDPM) -> Tensor:
    """The mean L_0, ..., L_(N-1) and L_N of N(mean, variance) data, as the loss and the bound have
    them, nats (N + 1,).
    """
    mean, variance = _normal(case)
    nodes, weights = (torch.as_tensor(each) for each in np.polynomial.hermite_e.hermegauss(4))
    w = torch.outer(weights, weights).flatten() / weights.sum() ** 2
    x = (mean + variance**0.5 * nodes).repeat_interleave(4)[:, None]
    z = nodes.repeat(4)[:, None]
    model, loss = Gaussian([mean], variance).model(case.sde), DDPMLoss(chain, "vlb")
    terms = [
        (loss(model, x, i=torch.full((16,), i), noise=z) * w).sum() * math.log(2) / chain.N
        for i in range(1, chain.N + 1)
    ]
    return torch.stack([*terms, (prior_term(chain, x) * w).sum()])


def _terms(chain: DDPM, mean: float, variance: float) -> Tensor:
    """The same in closed form, from the betas."""
    betas = torch.tensor(chain.betas, dtype=torch.float64)
    bar = torch.cumprod(1 - betas, dim=0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    tilde = betas * (1 - before) / (1 - bar)
    left = variance * (1 - bar) / (bar * variance + 1 - bar)  # E (x_0 - E[x_0 | x_i])^2
    v = betas if chain.variance == "beta" else tilde
    terms = 0.5 * ((v / tilde).log() - 1 + tilde / v + before * (betas / (1 - bar)) ** 2 * left / v)
    first = tilde[1] if chain.N > 1 else betas[0]
    terms[0] = 0.5 * ((2 * math.pi * first).log() + left[0] / first)
    last = 0.5 * (bar[-1] * (mean**2 + variance) - bar[-1] - torch.log1p(-bar[-1]))
    return torch.cat([terms, last.reshape(1)])


def _joint(chain: DDPM, mean: float, variance: float) -> tuple[float, float]:
    """(mean of -log p(x_0), mean of KL(q(x_1..N | x_0) || p(x_1..N | x_0))) over N(mean, variance)
    data.
    """
    n = chain.N
    alphas, sigmas = (levels.numpy() for levels in chain.levels[:2])
    data, keep = (column.numpy() for column in chain.posterior_columns[:2])
    log_v = chain.log_variance(torch.arange(1, n + 1)).numpy()
    # x_{i-1} = offset + slope x_i + sqrt(v) z from x_N ~ N(0, 1): the joint law of (x_0, ..., x_N).
    m, cov = np.zeros(n + 1), np.zeros((n + 1, n + 1))
    cov[n, n] = 1.0
    for i in range(n, 0, -1):
        # E[x_0 | x_i] = mean + gain (x_i - alpha mean)
        gain = alphas[i] * variance / (alphas[i] ** 2 * variance + sigmas[i] ** 2)
        rise = keep[i - 1] + data[i - 1] * gain
        m[i - 1] = data[i - 1] * mean * (1 - gain * alphas[i]) + rise * m[i]
        cov[i - 1, i:] = cov[i:, i - 1] = rise * cov[i, i:]
        cov[i - 1, i - 1] = rise**2 * cov[i, i] + math.exp(log_v[i - 1])
    likelihood = 0.5 * (
        math.log(2 * math.pi * cov[0, 0]) + (variance + (mean - m[0]) ** 2) / cov[0, 0]
    )
    # q(x_1..N | x_0) has means alphas x_0 and covariances alpha_j / alpha_i sigma_i^2 for i <= j;
    # p's by conditioning.
    low, high = (
        function.outer(np.arange(1, n + 1), np.arange(1, n + 1))
        for function in (np.minimum, np.maximum)
    )
    q = alphas[high] / alphas[low] * sigmas[low] ** 2
    pull = cov[1:, 0] / cov[0, 0]
    p = cov[1:, 1:] - np.outer(pull, cov[0, 1:])
    inverse = np.linalg.inv(p)
    offset, rate = alphas[1:] * mean - (m[1:] + pull * (mean - m[0])), alphas[1:] - pull
    apart = float(offset @ inverse @ offset + variance * (rate @ inverse @ rate))
    logs = float(np.linalg.slogdet(p)[1] - np.linalg.slogdet(q)[1])
    return likelihood, 0.5 * (float(np.trace(inverse @ q)) - n + logs + apart)

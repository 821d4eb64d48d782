"""DDPM and NCSN, by Hypothesis over random betas and levels: kernels, posteriors, marginals, and
the law of what they sample.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quiet import QUIET
from torch import Tensor

import sdediff as sd

pytestmark = pytest.mark.slow
F64 = torch.float64

BETAS = st.lists(st.integers(1, 950).map(lambda k: k / 1000), min_size=1, max_size=12)
VARIANCES = st.sampled_from(["beta", "beta_tilde"])
LEVELS = (
    st.lists(st.integers(1, 400), min_size=2, max_size=9, unique=True)
    .map(lambda steps: tuple(math.exp(k / 50 - 4) for k in sorted(steps, reverse=True)))
    .filter(lambda sigmas: sigmas[0] / sigmas[-1] > 1.1)
)
"""From exp(-4) to exp(4), neighbours a factor of 1.02 apart or more."""

ddpms = st.builds(
    lambda betas, variance: sd.DDPM(tuple(betas), variance=variance), BETAS, VARIANCES
)
ncsns = st.builds(lambda sigmas, n: sd.NCSN(sigmas, n_steps=n), LEVELS, st.integers(1, 4))
chains = st.one_of(ddpms, ncsns)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-13)


@settings(QUIET, max_examples=300)
@given(chains)
def test_marginals_are_those_of_the_kernels(chain: sd.DDPM | sd.NCSN) -> None:
    """alpha_i and sigma_i from x_i = ratio x_{i-1} + std noise, level by level; and the chain's SDE
    has them at its times.
    """
    alpha, variance = 1.0, 0.0
    found = []
    for i in range(1, chain.N + 1):
        ratio, std = chain.kernel(i)
        alpha, variance = alpha * float(ratio), float(ratio) ** 2 * variance + float(std) ** 2
        found.append((alpha, variance**0.5))
    alphas, sigmas = torch.tensor(found, dtype=F64).T
    close(chain.levels.alphas[1:], alphas)
    close(chain.levels.sigmas[1:], sigmas)
    sde = chain.to_sde()
    close(sde.alpha(chain.level_times), alphas, 1e-9)
    close(sde.sigma(chain.level_times), sigmas, 1e-9)


@settings(QUIET, max_examples=300)
@given(chains, st.data())
def test_the_posterior_is_bayes(chain: sd.DDPM | sd.NCSN, data: st.DataObject) -> None:
    """log q(x_{i-1} | x_i, x_0) = log q(x_i | x_{i-1}) + log q(x_{i-1} | x_0) up to a constant, at
    any x_{i-1}; by the noise of x_i it is the same.
    """
    if chain.N < 2:
        return
    i = data.draw(st.integers(2, chain.N))
    tenth = st.integers(-40, 40).map(lambda k: k / 10)
    x_0, z = (torch.tensor([[data.draw(tenth)]], dtype=F64) for _ in range(2))
    x_i = chain.perturb(x_0, i, z)
    mean, variance = chain.posterior(x_i, x_0, i)
    ratio, std = chain.kernel(i)
    alpha, sigma = chain.levels.alphas[i - 1], chain.levels.sigmas[i - 1]
    precision = ratio**2 / std**2 + 1 / sigma**2
    want = (ratio * x_i / std**2 + alpha * x_0 / sigma**2) / precision
    size = float(mean.abs() + x_0.abs() + x_i.abs())
    close(variance, 1 / precision, 1e-8)
    torch.testing.assert_close(mean, want, rtol=1e-8, atol=1e-9 * size)
    by_noise, same = chain.posterior_from_noise(x_i, z, i)
    torch.testing.assert_close(by_noise, mean, rtol=1e-8, atol=1e-9 * size)
    close(same, variance)


@settings(QUIET, max_examples=200)
@given(ddpms, st.data())
def test_a_subsequence_has_the_chains_marginals(chain: sd.DDPM, data: st.DataObject) -> None:
    """At the levels that it keeps; and the variances of its steps lie from the posterior's to the
    kernel's.
    """
    kept = data.draw(st.lists(st.integers(1, chain.N), min_size=1, unique=True).map(sorted))
    part = chain.respaced(kept)
    close(part.levels.alphas[1:], chain.levels.alphas[kept])
    close(part.levels.sigmas[1:], chain.levels.sigmas[kept])
    assert part.grid == tuple(chain.grid[i - 1] for i in kept)
    low, high = part.log_variances
    assert bool((low <= high + 1e-12).all())


def ends(chain: sd.DDPM | sd.NCSN, law: sd.exact.Gaussian) -> tuple[Tensor, Tensor]:
    """Mean and variance of what the chain samples, from the law at its last level."""
    mean, covariance = law.chain(chain.to_sde(), chain, chain.times)
    return mean, covariance.reshape(1)


@settings(QUIET, max_examples=100)
@given(st.lists(st.integers(5, 900).map(lambda k: k / 1000), min_size=2, max_size=10))
def test_ancestral_sampling_is_exact_for_a_point_and_for_a_normal(betas: list[float]) -> None:
    """With the variance beta_tilde for data that are a point, with beta for N(0, 1)."""
    for law, variance in (
        (sd.exact.Gaussian(0.7, 0.0), "beta_tilde"),
        (sd.exact.Gaussian(0.0, 1.0), "beta"),
    ):
        chain = sd.DDPM(tuple(betas), variance=variance)
        mean, found = ends(chain, law)
        true_mean, true_variance = law.moments(chain.to_sde(), chain.times[-1])
        torch.testing.assert_close(mean, true_mean, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found, true_variance.reshape(1), rtol=1e-7, atol=1e-9)


@settings(QUIET, max_examples=100)
@given(LEVELS, st.integers(1, 4), st.sampled_from([None, 0.01, 0.3]))
def test_annealed_langevin_is_its_recursion(
    sigmas: tuple[float, ...], n_steps: int, step: float | None
) -> None:
    """Mean and variance on N(0.3, 0.25) after n steps of eps_j = eps sigma_j^2 / sigma_N^2 at each
    level: x <- x - eps_j (x - 0.3) / (0.25 + sigma_j^2) + sqrt(2 eps_j) z.
    """
    size = None if step is None else step * sigmas[-1] ** 2
    chain = sd.NCSN(sigmas, step_size=size, n_steps=n_steps)
    off, variance = 0.0, 0.25 + sigmas[0] ** 2
    for sigma, eps in zip(sigmas, chain.step_sizes.tolist(), strict=True):
        for _ in range(n_steps):
            keep = 1 - eps / (0.25 + sigma**2)
            off, variance = keep * off, keep**2 * variance + 2 * eps
    ratios = chain.step_sizes / torch.tensor(sigmas, dtype=F64).square()
    close(ratios, ratios[-1:].expand(len(sigmas)))
    mean, found = ends(chain, sd.exact.Gaussian(0.3, 0.25))
    torch.testing.assert_close(mean, torch.tensor([0.3 + off], dtype=F64), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found, torch.tensor([variance], dtype=F64), rtol=1e-8, atol=0)

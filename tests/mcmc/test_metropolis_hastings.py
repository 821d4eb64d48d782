"""Metropolis-Hastings with a proposal of the user's: detailed balance on a grid, the laws it keeps,
and what it refuses.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff import mcmc
from sdediff.mcmc.kernels import Noise

F64 = torch.float64
WELL = mcmc.LogDensity(lambda x: (x**2 - 0.5 * x**4 + 0.3 * x).sum(dim=1))
SCORE = mcmc.Score(lambda x: 2 * x - 2 * x**3 + 0.3)
MIXTURE = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.4, [0.3, 0.7])
SDE = sd.VP()
DENSITY = mcmc.LogDensity(lambda x: MIXTURE.log_prob(SDE, x, 0.0))


def autoregressive(y: Tensor, x: Tensor) -> Tensor:
    """q(y | x) = N(x / 2 + 0.2, 0.8^2): asymmetric."""
    return -0.5 * ((y - 0.5 * x - 0.2) / 0.8).square().sum(dim=1)


def skewed(y: Tensor, x: Tensor) -> Tensor:
    """y = x exp(0.6 z) on the half line of x, up to a constant: -inf across 0."""
    ratio = (y / x)[:, 0]
    z = ratio.clamp(min=1e-300).log() / 0.6
    return torch.where(ratio > 0, -0.5 * z.square() - y[:, 0].abs().log(), -math.inf)


class Decided(Noise):
    """A noise whose decisions a test chooses."""

    def __init__(self, z: Tensor) -> None:
        vars(self)["z"] = z

    def decision(self, step: int) -> Tensor:
        return self.z


@pytest.mark.parametrize("target", [WELL, SCORE], ids=["density", "score"])
@pytest.mark.parametrize("log_q", [autoregressive, lambda y, x: autoregressive(y, 0 * x), None])
def test_detailed_balance(log_q, target):
    """p(x) q(y | x) a(x, y) = p(y) q(x | y) a(y, x) at 25 x 25 points; a is read off the kernel's
    decisions, by bisection.
    """
    points = torch.linspace(-1.8, 1.9, 25, dtype=F64)
    x, y = (each.reshape(-1, 1) for each in torch.meshgrid(points, points, indexing="ij"))
    kernel = mcmc.MetropolisHastings(lambda *_: y, log_q)
    here = target.look(x, score=False)
    low, high = torch.full((len(x),), -30.0, dtype=F64), torch.full((len(x),), 7.0, dtype=F64)
    for _ in range(60):
        middle = (low + high) / 2
        go = kernel.move(target, here, Decided(middle), 0)[1]
        low, high = torch.where(go, middle, low), torch.where(go, high, middle)
    log_a = torch.special.log_ndtr(low)
    flow = WELL.log_prob(x) + log_a + (0 if log_q is None else log_q(y, x))
    flow, log_a = flow.reshape(25, 25), log_a.reshape(25, 25)
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-9)
    assert float(log_a.min()) < -1.5
    assert float(torch.maximum(log_a, log_a.T).abs().max()) < 1e-9  # one of the two is 1


def fitted_proposal() -> mcmc.MetropolisHastings:
    """An independence proposal from a Gaussian mixture that scikit-learn fits to few draws."""
    mixture = pytest.importorskip("sklearn.mixture")
    fit = mixture.GaussianMixture(2, random_state=0).fit(MIXTURE.sample(300, seed=9).numpy())
    means = torch.from_numpy(fit.means_)
    roots = torch.linalg.cholesky(1.5 * torch.from_numpy(fit.covariances_))
    edges = torch.from_numpy(fit.weights_).cumsum(0)
    parts = torch.distributions.MultivariateNormal(means, scale_tril=roots)

    def propose(x: Tensor, draws: mcmc.Draws) -> Tensor:
        k = torch.searchsorted(edges, draws.uniform()).clamp(max=len(means) - 1)
        return means[k] + (roots[k] @ draws.normal()[..., None])[..., 0]

    def log_q(y: Tensor, x: Tensor) -> Tensor:
        weights = torch.from_numpy(fit.weights_).log()
        return torch.logsumexp(weights + parts.log_prob(y[:, None]), dim=1)

    return mcmc.MetropolisHastings(propose, log_q)


def test_an_independence_proposal_keeps_the_law_of_a_mixture():
    """2,000 chains from one point, after 30 steps; p-values above 1e-4 against 20,000 exact draws.
    With the ratio of the proposals left out the law is another.
    """
    kernel = fitted_proposal()
    exact = MIXTURE.sample(20_000, seed=3)
    start = torch.tensor([[0.5, 0.0]], dtype=F64).expand(2000, 2)
    out = mcmc.run(kernel, DENSITY, start, steps=10, burn_in=20, thin=10, seed=11)
    assert sd.metrics.kolmogorov_smirnov(out.flat, exact).p_value > 1e-4
    assert 0.5 < float(out.acceptance.mean()) < 0.95
    wrong = mcmc.MetropolisHastings(kernel.propose)
    out = mcmc.run(wrong, DENSITY, start, steps=1, burn_in=30, seed=11)
    assert sd.metrics.kolmogorov_smirnov(out.flat, exact).p_value < 1e-8


def test_an_asymmetric_proposal_keeps_a_law_on_the_half_line():
    """An exponential law by steps of log x; p-value above 1e-4, and below 1e-8 without log_q."""
    law = mcmc.LogDensity(lambda x: torch.where(x > 0, -x, -math.inf).sum(dim=1))

    def propose(x: Tensor, draws: mcmc.Draws) -> Tensor:
        return x * (0.6 * draws.normal()).exp()

    results = []
    for log_q in (skewed, None):
        kernel = mcmc.MetropolisHastings(propose, log_q)
        start = torch.ones(1500, 1, dtype=F64)
        out = mcmc.run(kernel, law, start, steps=1, burn_in=80, seed=4)
        cdf = sd.metrics.kolmogorov_smirnov(out.flat, lambda x: 1 - torch.exp(-x.clamp(min=0)))
        results.append(cdf.p_value)
    assert results[0] > 1e-4
    assert results[1] < 1e-8


def test_random_walk_is_the_case_of_a_symmetric_proposal():
    kernel = mcmc.MetropolisHastings(lambda x, draws: x + 0.7 * draws.normal())
    start = torch.linspace(-1, 1, 10, dtype=F64).reshape(5, 2)
    ours, walk = (
        mcmc.run(each, DENSITY, start, steps=20, seed=3) for each in (kernel, mcmc.RandomWalk(0.7))
    )
    torch.testing.assert_close(ours.samples, walk.samples, rtol=1e-14, atol=0)
    assert torch.equal(ours.acceptance, walk.acceptance)
    half = mcmc.run(kernel, DENSITY, start, steps=8, seed=3)
    rest = mcmc.run(kernel, DENSITY, half.state, steps=12)
    assert torch.equal(rest.samples, ours.samples[8:])


def test_draws_of_a_step_are_independent_and_uniform():
    """4,000 chains: uniforms by KS (p-value above 1e-4), correlations below 5 standard errors."""
    seen: list[tuple[Tensor, ...]] = []

    def propose(x: Tensor, draws: mcmc.Draws) -> Tensor:
        seen.append(
            (draws.uniform(), draws.uniform(1), draws.normal()[:, 0], draws.normal(1)[:, 0])
        )
        return x + draws.normal()

    mcmc.run(
        mcmc.MetropolisHastings(propose),
        lambda x: -x.square().sum(dim=1),
        torch.zeros(4000, 1, dtype=F64),
        steps=2,
        seed=0,
    )
    every = torch.stack([each for draw in seen[1:] for each in draw])
    assert sd.metrics.kolmogorov_smirnov(every[0][:, None], lambda x: x).p_value > 1e-4
    off = torch.corrcoef(every) - torch.eye(len(every), dtype=F64)
    assert float(off.abs().max()) < 5 / 4000**0.5


def test_the_accept_step_is_public():
    x = torch.zeros(3, 1, dtype=F64)
    here, there = mcmc.Point(x, x[:, 0]), mcmc.Point(x + 1, x[:, 0] + 2)
    ratio = torch.tensor([0.0, -50.0, math.nan], dtype=F64)
    point, go = mcmc.accept(here, there, ratio, torch.zeros(3, dtype=F64))
    assert go.tolist()[:2] == [True, False]
    assert point.x[:2, 0].tolist() == [1.0, 0.0]
    assert math.isnan(float(point.x[2, 0]))


def test_of_a_score_short_proposals_are_exact_and_long_ones_between_modes_are_not():
    """Simpson's rule beside the log-density that it integrates, as docs/other-processes.md says."""
    law = sd.exact.GaussianMixture([[-1.0], [1.0]], 0.4, [0.3, 0.7])
    target = mcmc.Score(lambda x: law.score(sd.VP(), x, 0.0))
    start = torch.tensor([[-0.9]], dtype=F64)

    def off(length: float) -> float:
        here, there = (target.look(x, score=True) for x in (start, start + length))
        ends = law.log_prob(sd.VP(), torch.cat([here.x, there.x]), 0.0)
        return abs(float(target.rise(here, there) - ends[1] + ends[0]))

    assert off(0.2) < 1e-3
    assert off(1.8) > 0.1


@pytest.mark.parametrize(
    ("propose", "log_q", "message"),
    [
        (lambda x, draws: x[:, :1], None, "proposals like x"),
        (lambda x, draws: x.float(), None, "proposals like x"),
        (lambda x, draws: x.add_(1), None, "propose"),
        (lambda x, draws: x + draws.normal(), lambda y, x: y, "one number a chain"),
        (
            lambda x, draws: x + draws.normal(),
            lambda y, x: torch.full((len(x),), -math.inf, dtype=F64),
            "log_q.y, x. must be finite",
        ),
        (
            lambda x, draws: x + draws.normal(),
            lambda y, x: torch.full((len(x),), math.nan, dtype=F64),
            "log_q.y, x. must be finite",
        ),
    ],
)
def test_wrong_proposals_are_named_before_the_target_is_evaluated(propose, log_q, message):
    def target(x: Tensor) -> Tensor:
        raise AssertionError("the target was evaluated")

    kernel = mcmc.MetropolisHastings(propose, log_q)
    with pytest.raises((ValueError, RuntimeError), match=message):
        mcmc.run(kernel, target, torch.zeros(4, 2, dtype=F64), steps=3, seed=0)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="takes functions propose"):
        mcmc.MetropolisHastings(0.5)

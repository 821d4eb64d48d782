"""Stochastic-gradient Langevin dynamics on the conjugate Gaussian posterior, where every chain's
moments are known exactly.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import sdediff as sd

F64 = torch.float64
mcmc = sd.mcmc
N, n, S2, T2 = 20, 4, 1.3, 2.0  # data, of a batch, their variance given x, the prior's variance
DATA = torch.linspace(-1, 3, N, dtype=F64) ** 2
PRECISION = N / S2 + 1 / T2
MEAN, VARIANCE = float(DATA.sum()) / S2 / PRECISION, 1 / PRECISION
NOISE = N**2 / n * float(DATA.var(correction=0)) / S2**2  # variance of the minibatch's gradient


def log_prior(x):
    return -0.5 * x.square() / T2


def log_likelihood(x, y):
    return -0.5 * (y - x[:, None]).square() / S2


def posterior(batch_size=n, **options):
    return mcmc.Posterior(log_prior, log_likelihood, DATA, batch_size, **options)


def moments(steps, start=0.0):
    """Mean and variance after steps of the sizes given, by x <- (1 - h P) x + h P m + h xi + sqrt(2
    h) z.
    """
    m, v = start, 0.0
    for h in steps:
        m, v = m + h * PRECISION * (MEAN - m), (1 - h * PRECISION) ** 2 * v + h**2 * NOISE + 2 * h
    return m, v


def check(x, m, v):
    """Mean and variance of independent draws within 5 standard errors (the law is nearly
    normal).
    """
    assert float(x.mean()) == pytest.approx(m, abs=5 * (v / len(x)) ** 0.5)
    assert float(x.var()) == pytest.approx(v, rel=5 * (2 / len(x)) ** 0.5)


@pytest.mark.parametrize(
    "step",
    [0.02, mcmc.Decay(0.03, 2.0, 0.7), lambda k: 0.03 / (1 + k)],
    ids=["constant", "decay", "function"],
)
def test_moments_of_chains(step):
    """After 1, 3 and 40 steps of 6,000 chains, each with minibatches of its own."""
    out = mcmc.run(mcmc.SGLD(step), posterior(), torch.zeros(6000, dtype=F64), steps=40, seed=1)
    sizes = [step(k) if callable(step) else step for k in range(40)]
    for count in (1, 3, 40):
        check(out.samples[count - 1], *moments(sizes[:count]))


def test_stationary_variance_is_off_by_the_step():
    """(2 h + h^2 N) / (1 - (1 - h P)^2): over the posterior's by more than discretization alone, in
    6,000 chains.
    """
    h = 0.02
    out = mcmc.run(
        mcmc.SGLD(h), posterior(), torch.full((6000,), MEAN, dtype=F64), steps=40, seed=2
    )
    exact = (2 * h + h**2 * NOISE) / (1 - (1 - h * PRECISION) ** 2)
    check(out.samples[-1], MEAN, exact)
    assert exact > 1.5 * VARIANCE / (1 - h * PRECISION / 2)


def test_decaying_steps_converge_to_the_posterior():
    """The exact variance after k steps of `Decay` falls to the posterior's; weighted averages of
    2,000 chains of 300 draws have the weighted averages of the exact moments: mean and variance
    (1.6 %) within 5 standard errors.
    """
    step = mcmc.Decay(0.01, 10.0, 0.6)
    sizes = [step(k) for k in range(1501)]
    excess = [moments(sizes[:k])[1] / VARIANCE - 1 for k in (150, 1500)]
    assert excess[1] < 0.35 * excess[0]
    out = mcmc.run(
        mcmc.SGLD(step), posterior(), torch.full((2000,), MEAN, dtype=F64), steps=300, seed=3
    )
    assert abs(float(out.mean) - MEAN) < 5 * float(out.stderr)
    weights = np.array(sizes[1:301]) / sum(sizes[1:301])
    np.testing.assert_allclose(out.weights, weights, rtol=1e-12)
    v, average = 0.0, 0.0
    for k in range(300):
        v = (1 - sizes[k] * PRECISION) ** 2 * v + sizes[k] ** 2 * NOISE + 2 * sizes[k]
        average += weights[k] * v
    assert float(out.std) ** 2 == pytest.approx(average, rel=0.08)
    torch.testing.assert_close(
        out.mean, (torch.from_numpy(weights)[:, None] * out.samples).sum() / 2000
    )
    assert float(out.stderr) == pytest.approx(
        float(out.std) / (float(out.ess) / 300 / (weights**2).sum()) ** 0.5
    )


def test_the_gradient_is_unbiased():
    """At x = 0.3, over 20,000 minibatches: mean and variance of the estimate within 5 standard
    errors.
    """
    white = sd.White(sd.seeds(4, 20_000), (), dtype=F64)
    x = torch.full((20_000,), 0.3, dtype=F64)
    score = posterior().draw(white, 7).look(x, score=True).score
    check(score, PRECISION * (MEAN - 0.3), NOISE)
    whole = posterior(None).look(x[:2], score=True)
    torch.testing.assert_close(
        whole.score, torch.full((2,), PRECISION * (MEAN - 0.3), dtype=F64), rtol=1e-12, atol=0
    )
    want = log_prior(x[:2]) + log_likelihood(x[:2], DATA[None]).sum(dim=1)
    torch.testing.assert_close(whole.log_prob, want, rtol=1e-12, atol=0)


def test_minibatches_belong_to_a_chain_or_are_shared():
    """The chains' gradients at one point: their own, by their seeds, or one for all, by the shared
    seed and the step.
    """
    white = sd.White(sd.seeds(4, 6), (), dtype=F64)
    x = torch.zeros(6, dtype=F64)

    def scores(target, noise=white, step=0):
        return target.draw(noise, step).look(x[: len(noise.seeds)], score=True).score

    own, shared = scores(posterior()), scores(posterior(shared_seed=1))
    assert len(set(own.tolist())) > 4
    assert len(set(shared.tolist())) == 1
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(scores(posterior(), white.take(rows)), own[rows])
    torch.testing.assert_close(scores(posterior(shared_seed=1), white.take(rows)), shared[rows])
    assert float((scores(posterior(shared_seed=2)) - shared).abs().min()) > 1e-6
    assert float((scores(posterior(shared_seed=1), step=1) - shared).abs().min()) > 1e-6
    whole = mcmc.run(mcmc.SGLD(0.01), posterior(), x, steps=5, seed=8)
    part = mcmc.run(
        mcmc.SGLD(0.01), posterior(), x[:2], steps=5, seed=[whole.state.seeds[i] for i in (4, 1)]
    )
    torch.testing.assert_close(part.samples, whole.samples[:, rows])


def test_a_posterior_of_several_tensors():
    """A regression: inputs and targets stay together; with all data, MALA has the exact posterior's
    moments.
    """
    inputs = torch.linspace(-1, 1, 12, dtype=F64)
    targets = 2 * inputs + 0.5
    features = torch.stack([inputs, torch.ones(12, dtype=F64)], dim=1)

    def likelihood(x, a, y):
        return -0.5 * ((x[:, None] * a).sum(dim=2) - y).square()

    prior = lambda x: -0.5 * x.square().sum(dim=1)  # noqa: E731
    precision = features.T @ features + torch.eye(2, dtype=F64)
    mean, cov = torch.linalg.solve(precision, features.T @ targets), torch.linalg.inv(precision)
    whole = mcmc.Posterior(prior, likelihood, (features, targets))
    out = mcmc.run(
        mcmc.MALA(0.07), whole, torch.zeros(3000, 2, dtype=F64), steps=1, burn_in=40, seed=1
    )
    spread = cov.diagonal().sqrt()
    assert float(((out.mean - mean) / spread).abs().max()) < 5 / 3000**0.5
    assert float((torch.cov(out.flat.T) / cov - 1)[0, 0].abs()) < 5 * (2 / 3000) ** 0.5
    few = mcmc.Posterior(prior, likelihood, (features, targets), batch_size=5)
    x = torch.ones(3, 2, dtype=F64)
    white = sd.White((1, 2, 3), ())
    index = white.integers(0, "minibatch", 5, 12)
    a, y = features[index], targets[index]
    want = -x + 12 / 5 * (a * (y - (x[:, None] * a).sum(dim=2))[:, :, None]).sum(dim=1)
    torch.testing.assert_close(
        few.draw(white, 0).look(x, score=True).score, want, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("below", [1, 7, 1000])
def test_integers_are_uniform(below):
    """Chi-square of 40,000 integers at the 1e-6 quantiles; rows and steps are their own."""
    white = sd.White(sd.seeds(0, 200), (3,))
    drawn = torch.stack([white.integers(step, "minibatch", 25, below) for step in range(8)])
    assert drawn.shape == (8, 200, 25)
    counts = np.bincount(drawn.flatten().numpy(), minlength=below)
    assert len(counts) == below
    statistic = ((counts - 40_000 / below) ** 2).sum() / (40_000 / below)
    assert below == 1 or chi2.ppf(1e-6, below - 1) < statistic < chi2.isf(1e-6, below - 1)
    assert torch.equal(
        white.take(torch.tensor([9])).integers(5, "minibatch", 25, below), drawn[5, 9:10]
    )
    if below == 1000:
        rows = drawn.double().reshape(1600, 25)
        # of the next row or step, of the next draw
        neighbours = (rows[:-1], rows[1:], rows[:-1].roll(1, dims=1))
        correlation = torch.corrcoef(torch.stack([each.flatten() for each in neighbours]))
        assert float((correlation - torch.eye(3)).abs().max()) < 6 / 39_975**0.5


def test_decay():
    step = mcmc.Decay(0.3, 2.0, 0.75)
    assert [step(k) for k in (0, 5)] == pytest.approx([0.3 * 2**-0.75, 0.3 * 7**-0.75], rel=1e-14)


BAD = {
    "gamma": (lambda: mcmc.Decay(0.1, 1.0, 0.5), ValueError, r"gamma must lie in \(1/2, 1\]"),
    "b": (lambda: mcmc.Decay(0.1, 0.0), ValueError, "Decay: b must be a positive number"),
    "step": (
        lambda: mcmc.SGLD(-0.1),
        ValueError,
        "SGLD: step must be a positive number, got -0.1",
    ),
    "batch_size": (
        lambda: posterior(0),
        ValueError,
        "batch_size must be None or an int of at least 1, got 0",
    ),
    "too many": (lambda: posterior(21), ValueError, "batch_size = 21 of 20 data; pass None"),
    "shared_seed": (
        lambda: posterior(shared_seed=-1),
        ValueError,
        "shared_seed must be None or an int of at least 0",
    ),
    "data": (
        lambda: mcmc.Posterior(log_prior, log_likelihood, [1.0]),
        TypeError,
        "data must be a tensor",
    ),
    "no data": (
        lambda: mcmc.Posterior(log_prior, log_likelihood, torch.zeros(0)),
        ValueError,
        "N >= 1",
    ),
    "two lengths": (
        lambda: mcmc.Posterior(log_prior, log_likelihood, (torch.zeros(2), torch.zeros(3))),
        ValueError,
        r"one first dimension N >= 1, got \[2, 3\]",
    ),
    "NaN": (
        lambda: mcmc.Posterior(log_prior, log_likelihood, torch.full((2,), math.nan)),
        ValueError,
        "not finite",
    ),
    "kernel": (
        lambda: mcmc.run(mcmc.MALA(0.1), posterior(), torch.zeros(2), steps=1),
        ValueError,
        "needs the whole target, and this one shows minibatches; take SGLD",
    ),
    "likelihood": (
        lambda: mcmc.run(
            mcmc.ULA(0.1),
            mcmc.Posterior(log_prior, lambda x, y: y.sum(dim=1), DATA),
            torch.zeros(2),
            steps=1,
        ),
        ValueError,
        r"\(chains, n\) = \(2, 20\), got .*shape \(2,\)",
    ),
    "a step that is none": (
        lambda: mcmc.run(mcmc.SGLD(lambda k: 0.0), posterior(), torch.zeros(2), steps=1),
        ValueError,
        r"SGLD: step\(0\) must be a positive number",
    ),
}


@pytest.mark.parametrize(("call", "kind", "words"), BAD.values(), ids=BAD)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()

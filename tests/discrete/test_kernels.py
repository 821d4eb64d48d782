"""Chains of other kernels: their laws against SciPy's densities, posteriors by Bayes' rule on a
grid, the variational bound by enumeration, and one loss and one sampler with DDPM and NCSN.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import sdediff as sd
from sdediff.discrete import (
    BinomialChain,
    ChainLoss,
    DDPMLoss,
    GammaChain,
    KernelChain,
    MixtureChain,
    NCSNLoss,
    variational_bound,
)
from sdediff.objectives.objective import Batch

F64 = torch.float64
BASE = sd.DDPM(tuple(np.linspace(0.05, 0.5, 12)))
FULL = sd.DDPM.from_schedule("linear", 12)  # no signal is left at the end
EXPLODING = sd.NCSN.geometric(3.0, 0.1, 8)
GAMMA = GammaChain(BASE, theta=0.6)
MIXTURE = MixtureChain(BASE, jump=0.3, p=0.3, most=4)
BINOMIAL = BinomialChain.linear(6)
CONTINUOUS = [
    pytest.param(GAMMA, id="Gamma"),
    pytest.param(GammaChain(EXPLODING, theta=0.2), id="Gamma, VE"),
    pytest.param(MIXTURE, id="mixture"),
    pytest.param(MixtureChain(EXPLODING, jump=0.5, most=3), id="mixture, VE"),
]


def noise_density(chain, since: int, i: int, y: np.ndarray, *, cdf: bool = False) -> np.ndarray:
    """The density of x_i - E[x_i] given x_since, by SciPy; of mixtures by all patterns of jumps."""
    alphas, sigmas = (each.numpy() for each in chain.levels[:2])
    tau = (sigmas / alphas) ** 2
    more = tau[i] - tau[since]
    if isinstance(chain, GammaChain):
        shape, scale = more / chain.theta**2, alphas[i] * chain.theta
        law = stats.gamma(shape, loc=-shape * scale, scale=scale)
        return (law.cdf if cdf else law.pdf)(y)
    count = int(chain.jumps[i] - chain.jumps[since])
    p = chain.p
    up, down = chain.jump * math.sqrt((1 - p) / p), -chain.jump * math.sqrt(p / (1 - p))
    std = alphas[i] * math.sqrt(more - count * chain.jump**2)
    total = np.zeros_like(y)
    for pattern in itertools.product((up, down), repeat=count):
        weight = math.prod(p if jump == up else 1 - p for jump in pattern)
        law = stats.norm(alphas[i] * sum(pattern), std)
        total = total + weight * (law.cdf if cdf else law.pdf)(y)
    return total


@pytest.mark.parametrize("chain", CONTINUOUS)
def test_marginals_and_steps_have_the_moments_of_the_gaussian_chain(chain):
    x_0 = torch.tensor([[-0.7, 1.3]], dtype=F64)
    for i in (1, 2, chain.N // 2, chain.N):
        law, step = chain.marginal_law(x_0, i), chain.step_law(x_0, i)
        for found, mean, std in (
            (law, chain.levels.alphas[i], chain.levels.sigmas[i]),
            (step, *chain.kernel(i)),
        ):
            torch.testing.assert_close(found.mean, mean * x_0, rtol=1e-10, atol=1e-9)
            variance = torch.as_tensor(found.variance, dtype=F64).expand(1, 2)
            torch.testing.assert_close(variance, std.square().expand(1, 2), rtol=1e-10, atol=0)


@pytest.mark.parametrize("chain", CONTINUOUS)
def test_posterior_is_that_of_bayes_rule(chain):
    """q(x_{i-1} | x_i, x_0) = q(x_i | x_{i-1}) q(x_{i-1} | x_0) / q(x_i | x_0) on a grid, the right
    side by SciPy's densities: 1e-8. It also says that marginals are the composition of steps.
    """
    x_0, ratios = 0.4, chain.levels.ratios
    for i in range(2, chain.N + 1):
        alpha, sigma = (float(each[i]) for each in chain.levels[:2])
        before = float(chain.levels.alphas[i - 1])
        x = alpha * x_0 + sigma * torch.tensor([-0.5, 0.3, 1.1], dtype=F64)
        y = before * x_0 + float(chain.levels.sigmas[i - 1]) * torch.linspace(
            -2, 2.5, 41, dtype=F64
        )
        x, y = (each.reshape(-1, 1) for each in torch.meshgrid(x, y, indexing="ij"))
        found = chain.posterior_law(x, torch.full_like(x, x_0), i).log_prob(y).exp().numpy()
        ratio = float(ratios[i - 1])
        here = noise_density(chain, 0, i, (x - alpha * x_0).numpy())
        expected = (
            noise_density(chain, i - 1, i, (x - ratio * y).numpy())
            * noise_density(chain, 0, i - 1, (y - before * x_0).numpy())
            / np.where(here > 0, here, 1)
        )
        assert expected.max() > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * expected.max())
        log_step = chain.step_law(y, i).log_prob(x).exp().numpy()
        np.testing.assert_allclose(
            log_step, noise_density(chain, i - 1, i, (x - ratio * y).numpy()), rtol=1e-8, atol=1e-12
        )


@pytest.mark.parametrize("chain", CONTINUOUS)
def test_draws_follow_the_laws(chain):
    """4,000 equidistant quantiles of the noise: the distribution functions of what they become are
    those of the laws to 1 / 100.
    """
    count, i = 4000, chain.N // 2
    z = torch.special.ndtri((torch.arange(count, dtype=F64) + 0.5) / count)[:, None]
    zero = torch.zeros_like(z)
    steps = (torch.arange(count) + 0.5) / count
    x = torch.full_like(z, 0.3)
    posterior = chain.posterior_law(x[:1], zero[:1], i)
    grid = torch.linspace(-30, 30, 60_001, dtype=F64) * float(chain.levels.sigmas[i - 1]) / 5
    density = posterior.log_prob(grid[:, None]).exp()[:, 0]
    cdf = torch.cumulative_trapezoid(density, grid).numpy()
    for drawn, expected in (
        (
            chain.perturb(zero, i, z),
            lambda y: noise_density(chain, 0, i, y, cdf=True),
        ),
        (
            chain.posterior_law(x, zero, i).from_noise(z),
            lambda y: np.interp(y, grid[1:].numpy(), cdf),
        ),
    ):
        y = drawn[:, 0].sort().values.numpy()
        gap = np.abs(expected(y) - steps.numpy()).max()
        assert gap < 0.01, gap
    point = chain.posterior_law(x, x, 1).from_noise(z)  # x_0 itself
    torch.testing.assert_close(point, x, rtol=1e-10, atol=1e-10)


def test_gamma_noise_is_gaussian_where_theta_is_small_and_skewed_where_it_is_not():
    z = torch.linspace(-3, 3, 13, dtype=F64)[:, None]
    x_0 = torch.ones_like(z)
    small = GammaChain(BASE, theta=1e-4)
    for i in (1, 6, 12):
        torch.testing.assert_close(
            small.perturb(x_0, i, z), BASE.perturb(x_0, i, z), rtol=0, atol=1e-3
        )
    torch.testing.assert_close(
        small.posterior_law(x_0, x_0, 6).from_noise(z),
        BASE.posterior_law(x_0, x_0, 6).from_noise(z),
        rtol=0,
        atol=1e-3,
    )
    assert float((GAMMA.perturb(x_0, 4, z) - BASE.perturb(x_0, 4, z)).abs().max()) > 0.3


def test_posterior_means_of_gamma_and_binomial_chains_are_ddpms():
    x = torch.tensor([[0.9, 0.4]], dtype=F64)
    x_0 = torch.tensor([[0.2, -0.1]], dtype=F64)
    for i in range(2, 13):
        torch.testing.assert_close(
            GAMMA.posterior_law(x, x_0, i).mean, BASE.posterior(x, x_0, i)[0], rtol=1e-9, atol=1e-9
        )


# -- binary data -----------------------------------------------------------------------------------

STATES = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=F64)


def agreement(mean: Tensor, states: Tensor) -> Tensor:
    """The probability of binary states (S, d) under independent coordinates of means (..., d)."""
    return (0.5 * (1 + mean[..., None, :] * states)).prod(dim=-1)


def test_binomial_posterior_is_exact_also_for_an_uncertain_x_0():
    """By enumeration, to rounding; the kernels compose to the marginals, and alpha falls by equal
    parts.
    """
    chain = BINOMIAL
    torch.testing.assert_close(
        chain.levels.alphas, 1 - torch.arange(7, dtype=F64) / 6, rtol=1e-12, atol=1e-12
    )
    signs = torch.tensor([[-1.0], [1.0]], dtype=F64)
    for i in range(2, chain.N + 1):
        ratio = chain.kernel(i)[0]
        torch.testing.assert_close(
            chain.step_law(chain.marginal_law(signs, i - 1).mean, i).mean,
            chain.marginal_law(signs, i).mean,
        )
        for x, m in itertools.product((-1.0, 1.0), (-1.0, -0.3, 0.8, 1.0)):
            total = 0.0
            for x_0 in (-1.0, 1.0):
                ways = torch.stack(
                    [
                        (1 + ratio * x * y) * (1 + chain.levels.alphas[i - 1] * x_0 * y)
                        for y in (-1.0, 1.0)
                    ]
                )
                total = total + 0.5 * (1 + m * x_0) * ways / ways.sum()
            law = chain.posterior_law(
                torch.tensor([[x]], dtype=F64), torch.tensor([[m]], dtype=F64), i
            )
            np.testing.assert_allclose(
                law.log_prob(signs).exp().flatten().numpy(), total.numpy(), rtol=0, atol=1e-14
            )


def test_binomial_draws():
    z = torch.special.ndtri((torch.arange(1000, dtype=F64) + 0.5) / 1000)[:, None]
    drawn = BINOMIAL.perturb(torch.ones_like(z), 2, z)
    assert set(drawn.flatten().tolist()) == {-1.0, 1.0}
    assert float(drawn.mean()) == pytest.approx(4 / 6, abs=2e-3)
    flat = sd.discrete.KernelChain.prior.fget(BINOMIAL).from_noise(z)
    assert float(flat.mean()) == pytest.approx(0, abs=1e-12)


def enumerated(chain, model, x_0: Tensor) -> tuple[Tensor, Tensor]:
    """(-log p(x_0), the bound) in nats of states x_0 (S, 3), by all 8 states at every level."""
    p = torch.full((8,), 1 / 8, dtype=F64)
    bound = chain.prior_term(x_0)
    for i in range(chain.N, 0, -1):
        guess = model.data(STATES, chain.grid[i - 1]).clamp(1e-6 - 1, 1 - 1e-6)
        p = p @ agreement(chain.posterior_law(STATES, guess, i).mean, STATES)
        reached = agreement(chain.marginal_law(x_0, i).mean, STATES)  # (S, 8)
        for k, state in enumerate(STATES):
            index = torch.full((len(x_0),), i)
            term = chain.bound_term(Batch(model, x_0), index, 8 * state.expand_as(x_0))
            bound = bound + reached[:, k] * term
    which = (x_0[:, None] == STATES).all(dim=2).double().argmax(dim=1)
    return -p[which].log(), bound


def test_the_bound_is_valid_and_tight_where_the_reverse_chain_is_exact():
    """On 3 binary coordinates: above the exact -log p for a wrong model, equal to it for the exact
    model of independent coordinates, whose reverse steps are exact. `variational_bound` estimates
    it: 5 standard errors over 400 seeds.
    """
    chain = BINOMIAL
    sde = chain.to_sde()
    mean = torch.tensor([0.5, -0.2, 0.9], dtype=F64)

    def exact(x: Tensor, t: Tensor) -> Tensor:
        a = sde.alpha(t.double())[:, None]
        return (mean + a * x) / (1 + a * mean * x)

    def wrong(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x.roll(1, dims=1) + 0.5 * x - 0.3 * t[:, None])

    right = sd.ScoreModel(exact, sde, "data")
    nats, bound = enumerated(chain, right, STATES)
    torch.testing.assert_close(nats, -agreement(mean, STATES).log(), rtol=0, atol=1e-5)
    torch.testing.assert_close(bound, nats, rtol=0, atol=1e-5)
    other = sd.ScoreModel(wrong, sde, "data")
    nats, bound = enumerated(chain, other, STATES)
    assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-12)
    assert bool((bound > nats + 1e-3).all())
    many = STATES[2].expand(400, 3)
    estimate = variational_bound(chain, other, many, bins=None, seed=0).total
    error = float(estimate.std()) / 20
    assert float(estimate.mean()) == pytest.approx(float(bound[2]), abs=5 * error)


def test_divergence_of_mixtures_is_the_integral():
    """Of posteriors at two x_0, on a fine grid: 1e-6 of the divergence."""
    y = torch.linspace(-12, 12, 24_001, dtype=F64)
    for i, x in ((2, 0.4), (7, -1.0), (12, 2.0)):
        state = torch.tensor([x], dtype=F64)
        here, there = (MIXTURE.posterior_law(state, state * 0 + z, i) for z in (0.3, -0.6))
        log_p, log_q = here.log_prob(y), there.log_prob(y)
        integral = float(torch.trapezoid(log_p.exp() * (log_p - log_q), y))
        assert float(here.divergence(there)[0]) == pytest.approx(integral, rel=1e-6)
        assert float(here.divergence(here)[0]) == pytest.approx(0, abs=1e-12)


def integrated(chain: KernelChain, model: sd.ScoreModel, x_0: float) -> tuple[float, float]:
    """(-log p(x_0), the bound) in nats of one coordinate, both by integrals on grids."""
    y = torch.linspace(-8, 8, 401, dtype=F64)
    step = float(y[1] - y[0])
    p = chain.prior.log_prob(y).exp()
    for i in range(chain.N, 1, -1):
        law = chain.posterior_law(y[:, None], model.data(y[:, None], chain.grid[i - 1]), i)
        p = step * p @ law.log_prob(y).exp()
    guess = model.data(y[:, None], chain.grid[0])
    point = torch.full_like(guess, x_0)
    p = step * p @ (-chain.decoder_term(point, guess, None, None, None)).exp()
    z = torch.linspace(-8, 8, 801, dtype=F64)
    shares = torch.softmax(-0.5 * z.square(), dim=0)
    batch = Batch(model, torch.full((801, 1), x_0, dtype=F64))
    bound = float(chain.prior_term(batch.x_0[:1])[0])
    for i in range(1, chain.N + 1):
        index = torch.full((801,), i)
        bound += float(shares @ chain.bound_term(batch, index, z[:, None]))
    return -float(p.log()), bound


COARSE = sd.DDPM((0.3, 0.5, 0.6))


@pytest.mark.thin(0)
@pytest.mark.parametrize(
    "chain",
    [
        pytest.param(KernelChain(COARSE), id="Gaussian"),
        pytest.param(MixtureChain(COARSE, jump=0.5, p=0.3, most=4), id="mixture"),
    ],
)
def test_the_bound_of_a_continuous_chain_is_valid(chain):
    """Above -log p(x_0) of its own ancestral sampling, and equal to it where the model knows x_0
    and the prior is q(x_N given x_0). `variational_bound` estimates it: 5 standard errors.
    """
    sde = chain.to_sde()
    wrong = sd.ScoreModel(lambda x, t: torch.tanh(2 * x) - 0.2 * t[:, None], sde, "data")
    for x_0 in (-1.0, 0.32, 2.0):
        nats, bound = integrated(chain, wrong, x_0)
        assert bound > nats + 1e-3
    many = torch.full((400, 1), 2.0, dtype=F64)
    estimate = variational_bound(chain, wrong, many, bins=None, seed=0).total
    assert float(estimate.mean()) == pytest.approx(bound, abs=5 * float(estimate.std()) / 20)
    knows = sd.ScoreModel(lambda x, t: 0 * x, sde, "data")
    nats, bound = integrated(chain, knows, 0.0)
    assert bound == pytest.approx(nats, abs=1e-7)


def test_bound_of_the_gaussian_kernel_is_ddpms():
    """At i >= 2, with the variance of the posterior; and the mixture's is trained by its loss."""
    chain = KernelChain(BASE)
    x_0, noise = torch.randn(2, 11, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    model = sd.exact.Gaussian([0.0] * 3, [0.5, 1.0, 2.0]).model(chain.to_sde())
    i = torch.arange(2, 13)
    batch = Batch(model, x_0)
    found, theirs = (each.bound_term(batch, i, noise) for each in (chain, BASE))
    torch.testing.assert_close(found, theirs, rtol=1e-9, atol=1e-12)
    losses = ChainLoss(MIXTURE, "vlb")(model, x_0.float(), noise=noise.float(), i=i)
    assert losses.shape == (11,)
    assert losses.dtype == torch.float32


def test_gamma_posteriors_have_an_infinite_divergence():
    """Where the guess exceeds x_0: draws below its lower end have the density 0."""
    x_0 = torch.zeros(4000, dtype=F64)
    z = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = GAMMA.perturb(x_0, 3, z[0])
    drawn = GAMMA.posterior_law(x, x_0, 3).from_noise(z[1])
    for off, lost in ((0.2, True), (-0.2, False)):
        log_p = GAMMA.posterior_law(x, x_0 + off, 3).log_prob(drawn)
        assert bool((log_p == -math.inf).any()) == lost


# -- one protocol ----------------------------------------------------------------------------------


def test_the_sampler_is_ddpms_where_the_kernel_is_gaussian():
    base = sd.DDPM.from_schedule("linear", 10)
    law = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.3)
    model = law.model(base.to_sde())
    given = {"seed": 3, "dtype": F64}
    ours = sd.sample(model, (6, 2), solver=KernelChain(base), **given)
    theirs = sd.sample(model, (6, 2), solver=base, **given)
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-10, atol=1e-10)
    assert ours.nfe.tolist() == [10] * 6


@pytest.mark.parametrize(
    "chain",
    [KernelChain(FULL), GammaChain(FULL, theta=0.6), MixtureChain(FULL, jump=0.3, p=0.3, most=4)],
    ids=lambda chain: type(chain).__name__,
)
def test_ancestral_samples_of_a_known_point(chain):
    """Where E[x_0 | x] is known to be one point the reverse chain is exact: the states at every
    level follow the marginal. 4,000 of them, KS p-values above 1e-5, and the point at the end.
    """
    point = torch.tensor([0.4, -0.3], dtype=F64)
    model = sd.ScoreModel(lambda x, t: point.expand_as(x), chain.to_sde(), "data", data_std=0.5)
    out = sd.sample(model, (4000, 2), solver=chain, seed=1, dtype=F64, trajectory=True)
    torch.testing.assert_close(out.x, point.expand_as(out.x), rtol=1e-9, atol=1e-9)
    i = chain.N // 2
    state = out.trajectory[chain.N - i]
    z = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    expected = chain.perturb(point.expand_as(z), i, z)
    assert sd.metrics.kolmogorov_smirnov(state, expected).p_value > 1e-5


def test_binary_samples_of_independent_coordinates():
    """The reverse chain is exact there: frequencies and correlations within 5 standard errors."""
    chain = BINOMIAL
    sde = chain.to_sde()
    mean = torch.tensor([0.5, -0.2, 0.9])

    def exact(x: Tensor, t: Tensor) -> Tensor:
        a = sde.alpha(t.double())[:, None].to(x.dtype)
        return (mean + a * x) / (1 + a * mean * x)

    normalizer = sd.Normalizer(0.5, 0.5)  # 0 and 1
    model = sd.ScoreModel(exact, sde, "data", normalizer=normalizer, data_std=0.8)
    solution = sd.sample(model, (20_000, 3), solver=chain, seed=0, trajectory=True)
    for state in solution.trajectory:  # from the start on
        assert set(state.flatten().tolist()) == {0.0, 1.0}
    out = solution.x
    off = (2 * out - 1).mean(dim=0) - mean
    assert float((off / (1 - mean**2).sqrt()).abs().max()) < 5 / 20_000**0.5
    assert float((out.T.corrcoef() - torch.eye(3)).abs().max()) < 5 / 20_000**0.5
    part = sd.sample(model, (5, 3), solver=chain, seed=0, batch_size=2).x
    assert torch.equal(part, out[:5])


def test_one_loss_for_all_chains():
    """`ChainLoss` is DDPM's and NCSN's own; by both norms, where the noise in x_i is known."""
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 8, 3, generator=generator, dtype=F64)
    i = torch.arange(1, 9)
    for chain, theirs in (
        (BASE, DDPMLoss(BASE)),
        (EXPLODING, NCSNLoss(EXPLODING)),
        (BASE, DDPMLoss(BASE, "vlb")),
    ):
        model = sd.exact.Gaussian([0.0] * 3, [0.5, 1.0, 2.0]).model(chain.to_sde())
        kind = getattr(theirs, "kind", "simple")
        ours = ChainLoss(chain, kind)(model, x_0, i=i, noise=noise)
        torch.testing.assert_close(ours, theirs(model, x_0, i=i, noise=noise), rtol=1e-12, atol=0)
    for chain in (GAMMA, MIXTURE, GammaChain(EXPLODING)):
        levels = chain.levels
        alpha, sigma = (each[i][:, None] for each in levels[:2])

        def known(x: Tensor, t: Tensor, a: Tensor = alpha, s: Tensor = sigma) -> Tensor:
            return (x - a * x_0) / s + 0.5

        model = sd.ScoreModel(known, chain.to_sde(), "noise")
        for norm, expected in ((1, 0.5), (2, 0.25)):
            found = ChainLoss(chain, norm=norm)(model, x_0, i=i, noise=noise)
            torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BinomialChain(EXPLODING), ValueError, "take a DDPM"),
        (lambda: BinomialChain([0.1, 0.2]), TypeError, "base must be a chain"),
        (lambda: GammaChain(BASE.with_zero_terminal_snr()), ValueError, "zero terminal SNR"),
        (lambda: GammaChain(BASE, theta=0.0), ValueError, "theta"),
        (lambda: MixtureChain(EXPLODING, jump=50.0), ValueError, "take jump <="),
        (lambda: MixtureChain(BASE, p=1.0), ValueError, "p must be"),
        (lambda: ChainLoss(GAMMA, "vlb"), TypeError, "no variational bound"),
        (lambda: ChainLoss(BASE, norm=3), ValueError, "norm must be 1 or 2"),
        (lambda: ChainLoss(sd.VP()), TypeError, "takes a chain"),
        (lambda: BINOMIAL.perturb(torch.zeros(3, 2), 1, torch.ones(3, 2)), ValueError, "-1 or 1"),
        (lambda: BINOMIAL.perturb(torch.ones(3, 2), 7, torch.ones(3, 2)), ValueError, "1..6"),
    ],
)
def test_wrong_chains_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.uses_global_rng  # by building the network
def test_wrong_models_and_data_are_named():
    net = nn.Linear(2, 2)
    model = sd.ScoreModel(lambda x, t: net(x), BINOMIAL.to_sde(), "data", network=net)
    with pytest.raises(ValueError, match=r"data must be -1 or 1.*Normalizer"):
        variational_bound(BINOMIAL, model, torch.zeros(2, 2), bins=None)
    with pytest.raises(ValueError, match=r"data must be -1 or 1.*Normalizer"):
        ChainLoss(BINOMIAL, "vlb")(model, torch.full((4, 2), 0.5))
    other = sd.ScoreModel(lambda x, t: net(x), GAMMA.to_sde(), "data", network=net)
    with pytest.raises(TypeError, match="no variational bound"):
        variational_bound(GAMMA, other, torch.ones(2, 2), bins=None)
    with pytest.raises(ValueError, match="no chain of the model's SDE"):
        sd.sample(other, (2, 2), solver=BINOMIAL)

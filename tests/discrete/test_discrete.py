"""DDPM as an exact discretization of a variance-preserving SDE."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction

import mpmath as mp
import pytest
import torch
from exact_moments import reverse_moments

import sdediff as sd
from sdediff.discrete.bound import prior_term, transition
from sdediff.objectives.objective import Batch
from sdediff.reverse import Reverse
from sdediff.solvers import integrate

MODEL = sd.exact.Gaussian(0.4, 0.25).model(sd.Cosine())
NOISY = sd.DDPM.from_sde(sd.Cosine(t_max=1.0), 4, last_noise=True)


def test_betas_are_the_exact_transition() -> None:
    """1 - beta_i = exp(-integral of beta over the interval), with the integral in exact
    arithmetic.
    """
    ddpm = sd.DDPM.from_sde(sd.VP(), 50)
    low, high = Fraction(1, 10), Fraction(20)

    def integral(t: Fraction) -> Fraction:
        return low * t + (high - low) * t * t / 2

    for i, beta in enumerate(ddpm.betas):
        exact = -torch.expm1(
            -torch.tensor(
                float(integral(Fraction(i + 1, 50)) - integral(Fraction(i, 50))),
                dtype=torch.float64,
            )
        )
        assert beta == pytest.approx(float(exact), rel=1e-12)


def test_marginals_are_those_of_the_sde() -> None:
    sde = sd.VP()
    ddpm = sd.DDPM.from_sde(sde, 1000)
    times = torch.tensor(ddpm.grid, dtype=torch.float64)
    torch.testing.assert_close(ddpm.alphas_bar.sqrt(), sde.alpha(times), rtol=1e-12, atol=0)
    x, z = (
        torch.tensor([[1.0, 2.0]], dtype=torch.float64),
        torch.tensor([[0.5, -1.0]], dtype=torch.float64),
    )
    for i in (1, 17, 1000):
        torch.testing.assert_close(
            ddpm.perturb(x, i, z), sde.perturb(x, ddpm.grid[i - 1], z), rtol=1e-11, atol=1e-11
        )


def test_posterior_is_bayes_rule() -> None:
    """q(x_{i-1} | x_i, x_0) from the product of the two Gaussians q(x_i | x_{i-1}) q(x_{i-1} |
    x_0).
    """
    ddpm = sd.DDPM((0.1, 0.2, 0.3), (0.2, 0.5, 1.0))
    bar = {1: 0.9, 2: 0.9 * 0.8, 3: 0.9 * 0.8 * 0.7}
    x, x_0 = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    for i, beta in ((2, 0.2), (3, 0.3)):
        precision = (1 - beta) / beta + 1 / (1 - bar[i - 1])
        mean = (
            (1 - beta) ** 0.5 * float(x) / beta + bar[i - 1] ** 0.5 * float(x_0) / (1 - bar[i - 1])
        ) / precision
        got_mean, got_variance = ddpm.posterior(x, x_0, i)
        assert float(got_mean) == pytest.approx(mean, rel=1e-12)
        assert float(got_variance) == pytest.approx(1 / precision, rel=1e-12)
    mean, variance = ddpm.posterior(x, x_0, 1)
    assert float(mean) == pytest.approx(-0.4)
    assert float(variance) == 0
    rows, i = torch.tensor([[0.7], [0.7], [0.7]], dtype=torch.float64), torch.tensor([3, 1, 2])
    means, variances = ddpm.posterior(rows, 0 * rows - 0.4, i)
    for row, level in enumerate(i.tolist()):
        alone = ddpm.posterior(x, x_0, level)
        assert float(means[row]) == pytest.approx(float(alone[0]), rel=1e-14)
        assert float(variances[row]) == pytest.approx(float(alone[1]), rel=1e-14)


@pytest.mark.parametrize(
    "chain",
    [sd.DDPM.from_schedule("cosine", 30), sd.NCSN.from_sde(sd.VE(), 30)],
    ids=["DDPM", "NCSN"],
)
def test_both_forms_of_the_posterior_agree(chain: sd.DDPM) -> None:
    """Given x_0, or the noise that is in x_i; for DDPM as Ho et al. write it (eq. 11)."""
    x_0, z = (
        torch.tensor([[0.4, -1.0]] * 3, dtype=torch.float64),
        torch.tensor([[0.3, 1.2]] * 3, dtype=torch.float64),
    )
    i = torch.tensor([2, 15, 29])
    x = chain.perturb(x_0, i, z)
    mean, variance = chain.posterior_from_noise(x, z, i)
    expected, spread = chain.posterior(x, x_0, i)
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(variance, spread)
    if isinstance(chain, sd.DDPM):
        beta, bar = (
            torch.tensor(chain.betas, dtype=torch.float64)[i - 1, None],
            chain.alphas_bar[i - 1, None],
        )
        torch.testing.assert_close(
            mean, (x - beta / (1 - bar).sqrt() * z) / (1 - beta).sqrt(), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("n", [1, 2, 10, 200])
def test_ancestral_sampling_is_the_exact_posterior_step(
    gaussian: sd.exact.Gaussian, n: int
) -> None:
    """DDPM's own update on its own betas equals the exponential integrator of the reverse SDE on
    the same times.
    """
    model, ddpm = gaussian.model(sd.VP()), sd.DDPM.from_sde(sd.VP(), n)
    x = sd.sample(model, (5, 2), solver=ddpm, seed=2, dtype=torch.float64, trajectory=True)
    if n > 1:
        twin = sd.sample(
            model,
            (5, 2),
            solver=sd.solvers.Ancestral(),
            grid=ddpm.times,
            seed=2,
            dtype=torch.float64,
            trajectory=True,
        )
        assert x.trajectory is not None
        assert twin.trajectory is not None
        torch.testing.assert_close(x.trajectory, twin.trajectory, rtol=0, atol=1e-10)
    assert x.nfe.tolist() == [n] * 5
    assert repr(ddpm) == f"DDPM(N={n}, variance='beta_tilde')"


@pytest.mark.parametrize("variance", ["beta", "beta_tilde", "learned"])
def test_noise_in_the_last_step(variance: str) -> None:
    """x_0 is drawn from the decoder p(x_0 | x_1), whose variance the bound has too; all before is
    the chain without, and its mean is the denoised result.
    """
    plain = sd.DDPM.from_schedule("linear", 12, variance=variance, beta_end=0.9)  # type: ignore[arg-type]
    noisy = dataclasses.replace(plain, last_noise=True)
    said = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None].expand(5, 2)
    model = sd.ScoreModel(
        lambda x, t: torch.cat([0.4 * x, said], dim=1),
        plain.to_sde(),
        "data",
        learned_variance=True,
    )
    given = {"seed": 3, "dtype": torch.float64}
    shown = sd.sample(model, (5, 2), solver=noisy, trajectory=True, **given)  # type: ignore[arg-type]
    before = sd.sample(model, (5, 2), solver=plain, last="noisy", **given)  # type: ignore[arg-type]
    mean = sd.sample(model, (5, 2), solver=noisy, last="mean", **given)  # type: ignore[arg-type]
    clean = sd.sample(model, (5, 2), solver=plain, **given)  # type: ignore[arg-type]
    assert shown.trajectory is not None
    assert torch.equal(shown.trajectory[-2], before.x)
    torch.testing.assert_close(mean.x, clean.x, rtol=1e-14, atol=1e-14)
    white = sd.White(sd.seeds(3, 5), (2,), dtype=torch.float64)
    z = white.at(11).over(plain.times[-1], torch.zeros((), dtype=torch.float64))
    learned = said if variance == "learned" else None
    std = (0.5 * noisy.log_variance(1, learned)).exp()
    torch.testing.assert_close(shown.x, 0.4 * before.x + std * z, rtol=1e-13, atol=1e-13)
    assert float(shown.times[-1]) == 0
    assert shown.nfe.tolist() == [12] * 5
    assert noisy.respaced([2, 7]).times.tolist() == [plain.grid[6], plain.grid[1], 0.0]
    assert repr(noisy) == f"DDPM(N=12, variance={variance!r}, last_noise=True)"


class Later:
    """Noise from a later step on."""

    def __init__(self, noise: sd.White, first: int) -> None:
        self.noise, self.first = noise, first

    def at(self, step: int) -> object:
        return self.noise.at(self.first + step)


@pytest.mark.parametrize("last_noise", [False, True])
@pytest.mark.parametrize("sde", [sd.VP(), sd.Cosine()], ids=repr)
def test_a_chain_from_a_level_on_is_the_rest_of_the_chain(
    sde: sd.LinearSDE, last_noise: bool
) -> None:
    """From the state and with the noise that the whole chain has there."""
    chain = sd.DDPM.from_sde(sde, 10, variance="beta", last_noise=last_noise)
    model = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.2).model(sde)
    noise = sd.White(sd.seeds(1, 3), (2,), dtype=torch.float64)
    given = {"solver": chain, "dtype": torch.float64}
    whole = sd.sample(model, (3, 2), noise=noise, **given)  # type: ignore[arg-type]
    states = sd.sample(model, (3, 2), noise=noise, last="noisy", trajectory=True, **given)  # type: ignore[arg-type]
    assert states.trajectory is not None
    for i in (10, 6, 2, 1):
        part = sd.sample(
            model,
            (3, 2),
            t_start=chain.grid[i - 1],
            x_init=states.trajectory[10 - i],
            noise=Later(noise, 10 - i),  # type: ignore[arg-type]
            **given,  # type: ignore[arg-type]
        )
        torch.testing.assert_close(part.x, whole.x, rtol=1e-12, atol=1e-12)
        assert part.nfe.tolist() == [i] * 3
        assert torch.equal(part.times, chain.times[10 - i :])


def test_variance_beta_is_exact_for_unit_gaussian_data() -> None:
    """With unit Gaussian data the reverse transition has variance beta (Ho et al. 2020, section
    3.2).
    """
    sde = sd.VP()
    large, small = (sd.DDPM.from_sde(sde, 20, variance=v) for v in ("beta", "beta_tilde"))
    _, std = reverse_moments(sde, large, large.times, mean=0.0, std=1.0)
    _, too_small = reverse_moments(sde, small, small.times, mean=0.0, std=1.0)
    assert std == pytest.approx(1.0, abs=1e-12)
    assert too_small < 0.97


def test_reverse_law_converges_to_the_data() -> None:
    errors = []
    for n in (50, 100, 200):
        ddpm = sd.DDPM.from_sde(sd.VP(), n)
        _, std = reverse_moments(sd.VP(), ddpm, ddpm.times, mean=0.4, std=0.5)
        errors.append(
            abs(
                std - float(sd.exact.Gaussian(0.4, 0.25).moments(sd.VP(), ddpm.times[-1])[1]) ** 0.5
            )
        )
    assert errors[0] > 1.6 * errors[1] > 1.6 * 1.6 * errors[2]


def exact_table(betas: list[mp.mpf]) -> dict[str, list[mp.mpf]]:
    """Posterior coefficients and the bound's terms for x_0 = 1, error 0.1, with the variance beta,
    from the definitions.
    """
    table: dict[str, list[mp.mpf]] = {"data": [], "keep": [], "variance": [], "term": []}
    bar = mp.mpf(1)
    for beta in betas:
        before, bar = bar, bar * (1 - beta)
        table["data"].append(mp.sqrt(before) * beta / (1 - bar))
        table["keep"].append(mp.sqrt(1 - beta) * (1 - before) / (1 - bar))
        table["variance"].append(beta * (1 - before) / (1 - bar))
        tilde, off = table["variance"][-1], table["data"][-1] / 10
        if before < 1:
            table["term"].append((mp.log(beta / tilde) - 1 + tilde / beta + off**2 / beta) / 2)
    table["prior"] = [(bar + (1 - bar) - 1 - mp.log(1 - bar)) / 2]
    return table


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_tables_in_fifty_digits(name: str) -> None:
    """T = 1000: what a schedule gives, from its betas as they are in float64, to 1e-12."""
    chain = sd.DDPM.from_schedule(name, 1000, variance="beta")
    with mp.workdps(50):
        expected = exact_table([mp.mpf(beta) for beta in chain.betas])
        bar = mp.mpf(1)
        for beta, found in zip(chain.betas, chain.alphas_bar.tolist(), strict=True):
            bar *= 1 - mp.mpf(beta)
            assert found == pytest.approx(float(bar), rel=1e-11)
        for column, key in zip(chain.posterior_columns, ("data", "keep", "variance"), strict=True):
            got, want = column, torch.tensor([float(v) for v in expected[key]], dtype=torch.float64)
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-300)
        i = torch.arange(2, 1001)
        x = torch.ones(999, 1, dtype=torch.float64)
        got = transition(chain, Batch(chain, x), i, 0.1 * x, None, None)
        # log(v / v_q) - 1 + v_q / v cancels to second order: absolute to the rounding of 1.
        torch.testing.assert_close(
            got,
            torch.tensor([float(v) for v in expected["term"]], dtype=torch.float64),
            rtol=1e-10,
            atol=1e-14,
        )
        assert float(prior_term(chain, x[:1])) == pytest.approx(
            float(expected["prior"][0]), rel=1e-9
        )


def test_schedules_are_the_published_ones() -> None:
    linear, cosine = sd.DDPM.from_schedule("linear", 1000), sd.DDPM.from_schedule("cosine", 1000)
    assert linear.betas[0] == pytest.approx(1e-4, rel=1e-12)
    assert linear.betas[-1] == pytest.approx(0.02, rel=1e-12)
    assert linear.betas[500] - linear.betas[499] == pytest.approx(0.0199 / 999, rel=1e-9)
    scaled = torch.tensor(
        sd.DDPM.from_schedule("scaled-linear", 1000).betas, dtype=torch.float64
    ).sqrt()
    assert float(scaled[0]) == pytest.approx(0.00085**0.5)
    assert float(scaled.diff().max() - scaled.diff().min()) == pytest.approx(0, abs=1e-15)
    assert float(scaled[-1]) == pytest.approx(0.012**0.5)
    assert cosine.betas[-1] == 0.999
    for name, bar in (
        ("cosine", lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2),
        ("sigmoid", lambda u: 1 / (1 + math.exp(-3)) - 1 / (1 + math.exp(3 - 6 * u))),
    ):
        chain = sd.DDPM.from_schedule(name, 50)
        for i in (1, 20, 49):
            assert float(chain.alphas_bar[i - 1]) == pytest.approx(bar(i / 50) / bar(0), rel=1e-10)
    own = sd.DDPM.from_schedule(lambda t: torch.exp(-3 * t), 10)
    assert own.betas == pytest.approx([1 - math.exp(-0.3)] * 10)


def test_schedules_with_ends_of_their_own() -> None:
    """Betas between given ends, and alpha_bar with its own s, start, end and tau, by their formulas
    in Python's floats.
    """
    n, ends = 40, {"beta_start": 2e-3, "beta_end": 0.07}
    share = [i / (n - 1) for i in range(n)]
    low, high = ends.values()
    formulas = {
        "linear": lambda u: low + (high - low) * u,
        "scaled-linear": lambda u: (low**0.5 + (high**0.5 - low**0.5) * u) ** 2,
        "sigmoid-betas": lambda u: low + (high - low) / (1 + math.exp(6 - 12 * u)),
    }
    for name, formula in formulas.items():
        found = sd.DDPM.from_schedule(name, n, **ends).betas  # type: ignore[arg-type]
        assert found == pytest.approx([formula(u) for u in share], rel=1e-13), name
        half = sd.DDPM.from_schedule(name, n, beta_end=0.07).betas
        assert half[-1] == pytest.approx(found[-1], rel=1e-2), name
        assert half[0] != found[0], name
    cosine = sd.DDPM.from_schedule("cosine", n, s=0.3)
    sigmoid = sd.DDPM.from_schedule("sigmoid", n, start=-1.1, end=4.3, tau=0.7)
    for i in range(1, n):
        bar = (math.cos((i / n + 0.3) / 1.3 * math.pi / 2) / math.cos(0.3 / 1.3 * math.pi / 2)) ** 2
        assert float(cosine.alphas_bar[i - 1]) == pytest.approx(bar, rel=1e-12)
        first, here, last = (1 / (1 + math.exp(u / 0.7)) for u in (-1.1, -1.1 + 5.4 * (i / n), 4.3))
        want = pytest.approx((here - last) / (first - last), rel=1e-11)
        assert float(sigmoid.alphas_bar[i - 1]) == want


@pytest.mark.thin(1)
@pytest.mark.parametrize("name", ["linear", "scaled-linear", "cosine", "sigmoid"])
def test_the_chains_sde_has_its_marginals(name: str) -> None:
    """Exactly at the chain's times, between neighbours in between, and consistent as an SDE."""
    chain = sd.DDPM.from_schedule(name, 200)
    sde = chain.to_sde()
    levels, times = chain.levels, chain.level_times
    torch.testing.assert_close(sde.alpha(times), levels.alphas[1:], rtol=2e-11, atol=0)
    torch.testing.assert_close(sde.sigma(times), levels.sigmas[1:], rtol=1e-12, atol=0)
    ratio, std = sde.kernel(times[1:], times[:-1])
    torch.testing.assert_close(std.square(), levels.variances[1:], rtol=1e-9, atol=0)
    torch.testing.assert_close(ratio, levels.ratios[1:], rtol=1e-9, atol=0)
    sd.testing.check_sde(sde, verbose=False)
    assert (sde.t_min, sde.t_max, sde.T) == (1 / 200, 1, 1)
    assert repr(sde) == "InterpolatedVP(200 levels up to t = 1)"


def test_the_chains_sde_is_smooth_between_the_levels() -> None:
    """That of VP's own chain is VP, up to the fourth power of the spacing."""
    vp, t = sd.VP(), torch.linspace(0.1, 0.95, 40, dtype=torch.float64)
    errors = [
        float((sd.DDPM.from_sde(vp, n).to_sde().alpha(t) - vp.alpha(t)).abs().max())
        for n in (25, 50, 100)
    ]
    assert errors[0] > 11 * errors[1] > 11 * 11 * errors[2]
    rates = [
        float((sd.DDPM.from_sde(vp, n).to_sde().g(t) - vp.g(t)).abs().max()) for n in (25, 50, 100)
    ]
    assert rates[0] > 5 * rates[1] > 5 * 5 * rates[2]


def test_data_that_carry_noise_at_t_0() -> None:
    """beta_1 is the whole variance at t_1: the chain starts from clean data."""
    sde = sd.LinearSDE(
        log_snr=lambda t: 8 - 14 * t, alpha=lambda t: torch.sigmoid(8 - 14 * t).sqrt()
    )
    chain = sd.DDPM.from_sde(sde, 10)
    torch.testing.assert_close(
        chain.levels.alphas[1:], sde.alpha(chain.level_times), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        chain.levels.sigmas[1:], sde.sigma(chain.level_times), rtol=1e-12, atol=0
    )


def test_rough_chains_become_sdes_too() -> None:
    """Where the cubic spline would fall, a monotone one: betas of all sizes at uneven times."""
    generator = torch.Generator().manual_seed(0)
    betas = torch.rand(30, generator=generator, dtype=torch.float64).pow(4) * 0.9 + 1e-4
    times = torch.rand(30, generator=generator, dtype=torch.float64).add(0.1).cumsum(0)
    chain = sd.DDPM(tuple(betas.tolist()), tuple(times.tolist()))
    sde = chain.to_sde()
    torch.testing.assert_close(sde.sigma(times), chain.levels.sigmas[1:], rtol=1e-12, atol=0)
    t = torch.linspace(0, float(times[-1]), 5000, dtype=torch.float64)
    assert bool((sde.alpha(t).diff() < 0).all())
    assert bool(torch.isfinite(sde.g(t)).all())
    torch.testing.assert_close(sde.time_of(sde.log_snr(times)), times, rtol=1e-9, atol=0)
    sd.testing.check_sde(sd.DDPM((0.3,), (2.0,)).to_sde(), verbose=False)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_no_noise_is_left_at_zero(name: str) -> None:
    """sigma(0) is 0 and log-SNR infinite, so that a step to t = 0 is taken as one to clean data: a
    polynomial through two predictions would go 700 in log-SNR beyond them."""
    sde = sd.DDPM.from_schedule(name, 1000).to_sde()
    assert (float(sde.sigma(0.0)), float(sde.log_snr(0.0))) == (0.0, math.inf)
    assert math.isfinite(float(sde.g(0.0)))
    assert float(sde.g(0.0)) > 0
    model = sd.exact.GaussianMixture([[-0.8, 0.4], [0.9, 0.1]], [0.3, 0.5]).model(sde)
    x = torch.tensor([[1.0, -0.5], [0.5, 1.0]], dtype=torch.float64)
    times = torch.tensor([0.3, 0.2, 0.1, 0.0], dtype=torch.float64)
    for solver in (
        sd.solvers.DPMSolverPP(2),
        sd.solvers.DEIS(3),
        sd.solvers.UniPC(3),
        sd.solvers.ExponentialSinglestep(2),
    ):
        before = integrate(Reverse(model, 2), solver, x, times[:3]).x
        out = integrate(Reverse(model, 2), solver, x, times).x
        if isinstance(solver, sd.solvers.ExponentialSinglestep):
            torch.testing.assert_close(out, model.data(before, 0.1), rtol=1e-12, atol=1e-12)
        assert float((out - before).abs().max()) < 0.5


def test_songs_rule_converges_at_order_one() -> None:
    sde, errors = sd.VP(), []
    with pytest.raises(ValueError, match=r"is 1; take N > 20"):
        sd.DDPM.from_sde(sde, 20, rule="song")
    for n in (100, 200, 400):
        chain = sd.DDPM.from_sde(sde, n, rule="song")
        # discrete_betas of score_sde
        table = torch.linspace(0.1 / n, 20 / n, n, dtype=torch.float64)
        torch.testing.assert_close(chain.levels.variances, table, rtol=1e-12, atol=0)
        errors.append(float((chain.levels.alphas[1:] - sde.alpha(chain.level_times)).abs().max()))
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.1)
    model = sd.exact.Gaussian(0.4, 0.25).model(sde)
    assert sd.sample(
        model, (2, 1), solver=sd.DDPM.from_sde(sde, 100, rule="song"), seed=0
    ).nfe.tolist() == [100, 100]


def test_songs_chain_is_the_ancestral_sampler_of_their_code() -> None:
    """x <- (x + beta score) / sqrt(1 - beta) + sqrt(beta) z with discrete_betas, and the score of a
    discrete network: -noise / sqrt(1 - alphas_cumprod). Their times are linspace(T, eps, N)."""
    chain = sd.DDPM.from_sde(sd.VP(), 40, rule="song", variance="beta")
    model = sd.exact.GaussianMixture([[-0.8, 0.4], [0.9, 0.1]], [0.3, 0.5]).model(chain.to_sde())
    white = sd.White([5, 6], (2,), dtype=torch.float64)
    betas = torch.linspace(0.1 / 40, 20 / 40, 40, dtype=torch.float64)
    one_less = 1 - (1 - betas).cumprod(0)
    want = x = torch.tensor([[3.0, -2.0], [0.5, 1.0]], dtype=torch.float64)
    for step, i in enumerate(range(39, 0, -1)):
        score = -model.noise(want, chain.level_times[i]) / one_less[i].sqrt()
        want = (want + betas[i] * score) / (1 - betas[i]).sqrt()
        want = want + betas[i].sqrt() * white.at(step).normal("path")
    out = integrate(Reverse(model, 2, 1.0), chain, x, chain.times, white).x
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-9)
    times = sd.DDPM.from_sde(sd.VP(), 1000, rule="song").times
    torch.testing.assert_close(times, torch.linspace(1, 1e-3, 1000, dtype=torch.float64))


def test_songs_rule_needs_noise_from_the_start() -> None:
    sde = sd.LinearSDE(f=lambda t: -4 * t, g=lambda t: (8 * t).sqrt())
    with pytest.raises(ValueError, match=r"where g of LinearSDE.* vanishes: take rule='kernel'"):
        sd.DDPM.from_sde(sde, 100, rule="song")


@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
def test_respacing_is_the_sdes_chain_on_fewer_times(spacing: str) -> None:
    sde = sd.VP()
    few = sd.DDPM.from_sde(sde, 500).respaced(20, spacing=spacing)  # type: ignore[arg-type]
    times = few.level_times
    assert few.N == 20
    assert few.grid[-1] == 1
    assert few.grid[0] == pytest.approx(1 / 500)
    std = sde.kernel(times, torch.cat([torch.zeros(1), times[:-1]]).double())[1]
    torch.testing.assert_close(few.levels.variances, std.square(), rtol=1e-9, atol=0)
    torch.testing.assert_close(few.levels.alphas[1:], sde.alpha(times), rtol=1e-11, atol=0)
    gaps = times.diff()
    assert (
        float(gaps.max() / gaps.min()) < 1.1
        if spacing == "uniform"
        else float(gaps[-1] / gaps[1]) > 5
    )
    model = sd.exact.Gaussian([0.3, -0.5], [0.25, 0.5]).model(sde)
    one = sd.sample(model, (4, 2), solver=few, seed=1, dtype=torch.float64).x
    two = sd.sample(
        model, (4, 2), solver=sd.DDIM(eta=1.0), grid=few.times, seed=1, dtype=torch.float64
    ).x
    torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


def test_zero_terminal_snr() -> None:
    """Lin et al. 2024: the first level as it was, none of the signal at the last, sqrt(alpha_bar)
    an affine function of the old.
    """
    chain = sd.DDPM.from_schedule("scaled-linear", 100)
    zero = chain.with_zero_terminal_snr()
    old, new = chain.alphas_bar.sqrt(), zero.levels.alphas[1:]
    assert float(new[-1]) == 0
    assert float(new[0]) == pytest.approx(float(old[0]), rel=1e-12)
    slope = (new[0] - new[-1]) / (old[0] - old[-1])
    torch.testing.assert_close(new, (old - old[-1]) * slope, rtol=1e-9, atol=1e-12)
    sde = zero.to_sde()
    sd.testing.check_sde(sde, verbose=False)
    assert float(sde.alpha(sde.t_max)) == 0
    model = sd.exact.Gaussian([0.3, -0.5], [0.25, 0.5]).model(sde)  # predicts v
    out = sd.sample(model, (4, 2), solver=zero, seed=1, dtype=torch.float64).x
    twin = sd.sample(
        model, (4, 2), solver=sd.solvers.Ancestral(), grid=zero.times, seed=1, dtype=torch.float64
    ).x
    torch.testing.assert_close(out, twin, rtol=0, atol=1e-9)
    with pytest.raises(
        ValueError, match="alpha = 0: no signal is left; let the network predict v or edm"
    ):
        sd.discrete.DDPMLoss(zero)(sd.ScoreModel(lambda x, t: x, sde), torch.zeros(2, 2))


@pytest.mark.thin(0)
def test_any_solver_samples_a_model_of_integer_times() -> None:
    """A network of T = 1000 integer times, as a model of the chain's SDE: the network's own time at
    the grid is i - 1, real numbers between, and the probability flow by tolerances ends where the
    exact flow does.
    """
    chain = sd.DDPM.from_schedule("linear", 1000)
    sde, law, seen = chain.to_sde(), sd.exact.Gaussian([0.3, -0.5], [0.25, 0.5]), []

    def net(x, index):
        seen.append(index.clone())
        t = (index.double() + 1) / 1000
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        v = torch.tensor([0.25, 0.5], dtype=torch.float64)
        return (
            sigma
            * (x - alpha * torch.tensor([0.3, -0.5], dtype=torch.float64))
            / (alpha**2 * v + sigma**2)
        )

    model = sd.ScoreModel(net, sde, time=sd.network_time.Timesteps(1000))
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = law.flow(sde, z, sde.t_max, sde.t_min)
    for solver, steps in ((sd.RK45(1e-8, 1e-8), None), (sd.solvers.UniPC(3), 120)):
        out = sd.sample(
            model, (3, 2), solver=solver, steps=steps, x_init=z, last="noisy", dtype=torch.float64
        )
        torch.testing.assert_close(out.x, end, rtol=0, atol=1e-5)
    seen.clear()
    sd.sample(model, (3, 2), solver=chain, seed=0)
    indices = torch.stack(seen)[:, 0]
    assert indices.tolist() == list(range(999, -1, -1))


def test_learned_variance_lies_between_the_two() -> None:
    """The second half of the channels, r: the log variance is (r + 1) / 2 of the way from
    beta_tilde's to beta's; other solvers do not see it.
    """
    sde = sd.VP()
    exact = sd.exact.GaussianMixture([[0.3, 0.1], [-0.5, 0.2]], 0.4).model(sde)

    def model(r: float) -> sd.ScoreModel:
        def net(x, t):
            return torch.cat([exact.net(x, t), torch.full_like(x, r)], dim=1)

        return sd.ScoreModel(
            net, sde, "v", time_dtype=torch.float64, learned_variance=True, data_std=exact.data_std
        )

    def draw(model: sd.ScoreModel, solver: sd.DDPM | sd.DDIM, **options) -> torch.Tensor:
        return sd.sample(model, (4, 2), solver=solver, seed=3, dtype=torch.float64, **options).x

    for r, variance in ((-1.0, "beta_tilde"), (1.0, "beta")):
        learned, fixed = (sd.DDPM.from_sde(sde, 30, variance=v) for v in ("learned", variance))  # type: ignore[arg-type]
        torch.testing.assert_close(draw(model(r), learned), draw(exact, fixed), rtol=0, atol=1e-12)
    chain = sd.DDPM.from_sde(sde, 30, variance="learned")
    log_v = chain.log_variance(torch.tensor([5]), torch.zeros(1, 2, dtype=torch.float64))
    beta, tilde = chain.levels.variances[4], chain.posterior_columns[2][4]
    torch.testing.assert_close(log_v, (0.5 * (beta * tilde).log()).expand(1, 2))
    torch.testing.assert_close(
        draw(model(0.3), sd.DDIM(), steps=8), draw(exact, sd.DDIM(), steps=8), rtol=0, atol=1e-12
    )
    with pytest.raises(ValueError, match="needs variance, which this problem does not offer"):
        draw(exact, chain)
    narrow = sd.ScoreModel(lambda x, t: x, sde, learned_variance=True)
    with pytest.raises(ValueError, match=r"with learned_variance, \(4, 4\), got shape \(4, 2\)"):
        draw(narrow, chain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sd.DDPM.from_sde(sd.VE(), 10),
            r"needs alpha\^2 \+ sigma\^2 = 1.*use Ancestral\(\)",
        ),
        (lambda: sd.DDPM.from_sde(sd.VP(), 0), "N must be an int of at least 1"),
        (lambda: sd.DDPM.from_sde(sd.VP(), 5000), r"below t_min = 0.001; take N <= 1000"),
        (lambda: sd.DDPM((0.1, 1.2), (0.5, 1.0)), r"beta_2 = 1.2"),
        (lambda: sd.DDPM((0.1, 1.0, 0.2)), r"beta_2 = 1$"),
        (lambda: sd.DDPM((1.0,)), r"beta_1 = 1$"),
        (lambda: sd.DDPM(()), "a vector of at least one number"),
        (lambda: sd.DDPM((0.1, 0.2), (1.0, 0.5)), "must rise from above 0"),
        (lambda: sd.DDPM.from_schedule("linar", 10), "did you mean 'linear'"),
        (lambda: sd.DDPM.from_schedule("linear", 0), "N must be an int of at least 1"),
        (lambda: sd.DDPM.from_schedule(lambda t: t, 10), r"alpha_bar\(t\) must fall"),
        (
            lambda: sd.DDPM.from_schedule("linear", 10, beta_start=0.0),
            r"beta_start must be .*\(0, 1\)",
        ),
        (lambda: sd.DDPM.from_schedule("linear", 10, beta_end=1.5), r"beta_end must be .* got 1.5"),
        (lambda: sd.DDPM.from_schedule("cosine", 10, s=-0.1), "s must be a finite number >= 0"),
        (lambda: sd.DDPM.from_schedule("sigmoid", 10, tau=0.0), "tau must be a positive number"),
        (lambda: sd.DDPM.from_schedule("sigmoid", 10, start=3.0), "start = 3, end = 3, tau = 1"),
        (
            lambda: sd.DDPM.from_sde(sd.VP(), 10, rule="exact"),
            "rule must be one of 'kernel', 'song'",
        ),
        (lambda: sd.DDPM.from_schedule("linear", 10).respaced([3, 2]), "must rise within 1..10"),
        (lambda: sd.DDPM.from_schedule("linear", 10).respaced([0, 2]), "must lie in 1..10"),
        (lambda: sd.DDPM.from_schedule("linear", 10).respaced(11), "an int in 1..10"),
        (
            lambda: sd.DDPM.from_schedule("linear", 10).respaced(5, spacing="cubic"),
            "spacing must be",
        ),
        (lambda: sd.DDPM((0.1,)).with_zero_terminal_snr(), "at least two steps"),
        (
            lambda: sd.sample(MODEL, (2, 1), solver=sd.DDPM.from_schedule("linear", 50)),
            "no chain of the model's SDE",
        ),
        (
            lambda: sd.sample(MODEL, (2, 1), solver=NOISY, last="denoise"),
            "ends at the data itself.*use 'mean' or 'noisy'",
        ),
        (lambda: sd.sample(MODEL, (2, 1), solver=NOISY, t_start=0.5), "needs x_init"),
        (
            lambda: sd.sample(MODEL, (2, 1), solver=NOISY, t_start=0.45, x_init=torch.zeros(2, 1)),
            r"nearest to t_start = 0.45 is solver.times\[2\] = 0.5",
        ),
        (
            lambda: sd.sample(MODEL, (2, 1), solver=NOISY, t_start=0.0, x_init=torch.zeros(2, 1)),
            r"nearest to t_start = 0 is solver.times\[3\] = 0.25",
        ),
        (
            lambda: sd.sample(
                MODEL, (2, 1), solver=NOISY, t_start=[0.5, 0.5], x_init=torch.zeros(2, 1)
            ),
            "t_start must be a number.*all samples of a DDPM start together",
        ),
        (lambda: sd.DDPM((0.1,), last_noise="yes"), "last_noise must be True or False"),
        (lambda: sd.DDPM((0.1, 0.2), (0.5,)), "one time for each of the 2 betas"),
        (lambda: sd.DDPM((0.1,), (0.5,), "gamma"), "variance must be"),
        (
            lambda: sd.DDPM((0.1,), (0.5,)).posterior(torch.zeros(1), torch.zeros(1), 2),
            "i must lie in 1..1",
        ),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_bad_types() -> None:
    with pytest.raises(TypeError, match=r"DDPM.from_schedule\('linear', 1000\)"):
        sd.DDPM("linear")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="how many, an int, or indices"):
        sd.DDPM.from_schedule("linear", 10).respaced(2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'cosine' takes s; got beta_start"):
        sd.DDPM.from_schedule("cosine", 10, beta_start=1e-4)
    with pytest.raises(TypeError, match=r"alpha_bar\(t\) takes no options; got tau"):
        sd.DDPM.from_schedule(lambda t: torch.exp(-3 * t), 10, tau=1.0)
    with pytest.raises(TypeError, match=r"got betaend .did you mean 'beta_end'"):
        sd.DDPM.from_schedule("linear", 10, betaend=0.1)  # type: ignore[call-arg]


def test_diffusers_numbers() -> None:
    """diffusers' DDPMScheduler (float32): betas, alpha_bar, posterior and learned variances, zero
    terminal SNR.
    """
    diffusers = pytest.importorskip("diffusers")
    for name, theirs, ends in (
        ("linear", "linear", (1e-4, 0.02)),
        ("scaled-linear", "scaled_linear", (0.00085, 0.012)),
        ("cosine", "squaredcos_cap_v2", (1e-4, 0.02)),
        ("linear", "linear", (2e-3, 0.01)),
        ("scaled-linear", "scaled_linear", (1e-4, 0.02)),
        ("sigmoid-betas", "sigmoid", (1e-4, 0.05)),
    ):
        options = {
            "num_train_timesteps": 1000,
            "beta_schedule": theirs,
            "beta_start": ends[0],
            "beta_end": ends[1],
        }
        scheduler = diffusers.DDPMScheduler(
            **options, variance_type="fixed_small", clip_sample=False
        )
        given = {} if name == "cosine" else {"beta_start": ends[0], "beta_end": ends[1]}
        chain = sd.DDPM.from_schedule(name, 1000, **given)  # type: ignore[arg-type]
        torch.testing.assert_close(torch.tensor(chain.betas), scheduler.betas, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(
            chain.alphas_bar.float(), scheduler.alphas_cumprod, rtol=2e-3, atol=1e-9
        )
        for t in (1, 10, 500, 900):
            assert float(scheduler._get_variance(t)) == pytest.approx(
                float(chain.posterior_columns[2][t]), rel=1e-3
            )
        if name == "scaled-linear":
            rescaled = diffusers.DDPMScheduler(**options, rescale_betas_zero_snr=True)
            zero = chain.with_zero_terminal_snr()
            torch.testing.assert_close(
                zero.alphas_bar.float(), rescaled.alphas_cumprod, rtol=1e-3, atol=2e-7
            )
    learned = sd.DDPM.from_schedule("linear", 1000, variance="learned")
    scheduler = diffusers.DDPMScheduler(1000, variance_type="learned_range", clip_sample=False)
    said = torch.tensor([[-1.0, 0.2, 1.0]])
    theirs = scheduler._get_variance(500, predicted_variance=said)  # its logarithm
    torch.testing.assert_close(
        learned.log_variance(torch.tensor([501]), said), theirs, rtol=1e-4, atol=0
    )


def test_the_range_of_a_learned_variance_in_the_first_step() -> None:
    """From log beta_tilde_2 to log beta_1, as in guided-diffusion, by which networks were trained;
    fixed variances are beta_tilde_2 there, both.
    """
    chain = sd.DDPM.from_schedule("linear", 1000, variance="learned")
    beta = chain.levels.variances
    second = float(chain.posterior_columns[2][1].log())
    said = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    low, middle, high = chain.log_variance(torch.tensor([1]), said)[0].tolist()
    assert (low, high) == pytest.approx((second, math.log(beta[0])), abs=1e-12)
    assert middle == pytest.approx(0.5 * (low + high))
    assert high - low > 0.5
    for variance in ("beta", "beta_tilde"):
        fixed = sd.DDPM.from_schedule("linear", 1000, variance=variance)
        assert float(fixed.log_variance(1)) == pytest.approx(second, abs=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_diffusers_ddim_step_is_the_posterior_of_its_sigma(eta: float) -> None:
    """DDIMScheduler's step (float32) from 500 to 480, at the level t + 1: the mean of q_sigma, and
    its noise.
    """
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(1000, clip_sample=False)
    scheduler.set_timesteps(50)
    generator = torch.Generator().manual_seed(0)
    x, noise, z = (torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    theirs = scheduler.step(noise, 500, x, eta=eta, variance_noise=z).prev_sample
    pair = sd.DDPM.from_schedule("linear", 1000).respaced([481, 501])
    x_0 = (x - pair.levels.sigmas[2] * noise) / pair.levels.alphas[2]
    std = eta * pair.posterior(x, x_0, 2)[1].sqrt()
    mean, variance = pair.posterior(x, x_0, 2, std=std)
    torch.testing.assert_close(mean + variance.sqrt() * z, theirs, rtol=1e-5, atol=1e-5)

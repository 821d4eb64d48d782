"""NCSN as an exact discretization of VE, and NCSNv2's choices."""

from __future__ import annotations

import math

import pytest
import torch

import sdediff as sd
from sdediff.discrete.ncsn import annealed_variance, level_ratio, widest_pair

VE = sd.VE(0.02, 30.0)


def test_levels_and_kernels_are_ves() -> None:
    """Geometric levels at t_i = T (i - 1) / (N - 1); a step adds noise of variance sigma_i^2 -
    sigma_{i-1}^2.
    """
    chain = sd.NCSN.from_sde(VE, 11)
    times = chain.level_times
    torch.testing.assert_close(
        times, torch.arange(11, dtype=torch.float64) / 10, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(chain.levels.sigmas[1:], VE.sigma(times), rtol=1e-12, atol=0)
    ratio, std = VE.kernel(times[1:], times[:-1])
    torch.testing.assert_close(chain.levels.variances[1:], std.square(), rtol=1e-10, atol=0)
    assert bool((ratio == chain.levels.ratios[1:]).all())
    ratios = torch.tensor(chain.sigmas, dtype=torch.float64)
    torch.testing.assert_close(
        ratios[:-1] / ratios[1:], torch.full((10,), 1500 ** (1 / 10), dtype=torch.float64)
    )
    x, z = torch.ones(2, 3, dtype=torch.float64), torch.full((2, 3), -0.7, dtype=torch.float64)
    torch.testing.assert_close(chain.perturb(x, 4, z), VE.perturb(x, times[3], z))
    torch.testing.assert_close(chain.forward(x, 4, z), x + float(std[2]) * z)
    mean, variance = chain.posterior(x, z, 4)
    want, want_std = VE.posterior(x, z, times[3], times[2])
    torch.testing.assert_close(mean, want, rtol=1e-10, atol=0)
    assert float(variance) == pytest.approx(float(want_std) ** 2, rel=1e-10)


@pytest.mark.parametrize("sde", [VE, sd.EDM(0.02, 30.0)], ids=["VE", "EDM"])
def test_the_chains_sde_has_its_levels(sde: sd.LinearSDE) -> None:
    chain = sd.NCSN.from_sde(sde, 12)
    found = chain.to_sde()
    torch.testing.assert_close(
        found.sigma(chain.level_times), chain.levels.sigmas[1:], rtol=1e-12, atol=0
    )
    sd.testing.check_sde(found, verbose=False)
    middle = (chain.level_times[1:] + chain.level_times[:-1]) / 2
    torch.testing.assert_close(
        found.sigma(middle), sde.sigma(middle), rtol=0.07 if sde is not VE else 1e-9, atol=0
    )
    uneven = sd.NCSN((9.0, 8.9, 1.0, 0.3, 0.29, 0.05)).to_sde()
    t = torch.linspace(0, 1, 1000, dtype=torch.float64)
    assert bool((uneven.sigma(t).diff() > 0).all())
    sd.testing.check_sde(uneven, verbose=False)


def test_evenly_spaced_levels() -> None:
    """sigma_1 to sigma_N in equal differences, at the times at which the SDE has them. The step
    size is the best one for the last level, whose ratio is the largest.
    """
    want = [30.0 + (0.02 - 30.0) * j / 8 for j in range(9)]
    alone, chain = sd.NCSN.linear(30.0, 0.02, 9), sd.NCSN.from_sde(VE, 9, spacing="linear")
    for each in (alone, chain):
        assert each.sigmas == pytest.approx(want, rel=1e-14)
        assert (each.sigmas[0], each.sigmas[-1]) == (30.0, pytest.approx(0.02, rel=1e-14))
    torch.testing.assert_close(
        VE.sigma(chain.times), torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=0
    )
    step = float(alone.step_sizes[-1]) / 0.02**2
    off = [abs(annealed_variance(want[-2] / 0.02, f * step, 100) - 1) for f in (0.999, 1, 1.001)]
    assert off[1] < min(off[0], off[2])
    torch.testing.assert_close(
        alone.step_sizes, step * torch.tensor(want, dtype=torch.float64) ** 2, rtol=1e-12, atol=0
    )
    with pytest.raises(ValueError, match="one level cannot be both"):
        sd.NCSN.linear(2.0, 1.0, 1)
    law = sd.exact.Gaussian([0.0, 0.0], 1.0)
    ours, theirs = law.model(VE), law.model(alone.to_sde())
    for model, solver in ((ours, chain), (theirs, alone)):
        assert sd.sample(model, (2, 2), solver=solver, seed=0).nfe.tolist() == [901] * 2


def test_sampling_is_algorithm_1() -> None:
    """Song and Ermon 2019 as they write it, with epsilon twice the step size: x + alpha / 2 score +
    sqrt(alpha) z.
    """
    law = sd.exact.GaussianMixture([[-0.5, 0.3], [0.5, 0.0]], 0.4)
    model, chain = law.model(VE), sd.NCSN.from_sde(VE, 5, step_size=1e-5, n_steps=3)
    noise = sd.White(sd.seeds(4, 6), (2,), dtype=torch.float64)
    x = VE.prior.from_noise(noise.at(0).normal("prior"))
    for level, sigma in enumerate(chain.sigmas):
        alpha = 2e-5 * sigma**2 / chain.sigmas[-1] ** 2
        step, first = max(level - 1, 0), 3 if level == 1 else 0
        for k in range(3):
            z = noise.at(step).normal("corrector", first + k)
            x = x + alpha / 2 * model.score(x, chain.times[level]) + math.sqrt(alpha) * z
    out = sd.sample(model, (6, 2), solver=chain, seed=4, last="noisy", dtype=torch.float64)
    torch.testing.assert_close(out.x, x, rtol=1e-10, atol=1e-10)
    assert out.nfe.tolist() == [15] * 6
    denoised = sd.sample(model, (6, 2), solver=chain, seed=4, dtype=torch.float64)
    last = chain.sigmas[-1] ** 2
    torch.testing.assert_close(
        denoised.x, x + last * model.score(x, chain.times[-1]), rtol=1e-10, atol=1e-10
    )
    assert denoised.nfe.tolist() == [16] * 6


def test_annealing_from_a_level_on() -> None:
    """Algorithm 1 from the level sigma_3 on, from given states: all of its steps at that level too,
    and with the step sizes of the whole chain; for data of another scale than the model's unit.
    """
    law = sd.exact.GaussianMixture([[-5.0, 3.0], [5.0, 0.0]], 4.0)
    model, chain = law.model(VE), sd.NCSN.from_sde(VE, 5, step_size=1e-5, n_steps=3)
    noise = sd.White(sd.seeds(4, 6), (2,), dtype=torch.float64)
    start = x = 7.0 * noise.at(9).normal("prior")
    for level in (2, 3, 4):
        size = 1e-5 * chain.sigmas[level] ** 2 / chain.sigmas[-1] ** 2
        step, first = max(level - 3, 0), 3 if level == 3 else 0
        for k in range(3):
            z = noise.at(step).normal("corrector", first + k)
            x = x + size * model.score(x, chain.times[level]) + math.sqrt(2 * size) * z
    given = {"solver": chain, "x_init": start, "t_start": chain.times[2]}
    out = sd.sample(
        model,
        (6, 2),
        noise=noise,
        last="noisy",
        dtype=torch.float64,
        **given,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(out.x, x, rtol=1e-10, atol=1e-10)
    assert out.nfe.tolist() == [9] * 6
    with pytest.raises(ValueError, match=r"two levels at least.*from its start on"):
        sd.sample(model, (6, 2), **given | {"t_start": chain.times[4]})  # type: ignore[arg-type]


def test_steps_after_the_first_level_are_langevin() -> None:
    """Annealed Langevin dynamics is the corrector alone: `Langevin` with snr = sqrt(step_size / 2)
    / sigma_N.
    """
    law = sd.exact.GaussianMixture([[-0.5, 0.3], [0.5, 0.0]], 0.4)
    model, chain = law.model(VE), sd.NCSN.from_sde(VE, 6, step_size=1e-5, n_steps=2)
    whole = sd.sample(
        model, (4, 2), solver=chain, seed=1, last="noisy", dtype=torch.float64, trajectory=True
    )
    assert whole.trajectory is not None
    snr = math.sqrt(0.5e-5) / chain.sigmas[-1]
    # From the second level on, its noise being that of step 1: one empty interval before.
    times = torch.cat([chain.times[:1], chain.times[2:]])
    noise = sd.White(sd.seeds(1, 4), (2,), dtype=torch.float64)

    class Later:
        def at(self, step: int):
            return noise.at(step + 1)

    rest = sd.sample(
        model,
        (4, 2),
        solver=sd.Langevin(snr, 2),
        grid=times,
        x_init=whole.trajectory[1],
        noise=Later(),
        last="noisy",
        dtype=torch.float64,
    )
    torch.testing.assert_close(rest.x, whole.x, rtol=1e-10, atol=1e-10)


def test_law_of_gaussian_data() -> None:
    """By exact moments: the mean is exact in the end, the variance nears the law's as steps are
    added at each level.
    """
    sde, law, off = sd.VE(0.1, 5.0), sd.exact.Gaussian(0.3, 0.5), []
    for n in (15, 30, 60):
        chain = sd.NCSN.from_sde(sde, 12, step_size=2e-3, n_steps=n)
        mean, cov = law.chain(sde, chain, chain.times, start="prior")
        off.append(float(cov) / (0.5 + 0.1**2) - 1)
    assert float(mean) == pytest.approx(0.3, abs=1e-4)
    assert off[0] > 1.5 * off[1] > 1.5**2 * off[2] > 0
    assert off[2] < 0.04


def test_variance_of_a_level_is_equation_5() -> None:
    """`annealed_variance` is the variance of the chain's own steps on data at one point, by exact
    moments.
    """
    sde = sd.VE(0.1, 0.1 * 1.3**3)
    chain = sd.NCSN.from_sde(sde, 4, step_size=1.2e-3, n_steps=3)
    _, cov = sd.exact.Gaussian(0.0, 0.0).chain(sde, chain, chain.times)
    share = annealed_variance(1.0, 0.12, 3)  # the first level starts with its own variance
    for _ in range(3):
        share = annealed_variance(1.3 * share**0.5, 0.12, 3)
    assert float(cov) / 0.01 == pytest.approx(share, rel=1e-10)


def test_ncsnv2s_published_choices() -> None:
    """Song and Ermon 2020, Table of hyperparameters: epsilon for CIFAR-10 (sigma 50 to 0.01, 232
    levels) 6.2e-6, CelebA (90, 500 levels) 3.3e-6, each with T = 5; the ratio of 32 x 32 x 3 data
    is what gives 232 levels to within the rounding of 1.04.
    """
    assert float(sd.NCSN.geometric(50, 0.01, 232, n_steps=5).step_sizes[-1]) == pytest.approx(
        6.2e-6, rel=0.01
    )
    assert float(sd.NCSN.geometric(90, 0.01, 500, n_steps=5).step_sizes[-1]) == pytest.approx(
        3.3e-6, rel=0.02
    )
    assert level_ratio(3 * 32 * 32) == pytest.approx(5000 ** (1 / 231), abs=3e-3)
    for d in (10, 784, 12288):
        gamma, s = level_ratio(d), math.sqrt(2 * d)
        normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
        overlap = normal.cdf(torch.tensor(s * (gamma - 1) + 3 * gamma)) - normal.cdf(
            torch.tensor(s * (gamma - 1) - 3 * gamma)
        )
        assert float(overlap) == pytest.approx(0.5, abs=1e-6)


def test_choices_from_data() -> None:
    x = torch.randn(3000, 3, 4, generator=torch.Generator().manual_seed(0))
    chain = sd.NCSN.from_data(x, sigma_min=0.05, n_steps=4)
    flat = x.flatten(1).double()
    assert chain.sigmas[0] == pytest.approx(float(torch.pdist(flat).max()), rel=1e-5)
    assert widest_pair(x[:1500], chunk=100) == pytest.approx(widest_pair(x[:1500]), rel=1e-6)
    assert chain.sigmas[-1] == 0.05
    ratio = chain.sigmas[0] / chain.sigmas[1]
    assert ratio <= level_ratio(12)
    assert (chain.sigmas[0] / chain.sigmas[-1]) ** (1 / (chain.N - 2)) > level_ratio(12)
    best = annealed_variance(ratio, float(chain.step_sizes[-1]) / 0.05**2, 4)
    for factor in (0.97, 1.03):
        assert abs(
            annealed_variance(ratio, factor * float(chain.step_sizes[-1]) / 0.05**2, 4) - 1
        ) > abs(best - 1)


def test_loss_is_denoising_score_matching_at_the_levels() -> None:
    """2 / d times Song and Ermon's eq. 5 with lambda = sigma^2."""
    chain = sd.NCSN.from_sde(VE, 7)
    model = sd.ScoreModel(lambda x, t: 0.3 * x, VE, "score")
    x, z, i = (
        torch.ones(3, 2, dtype=torch.float64),
        torch.full((3, 2), -0.7, dtype=torch.float64),
        torch.tensor([1, 4, 7]),
    )
    sigma = chain.levels.sigmas[i][:, None]
    score_error = 0.3 * (x + sigma * z) + z / sigma
    theirs = 0.5 * sigma[:, 0] ** 2 * score_error.square().sum(dim=1)
    torch.testing.assert_close(sd.discrete.NCSNLoss(chain)(model, x, i=i, noise=z), theirs)
    one, two = (
        sd.discrete.NCSNLoss(chain, stratified=True)(
            model, x, generator=torch.Generator().manual_seed(3)
        )
        for _ in range(2)
    )
    assert torch.equal(one, two)


@pytest.mark.slow
def test_networks_of_ddpm_and_of_score_matching_are_interchangeable(tmp_path) -> None:
    """Trained by L_simple at a chain's levels, or by continuous denoising score matching: each is
    sampled by the other's solver.
    """
    from sdediff.networks import MLP, initialised

    angle = 2 * math.pi * torch.rand(2000, generator=torch.Generator().manual_seed(0))
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    sde = sd.VP()
    chain = sd.DDPM.from_sde(sde, 200)
    for name, loss in (
        ("ddpm", sd.discrete.DDPMLoss(chain, stratified=True)),
        ("continuous", None),
    ):
        model = sd.ScoreModel(initialised(lambda: MLP(2, 64, 2), 0), sde, "v")
        model = sd.fit(
            model,
            ring,
            out=tmp_path / name,
            steps=1500,
            lr=3e-3,
            ema=0.99,
            loss=loss,
            device="cpu",
            seed=1,
        )
        for solver, steps in ((chain, None), (sd.RK45(1e-3, 1e-3), None), (sd.EulerMaruyama(), 60)):
            radius = sd.sample(model, (400, 2), solver=solver, steps=steps, seed=0).x.norm(dim=1)
            # Of noise the mean radius would be 1.25 and its spread 0.65.
            assert float(radius.mean()) == pytest.approx(1, abs=0.1), (name, solver)
            assert float(radius.std()) < 0.25, (name, solver)


MODEL = sd.exact.Gaussian([0.0, 0.0], 1.0).model(VE)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sd.NCSN((1.0, 2.0)), ValueError, "sigmas must fall.*sigma_1 = 1 is followed by 2"),
        (lambda: sd.NCSN((1.0, 1.0)), ValueError, "sigmas must fall"),
        (lambda: sd.NCSN((1.0, 0.0)), ValueError, "must be positive"),
        (lambda: sd.NCSN(()), ValueError, "at least one number"),
        (lambda: sd.NCSN((2.0, 1.0), (0.5,)), ValueError, "one time for each of the 2 sigmas"),
        (lambda: sd.NCSN((2.0, 1.0), (0.5, 0.1)), ValueError, "must rise from 0"),
        (
            lambda: sd.NCSN((2.0, 1.0), step_size=1.5),
            ValueError,
            r"step_size must lie in \(0, sigma_N\^2\) = \(0, 1\)",
        ),
        (lambda: sd.NCSN((2.0, 1.0), n_steps=0), ValueError, "n_steps must be an int"),
        (lambda: sd.NCSN.from_sde(sd.VP(), 10), ValueError, "needs alpha = 1.*use DDPM.from_sde"),
        (lambda: sd.NCSN.from_sde(VE, 0), ValueError, "N must be an int"),
        (lambda: sd.NCSN.geometric(0.1, 1.0, 5), ValueError, "0 < sigma_min < sigma_max"),
        (lambda: sd.NCSN.linear(1, 0.01, 1), ValueError, "one level cannot be both sigma_max = 1"),
        (lambda: sd.NCSN.from_sde(sd.VE(), 1), ValueError, "one level cannot be both"),
        (lambda: sd.NCSN.linear(0.1, 1.0, 5), ValueError, "0 < sigma_min < sigma_max"),
        (
            lambda: sd.NCSN.from_sde(VE, 5, spacing="lineer"),
            ValueError,
            "spacing must be one of 'geometric', 'linear'.*did you mean 'linear'",
        ),
        (
            lambda: sd.NCSN.from_data(torch.ones(1, 9)),
            ValueError,
            "the largest distance between two samples",
        ),
        (lambda: sd.NCSN.from_data(torch.ones(4, 9)), ValueError, "sigma_min must lie in"),
        (lambda: sd.NCSN.from_data(torch.eye(2)), ValueError, "from 5 on; got d = 2"),
        (lambda: sd.NCSN((1.0,)), ValueError, "one level, 1: annealed.*SlicedScoreMatching"),
        (
            lambda: sd.sample(MODEL, (2, 2), solver=sd.NCSN((3.0, 1.0))),
            ValueError,
            "other levels than the model's SDE",
        ),
        (
            lambda: sd.discrete.NCSNLoss(sd.NCSN((3.0, 1.0)))(MODEL, torch.zeros(2, 2)),
            ValueError,
            "does not have the marginals",
        ),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

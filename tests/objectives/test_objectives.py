"""Denoising score matching against closed forms."""

from __future__ import annotations

import pytest
import torch
from gauss_hermite import gauss_hermite
from reparametrised import reparametrised
from torch import Tensor

import sdediff as sd
from sdediff.predictions import PREDICTIONS


def test_edm_weighting_is_the_error_of_the_networks_own_output(sde: sd.LinearSDE) -> None:
    model = sd.ScoreModel(lambda x, t: 0.3 * x, sde, "edm", sigma_data=0.6)
    x, noise = (
        torch.full((3, 4), 0.5, dtype=torch.float64),
        torch.full((3, 4), -1.2, dtype=torch.float64),
    )
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64) * sde.T
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    level = sigma / alpha  # Karras et al. 2022, Table 1, on x_t / alpha
    skip, out = 0.36 / (level**2 + 0.36), level * 0.6 / (level**2 + 0.36).sqrt()
    noisy = x + level * noise
    output = 0.3 * noisy / (level**2 + 0.36).sqrt()
    denoised = skip * noisy + out * output
    expected = ((denoised - x).square() * (level**2 + 0.36) / (level * 0.6) ** 2).mean(dim=1)
    torch.testing.assert_close(
        sd.DenoisingScoreMatching("edm")(model, x, t=t, noise=noise), expected, rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("weighting", ["sigma2", "likelihood"])
def test_loss_of_the_exact_score_is_its_closed_form_minimum(
    sde: sd.LinearSDE, weighting: str
) -> None:
    """For N(m, v) data the least value at t is w(t) alpha^2 v / (sigma^2 (alpha^2 v + sigma^2)),
    integrated by quadrature.
    """
    mean, var = 0.4, 0.3
    model = sd.exact.Gaussian(mean, var).model(sde)
    z, w = gauss_hermite(4)
    x = (mean + var**0.5 * z).repeat_interleave(4, dim=0)
    noise, weights = z.repeat(4, 1), (w[:, None] * w[None, :]).flatten()
    for share in (0.05, 0.4, 0.95):
        t = torch.full((16,), share * sde.T, dtype=torch.float64)
        got = (sd.DenoisingScoreMatching(weighting)(model, x, t=t, noise=noise) * weights).sum()
        alpha2, sigma2 = sde.alpha(t[0]) ** 2, sde.sigma(t[0]) ** 2
        scale = sigma2 if weighting == "sigma2" else sde.g(t[0]) ** 2
        torch.testing.assert_close(
            got, scale * alpha2 * var / (sigma2 * (alpha2 * var + sigma2)), rtol=1e-9, atol=0
        )


def test_value_does_not_depend_on_the_parametrisation(
    sde: sd.LinearSDE, gaussian: sd.exact.Gaussian
) -> None:
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(8, 2)
    noise = x.flip(0) * 2
    t = torch.linspace(0.05, 0.9, 8, dtype=torch.float64) * sde.T
    loss = sd.DenoisingScoreMatching(lambda sde, t: sde.sigma(t))
    expected = loss(gaussian.model(sde), x, t=t, noise=noise)
    for predicts in PREDICTIONS:
        got = loss(reparametrised(gaussian.model(sde), predicts), x, t=t, noise=noise)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_noise_loss_is_the_mean_squared_error_of_the_noise() -> None:
    sde = sd.VP()
    model = sd.ScoreModel(lambda x, t: 0.5 * x, sde)
    x, noise = torch.ones(2, 3, 4), torch.full((2, 3, 4), -0.7)
    t = torch.tensor([0.2, 0.8], dtype=torch.float64)
    x_t = sde.perturb(x, t, noise)
    expected = (0.5 * x_t - noise).square().mean(dim=(1, 2))
    torch.testing.assert_close(sd.DenoisingScoreMatching()(model, x, t=t, noise=noise), expected)


def test_seed_reproduces_and_the_global_generator_rests() -> None:
    model = sd.exact.Gaussian([0.0, 0.0], 1.0).model(sd.VP())
    x = torch.zeros(16, 2)
    one, two, other = (
        sd.DenoisingScoreMatching()(model, x, generator=torch.Generator().manual_seed(s))
        for s in (3, 3, 4)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.uses_global_rng
def test_default_generator_is_torchs_own() -> None:
    model = sd.exact.Gaussian([0.0, 0.0], 1.0).model(sd.VP())
    torch.manual_seed(5)
    one = sd.DenoisingScoreMatching()(model, torch.zeros(4, 2))
    torch.manual_seed(5)
    assert torch.equal(one, sd.DenoisingScoreMatching()(model, torch.zeros(4, 2)))


def test_times_are_uniform_and_stratified_ones_fill_their_strata() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(loss: sd.DenoisingScoreMatching, count: int) -> Tensor:
        t, weights = loss.draw(
            sd.exact.Gaussian(0.0, 1.0).model(sd.VP(t_min=0.1)), count, generator
        )
        assert bool((weights == 1).all())
        return t

    t = draw(sd.DenoisingScoreMatching(stratified=True), 1000)
    strata = ((t - 0.1) / 0.9 * 1000).floor().long()
    assert sorted(strata.tolist()) == list(range(1000))
    assert strata.tolist() != list(range(1000))
    law = draw(sd.DenoisingScoreMatching(times="logit-normal"), 20_000)
    share = (law - 0.1) / 0.9
    # The logit is N(-1, 1.2^2): standard error of its mean 1.2 / sqrt(2e4) = 8.5e-3.
    logit = (share / (1 - share)).log()
    assert float(logit.mean()) == pytest.approx(-1.0, abs=6 * 8.5e-3)
    assert float(logit.std()) == pytest.approx(1.2, abs=6 * 6e-3)
    plain = draw(sd.DenoisingScoreMatching(), 100_000)
    # Mean 0.55, standard error 0.9 / sqrt(12 * 1e5) = 8e-4; 6 of them: chance 2e-9.
    assert float(plain.mean()) == pytest.approx(0.55, abs=6 * 8.3e-4)
    assert float(plain.min()) >= 0.1
    assert float(plain.max()) <= 1.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: sd.DenoisingScoreMatching("sigma"), ValueError, "did you mean 'sigma2'"),
        (lambda m: sd.DenoisingScoreMatching(times="unifrm"), ValueError, "did you mean 'uniform'"),
        (
            lambda m: sd.DenoisingScoreMatching()(m, torch.zeros(3, 2, dtype=torch.uint8)),
            TypeError,
            "use x.float",
        ),
        (
            lambda m: sd.DenoisingScoreMatching()(m, torch.zeros(3, 2), t=torch.tensor([0.5])),
            ValueError,
            r"shape \(3,\)",
        ),
        (
            lambda m: sd.DenoisingScoreMatching()(
                m, torch.zeros(3, 2), t=torch.tensor([0.5, 0.1, 1e-5])
            ),
            ValueError,
            "usable range",
        ),
        (
            lambda m: sd.objectives.Coupled()(m, torch.zeros(3, 2, 2), noise=torch.zeros(3, 2)),
            TypeError,
            "Coupled takes no noise=; it takes generator and mask alone",
        ),
        (
            lambda m: sd.DenoisingScoreMatching()(m, torch.zeros(3, 2), i=torch.ones(3)),
            TypeError,
            "takes no i=; it takes t and noise",
        ),
    ],
)
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(sd.exact.Gaussian([0.0, 0.0], 1.0).model(sd.VP()))  # type: ignore[operator]

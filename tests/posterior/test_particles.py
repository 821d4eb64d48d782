"""Particles: the closed-form posterior and evidence, resampling, groups, and what is warned of."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff import posterior
from sdediff.posterior import Particles, sample_posterior
from sdediff.posterior.resampling import systematic
from sdediff.posterior.twists import TWISTS
from sdediff.predict import outputs

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


ANGLE = torch.arange(8, dtype=F64) * math.pi / 4
RING = sd.exact.GaussianMixture(1.3 * torch.stack([ANGLE.cos(), ANGLE.sin()], dim=1), 0.15)
H, Y, STD = torch.tensor([[1.0, 0.5]], dtype=F64), torch.tensor([[0.9]], dtype=F64), 0.3
SEEN = posterior.Linear(lambda x: x @ H.T.to(x), noise_std=STD)
TRUTH = RING.posterior(H, Y[0], STD)


def evidence(law: Any, H: Tensor, y: Tensor, std: float) -> float:
    """log p(y) of a mixture of isotropic components."""
    mean, cov = law.means @ H.T, float(law.components.variances[0]) * H @ H.T
    cov = cov + std**2 * torch.eye(len(H), dtype=F64)
    logs = torch.distributions.MultivariateNormal(mean, cov).log_prob(y)
    return float((logs + law.log_weights).logsumexp(dim=0))


def check(found: posterior.Weighted, law: Any, log_evidence: float, draws: float) -> None:
    """Mean and variance within 4.5 standard errors of so many independent draws, and the evidence:
    false alarms of 1e-5 a number if the particles were such draws.
    """
    mean, cov = law.data_moments()
    variance = cov.diagonal()
    sample = law.sample(100_000, seed=9)
    fourth = (sample - mean).pow(4).mean(dim=0)
    off = (found.mean - mean) / (variance / draws).sqrt()
    wide = (found.variance - variance) / ((fourth - variance.square()) / draws).sqrt()
    assert float(off.abs().max()) < 4.5
    assert float(wide.abs().max()) < 4.5
    assert float((found.log_evidence - log_evidence).abs().max()) < 0.1


@pytest.mark.parametrize("twist", ["mmps", "pigdm"])
def test_particles_have_the_posterior_and_its_evidence(twist: Any) -> None:
    """On a ring of eight modes, with either twist: the weights mend what is wrong with it."""
    found = sample_posterior(
        RING.model(sd.VP()), SEEN, Y, (2, 2), particles=Particles(2000, twist), steps=60, seed=1
    )
    check(found, TRUTH, evidence(RING, H, Y[0], STD), 1000)
    assert bool(found.exact.all())
    assert bool((found.log_evidence_error < 0.06).all())
    nearest = torch.cdist(found.x.double(), TRUTH.means.expand(2, -1, -1)).argmin(dim=2)
    shares = torch.zeros(2, 8, dtype=F64).scatter_add(1, nearest, found.weights)
    assert float((shares - TRUTH.weights).abs().max()) < 0.07


@pytest.mark.parametrize("sde", [sd.VE(0.01, 50.0), sd.RectifiedFlow()], ids=repr)
def test_weights_are_right_whatever_the_twist(sde: sd.LinearSDE) -> None:
    """Gaussian data far from the isotropy that one twist takes for granted, in units of their own.

    The exact twist has weights that are more even.
    """
    law = sd.exact.Gaussian([5.0, -5.0], [[9.0, 2.9], [2.9, 1.0]])
    y = torch.tensor([[2.0]], dtype=F64)
    measured = posterior.Linear(lambda x: 0.5 * x.sum(dim=1, keepdim=True), noise_std=0.5)
    h = torch.full((1, 2), 0.5, dtype=F64)
    normal = torch.distributions.Normal(
        0.0, (float((h @ law.covariance @ h.T).item()) + 0.25) ** 0.5
    )
    truth, log_evidence = law.posterior(h, y[0], 0.5), float(normal.log_prob(y[0]))
    for twist in ("mmps", "pigdm"):
        particles = Particles(1000, twist, islands=4)  # type: ignore[arg-type]
        found = sample_posterior(
            law.model(sde), measured, y, (1, 2), particles=particles, steps=60, seed=3
        )
        check(found, truth, log_evidence, 400)
        if twist == "mmps":
            assert float(found.ess) > 600


def test_weights_are_even_for_gaussian_data() -> None:
    """With the exact twist all that is left is the error of the step, which falls as its square:
    so does the variance of the log weights with its fourth power: 13 times from 25 to 50 steps.

    Steps with the prior's spread leave a genealogical effective size of 48 of 400 at 50 steps.
    """
    root = randn(8, 8)
    law = sd.exact.Gaussian(randn(8, seed=1), root @ root.T + 0.1 * torch.eye(8))
    h, y = randn(6, 8, seed=2), randn(1, 6, seed=3)
    measured = posterior.Linear(lambda x: x @ h.T.to(x), noise_std=0.3)
    varied = []
    for steps in (25, 50):
        found = sample_posterior(
            law.model(sd.VP()), measured, y, (1, 8), particles=Particles(400, islands=1),
            steps=steps, seed=0, dtype=F64,
        )  # fmt: skip
        assert torch.equal(found.genealogical_ess, found.ess)  # never resampled
        varied.append(float(found.weights.log().var()))
    assert varied[1] < 0.02
    assert varied[1] < varied[0] / 8


@pytest.mark.parametrize("twist", ["mmps", "pigdm"])
def test_the_twist_is_the_likelihood_given_the_state(twist: str) -> None:
    """log p(y | x_t) of Gaussian data, whose covariance one twist knows and one takes for d^2."""
    sde, t, root = sd.VP(), torch.tensor(0.3, dtype=F64), randn(3, 3)
    law = sd.exact.Gaussian(randn(3, seed=1), root @ root.T + 0.1 * torch.eye(3))
    h, stds, x, y = randn(2, 3, seed=2), torch.tensor([0.3, 0.7]), randn(4, 3, seed=3), randn(4, 2)
    measured = posterior.Linear(lambda x: x @ h.T, noise_std=stds.double())
    found: Any = outputs(TWISTS[twist](law.model(sde), measured, y), x, t)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    covariance = torch.linalg.inv(
        torch.linalg.inv(law.covariance) + (alpha / sigma) ** 2 * torch.eye(3, dtype=F64)
    )
    assert torch.allclose(found.prior, law.data(sde, x, t))
    assert torch.allclose(found.covariance(x), x @ covariance)
    if twist == "pigdm":
        d = law.data_std
        covariance = d**2 * sigma**2 / (sigma**2 + (alpha * d) ** 2) * torch.eye(3, dtype=F64)
    spread = h @ covariance @ h.T + torch.diag(stds.double().square())
    expected = torch.distributions.MultivariateNormal(found.prior @ h.T, spread).log_prob(y)
    assert float((found.log_likelihood[:, 0] - expected).abs().max()) < 1e-10


def test_steps_have_the_right_covariance() -> None:
    """Where y says nothing the data's variance comes out, of which 50 ancestral steps have 0.8;
    tolerance of 4.5 standard errors.
    """
    law = sd.exact.Gaussian([0.5, -0.5], [[1.0, 0.3], [0.3, 0.2]])
    blind = posterior.Linear(lambda x: x[:, :1], noise_std=50.0)
    found = sample_posterior(
        law.model(sd.VP()), blind, Y, (1, 2), particles=Particles(4000), steps=50, seed=0
    )
    assert float((found.variance[0] / law.covariance.diagonal() - 1).abs().max()) < 0.1


def test_posteriors_of_several_outcomes_depend_on_their_seeds_alone() -> None:
    """Not on their neighbours, nor on how the rows are split into batches."""
    y = torch.tensor([[0.9], [-0.3], [0.0]], dtype=F64)

    def run(y: Tensor, seed: Any, **options: Any) -> posterior.Weighted:
        particles = Particles(80, islands=2)
        with pytest.warns(UserWarning, match="not exact"):
            return sample_posterior(
                RING.model(sd.VP()), SEEN, y, (len(y), 2), particles=particles, steps=10,
                seed=seed, dtype=F64, **options,
            )  # fmt: skip

    whole = run(y, 5)
    seeds = sd.seeds(5, 3)
    assert whole.solution.seeds == seeds
    split = run(y, 5, batch_size=100)
    swapped = run(y[[2, 0]], [seeds[2], seeds[0]])
    for name in ("x", "weights", "draws", "log_evidence", "genealogical_ess"):
        here = getattr(whole, name)
        assert torch.allclose(getattr(split, name), here, atol=1e-9), name
        assert torch.allclose(getattr(swapped, name), here[[2, 0]], atol=1e-9), name
    with pytest.raises(ValueError, match="groups of 400, which no batch splits"):
        sample_posterior(
            RING.model(sd.VP()), SEEN, y, (3, 2), particles=Particles(400), batch_size=300
        )


def test_systematic_resampling_draws_by_weight() -> None:
    """n w_i times, rounded down or up; on average over u exactly so often."""
    weights = torch.softmax(randn(3, 10), dim=1)
    places = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    counts = torch.stack(
        [torch.stack([row.bincount(minlength=10) for row in systematic(weights, u.expand(3))])
         for u in places]
    )  # fmt: skip
    assert bool((counts >= (10 * weights).floor()).all())
    assert bool((counts <= (10 * weights).ceil()).all())
    assert torch.allclose(counts.double().mean(dim=0), 10 * weights, atol=2e-3)


def test_weights_and_families_are_told_apart() -> None:
    """Resampled weights are even, and the families of few particles at the start are not."""
    sharp = posterior.Linear(lambda x: x @ H.T.to(x), noise_std=0.05)
    with pytest.warns(UserWarning, match=r"sample 0 and 1 more are not exact.* \(100 are needed"):
        found = sample_posterior(
            RING.model(sd.VP()), sharp, Y, (2, 2), particles=Particles(80), steps=40, seed=0
        )
    assert bool((found.genealogical_ess <= found.ess + 1e-9).all())
    assert not bool(found.exact.any())
    assert "exact: 0 of 2" in repr(found)
    assert torch.allclose(found.weights.sum(dim=1), torch.ones(2, dtype=F64))
    ancestors = found.solution.extras["ancestor"].reshape(2, 80)
    assert 1 < len(ancestors[0].unique()) < 80
    assert found.draws.shape == found.x.shape == (2, 80, 2)


@pytest.mark.thin(0)
@pytest.mark.filterwarnings("ignore:the particles of sample")
def test_errors_are_as_large_as_what_is_off() -> None:
    """Of 60 posteriors, means and variances: the root mean square of what is off in standard
    errors, 1.0 to 1.2 in longer runs, has a standard error of 0.1; in errors of independent
    draws, by the effective sample size of the weights, that of the mean is 2.0.
    """
    std = 0.15
    sharp = posterior.Linear(lambda x: x @ H.T.to(x), noise_std=std)
    found = sample_posterior(
        RING.model(sd.VP()), sharp, Y, (60, 2), particles=Particles(400, "pigdm"), steps=30, seed=0,
        batch_size=8000,
    )  # fmt: skip
    mean, cov = RING.posterior(H, Y[0], std).data_moments()
    for off in (
        (found.mean - mean) / found.mean_error,
        (found.variance - cov.diagonal()) / found.variance_error,
    ):
        assert bool(((off.square().mean(dim=0).sqrt() - 1.1).abs() < 0.4).all())
    assert found.mean_error.shape == found.variance_error.shape == (60, 2)


def test_evaluations_and_passes_are_counted() -> None:
    """An evaluation a step and one at the end; for one entry of y three passes, two at the end."""
    particles = Particles(800)
    found = sample_posterior(RING.model(sd.VP()), SEEN, Y, (1, 2), particles=particles, steps=50)
    assert found.solution.nfe.unique().tolist() == [51]
    assert found.solution.backward is not None
    assert found.solution.backward.unique().tolist() == [3 * 50 + 2]


MODEL = RING.model(sd.VP())
WRONG: dict[str, Any] = {
    "islands": (lambda: Particles(100, islands=8), "n must be a multiple of the 8 islands"),
    "twist": (lambda: Particles(twist="dps"), "twist must be one of"),  # type: ignore[arg-type]
    "no twist": (
        lambda: sd.sample(MODEL, (8, 2), solver=Particles(8), steps=5),
        "Particles needs a model with weights: the twist of a measurement",
    ),
    "noise": (
        lambda: sample_posterior(MODEL, posterior.Linear(lambda x: x, noise_std=0), Y, (1, 2)),
        "Particles divides by noise_std, and it is 0",
    ),
    "nonlinear": (
        lambda: sample_posterior(MODEL, posterior.Nonlinear(torch.sin, torch.mul), Y, (1, 2)),
        "Particles is for linear measurements",
    ),
    "outcomes": (
        lambda: sample_posterior(MODEL, SEEN, Y.expand(3, 1), (2, 2)),
        "3 outcomes for 2 samples",
    ),
    "size": (
        lambda: sample_posterior(
            sd.ScoreModel(lambda x, t: pytest.fail("evaluated"), sd.VP()),
            posterior.Linear(lambda x: x, noise_std=1.0),
            randn(1, 5000),
            (1, 5000),
        ),
        "an outcome has 5,000 entries.*4,096 is the most",
    ),
    "particles": (
        lambda: sample_posterior(MODEL, SEEN, Y, (1, 2), particles=100),  # type: ignore[arg-type]
        "particles must be Particles",
    ),
    "option": (
        lambda: sample_posterior(MODEL, SEEN, Y, (1, 2), last="mean"),
        "takes no option 'last'",
    ),
    "conditions": (
        lambda: sample_posterior(MODEL, SEEN, Y, (2, 2), condition={"label": torch.zeros(3)}),
        "label",
    ),
    "likelihood": (
        lambda: sd.log_prob(MODEL, randn(2, 2), solver=Particles()),
        "there is no noise",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_says_what_is_wrong(name: str) -> None:
    call, match = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=match):
        call()


PRIORS = {"ring, noise 0.3": 0.3, "ring, noise 0.05": 0.05, "16-D, noise 0.2": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIORS)
def test_particles_are_as_good_as_half_as_many_draws(name: str) -> None:
    """4,000 particles, 100 steps, five seeds: mean, variance and mode weights over the seeds within
    3 standard errors of 2,000 independent draws, the distance at most two floors.
    """
    n, std, law, h, y = 4000, PRIORS[name], RING, H, Y[0]
    if name.startswith("16-D"):
        law = sd.exact.GaussianMixture(randn(10, 16), 0.3)
        h = randn(4, 16, seed=1) / 4
        y = h @ law.sample(1, seed=5)[0] + std * randn(4, seed=2)
    truth = law.posterior(h, y, std)
    measured = posterior.Linear(lambda x: x @ h.T.to(x), noise_std=std)
    found = sample_posterior(
        law.model(sd.VP()), measured, y[None], (5, *law.event), particles=Particles(n), steps=100,
        seed=0, batch_size=n,
    )  # fmt: skip
    assert float((found.log_evidence - evidence(law, h, y, std)).abs().max()) < 0.1
    mean, cov = truth.data_moments()
    variance, sample = cov.diagonal(), truth.sample(200_000, seed=9)
    fourth = (sample - mean).pow(4).mean(dim=0)
    errors = {
        "mean": (found.mean.mean(dim=0) - mean, variance),
        "variance": (found.variance.mean(dim=0) - variance, fourth - variance.square()),
    }
    nearest, exact = (torch.cdist(x, truth.means).argmin(-1) for x in (found.x.double(), sample))
    count = len(truth.means)
    shares = torch.zeros(5, count, dtype=F64).scatter_add(1, nearest, found.weights).mean(dim=0)
    true = exact.bincount(minlength=count) / len(exact)
    errors["modes"] = (shares - true, true * (1 - true) + 1e-6)
    for what, (off, size) in errors.items():
        assert float((off / (size / (n / 2)).sqrt()).abs().max()) < 3, what
    sets = [truth.sample(n, seed=20 + i) for i in range(5)]

    def distance(one: list[Tensor]) -> float:
        pairs = [(a, b) for a in one for b in sets if a is not b]
        return sum(float(sd.metrics.sliced_wasserstein(a, b)) for a, b in pairs) / len(pairs)

    assert distance(list(found.draws.double())) < 2 * distance(sets)


@pytest.mark.slow
def test_the_error_falls_as_one_over_the_root_of_the_particles() -> None:
    """Over 20 seeds, on a grid whose bias is below a third of the error."""
    mean, _ = TRUTH.data_moments()
    errors = {}
    for n in (256, 1024, 4096):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few families, which is what n = 256 is about
            found = sample_posterior(
                RING.model(sd.VP()), SEEN, Y, (20, 2), particles=Particles(n), steps=100, seed=3,
                batch_size=5 * n,
            )  # fmt: skip
        errors[n] = found.mean - mean
    size = {n: float(each.square().sum(dim=1).mean().sqrt()) for n, each in errors.items()}
    slope = math.log(size[4096] / size[256]) / math.log(16)
    assert -0.65 < slope < -0.35
    assert float(errors[4096].mean(dim=0).norm()) < size[4096] / 3

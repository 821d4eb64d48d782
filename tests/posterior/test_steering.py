"""Products, powers and tilts of laws: identities of the models, closed forms, and acceptance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.posterior import (
    DPS,
    Anneal,
    Composed,
    FeynmanKac,
    Nonlinear,
    Particles,
    Product,
    Reward,
    sample_weighted,
)
from sdediff.predict import outputs

F64 = torch.float64
VP = sd.VP()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


COV = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)
ONE, TWO = sd.exact.Gaussian([0.5, -0.5], COV), sd.exact.Gaussian([-0.5, 1.0], COV)
GAUSSIAN = ONE.model(VP)
ANGLE = torch.arange(8, dtype=F64) * math.pi / 4
MEANS = 1.3 * torch.stack([ANGLE.cos(), ANGLE.sin()], dim=1)
EVERY, OWN = sd.exact.GaussianMixture(MEANS, 0.15), sd.exact.GaussianMixture(MEANS[:3], 0.15)
UNEVEN = sd.exact.GaussianMixture(MEANS, 0.15, [0.05, 0.1, 0.2, 0.3, 0.05, 0.1, 0.1, 0.1])


def quadrature(*factors: tuple[Any, float]) -> tuple[Tensor, Tensor, float]:
    """Mean, variances and log normaliser of the product of powers of laws at t_min."""
    axis = torch.linspace(-4, 4, 401, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    logs = sum(w * law.log_prob(VP, x, VP.t_min) for law, w in factors)
    weight = logs.softmax(dim=0)[:, None]
    mean = (weight * x).sum(dim=0)
    total = float(logs.logsumexp(dim=0)) + 2 * math.log(axis[1] - axis[0])
    return mean, (weight * (x - mean).square()).sum(dim=0), total


def labelled(sde: Any = VP) -> sd.ScoreModel:
    """One network: the class for label 0, and the law without a label for label 1."""

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        both = torch.stack([OWN.v(sde, x, t), EVERY.v(sde, x, t)])
        return both[label, torch.arange(len(x))]

    return sd.ScoreModel(net, sde, "v", time_dtype=F64, data_std=EVERY.data_std)


def test_a_product_has_the_sum_of_scores_and_the_spread_of_its_factors() -> None:
    """Value, scatter and trace of Gaussians are known: the data of the factors are affine in x."""
    t, x, weights = torch.tensor(0.3, dtype=F64), randn(4, 2), (2.0, -0.5)
    laws = (ONE, sd.exact.Gaussian([0.0, 1.0], 0.4))
    product = Product([(law.model(VP), w) for law, w in zip(laws, weights, strict=True)])
    found: Any = outputs(product, x, t)
    alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
    data = torch.stack([law.data(VP, x, t) for law in laws])
    w = torch.tensor(weights, dtype=F64)[:, None, None]
    noise = sum(w * law.noise(VP, x, t) for law, w in zip(laws, weights, strict=True))
    center = (w * data).sum(dim=0) / 1.5
    scatter = (w * (data - center).square()).sum(dim=(0, 2)) * (alpha / sigma) ** 2
    assert torch.allclose(found.value, noise, atol=1e-12)
    assert torch.allclose(found.center, center, atol=1e-12)
    assert torch.allclose(found.scatter[:, 0], scatter, atol=1e-10)
    jacobians = []
    for law in laws:
        cov = torch.as_tensor(law.data_moments()[1])
        jacobians.append(alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(2)))
    jacobian = (2.0 * jacobians[0] - 0.5 * jacobians[1]) / 1.5
    assert torch.allclose(found.back(x), 0.5 * alpha * x @ jacobian, atol=1e-10)


@pytest.mark.thin(1)
@pytest.mark.parametrize("sde", [VP, sd.VE(0.01, 50.0)], ids=repr)
@pytest.mark.parametrize("power", [(2.0, -1.0), (0.5, 1.0)], ids=str)
def test_gaussians_of_one_covariance_have_even_weights(
    sde: sd.LinearSDE, power: tuple[float, float]
) -> None:
    """All weights are equal, and the log normaliser is that of N(m_1, C)^a N(m_2, C)^b, to a
    second-order error in the step.
    """
    a, b = power
    W, end = a + b, 0.1

    def log_normaliser(t: float) -> float:
        (one, cov), (two, _) = ONE.moments(sde, t), TWO.moments(sde, t)
        pull = float((one - two) @ torch.linalg.solve(cov, one - two))
        volume = math.log(2 * math.pi) + 0.5 * float(torch.logdet(cov))
        return (1 - W) * volume - math.log(W) - 0.5 * a * b / W * pull

    product = Product({ONE.model(sde): a, TWO.model(sde): b})
    growth = log_normaliser(end) - log_normaliser(sde.t_max)  # the priors are not quite p_T
    off = []
    for steps in (40, 80):
        found = sample_weighted(
            product, (1, 2), particles=FeynmanKac(120), steps=steps, seed=0, dtype=F64, t_end=end
        )
        assert float(found.ess) == pytest.approx(120, abs=1e-6)
        assert float(found.log_evidence_error) < 1e-6
        off.append(abs(float(found.log_evidence) - product.log_start((2,)) - growth))
    assert off[1] < 0.3 * off[0] < 0.01


@pytest.mark.parametrize(
    ("units", "stochasticity"),
    [(None, 0.0), (sd.Normalizer([1.0, 2.0], [3.0, 0.5]), 2.5)],
    ids=["without noise", "in units"],
)
def test_annealed_gaussians_are_gaussians(units: Any, stochasticity: float) -> None:
    """N(m, C)^2 is N(m, C / 2) times a constant, in the user's units; 4.5 standard errors.

    Without noise the steps do not forget the start, N(0, sigma_T^2 / W).
    """
    base, n = ONE.model(VP), 2000
    model = sd.ScoreModel(base.net, VP, "v", data_std=base.data_std, normalizer=units)
    particles = FeynmanKac(n, stochasticity=stochasticity)
    found = sample_weighted(Anneal(model, 0.5), (1, 2), particles=particles, steps=100, seed=0)
    scale = torch.ones(2, dtype=F64) if units is None else units.std
    mean = ONE.data_moments()[0] * scale + (0.0 if units is None else units.mean)
    variance = 0.5 * COV.diagonal() * scale**2
    assert float(((found.mean[0] - mean) / (variance / n).sqrt()).abs().max()) < 4.5
    assert float((found.variance[0] / variance - 1).abs().max()) < 4.5 * (2 / n) ** 0.5
    truth = -0.5 * float(torch.logdet(4 * math.pi * COV)) - float(scale.log().sum())
    assert float(found.log_evidence) == pytest.approx(truth, abs=2e-3)


def test_few_steps_have_the_variance_that_no_weight_corrects() -> None:
    """All weights of one Gaussian are even, so that its law is that of the steps alone: 4.5
    standard errors. Corrected once, 50 steps have 0.885 of the variance.
    """
    n = 20_000
    particles = FeynmanKac(n)
    found = sample_weighted(Product({GAUSSIAN: 1}), (1, 2), particles=particles, steps=50, seed=0)
    ratio = found.variance[0] / COV.diagonal()
    assert float((ratio - 1).abs().max()) < 4.5 * (2 / n) ** 0.5
    assert found.solution.nfe.unique().tolist() == [150]


def test_traces_by_probes_are_those_by_all_directions() -> None:
    """Random signs have the same mean, so that the normaliser agrees and weights are less even."""
    law = sd.exact.Gaussian(torch.zeros(4), torch.tensor([1.0, 0.6, 0.4, 0.3]).diag() + 0.2)
    model = Anneal(law.model(VP), 0.5)
    options: Any = {"steps": 60, "seed": 0}
    whole = sample_weighted(model, (1, 4), particles=FeynmanKac(800, probes=4), **options)
    some = sample_weighted(model, (1, 4), particles=FeynmanKac(800, probes=2), **options)
    assert float(whole.ess) == pytest.approx(800)
    assert 600 < float(some.ess) < 799
    assert float((whole.log_evidence - some.log_evidence).abs()) < 0.2
    assert whole.solution.backward is not None
    assert some.solution.backward is not None
    assert whole.solution.backward.unique().tolist() == [60 * 2 * 4]
    assert some.solution.backward.unique().tolist() == [60 * 2 * 2]


def test_the_twist_of_a_reward_is_exact_for_quadratics_of_gaussians() -> None:
    """log E[exp(r) | x_t], and E[x_0 | x_t] under the tilted law, of r = -(a x - b)^2 / (2 s^2)."""
    a, b, std, t, x = randn(1, 2, seed=1), 0.7, 0.3, torch.tensor(0.3, dtype=F64), randn(5, 2)
    model = Reward(ONE.model(VP), lambda x: -0.5 * ((x @ a[0].to(x) - b) / std).square())
    found: Any = outputs(model, x, t)
    tilted = ONE.posterior(a, [b], std)
    assert torch.allclose(found.value, tilted.data(VP, x, t), atol=1e-10)
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    spread = torch.linalg.inv(torch.linalg.inv(COV) + (alpha / sigma) ** 2 * torch.eye(2))
    width = float((a @ spread @ a.T).item()) + std**2
    off = found.prior @ a[0] - b
    truth = -0.5 * off.square() / width - 0.5 * math.log(width / std**2)
    assert torch.allclose(found.log_likelihood[:, 0], truth, atol=1e-10)


@pytest.mark.parametrize("n", [1, 10, 100])
def test_several_observations_of_gaussians_are_composed_exactly(n: int) -> None:
    """E[x_0 | x_t, y_1, ..., y_n] with the covariances, to 1e-8; the sum of scores is another."""
    H, std, t, x = (
        torch.tensor([[1.0, 0.5]], dtype=F64),
        0.5,
        torch.tensor(0.3, dtype=F64),
        randn(3, 2),
    )
    y = 0.4 + std * randn(n, 1, seed=1)
    factors = [(GAUSSIAN, 1.0 - n), *((ONE.posterior(H, each, std).model(VP), 1.0) for each in y)]
    joint = ONE.posterior(H.expand(n, 2), y[:, 0], std)
    composed, summed = Composed(factors), Product(factors)
    assert torch.allclose(composed.data(x, t), joint.data(VP, x, t), atol=1e-8, rtol=0)
    gap = (summed.data(x, t) - joint.data(VP, x, t)).abs().max()
    assert float(gap) < 1e-8 if n == 1 else float(gap) > 0.05


def test_powers_of_gaussians_are_composed_exactly() -> None:
    """With exponents of any sum: N(m, C)^2 N(m', C)^-0.5, and samples of it."""
    t, x = torch.tensor([0.1, 0.9, 0.5], dtype=F64), randn(3, 2)
    composed = Composed({GAUSSIAN: 2.0, TWO.model(VP): -0.5})
    mean = (2 * ONE.data_moments()[0] - 0.5 * TWO.data_moments()[0]) / 1.5
    law = sd.exact.Gaussian(mean, COV / 1.5)
    assert torch.allclose(composed.data(x, t), law.data(VP, x, t), atol=1e-8, rtol=0)
    options: Any = {"steps": 10, "seed": 0, "dtype": F64}
    one, two = (sd.sample(each, (4, 2), **options).x for each in (composed, law.model(VP)))
    assert torch.allclose(one, two, atol=1e-3)


GOAL, WIDTH = torch.tensor([0.9, 0.3], dtype=F64), 0.3
REWARD = Reward(EVERY.model(VP), lambda x: -0.5 * ((x - GOAL.to(x)) / WIDTH).square().sum(dim=1))


def rewarded() -> tuple[Tensor, Tensor, float]:
    """Mean, variances and log normaliser of the ring tilted by the reward."""
    law = EVERY.posterior(torch.eye(2), GOAL, WIDTH)
    mean, cov = law.data_moments()
    spread = (0.15**2 + WIDTH**2) * torch.eye(2, dtype=F64)
    logs = torch.distributions.MultivariateNormal(MEANS, spread).log_prob(GOAL)
    total = float((logs - math.log(8)).logsumexp(dim=0)) + math.log(2 * math.pi * WIDTH**2)
    return mean, cov.diagonal(), total


STEERED: dict[str, Any] = {
    "product": (
        lambda: Product({OWN.model(VP): 2, EVERY.model(VP): -1}),
        lambda: quadrature((OWN, 2), (EVERY, -1)),
        FeynmanKac,
    ),
    "sharper": (lambda: Anneal(UNEVEN.model(VP), 0.5), lambda: quadrature((UNEVEN, 2)), FeynmanKac),
    "flatter": (
        lambda: Anneal(UNEVEN.model(VP), 2.0),
        lambda: quadrature((UNEVEN, 0.5)),
        FeynmanKac,
    ),
    "reward": (lambda: REWARD, rewarded, Particles),
}


@pytest.mark.thin(1)
@pytest.mark.parametrize("name", STEERED)
def test_laws_and_normalisers_of_mixtures(name: str) -> None:
    """1,000 particles: 4.5 standard errors of half as many draws, where a fifth of the spread is
    what guidance and scaled scores are off.
    """
    model, truth, particles = STEERED[name]
    mean, variance, total = truth()
    found = sample_weighted(model(), (1, 2), particles=particles(1000), steps=60, seed=0)
    assert float(((found.mean[0] - mean) / (variance / 500).sqrt()).abs().max()) < 4.5
    assert float((found.variance[0] / variance - 1).abs().max()) < 4.5 * (2 / 500) ** 0.5
    assert abs(float(found.log_evidence) - total) < 0.15
    assert bool(found.exact.all())


@pytest.mark.filterwarnings("ignore:the particles of sample 0")
def test_one_network_under_two_conditions_is_two_models() -> None:
    """And a group depends on its seed alone, whatever the batches and its neighbours."""
    model, options = labelled(), {"steps": 10, "particles": FeynmanKac(80), "dtype": F64}
    one = Product([(model, 2.0), (model, -1.0, {"label": 1})])
    two = Product({OWN.model(VP): 2.0, EVERY.model(VP): -1.0})
    label = torch.zeros(2, dtype=torch.int64)
    given: Any = {"condition": {"label": label}, **options}
    whole = sample_weighted(one, (2, 2), seed=3, **given)
    other = sample_weighted(two, (2, 2), seed=3, **options)
    split = sample_weighted(one, (2, 2), seed=3, batch_size=80, **given)
    for name in ("x", "weights", "log_evidence"):
        here = getattr(whole, name)
        assert torch.allclose(getattr(other, name), here, atol=1e-8), name
        assert torch.allclose(getattr(split, name), here, atol=1e-8), name
    assert whole.solution.nfe.unique().tolist() == [60]


WRONG: dict[str, Any] = {
    "no factors": (lambda: Product({}), "at least one model"),
    "no pairs": (lambda: Product([GAUSSIAN]), r"each factor is \(model, exponent\)"),
    "sum": (
        lambda: Product({GAUSSIAN: 1, TWO.model(VP): -1.5}),
        "exponents must have a positive sum, got -0.5",
    ),
    "infinite": (lambda: Product({GAUSSIAN: math.inf}), "exponents must be finite"),
    "SDEs": (
        lambda: Product({GAUSSIAN: 1, TWO.model(sd.VE()): 1}),
        "all models must have one SDE, got VP",
    ),
    "normalizers": (
        lambda: Product({GAUSSIAN: 1, sd.ScoreModel(torch.nn.Identity(), VP,
                                                    normalizer=sd.Normalizer(1.0, 2.0)): 1}),
        "one normalizer, or none",
    ),
    "condition": (
        lambda: Product([(GAUSSIAN, 2.0), (GAUSSIAN, -1.0, {"label": 1})]),
        "takes no condition 'label'",
    ),
    "size": (
        lambda: sd.sample(Composed({GAUSSIAN: 1}), (1, 600), steps=2),
        "512 is the most",
    ),
    "temperature": (lambda: Anneal(GAUSSIAN, 0.0), "temperature must be positive"),
    "no noise": (
        lambda: sample_weighted(Anneal(ONE.model(sd.RectifiedFlow()), 0.5), (1, 2), t_end=0.0),
        "sigma = 0 at t = 0",
    ),
    "no function": (lambda: Reward(GAUSSIAN, 1.0), "r must be a function"),  # type: ignore[arg-type]
    "shape": (
        lambda: sample_weighted(Reward(GAUSSIAN, lambda x: x), (1, 2)),
        "r\\(x\\) must return one number a sample",
    ),
    "infinite reward": (
        lambda: sample_weighted(
            Reward(GAUSSIAN, lambda x: torch.where(x[:, 0] > 0, 0 * x[:, 1], -math.inf)), (1, 2)
        ),
        r"Reward: r\(x\) is -inf at a state that is finite",
    ),
    "likelihood of NaN": (
        lambda: sd.sample(
            DPS(GAUSSIAN, Nonlinear(torch.sin, lambda y, f: f.sum(dim=1).log()), torch.zeros(1, 2)),
            (4, 2), steps=3, seed=0,
        ),
        r"DPS: log_likelihood\(x, y\) is nan",
    ),
    "gradient": (
        lambda: sample_weighted(Reward(GAUSSIAN, lambda x: (x > 0).sum(dim=1)), (1, 2)),
        "does not depend on x",
    ),
    "kind": (
        lambda: sample_weighted(Anneal(GAUSSIAN, 0.5), (1, 2), particles=Particles(80)),
        "needs a model with weights",
    ),
    "model": (lambda: sample_weighted(GAUSSIAN, (1, 2)), "needs a model with weights"),
    "particles": (
        lambda: sample_weighted(REWARD, (1, 2), particles=10),  # type: ignore[arg-type]
        "particles must be Particles",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_says_what_is_wrong(name: str) -> None:
    call, match = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=match):
        call()


ACCEPTED: dict[str, Any] = {
    "product, w = 2": ("product", 200, 0.03, 0.04, 0.03),
    "product, w = 4": (4.0, 1000, 0.05, 0.05, 0.08),
    "sharper": ("sharper", 200, 0.03, 0.04, 0.03),
    "flatter": ("flatter", 200, 0.03, 0.04, 0.03),
    "reward": ("reward", 200, 0.03, 0.04, 0.03),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCEPTED)
def test_steered_particles_have_the_law_that_was_asked_for(name: str) -> None:
    """4,000 particles, root mean square over five seeds, against quadrature and closed forms."""
    which, steps, mean_bound, variance_bound, log_bound = ACCEPTED[name]
    model, truth, particles = STEERED["product"] if which == 4.0 else STEERED[which]
    if which == 4.0:
        given = Product({OWN.model(VP): 4, EVERY.model(VP): -3})
        mean, variance, total = quadrature((OWN, 4), (EVERY, -3))
    else:
        given, (mean, variance, total) = model(), truth()
    found = sample_weighted(
        given, (5, 2), particles=particles(4000), steps=steps, seed=0, batch_size=4000
    )

    def rms(errors: Tensor) -> float:
        return float(errors.square().mean().sqrt())

    assert rms((found.mean - mean).norm(dim=1)) < mean_bound
    assert rms(found.variance.sum(dim=1) / variance.sum() - 1) < variance_bound
    assert rms(found.log_evidence - total) < log_bound
    assert bool(found.exact.all())


@pytest.mark.slow
@pytest.mark.parametrize("probes", [4, 16])
def test_powers_in_16_dimensions(probes: int) -> None:
    """The square of a mixture is one of all pairs: ten modes, traces by probes or exactly.

    5 % of the variance and 0.15 nats are the bias of 100 steps and 4.5 standard errors.
    """
    means, std = randn(10, 16), 0.3
    law = sd.exact.GaussianMixture(means, std)
    logs = -0.25 * (torch.cdist(means, means) / std).square() - 2 * math.log(10)
    logs = logs - 8 * math.log(4 * math.pi * std**2)
    weights, mids = logs.flatten().softmax(dim=0), (means[:, None] + means).reshape(-1, 16) / 2
    mean = weights @ mids
    variance = float(weights @ (mids - mean).square().sum(dim=1)) + 8 * std**2
    found = sample_weighted(
        Anneal(law.model(VP), 0.5), (1, 16), particles=FeynmanKac(2000, probes=probes), steps=100,
        seed=0,
    )  # fmt: skip
    assert float((found.mean[0] - mean).norm()) < 4.5 * (variance / 1000) ** 0.5
    assert float(found.variance.sum()) == pytest.approx(variance, rel=0.05)
    assert float(found.log_evidence) == pytest.approx(float(logs.flatten().logsumexp(0)), abs=0.15)
    assert bool(found.exact.all())

"""Implicit, sliced and denoising score matching differ by known constants; importance changes no
objective.
"""

from __future__ import annotations

import math

import pytest
import torch
from all_sdes import SDES
from gauss_hermite import gauss_hermite
from pairwise import pairwise
from scipy import integrate, stats
from torch import Tensor

import sdediff as sd
from sdediff.networks import initialised
from sdediff.objectives import TIMES, WEIGHTINGS
from sdediff.objectives.objective import factor
from sdediff.objectives.times import Proposal
from sdediff.predictions import conversion

MEAN, VAR = 0.4, 0.3
LAW = sd.exact.Gaussian(MEAN, VAR)


def nodes() -> tuple[Tensor, Tensor, Tensor]:
    """(x_0, noise, weights): means over Gaussian data and noise of what is quadratic in both,
    exactly.
    """
    z, w = gauss_hermite(4)
    x = (MEAN + VAR**0.5 * z).repeat_interleave(4, dim=0)
    return x, z.repeat(4, 1), (w[:, None] * w[None, :]).flatten()


def mean_at(loss, model: sd.ScoreModel, t: float) -> Tensor:
    x, noise, w = nodes()
    time = torch.full((16,), t, dtype=torch.float64)
    return (
        loss(model, x, t=time, noise=noise, generator=torch.Generator().manual_seed(0)) * w
    ).sum()


@pytest.mark.thin(12)
@pytest.mark.parametrize("weighting", ["sigma2", "likelihood", "uniform", "min-snr", "v"])
def test_objectives_differ_by_their_constants(sde: sd.LinearSDE, weighting: str) -> None:
    """Denoising less implicit and less sliced is w / sigma^2, and the implicit minimum -w /
    (alpha^2 VAR + sigma^2); d = 1, where one sign is every direction.
    """
    model = LAW.model(sde)
    for share in (0.1, 0.6):
        t = share * sde.T
        time = torch.tensor(t, dtype=torch.float64)
        w = factor(weighting, sde, "score", time, 0.5)
        sigma2 = sde.sigma(time) ** 2
        denoising = mean_at(sd.DenoisingScoreMatching(weighting), model, t)
        implicit = mean_at(sd.objectives.ImplicitScoreMatching(weighting), model, t)
        torch.testing.assert_close(
            implicit, -w / (sde.alpha(time) ** 2 * VAR + sigma2), rtol=1e-8, atol=0
        )
        torch.testing.assert_close(denoising - implicit, w / sigma2, rtol=1e-7, atol=0)
        for reduced in (True, False):
            sliced = mean_at(
                sd.objectives.SlicedScoreMatching(weighting, variance_reduction=reduced), model, t
            )
            torch.testing.assert_close(sliced, implicit, rtol=1e-8, atol=0)
        near = mean_at(
            sd.objectives.SlicedScoreMatching(
                weighting, finite_difference=1e-3 * float(sigma2) ** 0.5
            ),
            model,
            t,
        )
        torch.testing.assert_close(near, implicit, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "loss",
    [
        sd.DenoisingScoreMatching(),
        sd.objectives.ImplicitScoreMatching(),
        sd.objectives.SlicedScoreMatching(),
        sd.objectives.SlicedScoreMatching(finite_difference=1e-3),
    ],
    ids=lambda loss: f"{type(loss).__name__}-{getattr(loss, 'finite_difference', '')}",
)
def test_the_gradient_at_the_true_score_is_zero(loss) -> None:
    """And the loss is least there: along s = a true + b."""
    sde, exact = sd.VP(), LAW.model(sd.VP())
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.0, 0.0))
    model = sd.ScoreModel(
        lambda x, t: a * exact.score(x, t) + b, sde, "score", time_dtype=torch.float64
    )
    value = mean_at(loss, model, 0.4)
    grads = torch.autograd.grad(value, (a, b))
    for grad in grads:
        assert abs(float(grad)) < 1e-6
    off = sd.ScoreModel(
        lambda x, t: 1.1 * exact.score(x, t), sde, "score", time_dtype=torch.float64
    )
    assert float(mean_at(loss, off, 0.4).detach()) > float(value.detach()) + 1e-3


def test_traces_and_slices_in_several_dimensions() -> None:
    """A score whose Jacobian is no multiple of the identity: the trace exactly, slices on average,
    and by their variances.

    s = M x with symmetric M: v^T M v has variance 2 (sum of squares off the diagonal) for signs, 2
    |M|^2 for normals; means of 20,000 slices within 5 standard errors (false alarm 6e-7).
    """
    M = torch.tensor([[-1.0, 0.4, 0.1], [0.4, -2.0, 0.3], [0.1, 0.3, -0.5]], dtype=torch.float64)
    model = sd.ScoreModel(lambda x, t: x @ M, sd.VP(), "score")
    x = torch.tensor([[0.5, -1.0, 0.3]], dtype=torch.float64).repeat(20_000, 1)
    expected = (float((x[0] @ M).square().sum()) + 2 * float(M.trace())) / 3
    exact = sd.objectives.ImplicitScoreMatching("uniform", perturbed=False)(model, x[:2])
    torch.testing.assert_close(exact, torch.full((2,), expected, dtype=torch.float64))
    off = 2 * float(M.square().sum() - M.diagonal().square().sum())
    for directions, variance in (("rademacher", off), ("gaussian", 2 * float(M.square().sum()))):
        loss = sd.objectives.SlicedScoreMatching("uniform", directions=directions, perturbed=False)
        values = loss(model, x, generator=torch.Generator().manual_seed(1)).detach()
        spread = (4 * variance / 9 / 20_000) ** 0.5
        assert float(values.mean()) == pytest.approx(expected, abs=5 * spread)
        assert float(values.var()) == pytest.approx(4 * variance / 9, rel=0.1)
        many = sd.objectives.SlicedScoreMatching(
            "uniform", directions=directions, slices=8, perturbed=False
        )
        assert (
            float(many(model, x[:4000], generator=torch.Generator().manual_seed(2)).detach().var())
            < float(values.var()) / 6
        )


def test_finite_differences_are_central() -> None:
    """On a score that bends the error is O(eps^2): a quarter at half the step."""
    model = sd.ScoreModel(lambda x, t: torch.sin(3 * x) - x**2, sd.VP(), "score")
    x = torch.tensor([[0.4], [-1.1]], dtype=torch.float64)
    exact = sd.objectives.ImplicitScoreMatching("uniform", perturbed=False)(model, x)
    off = []
    for eps in (0.02, 0.01):
        loss = sd.objectives.SlicedScoreMatching("uniform", finite_difference=eps, perturbed=False)
        off.append(
            float(
                (loss(model, x, generator=torch.Generator().manual_seed(0)) - exact)
                .detach()
                .abs()
                .max()
            )
        )
    assert off[0] / off[1] == pytest.approx(4, rel=0.01)


def test_one_loss_serves_several_models() -> None:
    """Importance is each SDE's own, also when a loss has seen another before."""
    loss, g = sd.DenoisingScoreMatching("likelihood", importance=True), torch.Generator
    first, second = LAW.model(sd.VP()), LAW.model(sd.RectifiedFlow())
    fresh = sd.DenoisingScoreMatching("likelihood", importance=True).draw(
        second, 50, g().manual_seed(0)
    )
    loss.draw(first, 50, g().manual_seed(0))
    again = loss.draw(second, 50, g().manual_seed(0))
    assert torch.equal(fresh[0], again[0])
    assert torch.equal(fresh[1], again[1])


def test_training_needs_a_second_derivative_that_is_there() -> None:
    net = initialised(
        lambda: torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)),
        0,
    ).double()
    model = sd.ScoreModel(lambda x, t: net(x), sd.VP(), "score")
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for loss in (
        sd.objectives.ImplicitScoreMatching(),
        sd.objectives.SlicedScoreMatching(),
        sd.objectives.SlicedScoreMatching(finite_difference=1e-3),
    ):
        value = loss(model, x, generator=torch.Generator().manual_seed(1)).mean()
        grads = torch.autograd.grad(value, list(net.parameters()))
        assert all(float(grad.abs().sum()) > 0 for grad in grads)
        with torch.no_grad():
            again = loss(model, x, generator=torch.Generator().manual_seed(1)).mean()
        assert not again.requires_grad
        torch.testing.assert_close(again, value.detach())


class Pull(sd.SDE):
    """No LinearSDE, but in truth dx = -x dt + sqrt(2) dw: from N(m, v) the law at t is known."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return -x

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 2**0.5)


def test_an_sde_without_a_kernel() -> None:
    """States simulated forward: the implicit loss of the true score is -w / V(t), within 5 standard
    errors; its own score beats others.
    """
    sde, rows = Pull(), 20_000

    def variance(t: Tensor) -> Tensor:
        return 1 + (VAR - 1) * torch.exp(-2 * t)

    def score(scale: float) -> sd.ScoreModel:
        return sd.ScoreModel(lambda x, t: -scale * x / variance(t)[:, None].to(x), sde, "score")

    x = VAR**0.5 * torch.randn(
        rows, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    loss = sd.objectives.ImplicitScoreMatching("uniform", simulated=200)
    t = torch.full((rows,), 0.5, dtype=torch.float64)
    values = loss(score(1.0), x, t=t, generator=torch.Generator().manual_seed(1)).detach()
    assert float(values.mean()) == pytest.approx(
        -1 / float(variance(t[0])), abs=5 * float(values.std()) / rows**0.5 + 5e-3
    )
    for scale in (0.9, 1.1):
        assert float(
            loss(score(scale), x, t=t, generator=torch.Generator().manual_seed(1)).detach().mean()
        ) > float(values.mean())
    drawn = sd.objectives.SlicedScoreMatching("likelihood")(
        score(1.0), x[:64], generator=torch.Generator().manual_seed(2)
    )
    assert drawn.shape == (64,)
    assert bool(torch.isfinite(drawn).all())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weightings_are_what_they_say(sde: sd.LinearSDE, weighting: str) -> None:
    """The squared error of the prediction that is meant, from that of the score."""
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64) * sde.T
    alpha, sigma, g = sde.alpha(t), sde.sigma(t), sde.g(t)
    snr = alpha**2 / sigma**2
    expected = {
        "sigma2": sigma**2,
        "noise": sigma**2,
        "snr": snr * sigma**4 / alpha**2,
        "uniform": torch.ones_like(t),
        "score": torch.ones_like(t),
        "likelihood": g**2,
        "min-snr": snr.clamp(max=5) * sigma**4 / alpha**2,
        "data": sigma**4 / alpha**2,
        "v": (sigma * (alpha**2 + sigma**2) / alpha) ** 2,
        "flow": g**4 / 4,
        "edm": sigma**2 * (1 + (sigma / (0.5 * alpha)) ** 2),
    }[weighting]
    torch.testing.assert_close(factor(weighting, sde, "score", t, 0.5), expected, rtol=1e-8, atol=0)
    for source in ("noise", "v", "flow"):
        through = expected * conversion(sde, source, "score", t, 0.5)[1] ** 2
        torch.testing.assert_close(
            factor(weighting, sde, source, t, 0.5), through, rtol=1e-7, atol=0
        )


def test_flow_matching_is_the_error_of_the_velocity() -> None:
    """Under rectified flow ||f(x_t, t) - (noise - x_0)||^2."""
    sde = sd.RectifiedFlow()
    model = sd.ScoreModel(lambda x, t: 0.3 * x, sde, "flow")
    x, z = torch.ones(2, 3, dtype=torch.float64), torch.full((2, 3), -0.7, dtype=torch.float64)
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    expected = (0.3 * ((1 - t[:, None]) * x + t[:, None] * z) - (z - x)).square().mean(dim=1)
    torch.testing.assert_close(sd.objectives.FlowMatching()(model, x, t=t, noise=z), expected)
    pairs = torch.stack([x, z], dim=1)
    at = sd.objectives.FlowMatching().draw(model, 2, torch.Generator().manual_seed(3))[0]
    got = sd.objectives.Coupled()(model, pairs, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(got, sd.objectives.FlowMatching()(model, x, t=at, noise=z))


def test_reflow_pairs_are_the_ends_of_the_flow() -> None:
    """Data and noise of a pair are joined by the probability flow: of Gaussian data, a known
    map.
    """
    sde, law = sd.RectifiedFlow(), sd.exact.Gaussian([0.3, -0.5], [0.25, 0.5])
    model = law.model(sde)
    pairs = sd.objectives.reflow(model, (50, 2), solver=sd.RK45(1e-7, 1e-7), seed=4)
    assert pairs.shape == (50, 2, 2)
    x = sde.prior.from_noise(pairs[:, 1].double())
    end = law.flow(sde, x, sde.t_max, sde.t_min)
    torch.testing.assert_close(pairs[:, 0].double(), model.data(end, sde.t_min), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="draws noise along the way"):
        sd.objectives.reflow(model, (5, 2), solver=sd.EulerMaruyama(), steps=5)
    with pytest.raises(ValueError, match=r"shape \(B, 2, \*event\)"):
        sd.objectives.Coupled()(model, torch.zeros(3, 3, 2))


def test_dropped_conditions() -> None:
    """A share of the samples, all their conditions together; the others as they were."""
    seen = []

    def net(x: Tensor, t: Tensor, label: Tensor, size: Tensor) -> Tensor:
        seen.append((label.clone(), size.clone()))
        return 0 * x

    model = sd.ScoreModel(net, sd.VP())
    loss = sd.objectives.ConditionDropout(
        sd.DenoisingScoreMatching(), {"label": 10, "size": torch.tensor([-1.0, -1.0])}, rate=0.25
    )
    condition = {"label": torch.arange(4000) % 10, "size": torch.ones(4000, 2)}
    loss(model, torch.zeros(4000, 1), condition, generator=torch.Generator().manual_seed(0))
    label, size = seen[0]
    dropped = label == 10
    # Standard error sqrt(0.25 0.75 / 4000) = 6.8e-3; 6 of them.
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.041)
    assert torch.equal(label[~dropped], condition["label"][~dropped])
    assert bool((size[dropped] == -1).all())
    assert bool((size[~dropped] == 1).all())
    assert torch.equal(condition["label"], torch.arange(4000) % 10)
    with pytest.raises(ValueError, match="no condition 'size'"):
        loss(model, torch.zeros(4, 1), {"label": torch.zeros(4)})


def test_log_normal_times_are_edms() -> None:
    """log sigma ~ N(-1.2, 1.2^2) under EDM, cut to its range: Kolmogorov-Smirnov, whose statistic
    at 20,000 exceeds 0.025 with probability 3e-11.
    """
    sde = sd.EDM()
    model = sd.ScoreModel(lambda x, t: x, sde)
    t, _ = sd.DenoisingScoreMatching(times="log-normal").draw(
        model, 20_000, torch.Generator().manual_seed(0)
    )
    logs = t.log().numpy()
    low, high = math.log(0.002), math.log(80)
    law = stats.truncnorm((low + 1.2) / 1.2, (high + 1.2) / 1.2, -1.2, 1.2)
    assert stats.kstest(logs, law.cdf).statistic < 0.025
    # its range begins at the middle of the law
    half = sd.ScoreModel(lambda x, t: x, sd.EDM(1.0, 80.0))
    cut, _ = sd.DenoisingScoreMatching(times=sd.objectives.LogNormal(0.0, 1.0)).draw(
        half, 20_000, torch.Generator().manual_seed(0)
    )
    assert (
        stats.kstest(cut.log().numpy(), stats.truncnorm(0, math.log(80), 0, 1).cdf).statistic
        < 0.025
    )
    vp = sd.ScoreModel(lambda x, t: x, sd.VP())
    at, _ = sd.DenoisingScoreMatching(times=sd.objectives.LogNormal(0.0, 1.0)).draw(
        vp, 20_000, torch.Generator().manual_seed(0)
    )
    ratio = -0.5 * sd.VP().log_snr(at)
    ends = -0.5 * sd.VP().log_snr(torch.tensor([1e-3, 1.0]))
    law = stats.truncnorm(float(ends[0]), float(ends[1]), 0, 1)
    assert stats.kstest(ratio.numpy(), law.cdf).statistic < 0.025


@pairwise("sde, times, weighting", SDES, TIMES, ["likelihood", "uniform", "min-snr"])
def test_importance_changes_no_objective(sde: sd.LinearSDE, times: str, weighting: str) -> None:
    """The mean over u of weight times loss, by quadrature over the pieces of the proposal, is the
    plain mean over u.
    """
    model = LAW.model(sde)
    drawn = sd.DenoisingScoreMatching(weighting, times, importance=True)
    u = (torch.arange(40_960, dtype=torch.float64) + 0.5) / 40_960

    def error(t: Tensor) -> Tensor:
        """The mean squared error of the noise, of which the objective is the weighted mean."""
        return sde.alpha(t) ** 2 * VAR / (sde.alpha(t) ** 2 * VAR + sde.sigma(t) ** 2)

    from sdediff.objectives.times import time_at

    plain_t = time_at(times, sde, u)
    plain = (factor(weighting, sde, "noise", plain_t, 0.5) * error(plain_t)).mean()
    v, weights = drawn._proposal(model)(u)
    t = time_at(times, sde, v)
    weighted = (weights * factor(weighting, sde, "noise", t, 0.5) * error(t)).mean()
    # of the quadrature, at low noise
    torch.testing.assert_close(weighted, plain, rtol=2e-2, atol=0)
    assert float(weights.max()) <= 10 + 1e-9


@pytest.mark.thin(0)
def test_importance_and_strata_lower_the_variance() -> None:
    """Of the mean of a batch of 64, likelihood weighting, VP: what docs/objectives.md quotes."""
    model = LAW.model(sd.VP())
    x = (MEAN + VAR**0.5 * torch.randn(64, 1, generator=torch.Generator().manual_seed(0))).double()

    def spread(**options: bool) -> float:
        loss, generator = (
            sd.DenoisingScoreMatching("likelihood", **options),
            torch.Generator().manual_seed(1),
        )
        with torch.no_grad():
            return float(
                torch.stack([loss(model, x, generator=generator).mean() for _ in range(300)]).var()
            )

    plain, strata, important, both = (
        spread(),
        spread(stratified=True),
        spread(importance=True),
        spread(stratified=True, importance=True),
    )
    assert strata < 0.9 * plain
    assert important < 0.35 * plain
    assert both < 0.35 * plain


def test_proposal_is_the_density_it_says() -> None:
    proposal = Proposal(lambda u: u**2, pieces=64, rest=0.1)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    v, weights = proposal(u)
    density = 1 / weights
    torch.testing.assert_close(
        torch.histc(v, 64, 0, 1) / 100_000 * 64, proposal.density, rtol=0, atol=2e-2
    )
    whole, _ = integrate.quad(lambda s: 0.9 * 3 * s**2 + 0.1, 0.5, 1)
    assert float((v > 0.5).double().mean()) == pytest.approx(whole, abs=1e-3)
    assert float((1 / density).mean()) == pytest.approx(1, abs=1e-3)


MODEL = LAW.model(sd.VP())
FREE = sd.ScoreModel(lambda x, t: x, Pull(), "score")
X = torch.zeros(3, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: sd.objectives.ImplicitScoreMatching("likelyhood"),
            ValueError,
            "did you mean 'likelihood'",
        ),
        (lambda: sd.objectives.SlicedScoreMatching(slices=0), ValueError, "slices must be"),
        (
            lambda: sd.objectives.SlicedScoreMatching(directions="uniform"),
            ValueError,
            "directions must be",
        ),
        (
            lambda: sd.objectives.SlicedScoreMatching(finite_difference=0.0),
            ValueError,
            "finite_difference must be",
        ),
        (lambda: sd.objectives.ImplicitScoreMatching(simulated=0), ValueError, "simulated must be"),
        (
            lambda: sd.objectives.ImplicitScoreMatching()(MODEL, X.long()),
            TypeError,
            r"use x.float\(\)",
        ),
        (
            lambda: sd.objectives.ImplicitScoreMatching("uniform")(FREE, X, noise=X),
            ValueError,
            "drop noise=",
        ),
        (
            lambda: sd.DenoisingScoreMatching()(FREE, X),
            ValueError,
            "or SlicedScoreMatching",
        ),
        (lambda: sd.objectives.MinSNR(0.0), ValueError, "gamma must be"),
        (lambda: sd.objectives.LogNormal(scale=0.0), ValueError, "scale must be a positive number"),
        (
            lambda: sd.DenoisingScoreMatching(times=sd.objectives.LogNormal(50.0, 0.1))(MODEL, X),
            ValueError,
            "outside the usable range",
        ),
        (
            lambda: sd.DenoisingScoreMatching(times=lambda u: u + 2)(MODEL, X + 1),
            ValueError,
            r"shares of the range in \[0, 1\]",
        ),
        (
            lambda: sd.DenoisingScoreMatching(lambda sde, t: t[:2])(MODEL, X),
            ValueError,
            "must be shaped as t",
        ),
        (
            lambda: sd.DenoisingScoreMatching(lambda sde, t: 0 * t, importance=True)(MODEL, X),
            ValueError,
            "not 0 everywhere",
        ),
        (
            lambda: sd.objectives.ConditionDropout(sd.DenoisingScoreMatching(), {}),
            ValueError,
            "null must name",
        ),
        (
            lambda: sd.objectives.ConditionDropout(sd.DenoisingScoreMatching(), {"a": 0}, rate=1.5),
            ValueError,
            "rate is a probability",
        ),
    ],
)
@pytest.mark.uses_global_rng
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

"""SDEs with any drift: simulated forward, sampled in reverse with a given score, and refused by
name where a kernel is needed.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest
from torch import Tensor

import sdediff as sd
from sdediff.solvers import expand


class DoubleWell(sd.SDE):
    """dx = (x - x^3) dt + dw, whose stationary density is exp(x^2 - x^4 / 2) / Z."""

    T = 2.0

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, t):
        return 1.0


class PlainVP(sd.SDE):
    """VP by drift and diffusion alone: nothing is known of its kernel."""

    prior = sd.Prior(float(sd.VP().prior.std))

    def drift(self, x, t):
        return expand(sd.VP().f(t), x) * x

    def diffusion(self, t):
        return sd.VP().g(t)


def cdf(x: float) -> float:
    weight = lambda u: math.exp(u**2 - u**4 / 2)  # noqa: E731
    return quad(weight, -6, x)[0] / quad(weight, -6, 6)[0]


LATTICE = torch.linspace(-4, 4, 2001, dtype=torch.float64)
CDF = torch.tensor([cdf(float(x)) for x in LATTICE[::10]], dtype=torch.float64)


def table(x):
    import numpy as np

    return np.interp(x, LATTICE[::10].numpy(), CDF.numpy())


def stationary(count: int, seed: int) -> Tensor:
    """Draws by inversion of the distribution function."""
    import numpy as np

    u = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.as_tensor(np.interp(u.numpy(), CDF.numpy(), LATTICE[::10].numpy()))[:, None]


def stationary_model() -> sd.ScoreModel:
    """In equilibrium p_t = p, so that the score is 2 drift / g^2 at all times."""
    return sd.ScoreModel(lambda x, t: 2 * (x - x**3), DoubleWell(), "score")


def test_simulation_reaches_the_stationary_law() -> None:
    """Kolmogorov-Smirnov at p > 1e-6: 4,000 paths from one point, to t = 12, Euler-Maruyama at h =
    0.01.
    """

    class Long(DoubleWell):
        T = 12.0

    out = sd.simulate(Long(), torch.full((4000, 1), 0.8, dtype=torch.float64), steps=1200, seed=0)
    assert kstest(out.x[:, 0].numpy(), table).pvalue > 1e-6
    early = sd.simulate(
        Long(), torch.full((4000, 1), 0.8, dtype=torch.float64), steps=100, t_end=0.5, seed=0
    )
    assert kstest(early.x[:, 0].numpy(), table).pvalue < 1e-6, "the test would pass anything"
    assert out.nfe.tolist() == [1200] * 4000


def test_reverse_sampling_with_a_given_score_keeps_the_stationary_law() -> None:
    x = stationary(4000, seed=1)
    out = sd.sample(
        stationary_model(),
        (4000, 1),
        solver=sd.EulerMaruyama(),
        steps=300,
        x_init=x,
        seed=2,
        dtype=torch.float64,
    )
    assert kstest(out.x[:, 0].numpy(), table).pvalue > 1e-6
    assert float((out.x - x).abs().mean()) > 0.3, "the samples did not move"
    still = sd.sample(
        stationary_model(), (4000, 1), solver=sd.RK45(), x_init=x, seed=2, dtype=torch.float64
    )
    # the probability flow of an equilibrium stands still
    torch.testing.assert_close(still.x, x, rtol=0, atol=1e-12)


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "solver",
    [sd.EulerMaruyama(), sd.Heun(), sd.RK45(1e-10, 1e-10)],
    ids=["EulerMaruyama", "Heun", "RK45"],
)
def test_a_linear_drift_without_its_kernel_gives_the_same_samples(solver: sd.EulerMaruyama) -> None:
    data = sd.exact.GaussianMixture([[-1.0, 0.5], [1.0, 0.0]], 0.3)
    linear = data.model(sd.VP())
    plain = sd.ScoreModel(
        lambda x, t: data.score(sd.VP(), x, t), PlainVP(), "score", time_dtype=torch.float64
    )
    steps = None if solver.adaptive else 40
    outs = [
        sd.sample(
            model, (16, 2), solver=solver, steps=steps, last="noisy", seed=3, dtype=torch.float64
        )
        for model in (linear, plain)
    ]
    torch.testing.assert_close(outs[0].x, outs[1].x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(plain.score(outs[0].x, 0.4), linear.score(outs[0].x, 0.4))


def test_simulation_is_the_kernel_for_a_linear_sde(sde: sd.LinearSDE) -> None:
    """Mean and standard deviation of 4,000 paths from 0 on, within 6 standard errors and the
    first-order error of 400 steps.
    """
    x_0 = torch.full((4000, 1), 0.7, dtype=torch.float64)
    end = 0.6 * sde.T
    out = sd.simulate(sde, x_0, steps=400, t_end=end, seed=4)
    ratio, std = (float(c) for c in sde.kernel(end, 0.0))
    assert float(out.x.mean()) == pytest.approx(0.7 * ratio, abs=6 * std / 4000**0.5 + 0.02)
    assert float(out.x.std()) == pytest.approx(std, rel=6 / 8000**0.5 + 0.02)


def test_simulation_is_seeded_and_shows_its_path() -> None:
    x_0 = torch.zeros(3, 2)
    one = sd.simulate(DoubleWell(), x_0, steps=10, seed=5, trajectory=True)
    two = sd.simulate(
        DoubleWell(),
        x_0[:2],
        grid=torch.linspace(0, 2, 11, dtype=torch.float64),
        seed=sd.seeds(5, 2),
    )
    torch.testing.assert_close(one.x[:2], two.x)
    assert one.trajectory.shape == (11, 3, 2)
    assert (float(one.times[0]), float(one.times[-1])) == (0.0, 2.0)
    assert one.seeds == sd.seeds(5, 3)


def test_simulation_in_a_precision_of_its_own() -> None:
    """``dtype`` is that of the state from its start on: the same as states given in that dtype."""
    x_0 = torch.tensor([[0.1], [-0.7]])
    for dtype, given in ((torch.float64, x_0), (torch.float32, x_0.double()), (None, x_0.half())):
        out = sd.simulate(DoubleWell(), given, steps=10, seed=5, dtype=dtype)
        same = sd.simulate(DoubleWell(), given.to(dtype or torch.float32), steps=10, seed=5)
        assert out.x.dtype == (dtype or torch.float32)
        assert torch.equal(out.x, same.x)
    fine, rough = (
        sd.simulate(DoubleWell(), x_0, steps=10, seed=5, dtype=dtype).x
        for dtype in (torch.float64, torch.float32)
    )
    assert 0 < float((fine - rough).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: sd.simulate(DoubleWell, torch.zeros(2, 1), steps=5),
            TypeError,
            "pass an instance",
        ),
        (
            lambda: sd.simulate(DoubleWell(), torch.zeros(2, 1, dtype=torch.int64), steps=5),
            ValueError,
            "x_0 must be a floating",
        ),
        (
            lambda: sd.simulate(DoubleWell(), torch.zeros(2, 1), solver=sd.RK45()),
            ValueError,
            "integrates no diffusion",
        ),
        (
            lambda: sd.simulate(
                DoubleWell(), torch.zeros(2, 1), solver=sd.solvers.Ancestral(), steps=3
            ),
            ValueError,
            "needs data, marginal",
        ),
        (lambda: sd.simulate(DoubleWell(), torch.zeros(2, 1)), ValueError, "pass steps=N"),
        (
            lambda: sd.simulate(DoubleWell(), torch.zeros(2, 1), steps=5, dtype=torch.float16),
            ValueError,
            "dtype must be torch.float32 or torch.float64, got torch.float16",
        ),
        (
            lambda: sd.simulate(DoubleWell(), torch.zeros(2, 1), grid=[1.0, 0.5]),
            ValueError,
            "the grid must rise",
        ),
        (
            lambda: sd.simulate(DoubleWell(), torch.zeros(2, 1), steps=5, t_end=3.0),
            ValueError,
            r"outside \[0, T\] = \[0, 2\]",
        ),
        (
            lambda: sd.ScoreModel(lambda x, t: x, DoubleWell()),
            ValueError,
            "its network predicts 'score', got 'noise'",
        ),
        (
            lambda: sd.ScoreModel(lambda x, t: x, DoubleWell(), "score", time="sigma"),
            ValueError,
            "no Gaussian kernel, so no sigma",
        ),
        (
            lambda: stationary_model().data(torch.zeros(2, 1), 0.5),
            ValueError,
            "data cannot be computed.*use the score",
        ),
        (
            lambda: DoubleWell().perturb(torch.zeros(2, 1), 0.5, torch.zeros(2, 1)),
            AttributeError,
            "has no perturb: only a LinearSDE",
        ),
        (
            lambda: DoubleWell().colour,
            AttributeError,
            "'DoubleWell' object has no attribute 'colour'",
        ),
        (
            lambda: sd.DenoisingScoreMatching()(stationary_model(), torch.zeros(2, 1)),
            ValueError,
            "denoising score matching needs",
        ),
        (
            lambda: sd.diagnose(stationary_model(), torch.zeros(2, 1)),
            ValueError,
            "diagnose needs a Gaussian kernel",
        ),
        (
            lambda: sd.DDPM.from_sde(DoubleWell(), 10),
            TypeError,
            "sde must be a LinearSDE, .* which has a Gaussian kernel; got DoubleWell",
        ),
        (
            lambda: sd.sample(stationary_model(), (2, 1), solver=sd.RK45(), seed=0),
            ValueError,
            "has no prior.*pass x_init",
        ),
        (
            lambda: sd.sample(
                stationary_model(), (2, 1), solver=sd.DDIM(), steps=5, x_init=torch.zeros(2, 1)
            ),
            ValueError,
            "DDIM.* needs data, kernel, marginal, which this problem does not offer; "
            "EulerMaruyama and RK45",
        ),
        (
            lambda: sd.sample(
                stationary_model(), (2, 1), steps=5, x_init=torch.zeros(2, 1), last="denoise"
            ),
            ValueError,
            r"last='denoise' takes E\[x_0 \| x\]",
        ),
    ],
)
def test_what_needs_a_kernel_says_so(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_default_solver_under_any_drift_is_euler_maruyama() -> None:
    x = stationary(4, seed=0)
    given = sd.sample(stationary_model(), (4, 1), steps=5, x_init=x, seed=0, dtype=torch.float64)
    named = sd.sample(
        stationary_model(),
        (4, 1),
        solver=sd.EulerMaruyama(),
        steps=5,
        x_init=x,
        seed=0,
        dtype=torch.float64,
    )
    assert torch.equal(given.x, named.x)

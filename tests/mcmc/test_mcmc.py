"""Markov chains against exact transitions: affine maps on Gaussians, transition densities on a
line, and the laws they keep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import expm, solve_discrete_lyapunov
from torch import Tensor

import sdediff as sd
from sdediff.mcmc.kernels import Noise
from sdediff.mcmc.target import Point

mcmc = sd.mcmc
F64 = torch.float64
V = 0.7  # the variance of the Gaussian target, its mean is 0.4
GAUSSIAN = mcmc.LogDensity(lambda x: -0.5 * (x - 0.4).square().sum(dim=1) / V)
# of degree 4: Simpson's rule is exact
WELL = mcmc.LogDensity(lambda x: (x**2 - 0.5 * x**4 + 0.3 * x).sum(dim=1))
WELL_SCORE = mcmc.Score(lambda x: 2 * x - 2 * x**3 + 0.3)
MIXTURE = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.4, [0.3, 0.7])
SDE = sd.VP()


@dataclass(frozen=True)
class Given:
    """Normals that a test chooses."""

    z: tuple[Tensor, ...]
    u: Tensor

    def normal(self, step: int, k: int = 0) -> Tensor:
        return self.z[k]

    def decision(self, step: int) -> Tensor:
        return self.u


def affine(kernel: mcmc.Kernel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M, c, G) of one step s -> M s + c + G z on GAUSSIAN, s = (x, p) and z two normals, read off
    the kernel by unit impulses.
    """
    impulses = torch.cat([torch.zeros(1, 4, dtype=F64), torch.eye(4, dtype=F64)])
    x, p, z, other = (column[:, None] for column in impulses.T)
    here = GAUSSIAN.look(x, score=True)._replace(momentum=p)
    there, _ = kernel.move(GAUSSIAN, here, Given((z, other), z[:, 0]), 0)
    out = torch.cat(
        [there.x, there.x * 0 if there.momentum is None else there.momentum], dim=1
    ).numpy()
    response = (out[1:] - out[0]).T
    return response[:, :2], out[0], response[:, 2:]


def stationary(kernel: mcmc.Kernel) -> tuple[np.ndarray, np.ndarray]:
    M, c, G = affine(kernel)
    return np.linalg.solve(np.eye(2) - M, c), solve_discrete_lyapunov(M, G @ G.T)


# -- exact stationary laws and orders on a Gaussian ------------------------------------------------


@pytest.mark.parametrize("h", [0.01, 0.3, 1.2])
def test_variance_of_ula(h):
    mean, cov = stationary(mcmc.ULA(h))
    assert mean[0] == pytest.approx(0.4, abs=1e-12)
    assert cov[0, 0] == pytest.approx(V / (1 - h / (2 * V)), rel=1e-10)


def test_bias_of_ula_is_of_order_one_in_the_step():
    bias = [stationary(mcmc.ULA(h))[1][0, 0] - V for h in (0.04, 0.02, 0.01)]
    slopes = [math.log2(a / b) for a, b in pairwise(bias)]
    assert all(abs(slope - 1) < 0.05 for slope in slopes), slopes
    assert bias[-1] == pytest.approx(0.01 / 2, rel=0.01)


@pytest.mark.parametrize(("h", "friction"), [(0.1, 1.0), (0.8, 0.3), (1.5, 5.0)])
def test_variances_of_underdamped(h, friction):
    """BAOAB's positions and OBABO's momenta are exact, with their other moments as in Leimkuhler
    and Matthews 2013.
    """
    shrunk = 1 - h**2 / (4 * V)
    for scheme, x, p in (("BAOAB", V, shrunk), ("OBABO", V / shrunk, 1.0)):
        mean, cov = stationary(mcmc.Underdamped(h, friction, scheme))
        np.testing.assert_allclose(mean, [0.4, 0.0], atol=1e-12)
        np.testing.assert_allclose(cov, [[x, 0], [0, p]], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scheme", ["BAOAB", "OBABO"])
def test_underdamped_is_of_weak_order_two(scheme):
    """Mean and covariance at time 1 of a chain from (1, -0.5), against those of the SDE by a matrix
    exponential.
    """
    friction, start = 0.9, np.array([1.0, -0.5])
    A = np.array([[0.0, 1.0], [-1 / V, -friction]])
    limit = np.diag([V, 1.0])
    flow = expm(A)
    mean = np.array([0.4, 0.0]) + flow @ (start - [0.4, 0.0])
    cov = limit - flow @ limit @ flow.T
    errors = []
    for n in (8, 16, 32, 64):
        M, c, G = affine(mcmc.Underdamped(1 / n, friction, scheme))
        m, C = start, np.zeros((2, 2))
        for _ in range(n):
            m, C = M @ m + c, M @ C @ M.T + G @ G.T
        errors.append((np.abs(m - mean).max(), np.abs(C - cov).max()))
    for coarse, fine in pairwise(np.array(errors)):
        np.testing.assert_allclose(np.log2(coarse / fine), 2, atol=0.15)


def test_underdamped_without_friction_is_velocity_verlet():
    kernel, x_init = mcmc.Underdamped(0.2, 0.0), torch.tensor([[0.3], [-1.2]], dtype=F64)
    state = mcmc.State(x_init, torch.tensor([[0.5], [1.0]], dtype=F64), 0, (1, 2))
    out = mcmc.run(kernel, WELL, state, steps=30)
    torch.testing.assert_close(
        out.samples, mcmc.run(mcmc.Underdamped(0.2, 0.0, "OBABO"), WELL, state, steps=30).samples
    )
    x, v = state.x, state.momentum
    for k in range(30):
        v = v + 0.1 * WELL_SCORE.score(x)
        x = x + 0.2 * v
        v = v + 0.1 * WELL_SCORE.score(x)
        torch.testing.assert_close(out.samples[k], x, rtol=1e-12, atol=1e-12)
    back = mcmc.run(kernel, WELL, mcmc.State(x, -v, 0, (1, 2)), steps=30)
    torch.testing.assert_close(back.state.x, x_init, rtol=1e-10, atol=1e-10)


def test_underdamped_with_infinite_friction():
    """x <- x + h score(x) + sqrt(h / 2) (z_n + z_{n+1}), h = step^2 / 2."""
    out = mcmc.run(
        mcmc.Underdamped(0.4, 1e4), WELL, torch.tensor([[0.3]], dtype=F64), steps=4, seed=5
    )
    white = sd.White(sd.seeds(5, 1), (1,), dtype=F64)
    x, z = (
        torch.tensor([[0.3]], dtype=F64),
        white.normal(0, "proposal", 2) - 0.2 * WELL_SCORE.score(torch.tensor([[0.3]], dtype=F64)),
    )
    for k in range(4):  # the first momentum is a normal, without the kick that ends a step
        fresh = white.normal(k, "proposal", 0)
        x = x + 0.08 * WELL_SCORE.score(x) + 0.2 * (z + fresh)
        z = fresh
        torch.testing.assert_close(out.samples[k], x, rtol=1e-12, atol=1e-12)


# -- exact transitions on a line -------------------------------------------------------------------


@pytest.mark.parametrize("target", [WELL, WELL_SCORE], ids=["density", "score"])
@pytest.mark.parametrize("kernel", [mcmc.RandomWalk(0.8), mcmc.MALA(0.15)], ids=str)
def test_detailed_balance(kernel, target):
    """p(x) q(y | x) a(x, y) = p(y) q(x | y) a(y, x) at 25 x 25 points; a is read off the kernel's
    decisions, by bisection.
    """
    points = torch.linspace(-1.8, 1.9, 25, dtype=F64)
    x, y = (each.reshape(-1, 1) for each in torch.meshgrid(points, points, indexing="ij"))
    here = kernel.start(target, x, None, None)
    always = torch.full((len(x),), -40.0, dtype=F64)
    mean, go = kernel.move(target, here, Given((torch.zeros_like(x),), always), 0)
    assert bool(go.all())
    std = kernel.move(target, here, Given((torch.ones_like(x),), always), 0)[0].x - mean.x
    z = (y - mean.x) / std
    low, high = torch.full((len(x),), -30.0, dtype=F64), torch.full((len(x),), 7.0, dtype=F64)
    for _ in range(60):
        middle = (low + high) / 2
        go = kernel.move(target, here, Given((z,), middle), 0)[1]
        low, high = torch.where(go, middle, low), torch.where(go, high, middle)
    log_q = (-0.5 * z.square() - std.log())[:, 0]
    log_a = torch.special.log_ndtr(low)
    flow = (WELL.log_prob(x) + log_q + log_a).reshape(25, 25)
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-9)
    assert float(log_a.min()) < -3
    log_a = log_a.reshape(25, 25)
    assert float(torch.maximum(log_a, log_a.T).abs().max()) < 1e-9  # one of the two is 1


def test_bias_of_ula_on_a_double_well():
    """The second moment of the exact stationary law of the chain, by its transition density on a
    grid: off by order 1.
    """
    x = torch.linspace(-3.2, 3.3, 801, dtype=F64)[:, None]
    law = torch.softmax(WELL.log_prob(x), dim=0)
    bias = []
    for h in (0.04, 0.02, 0.01):
        here, kernel = WELL.look(x, score=True), mcmc.ULA(h)
        mean, up = (
            kernel.move(WELL, here, Given((c * torch.ones_like(x),), None), 0)[0].x
            for c in (0.0, 1.0)
        )
        P = torch.softmax(-0.5 * ((x.T - mean) / (up - mean)).square(), dim=1).numpy()
        weights = torch.from_numpy(
            np.linalg.lstsq(
                np.vstack([P.T - np.eye(801), np.ones(801)]), np.eye(802)[-1], rcond=None
            )[0]
        )
        bias.append(float((weights - law) @ x[:, 0] ** 2))
    slopes = [math.log2(a / b) for a, b in pairwise(bias)]
    assert all(abs(slope - 1) < 0.1 for slope in slopes), (bias, slopes)


# -- laws that are kept ----------------------------------------------------------------------------

LAW = mcmc.at(MIXTURE.model(SDE), 0.3)
DENSITY = mcmc.LogDensity(lambda x: MIXTURE.log_prob(SDE, x, 0.3))


def true_draws(count, seed):
    x_0 = MIXTURE.sample(count, seed=seed)
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed + 1), dtype=F64)
    return SDE.perturb(x_0, 0.3, noise)


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    ("kernel", "target"),
    [
        (mcmc.RandomWalk(0.9), DENSITY),
        (mcmc.RandomWalk(0.9), LAW),
        (mcmc.MALA(0.8), DENSITY),
        (mcmc.MALA(0.8), LAW),
        (mcmc.Underdamped(0.25, 1.5), LAW),
    ],
    ids=lambda value: type(value).__name__,
)
def test_law_of_a_mixture(kernel, target):
    """2,000 chains from one point: their states after 60 steps are independent draws. KS against
    20,000 exact draws and the energy distance, p-values above 1e-4; both reject the law of ULA with
    the same step.
    """
    out = mcmc.run(
        kernel,
        target,
        torch.tensor([[0.5, 0.0]], dtype=F64).expand(2000, 2),
        steps=1,
        burn_in=60,
        seed=11,
    )
    exact = true_draws(20_000, 3)
    assert sd.metrics.kolmogorov_smirnov(out.flat, exact).p_value > 1e-4
    assert sd.metrics.energy_distance(out.flat, exact[:2000], floor=99).p_value > 0.01


def test_the_law_of_ula_is_another():
    out = mcmc.run(
        mcmc.ULA(0.8),
        LAW,
        torch.tensor([[0.5, 0.0]], dtype=F64).expand(2000, 2),
        steps=1,
        burn_in=60,
        seed=11,
    )
    assert sd.metrics.kolmogorov_smirnov(out.flat, true_draws(20_000, 3)).p_value < 1e-8


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "kernel", [mcmc.RandomWalk(1.2), mcmc.MALA(0.8), mcmc.Underdamped(0.3, 1.0)], ids=str
)
def test_means_lie_within_their_standard_errors(kernel):
    """|mean - exact| and |E x^2 - exact| of 8 chains of 1,500 draws, in standard errors by the
    effective sample size: below 5.
    """
    out = mcmc.run(kernel, DENSITY, true_draws(8, 5), steps=1500, seed=2)
    mean, cov = MIXTURE.moments(SDE, 0.3)
    assert float(((out.mean - mean) / out.stderr).abs().max()) < 5
    second = mcmc.Chains(out.samples.square(), None, None, out.state)
    assert float(((second.mean - mean.square() - cov.diagonal()) / second.stderr).abs().max()) < 5
    assert float(out.rhat.max()) < 1.05
    assert 100 < float(out.ess.min()) < 6000
    torch.testing.assert_close(out.std, out.flat.std(dim=0, correction=0), rtol=1e-12, atol=0)


def test_acceptance_of_a_random_walk():
    """On N(0, v) E a = (2 / pi) arctan(2 sqrt(v) / step) from the law itself: 4,000 chains, 5
    standard errors.
    """
    step = 1.5
    start = 0.4 + V**0.5 * sd.White(sd.seeds(1, 4000), (1,), dtype=F64).normal(0, "path", 0)
    out = mcmc.run(mcmc.RandomWalk(step), GAUSSIAN, start, steps=10, seed=2)
    assert out.acceptance.shape == (4000,)
    assert float(out.acceptance.mean()) == pytest.approx(
        2 / math.pi * math.atan(2 * V**0.5 / step), abs=5 * 0.5 / 4000**0.5
    )
    moved = (out.samples[1:] != out.samples[:-1]).double().mean(dim=0)[:, 0]
    first = (out.samples[0] != start).double()[:, 0]
    torch.testing.assert_close(out.acceptance, (9 * moved + first) / 10)


def test_outside_the_support():
    """An exponential law: proposals below 0 have density 0 (and a gradient of NaN), and are
    rejected.
    """

    def log_prob(x):
        return torch.where(x > 0, -x - 0 * x.sqrt(), -math.inf).sum(dim=1)

    for kernel in (mcmc.RandomWalk(1.5), mcmc.MALA(0.5)):
        out = mcmc.run(
            kernel, log_prob, torch.ones(1500, 1, dtype=F64), steps=1, burn_in=60, seed=4
        )
        assert (
            sd.metrics.kolmogorov_smirnov(
                out.flat, lambda x: 1 - torch.exp(-x.clamp(min=0))
            ).p_value
            > 1e-4
        )
        assert 0.2 < float(out.acceptance.mean()) < 0.95


# -- equivalences ----------------------------------------------------------------------------------

KERNELS = [
    mcmc.RandomWalk(0.5),
    mcmc.ULA(0.1),
    mcmc.MALA(0.2),
    mcmc.SGLD(mcmc.Decay(0.1)),
    mcmc.Underdamped(0.3, 1.0),
    mcmc.Underdamped(0.3, 1.0, "OBABO"),
]
START = torch.linspace(-1, 1, 10, dtype=F64).reshape(5, 2)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_chain_depends_on_its_seed_alone(kernel):
    whole = mcmc.run(kernel, DENSITY, START, steps=12, seed=3)
    order = [4, 0, 2]
    part = mcmc.run(
        kernel, DENSITY, START[order], steps=12, seed=[whole.state.seeds[i] for i in order]
    )
    torch.testing.assert_close(part.samples, whole.samples[:, order], rtol=1e-12, atol=1e-12)
    assert whole.state.seeds == sd.seeds(3, 5)
    assert (
        float(
            (whole.samples - mcmc.run(kernel, DENSITY, START, steps=12, seed=4).samples).abs().max()
        )
        > 0.1
    )
    torch.manual_seed(0)
    assert torch.equal(whole.samples, mcmc.run(kernel, DENSITY, START, steps=12, seed=3).samples)


test_a_chain_depends_on_its_seed_alone = pytest.mark.uses_global_rng(
    test_a_chain_depends_on_its_seed_alone
)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_chains_go_on_from_a_state(kernel):
    whole = mcmc.run(kernel, DENSITY, START, steps=9, seed=3)
    first = mcmc.run(kernel, DENSITY, START, steps=4, seed=3)
    second = mcmc.run(kernel, DENSITY, first.state, steps=5)
    assert torch.equal(torch.cat([first.samples, second.samples]), whole.samples)
    if whole.weights is not None:
        torch.testing.assert_close(second.weights, whole.weights[4:] / whole.weights[4:].sum())
    assert (second.state.number, second.state.seeds) == (9, whole.state.seeds)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_burn_in_and_thinning(kernel):
    whole = mcmc.run(kernel, DENSITY, START, steps=15, seed=3)
    thin = mcmc.run(kernel, DENSITY, START, burn_in=5, steps=10, thin=2, seed=3)
    assert torch.equal(thin.samples, whole.samples[6::2])
    assert torch.equal(thin.state.x, whole.samples[-1])
    if thin.weights is not None:
        sizes = (1 + torch.tensor([7.0, 9.0, 11.0, 13.0, 15.0], dtype=F64)) ** -0.55
        torch.testing.assert_close(thin.weights, sizes / sizes.sum())


def test_langevin_kernels_agree():
    """SGLD with all data is ULA; on a score MALA is what it is on the log-density (Simpson's rule
    is exact), with ULA's steps.
    """
    x = START[:, :1]
    ula = mcmc.run(mcmc.ULA(0.1), WELL, x, steps=10, seed=1)
    assert torch.equal(mcmc.run(mcmc.SGLD(0.1), WELL, x, steps=10, seed=1).samples, ula.samples)
    mala = mcmc.run(mcmc.MALA(0.1), WELL, x, steps=10, seed=1)
    torch.testing.assert_close(
        mcmc.run(mcmc.MALA(0.1), WELL_SCORE, x, steps=10, seed=1).samples, mala.samples
    )
    same = (mala.acceptance == 1).nonzero().flatten()
    assert len(same) > 1
    torch.testing.assert_close(mala.samples[:, same], ula.samples[:, same])
    walk = mcmc.run(mcmc.RandomWalk(0.4), WELL, x, steps=10, seed=1)
    torch.testing.assert_close(
        mcmc.run(mcmc.RandomWalk(0.4), WELL_SCORE, x, steps=10, seed=1).samples, walk.samples
    )


def test_a_gradient_of_ones_own_is_used():
    own = mcmc.LogDensity(WELL.log_prob, WELL_SCORE.score)
    twice = mcmc.LogDensity(WELL.log_prob, lambda x: 2 * WELL_SCORE.score(x))
    x = START[:, :1]
    want = mcmc.run(mcmc.MALA(0.1), WELL, x, steps=10, seed=1).samples
    torch.testing.assert_close(mcmc.run(mcmc.MALA(0.1), own, x, steps=10, seed=1).samples, want)
    assert (
        float((mcmc.run(mcmc.MALA(0.1), twice, x, steps=10, seed=1).samples - want).abs().max())
        > 0.1
    )


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("event", [(), (2, 3)])
def test_events_of_any_shape(kernel, event):
    """Coordinates of a product law, in any shape and in float32: the same numbers."""
    size = math.prod(event)
    flat = torch.linspace(-1, 1, 4 * size, dtype=F64).reshape(4, size)
    log_prob = lambda x: -0.5 * x.reshape(len(x), -1).square().sum(dim=1)  # noqa: E731
    want = mcmc.run(kernel, log_prob, flat, steps=6, seed=1).samples.reshape(6, 4, *event)
    torch.testing.assert_close(
        mcmc.run(kernel, log_prob, flat.reshape(4, *event), steps=6, seed=1).samples, want
    )
    single = mcmc.run(kernel, log_prob, flat.reshape(4, *event).float(), steps=6, seed=1).samples
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), want, rtol=1e-4, atol=1e-5)


class Net(torch.nn.Module):
    modes: set[bool]

    def __init__(self):
        super().__init__()
        self.modes = set()
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, mean):
        self.modes.add(self.training)
        return mean - x + self.shift


def test_a_score_model_at_one_time():
    """In evaluation mode, with a condition a chain; its law here is N(mean, I)."""
    net, mean = Net(), torch.arange(5.0).reshape(5, 1).repeat_interleave(400, dim=0)
    model = sd.ScoreModel(net, SDE, predicts="score")
    target = mcmc.at(model, 0.3, {"mean": mean})
    out = mcmc.run(mcmc.MALA(0.8), target, torch.zeros_like(mean), steps=1, burn_in=25, seed=1)
    assert net.modes == {False}
    assert net.training
    assert (
        sd.metrics.kolmogorov_smirnov(out.flat - mean, lambda x: torch.special.ndtr(x)).p_value
        > 1e-4
    )
    with pytest.raises(ValueError, match="leading dimension 3"):
        mcmc.run(mcmc.MALA(0.8), target, torch.zeros(3, 1), steps=1)


# -- failures and bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kernel",
    [mcmc.RandomWalk(0.5), mcmc.MALA(0.2), mcmc.ULA(0.2), mcmc.Underdamped(0.3, 1.0)],
    ids=str,
)
def test_a_target_that_fails_is_no_rejection(kernel):
    """NaN beyond x = 1.5, where chain 1 gets: the chain is named, and the others are what they are
    without it.
    """
    x = torch.tensor([[-30.0], [0.9], [-30.0]], dtype=F64)
    good = lambda at: -0.5 * (at - x)[:, 0].square()  # noqa: E731
    bad = lambda at: torch.where(at[:, 0] > 1.5, math.nan, good(at))  # noqa: E731
    with pytest.raises(
        mcmc.ChainError, match="chain 1 left the finite numbers between its steps"
    ) as caught:
        mcmc.run(kernel, bad, x, steps=100, seed=1)
    chains = caught.value.chains
    assert chains.failed == (1,)
    sound = mcmc.run(kernel, good, x, steps=5, seed=1).samples
    assert torch.equal(
        mcmc.run(kernel, bad, x, steps=5, seed=1, on_fail="return").samples[:, ::2], sound[:, ::2]
    )
    first = int(torch.isfinite(chains.samples[:, 1, 0]).sum())
    assert f"between its steps {max(first, 1)} and {first + 1}:" in str(caught.value) or first == 0
    assert "1 failed" in repr(chains)


@pytest.mark.parametrize("kernel", [mcmc.RandomWalk(0.5), mcmc.MALA(0.2)], ids=str)
def test_an_infinite_density_is_a_failure(kernel):
    """A chain that got there would never leave; it shows in the very step."""
    target = lambda x: torch.where(x[:, 0] > 1.5, math.inf, -0.5 * x[:, 0] ** 2)  # noqa: E731
    out = mcmc.run(kernel, target, torch.ones(100, 1), steps=1, seed=1, on_fail="return")
    assert 5 < len(out.failed) < 50
    assert float(out.samples.nan_to_num().max()) < 1.5


def test_a_chain_that_diverges():
    with pytest.raises(mcmc.ChainError, match=r"step of ULA\(step=0.9\) is too large"):
        mcmc.run(mcmc.ULA(0.9), WELL, 5 * torch.ones(2, 1), steps=30, seed=1)


def test_repr():
    out = mcmc.run(mcmc.MALA(0.2), DENSITY, START, steps=40, seed=1)
    assert repr(out).startswith("Chains(40 draws of 5 chains, event (2,), acceptance 0.")
    assert (
        f"R-hat up to {float(out.rhat.max()):.3f}, effective sample size from "
        f"{float(out.ess.min()):.0f})" in repr(out)
    )


def test_progress(capsys):
    mcmc.run(mcmc.ULA(0.1), DENSITY, START, steps=2, burn_in=2, seed=1, progress=True)
    assert "chains  100%" in capsys.readouterr().err


MODEL = MIXTURE.model(SDE)
BAD = {
    "kernel class": (
        lambda: mcmc.run(mcmc.MALA, DENSITY, START, steps=1),
        TypeError,
        r"write MALA\(\.\.\.\)",
    ),
    "solver": (
        lambda: mcmc.run(sd.Langevin(), DENSITY, START, steps=1),
        TypeError,
        "kernel must be a value such as RandomWalk",
    ),
    "model": (
        lambda: mcmc.run(mcmc.ULA(0.1), MODEL, START, steps=1),
        TypeError,
        r"mcmc\.at\(model, t\)",
    ),
    "target": (
        lambda: mcmc.run(mcmc.ULA(0.1), 3, START, steps=1),
        TypeError,
        r"target must be a function log_prob",
    ),
    "no model": (lambda: mcmc.at(MIXTURE, 0.1), TypeError, "model must be a ScoreModel"),
    "time": (lambda: mcmc.at(MODEL, 3.0), ValueError, "usable range"),
    "times": (lambda: mcmc.at(MODEL, torch.full((5,), 0.2)), ValueError, "t must be a number"),
    "steps": (
        lambda: mcmc.run(mcmc.ULA(0.1), DENSITY, START, steps=0),
        ValueError,
        "steps must be an int of at least 1",
    ),
    "burn_in": (
        lambda: mcmc.run(mcmc.ULA(0.1), DENSITY, START, steps=1, burn_in=-1),
        ValueError,
        "burn_in must be an int of",
    ),
    "thin": (
        lambda: mcmc.run(mcmc.ULA(0.1), DENSITY, START, steps=1, thin=0),
        ValueError,
        "thin must be an int of at least 1",
    ),
    "multiple": (
        lambda: mcmc.run(mcmc.ULA(0.1), DENSITY, START, steps=7, thin=2),
        ValueError,
        "multiple of thin = 2, got 7",
    ),
    "on_fail": (
        lambda: mcmc.run(mcmc.ULA(0.1), DENSITY, START, steps=1, on_fail="no"),
        ValueError,
        "on_fail must be one of",
    ),
    "x_init": (
        lambda: mcmc.run(mcmc.ULA(0.1), DENSITY, START.long(), steps=1),
        ValueError,
        "x_init must be a floating-point",
    ),
    "half": (
        lambda: mcmc.run(mcmc.ULA(0.1), DENSITY, START.half(), steps=1),
        ValueError,
        "float32 or float64",
    ),
    "x_init NaN": (
        lambda: mcmc.run(mcmc.ULA(0.1), DENSITY, START * math.nan, steps=1),
        ValueError,
        "not finite",
    ),
    "seeds": (
        lambda: mcmc.run(mcmc.ULA(0.1), DENSITY, START, steps=1, seed=[1, 2]),
        ValueError,
        "one for each of the 5",
    ),
    "seed of a state": (
        lambda: mcmc.run(
            mcmc.ULA(0.1), DENSITY, mcmc.State(START, None, 0, (1, 2, 3, 4, 5)), steps=1, seed=1
        ),
        ValueError,
        "drop seed",
    ),
    "a score as density": (
        lambda: mcmc.run(mcmc.ULA(0.1), lambda x: -x, START, steps=1),
        ValueError,
        r"shape \(5,\), got .*shape \(5, 2\); a function that returns the score is mcmc\.Score",
    ),
    "a density as score": (
        lambda: mcmc.run(mcmc.ULA(0.1), mcmc.Score(lambda x: x.sum(dim=1)), START, steps=1),
        ValueError,
        r"score\(x\) must return a tensor of shape \(5, 2\), got .*shape \(5,\)",
    ),
    "no gradient": (
        lambda: mcmc.run(mcmc.MALA(0.1), lambda x: x.detach().sum(dim=1), START, steps=1),
        ValueError,
        "no gradient by autograd",
    ),
    "outside": (
        lambda: mcmc.run(
            mcmc.RandomWalk(0.1), lambda x: torch.where(x[:, 0] > 0, 0.0, -math.inf), START, steps=1
        ),
        ValueError,
        r"log_prob at x_init\[0\] is -inf",
    ),
    "step": (lambda: mcmc.MALA(0), ValueError, "MALA: step must be a positive number, got 0"),
    "step True": (lambda: mcmc.ULA(True), ValueError, "ULA: step must be a number, got True"),
    "step inf": (
        lambda: mcmc.RandomWalk(math.inf),
        ValueError,
        "RandomWalk: step must be a positive number",
    ),
    "friction": (
        lambda: mcmc.Underdamped(0.1, -1),
        ValueError,
        "friction must be a finite number >= 0, got -1",
    ),
    "scheme": (
        lambda: mcmc.Underdamped(0.1, 1.0, "ABOBA"),
        ValueError,
        "scheme must be one of 'BAOAB', 'OBABO', got 'ABOBA'",
    ),
}


@pytest.mark.parametrize(("call", "kind", "words"), BAD.values(), ids=BAD)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_noise_of_chains_is_no_noise_of_samples():
    """Chains that start from `sample` with the same seed share no normal with it."""
    white = sd.White([1], (2,))
    noise = Noise(white, sd.White([1], ()))
    drawn = torch.cat([noise.normal(0, k).flatten() for k in range(3)] + [noise.decision(0)])
    others = [
        white.normal(0, stream, k).flatten()
        for stream in ("prior", "path", "corrector", "churn")
        for k in range(3)
    ]
    assert not set(drawn.tolist()) & set(torch.cat(others).tolist())
    assert len(set(drawn.tolist())) == 7
    assert Point(START).log_prob is None

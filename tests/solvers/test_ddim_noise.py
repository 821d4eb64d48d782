"""DDIM's free noise: every admissible sigma keeps the marginals, of the posterior and of the
solver; eta as a number and as a function.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from all_sdes import SDES
from exact_moments import reverse_moments
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import pairwise
from quiet import QUIET
from torch import Tensor

import sdediff as sd
from sdediff.reverse import Reverse
from sdediff.solvers import integrate

F64 = torch.float64
SHARES = st.floats(0, 1)
LAW = sd.exact.GaussianMixture([[-0.5, 0.3], [0.5, 0.0]], 0.3)


def between(sde: sd.LinearSDE, share: float) -> float:
    return sde.t_min + share * (sde.t_max - sde.t_min)


def falling(sde: sd.LinearSDE, n: int) -> Tensor:
    return torch.linspace(sde.t_max, between(sde, 0.1), n + 1, dtype=F64)


def one(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def keeps_the_marginals(mean: Tensor, std: Tensor, at: tuple[float, float]) -> None:
    """``mean`` is that of x_s for (x_t, x_0) = (alpha_t, 1) and (sigma_t, 0), one row each: what
    x_0 and the noise of x_t contribute to x_s. They are alpha_s and sqrt(sigma_s^2 - std^2).
    """
    alpha, sigma = at
    assert float(mean[0]) == pytest.approx(alpha, rel=1e-12, abs=1e-13)
    assert math.hypot(float(mean[1]), float(std)) == pytest.approx(sigma, rel=1e-12)


@settings(QUIET, max_examples=40)
@given(st.sampled_from(sorted(SDES)), SHARES, SHARES, SHARES, st.sampled_from([1.0, 250.0]))
def test_any_posterior_of_an_sde_keeps_the_marginals(
    name: str, first: float, second: float, share: float, unit: float
) -> None:
    sde = SDES[name].scaled(unit)
    s, t = sorted((between(sde, first), between(sde, second)))
    if t == 0:
        return
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        (float(sde.alpha(u)), float(sde.sigma(u))) for u in (t, s)
    )
    x_t, x_0 = one(alpha_t, sigma_t), one(1.0, 0.0)
    mean, std = sde.posterior(x_t, x_0, t, s, std=share * sigma_s)
    assert float(std) == share * sigma_s
    keeps_the_marginals(mean, std, (alpha_s, sigma_s))
    own, spread = sde.posterior(x_t, x_0, t, s)
    again, _ = sde.posterior(x_t, x_0, t, s, std=min(float(spread), sigma_s))
    torch.testing.assert_close(again, own, rtol=1e-7, atol=1e-7 * (1 + sigma_s))


CHAINS = st.one_of(
    st.lists(st.integers(1, 950).map(lambda k: k / 1000), min_size=2, max_size=12).map(sd.DDPM),
    st.lists(st.integers(1, 400), min_size=2, max_size=9, unique=True).map(
        lambda steps: sd.NCSN(tuple(math.exp(k / 50 - 4) for k in sorted(steps, reverse=True)))
    ),
)


@settings(QUIET, max_examples=40)
@given(CHAINS, st.data(), SHARES)
def test_any_posterior_of_a_chain_keeps_the_marginals(
    chain: sd.DDPM | sd.NCSN, data: st.DataObject, share: float
) -> None:
    i = data.draw(st.integers(1, chain.N))
    alphas, sigmas = chain.levels[:2]
    x_t, x_0 = one(float(alphas[i]), float(sigmas[i])), one(1.0, 0.0)
    std = share * float(sigmas[i - 1])
    mean, variance = chain.posterior(x_t, x_0, i, std=std)
    keeps_the_marginals(mean, variance.sqrt(), (float(alphas[i - 1]), float(sigmas[i - 1])))
    own, variance = chain.posterior(x_t, x_0, i)
    same, _ = chain.posterior(x_t, x_0, i, std=variance.sqrt())
    torch.testing.assert_close(same, own, rtol=1e-8, atol=1e-8 * float(1 + sigmas[i]))


@pairwise("name, shares", SDES, [(0.0, 1.0), (0.9, 0.2), (0.5, 0.0)])
def test_a_solve_with_any_sigmas_keeps_the_marginals(
    name: str, shares: tuple[float, float]
) -> None:
    """For data at one point, whose E[x_0 | x] is exact, in units of the data and in others."""
    for sde in (SDES[name], SDES[name].scaled(40.0)):
        times = falling(sde, 6)
        noise = sde.sigma(times[1:])
        sigmas = (torch.linspace(*shares, 6, dtype=F64) * noise).tolist()
        solver = sd.DDIM(sigmas=tuple(sigmas))
        mean, std = reverse_moments(sde, solver, times, mean=0.7, std=0.0)
        assert mean == pytest.approx(0.7 * float(sde.alpha(times[-1])), rel=1e-11, abs=1e-11)
        assert std == pytest.approx(float(noise[-1]), rel=1e-12)


@pytest.mark.parametrize("name", SDES)
def test_three_ways_to_say_the_same_noise(name: str) -> None:
    """A number eta, a function that returns it, and the sigmas that it makes; sigmas are in the
    user's units where the solve has others.
    """
    sde = SDES[name]
    model = LAW.model(sde)
    times = falling(sde, 5)
    ours = {"grid": times, "seed": 1, "dtype": F64, "last": "noisy"}
    _, std = sde.posterior(*(torch.zeros(5, 1, dtype=F64),) * 2, times[:-1], times[1:])
    for eta in (0.0, 0.6, 1.0):
        want = sd.sample(model, (3, 2), solver=sd.DDIM(eta), **ours).x  # type: ignore[arg-type]
        for solver in (
            sd.DDIM(lambda t, eta=eta: torch.full_like(t, eta)),
            sd.DDIM(sigmas=eta * std),  # type: ignore[arg-type]
        ):
            found = sd.sample(model, (3, 2), solver=solver, **ours).x  # type: ignore[arg-type]
            torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-11)


def test_eta_by_time_and_a_grid_for_each_sample_are_equation_12() -> None:
    """Written out with the model's own E[x_0 | x] and the same draws."""
    sde = sd.VP()
    model = LAW.model(sde)
    times = torch.stack([falling(sde, 4), falling(sde, 4) ** 2], dim=1)
    noise = sd.White(sd.seeds(3, 2), (2,), dtype=F64)
    start = noise.at(9).normal("prior")

    def eta(t: Tensor) -> Tensor:
        return torch.where(t > 0.5, 0.2, 0.9 * t)

    x = start
    for n, (t, s) in enumerate(itertools.pairwise(times)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            (sde.alpha(u)[:, None], sde.sigma(u)[:, None]) for u in (t, s)
        )
        v = eta(t)[:, None] * (
            sigma_s / sigma_t * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2).sqrt()
        )
        x_0 = model.data(x, t)
        eps = (x - alpha_t * x_0) / sigma_t
        z = noise.at(n).over(t, s)
        x = alpha_s * x_0 + (sigma_s**2 - v**2).sqrt() * eps + v * z
    found = integrate(Reverse(model, 2), sd.DDIM(eta), start, times, noise)
    torch.testing.assert_close(found.x, x, rtol=1e-10, atol=1e-10)


def test_the_steps_of_a_model_with_a_break_have_their_own_sigmas() -> None:
    """The grid is solved in two pieces, the sigmas are those of the whole."""

    class Broken(sd.Operator):
        breaks = (0.5,)

    model = LAW.model(sd.VP())
    given = {"grid": one(1.0, 0.8, 0.5, 0.2, 0.05), "seed": 0, "dtype": F64}
    solver = sd.DDIM(sigmas=(0.1, 0.5, 0.0, 0.02))
    want = sd.sample(model, (3, 2), solver=solver, **given).x  # type: ignore[arg-type]
    found = sd.sample(Broken(model), (3, 2), solver=solver, **given).x  # type: ignore[arg-type]
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


VP = sd.VP()
X = torch.zeros(2, 2)


def sampled(solver: sd.DDIM) -> sd.Solution:
    return sd.sample(LAW.model(VP), (2, 2), solver=solver, grid=[1.0, 0.5, 0.1], seed=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sd.DDIM(-0.1), "eta must be a function of t or a finite number >= 0, got -0.1"),
        (lambda: sd.DDIM("much"), "eta must be a number, got 'much'"),
        (lambda: sd.DDIM(sigmas=0.1), "sigmas must be a sequence of numbers, or None; got 0.1"),
        (lambda: sd.DDIM(sigmas=("a", "b")), "sigmas must be a sequence of numbers, or None"),
        (lambda: sampled(sd.DDIM(0.5, sigmas=(0.1, 0.1))), "eta and sigmas are two ways"),
        (lambda: sampled(sd.DDIM(sigmas=(0.1, -0.1))), r"sigmas\[1\] must lie .* got -0.1"),
        (lambda: sampled(sd.DDIM(sigmas=(math.nan, 0.1))), r"sigmas\[0\] must lie .* got nan"),
        (lambda: sampled(sd.DDIM(sigmas=(0.1,))), "1 for a grid of 2 steps"),
        (lambda: sampled(sd.DDIM(sigmas=(0.0,) * 3)), "3 for a grid of 2 steps"),
        (
            lambda: sampled(sd.DDIM(sigmas=(0.1, 0.9))),
            r"sigmas\[1\] must lie in \[0, sigma_s\] = \[0, 0.322.*got 0.9",
        ),
        (lambda: sampled(sd.DDIM(lambda t: -t)), r"eta\(t\) must be numbers >= 0"),
        (lambda: sampled(sd.DDIM(lambda t: 5 * t)), "eta = 5 asks for more noise .* at step 0"),
        (lambda: VP.posterior(X, X, 0.5, 0.1, std=0.4), r"in \[0, sigma_s\] = \[0, 0.322"),
        (lambda: VP.posterior(X, X, 0.5, 0.1, std=-0.1), r"std must lie in .* got -0.1"),
        (lambda: VP.posterior(X, X, 0.5, 0.1, std=one(0.1, 0.1, 0.1)), "std must be a number or"),
        (lambda: sd.DDPM((0.1, 0.2)).posterior(X, X, 1, std=0.1), r"\[0, sigma_s\] = \[0, 0\]"),
        (lambda: sd.DDPM((0.1, 0.2)).posterior(X, X, 2, std=one(0.1)), "one for each sample"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]

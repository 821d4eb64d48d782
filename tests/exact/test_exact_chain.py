"""Moments of a solver's chain on Gaussian data, against recursions written out and against the
exact law.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from all_sdes import SDES
from exact_moments import reverse_moments
from pairwise import pairwise
from torch import Tensor

import sdediff as sd
from sdediff.solvers import Problem, Solver, Step, StepNoise
from sdediff.testing.orders import fitted_order

MEAN, COVARIANCE = (
    torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64),
    torch.tensor([[0.25, 0.1, -0.05], [0.1, 0.5, 0.2], [-0.05, 0.2, 0.3]], dtype=torch.float64),
)
LAW = sd.exact.Gaussian(MEAN, COVARIANCE)
VALUES, VECTORS = torch.linalg.eigh(COVARIANCE)


def grid(sde: sd.LinearSDE, n: int) -> Tensor:
    return torch.linspace(0.8 * sde.T, 0.2 * sde.T, n + 1, dtype=torch.float64)


def matrix(values: Tensor) -> Tensor:
    return VECTORS @ torch.diag(values) @ VECTORS.T


def test_ddim_is_a_product_of_factors(sde: sd.LinearSDE) -> None:
    """Along an eigenvector, x - alpha_t m times (alpha_s alpha_t v + sigma_s sigma_t) / (alpha_t^2
    v + sigma_t^2) in every step.
    """
    times = grid(sde, 12)
    alpha, sigma = sde.alpha(times)[:, None], sde.sigma(times)[:, None]
    variance = alpha**2 * VALUES + sigma**2
    factor = ((alpha[1:] * alpha[:-1] * VALUES + sigma[1:] * sigma[:-1]) / variance[:-1]).prod(
        dim=0
    )
    mean, covariance = LAW.chain(sde, sd.DDIM(), times)
    torch.testing.assert_close(mean, alpha[-1] * MEAN, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(covariance, matrix(factor**2 * variance[0]), rtol=1e-10, atol=1e-10)
    mean, covariance = LAW.chain(sde, sd.DDIM(), times, start="prior")
    torch.testing.assert_close(
        mean, alpha[-1] * MEAN - matrix(factor) @ (alpha[0] * MEAN), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        covariance, matrix(factor**2 * sde.prior.std**2), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("lam", [1.0, 0.4, lambda t: 0.5 + 0.3 * torch.sin(9 * t)])
def test_euler_maruyama_is_its_recursion(
    sde: sd.LinearSDE, lam: float | Callable[[Tensor], Tensor]
) -> None:
    """M <- (1 + h A) M + h b, C <- (1 + h A) C (1 + h A)^T + |h| (lambda g)^2, in full matrices,
    with the reverse drift A x + b.
    """
    times, eye = grid(sde, 15), torch.eye(3, dtype=torch.float64)
    mean, covariance = LAW.moments(sde, times[0])
    for t, s in itertools.pairwise(times):
        level = lam(t) if callable(lam) else lam
        law_mean, law_covariance = LAW.moments(sde, t)
        pull, h = 0.5 * (1 + level**2) * sde.g(t) ** 2 * torch.linalg.inv(law_covariance), s - t
        step = eye + h * (sde.f(t) * eye + pull)
        mean, covariance = (
            step @ mean - h * pull @ law_mean,
            step @ covariance @ step.T - h * (level * sde.g(t)) ** 2 * eye,
        )
    got = LAW.chain(sde, sd.EulerMaruyama(), times, stochasticity=lam)
    torch.testing.assert_close(got, (mean, covariance), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sequence", ["predictor-first", "corrector-first"])
def test_a_corrector_is_its_recursion(sequence: str) -> None:
    """DDIM's factor, and two Langevin steps: C <- (1 - h / V)^2 C + 2 h, at s or at t, with
    h = 2 alpha_i (snr sigma)^2."""
    sde, snr = sd.VP(), 0.3
    times = grid(sde, 9)
    alpha, sigma = sde.alpha(times)[:, None], sde.sigma(times)[:, None]
    variance = alpha**2 * VALUES + sigma**2
    spread = variance[0]
    for i in range(9):
        move = (alpha[i + 1] * alpha[i] * VALUES + sigma[i + 1] * sigma[i]) / variance[i]
        where = i + 1 if sequence == "predictor-first" else i
        beta = sde.beta(times[where]) * (times[0] - times[1])  # the steps are equal
        h = 2 * (1 - beta).clamp(min=0) * (snr * sigma[where]) ** 2
        spread = move**2 * spread if sequence == "predictor-first" else spread
        for _ in range(2):
            spread = (1 - h / variance[where]) ** 2 * spread + 2 * h
        spread = spread if sequence == "predictor-first" else move**2 * spread
    solver = sd.PredictorCorrector(sd.DDIM(), sd.Langevin(snr=snr, n_steps=2), sequence)  # type: ignore[arg-type]
    mean, covariance = LAW.chain(sde, solver, times)
    torch.testing.assert_close(mean, alpha[-1] * MEAN, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(covariance, matrix(spread), rtol=1e-10, atol=1e-10)


@pytest.mark.thin(2)
@pairwise(
    "sde, solver",
    SDES,
    [sd.EulerMaruyama(), sd.ReverseDiffusion(), sd.solvers.Ancestral(), sd.DDIM(), sd.Heun()],
)
def test_the_chain_converges_to_the_law(sde: sd.LinearSDE, solver: Solver) -> None:
    errors = []
    for n in (40, 80, 160):
        times = grid(sde, n)
        mean, covariance = LAW.chain(
            sde, solver, times, stochasticity=0.5 if solver.solves_sde else None
        )
        true_mean, true_covariance = LAW.moments(sde, times[-1])
        errors.append(float((mean - true_mean).norm() + (covariance - true_covariance).norm()))
    assert fitted_order(errors) == pytest.approx(solver.order, abs=0.25), errors


def test_shape_basis_and_dimension_do_not_matter() -> None:
    """An image is its flat law; a diagonal law is its coordinates; and one coordinate is
    `reverse_moments`.
    """
    sde, times = sd.VP(), torch.linspace(1.0, 1e-3, 30, dtype=torch.float64)
    solver = sd.PredictorCorrector(sd.solvers.Ancestral(), sd.Langevin())
    torch.testing.assert_close(
        sd.exact.Gaussian(MEAN.reshape(1, 3, 1), COVARIANCE).chain(sde, solver, times),
        LAW.chain(sde, solver, times),
        rtol=1e-13,
        atol=1e-15,
    )
    mean, covariance = sd.exact.Gaussian([0.4, -1.0], [0.09, 2.0]).chain(sde, solver, times)
    assert float(covariance[0, 1]) == 0
    for i, (m, v) in enumerate([(0.4, 0.09), (-1.0, 2.0)]):
        want_mean, want_std = reverse_moments(
            sde, solver, times, mean=m, std=v**0.5, draws_a_step=2
        )
        assert float(mean[i]) == pytest.approx(want_mean, rel=1e-11)
        assert float(covariance[i, i]) ** 0.5 == pytest.approx(want_std, rel=1e-11)


def test_samples_agree_with_the_chain() -> None:
    """4,000 samples of a coarse chain, far from the exact law: 9 numbers within 6 standard errors,
    a false alarm in 5e7 seeds.
    """
    sde, n, times = sd.VP(), 4000, torch.linspace(1.0, 0.05, 7, dtype=torch.float64)
    solver = sd.EulerMaruyama()
    mean, covariance = LAW.chain(sde, solver, times, start="prior")
    x = sd.sample(
        LAW.model(sde), (n, 3), solver=solver, grid=times, seed=1, last="noisy", dtype=torch.float64
    ).x
    variance = covariance.diagonal()
    assert bool(((x.mean(dim=0) - mean).abs() < 6 * (variance / n).sqrt()).all())
    error = ((variance[:, None] * variance + covariance**2) / n).sqrt()
    assert bool(((torch.cov(x.T) - covariance).abs() < 6 * error).all())
    true = LAW.moments(sde, times[-1])[1]
    assert bool(((true - covariance).abs() > 6 * error).any()), "the chain should not be exact here"


def test_a_discrete_model_keeps_its_grid() -> None:
    sde = sd.VP()
    ddpm = sd.DDPM.from_sde(sde, 40)
    _, covariance = LAW.chain(sde, ddpm, ddpm.times)
    torch.testing.assert_close(
        covariance, LAW.chain(sde, sd.solvers.Ancestral(), ddpm.times)[1], rtol=1e-9, atol=1e-9
    )
    with pytest.raises(ValueError, match=r"pass times=solver\.times"):
        LAW.chain(sde, ddpm, ddpm.times[:-1])


# -- what is refused -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Custom(Solver):
    """A step that is ``move(x, z)``."""

    move: Callable[[Tensor, Tensor], Tensor]
    stochastic = True

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: tuple[Tensor, Tensor],
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        moved = self.move(x, noise.normal())
        return Step(moved, moved)


NOT_AFFINE = {
    "square": lambda x, z: x + 1e-3 * x**2,
    "absolute value": lambda x, z: x.abs() + z,
    "multiplicative noise": lambda x, z: x * (1 + 0.1 * z),
    "square of noise": lambda x, z: x + z**2,
    "norm": lambda x, z: x + z * x.norm(dim=1, keepdim=True),
    "mixes coordinates": lambda x, z: x + 1e-3 * x.roll(1, dims=1),
}


@pytest.mark.parametrize("move", NOT_AFFINE.values(), ids=NOT_AFFINE)
def test_a_solver_that_is_not_affine_is_refused(move: Callable[[Tensor, Tensor], Tensor]) -> None:
    times = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64)
    affine = Custom(lambda x, z: 0.5 * x + 1 + 0.3 * z)
    start = LAW.moments(sd.VP(), 0.5)[1]
    eye = torch.eye(3, dtype=torch.float64)
    # a solver sees states in units of the data's size
    added = LAW.data_std**2 * (0.3**2 + 0.15**2) * eye
    torch.testing.assert_close(
        LAW.chain(sd.VP(), affine, times)[1], start / 16 + added, rtol=1e-12, atol=1e-12
    )
    with pytest.raises(ValueError, match="not affine"):
        LAW.chain(sd.VP(), Custom(move), times)


def chain(solver: object, times: object = (1.0, 0.5), **options: object) -> None:
    LAW.chain(sd.VP(), solver, times, **options)  # type: ignore[arg-type]


BAD = {
    "adaptive": (lambda: chain(sd.RK45()), ValueError, "take a solver with fixed steps"),
    "class": (lambda: chain(sd.DDIM), TypeError, "solver must be a solver value"),
    "start": (lambda: chain(sd.DDIM(), start="data"), ValueError, "start must be None"),
    "rising": (lambda: chain(sd.DDIM(), (0.5, 1.0)), ValueError, "times must fall"),
    "grid": (lambda: chain(sd.DDIM(), (1.0, 0.5, 0.7)), ValueError, "not strictly monotone"),
    "stochasticity": (
        lambda: chain(sd.DDIM(), stochasticity=1.0),
        ValueError,
        "stochasticity must be 0",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(call: Callable[[], None], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

"""`check_solver` on step functions of other libraries: what it must let pass, and what it must
find.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torchdiffeq import odeint
from torchsde import BrownianInterval, sdeint

import sdediff as sd
from sdediff.testing import Equation, SolverError, check_solver

ODE, SDE = Equation.curved(), Equation.relaxing()
MIXING = Equation(lambda x, t: -x.sum(-1, keepdim=True) + 0 * x, lambda t: 1.0)


def euler(x: Any, t: float, s: float) -> Any:
    return x + (s - t) * ODE.drift(x, t)


def midpoint(x: Any, t: float, s: float) -> Any:
    half = x + 0.5 * (s - t) * ODE.drift(x, t)
    return x + (s - t) * ODE.drift(half, 0.5 * (t + s))


def maruyama(
    loud: float = 1.0, drift: float = 1.0, power: float = 0.5, shared: bool = False
) -> Any:
    """Euler and Maruyama's step in NumPy, with slips."""
    generator = np.random.default_rng(0)

    def step(x: Any, t: float, s: float) -> Any:
        z = generator.standard_normal((len(x), 1) if shared else x.shape)
        noise = loud * SDE.diffusion(t) * (s - t) ** power * z
        return x + drift * (s - t) * SDE.drift(x, t) + noise.astype(x.dtype)

    return step


def reseeded(x: Any, t: float, s: float) -> Any:
    z = np.random.default_rng(0).standard_normal(x.shape)
    moved = x + (s - t) * SDE.drift(x, t) + SDE.diffusion(t) * np.sqrt(s - t) * z
    return moved.astype(x.dtype)


@pytest.mark.parametrize("arrays", ["torch", "numpy"])
@pytest.mark.parametrize(("step", "order"), [(euler, 1.0), (midpoint, 2.0)])
def test_orders_of_hand_written_steps(step: Any, order: float, arrays: Any) -> None:
    report = check_solver(step, equation=ODE, order=order, arrays=arrays, verbose=False)
    assert float(report["order"].detail.split()[0]) == pytest.approx(order, abs=0.2)
    assert report["weak order"].verdict == "skipped"


def test_an_order_that_is_not_claimed_is_measured() -> None:
    report = check_solver(midpoint, equation=ODE, verbose=False)
    assert report["order"].detail.startswith("measured: 1.9")


def test_time_may_fall() -> None:
    falling = Equation(lambda x, t: -x * (1 + t), times=(1.0, 0.0))

    def step(x: Any, t: float, s: float) -> Any:
        half = x + 0.5 * (s - t) * falling.drift(x, t)
        return x + (s - t) * falling.drift(half, 0.5 * (t + s))

    check_solver(step, equation=falling, order=2.0, verbose=False)


def test_euler_maruyama_has_its_law() -> None:
    report = check_solver(maruyama(), equation=SDE, order=1.0, arrays="numpy", verbose=False)
    assert report["order"].verdict == "skipped"
    assert float(report["weak order"].detail.split(",")[0]) == pytest.approx(1.0, abs=0.4)


def test_moments_are_the_closed_form() -> None:
    """dx = -x dt + 0.7 dw: mean exp(-t), variance 0.49 / 2 (1 - exp(-2 t)); forwards and back."""
    from sdediff.testing.steps import _Subject

    for end, drift in ((1.0, -1.0), (-1.0, 1.0)):
        relaxed = Equation(lambda x, t, a=drift: a * x, lambda t: 0.7, times=(0.0, end))
        mean, std = _Subject(euler, relaxed, None, "numpy").moments()
        np.testing.assert_allclose(mean, np.exp(-1) * np.array(relaxed.x_init), rtol=1e-10)
        np.testing.assert_allclose(std**2, 0.245 * (1 - np.exp(-2)), rtol=1e-10)


def in_place(x: Any, t: float, s: float) -> Any:
    x += (s - t) * ODE.drift(x, t)
    return x


def rising(x: Any, t: float, s: float) -> Any:
    return euler(x.double(), t, s)


def pooled(x: Any, t: float, s: float) -> Any:
    return x + (s - t) * ODE.drift(x.mean(0, keepdim=True), t)


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("step", "options", "words"),
    [
        (euler, {"order": 2.0}, "order 1 for a claim of 2"),
        (lambda x, t, s: x - (s - t) * ODE.drift(x, t), {}, "^$"),
        (lambda x, t, s: x - (s - t) * ODE.drift(x, t), {"order": 1.0}, "errors do not fall"),
        (in_place, {}, "the states that step was given are changed"),
        (rising, {}, "float32.*comes back as.*float64"),
        (pooled, {}, "rows: a row alone"),
        (lambda x, t, s: None, {}, "comes back as NoneType"),
        (maruyama(loud=1.2), {"equation": SDE, "arrays": "numpy"}, "too large by a factor 1.2"),
        (maruyama(power=1.0), {"equation": SDE, "arrays": "numpy"}, "size h where sqrt"),
        (
            maruyama(shared=True),
            {"equation": SDE, "arrays": "numpy"},
            "neighbouring coordinates",
        ),
        (reseeded, {"equation": SDE, "arrays": "numpy"}, "noise of two steps"),
        (
            maruyama(drift=0.7),
            {"equation": SDE, "arrays": "numpy", "order": 1.0},
            "does not fall at order 1",
        ),
        (
            maruyama(),
            {"equation": SDE, "arrays": "numpy", "order": 2.0},
            "does not fall at order 2",
        ),
    ],
)
def test_slips_are_found(step: Any, options: dict[str, Any], words: str) -> None:
    given = {"equation": ODE, "verbose": False, **options}
    if words == "^$":  # an order that is only measured is no failure
        assert check_solver(step, **given)["order"].detail.startswith("measured: -0")
        return
    with pytest.raises(SolverError, match=words):
        check_solver(step, **given)


@pytest.mark.parametrize(
    ("solver", "options", "error", "words"),
    [
        (euler, {}, TypeError, "with the equation that it solves"),
        (euler, {"equation": ODE.drift}, TypeError, "with the equation that it solves"),
        (
            euler,
            {"equation": ODE, "arrays": "jax"},
            ValueError,
            "one of 'torch', 'numpy', got 'jax'",
        ),
        (euler, {"equation": ODE, "order": "two"}, ValueError, "order must be a number"),
        (euler, {"equation": Equation(ODE.drift, SDE.diffusion)}, ValueError, "has to be a"),
        (euler, {"equation": MIXING}, ValueError, "coordinate by coordinate"),
        (sd.Heun(), {"order": 2.0}, TypeError, "a Solver declares its"),
        (sd.Heun(), {"equation": ODE}, TypeError, "a Solver declares its"),
        (sd.Heun(), {"arrays": "numpy"}, TypeError, "a Solver declares its"),
        (sd.Heun, {}, TypeError, r"write Heun\(\)"),
    ],
)
def test_errors(solver: Any, options: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        check_solver(solver, verbose=False, **options)


@pytest.mark.parametrize(("method", "order"), [("rk4", 4.0), ("midpoint", 2.0)])
def test_two_solvers_of_torchdiffeq(method: str, order: float) -> None:
    def step(x: torch.Tensor, t: float, s: float) -> torch.Tensor:
        times = torch.tensor([t, s], dtype=x.dtype)
        return odeint(lambda u, y: ODE.drift(y, u), x, times, method=method)[-1]

    check_solver(step, equation=ODE, order=order, verbose=False)


class Relaxing:
    """`Equation.relaxing` as torchsde takes it."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return SDE.drift(y, t)

    def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return SDE.diffusion(t) * torch.ones_like(y)


@pytest.mark.slow
def test_a_solver_of_torchsde() -> None:
    entropy = itertools.count()

    def step(x: torch.Tensor, t: float, s: float) -> torch.Tensor:
        path = BrownianInterval(t, s, tuple(x.shape), x.dtype, entropy=next(entropy))
        return sdeint(Relaxing(), x, [t, s], bm=path, method="euler", dt=s - t)[-1]

    report = check_solver(step, equation=SDE, order=1.0, verbose=False)
    assert report["noise"].verdict == "ok"

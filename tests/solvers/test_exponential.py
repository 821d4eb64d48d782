"""The coefficient engine of the exponential integrators, its orders beyond the contracts, and the
ends of time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import mpmath
import pytest
import torch
from all_sdes import SDES
from pairwise import pairwise
from torch import Tensor

import sdediff as sd
from sdediff.reverse import Reverse
from sdediff.solvers import Options, Solver, integrate
from sdediff.solvers.exponential.flow import Flow
from sdediff.solvers.exponential.forms import Points
from sdediff.solvers.exponential.stages import Stages, evaluate, evaluations
from sdediff.testing.orders import Still, fitted_order

LAW = sd.exact.GaussianMixture([[-0.5, 0.3], [0.5, 0.0], [0.2, -0.5]], 0.5)
VP = sd.VP()


def problem(
    sde: sd.LinearSDE, rows: int = 1, lam: float | Callable[[Tensor], Tensor] = 0.0
) -> Reverse:
    return Reverse(LAW.model(sde), rows, lam)


def starts(sde: sd.LinearSDE, rows: int, t: float) -> Tensor:
    z = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return sde.perturb(LAW.sample(rows, seed=0), t, z)


def grid(*times: float) -> Tensor:
    return torch.tensor(times, dtype=torch.float64)


# -- coefficients ----------------------------------------------------------------------------------


@pytest.mark.thin(2)
@pytest.mark.parametrize("h", [1e-9, 1e-4, 0.3, 4.0, 35.0])
@pytest.mark.parametrize(
    ("theta", "lam"), [(1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.7), (0.4, 0.5)]
)
@pytest.mark.parametrize("past", [0, 1, 3])
def test_weights_to_fifty_digits(theta: float, lam: float, h: float, past: int) -> None:
    """Integrals of exponential times Lagrange polynomial in log(alpha / sigma), from steps of 1e-9
    to 35, against mpmath.
    """
    sde = sd.VE(1e-10, 1e10)  # alpha = 1, log sigma linear in t
    flow = Flow(problem(sde, lam=lam), theta, "log_snr")
    times = sde.time_of(
        2
        * (
            torch.tensor(
                [-16.0 - 0.7 * k for k in range(past, -1, -1)] + [-16.0 + h], dtype=torch.float64
            )
        )
    )
    points = flow.points(times)
    a, b = points.part(slice(past, past + 1)), points.part(slice(past + 1, None))
    got = flow.weights(a, b, [points.v[past - k : past - k + 1] for k in range(past + 1)])
    with mpmath.workdps(50):
        u = [mpmath.mpf(float(value)) for value in points.u]
        start, end, nodes = u[past], u[past + 1], u[past::-1]
        kappa = 1 + mpmath.mpf(lam) ** 2
        breaks = mpmath.linspace(start, end, 12)
        for j, weight in enumerate(got):

            def basis(x: mpmath.mpf, j: int = j) -> mpmath.mpf:
                return mpmath.fprod(
                    (x - other) / (nodes[j] - other) for k, other in enumerate(nodes) if k != j
                )

            rate = theta * kappa
            data = (
                theta
                * kappa
                * mpmath.quad(lambda x: mpmath.exp(rate * (x - end)) * basis(x), breaks)  # noqa: B023
            )
            noise = (
                (theta - 1)
                * kappa
                * mpmath.quad(lambda x: mpmath.exp((rate - 1) * (x - end)) * basis(x), breaks)  # noqa: B023
            )
            sigma = mpmath.exp(-end)
            expected = {1.0: [data], 0.0: [noise * sigma]}.get(theta, [data, noise * sigma])
            # The nodes themselves are rounded: h is known to 1e-15 of u.
            assert [float(value) for value in weight] == pytest.approx(
                [float(each) for each in expected], rel=1e-12 + 4e-15 / h
            )


@pytest.mark.thin(5)
@pytest.mark.parametrize("h", [1e-9, 0.3, 20.0])
@pytest.mark.parametrize(("variable", "past"), [("log_snr", 0), ("angle", 0), ("angle", 2)])
def test_weights_of_the_straight_form_to_thirty_digits(variable: str, h: float, past: int) -> None:
    """S_b / scale times the integral of w' = w (1 - w) times Lagrange polynomials, w = scale /
    (scale + exp(-u)): mpmath.
    """
    sde, scale = sd.VE(1e-10, 1e10), 0.1
    flow = Flow(problem(sde), sd.solvers.Straight(scale), variable)  # type: ignore[arg-type]
    levels = [-6.0 - 0.7 * k for k in range(past, -1, -1)] + [-6.0 + h]
    points = flow.points(sde.time_of(2 * torch.tensor(levels, dtype=torch.float64)))
    a, b = points.part(slice(past, past + 1)), points.part(slice(past + 1, None))
    got = flow.weights(a, b, [points.v[past - k : past - k + 1] for k in range(past + 1)])
    with mpmath.workdps(30):
        u = [mpmath.mpf(float(each)) for each in points.u]

        def value(x: mpmath.mpf) -> mpmath.mpf:
            return x if variable == "log_snr" else mpmath.atan(mpmath.exp(-x))

        nodes = [value(x) for x in u[past::-1]]
        for j, weight in enumerate(got):

            def density(x: mpmath.mpf, j: int = j) -> mpmath.mpf:
                basis = mpmath.fprod(
                    (value(x) - other) / (nodes[j] - other)
                    for k, other in enumerate(nodes)
                    if k != j
                )
                w = scale / (scale + mpmath.exp(-x))
                return w * (1 - w) * basis

            expected = (1 + mpmath.exp(-u[past + 1]) / scale) * mpmath.quad(
                density, mpmath.linspace(u[past], u[past + 1], 3 if h < 1 else 16)
            )
            (found,) = weight
            assert float(found) == pytest.approx(float(expected), rel=1e-11 + 4e-15 / h)


@pytest.mark.parametrize(("lam", "h"), [(1.0, 1e-9), (0.5, 0.3), (1.0, 0.3), (0.5, 20.0)])
def test_the_straight_form_with_noise_to_thirty_digits(lam: float, h: float) -> None:
    """What is kept, the weight of a constant prediction and the noise, by K = exp(-(1 + lambda^2)
    times the integral of theta du) from u to the end of the step: mpmath.
    """
    sde, scale = sd.VE(1e-10, 1e10), 0.1
    flow = Flow(problem(sde, lam=lam), sd.solvers.Straight(scale), "angle")
    points = flow.points(sde.time_of(2 * torch.tensor([-6.0, -6.0 + h], dtype=torch.float64)))
    a, b = points.part(slice(0, 1)), points.part(slice(1, None))
    with mpmath.workdps(30):
        start, end = (mpmath.mpf(float(each)) for each in points.u)
        square = mpmath.mpf(lam) ** 2

        def share(u: mpmath.mpf) -> mpmath.mpf:
            return 1 / (1 + scale * mpmath.exp(u))

        def left(u: mpmath.mpf) -> mpmath.mpf:
            whole = mpmath.log((mpmath.exp(-u) + scale) / (mpmath.exp(-end) + scale))
            return mpmath.exp(-(1 + square) * whole)

        assert float(mpmath.diff(lambda u: mpmath.log(left(u)), start)) == pytest.approx(
            float((1 + square) * share(start))
        )
        parts = mpmath.linspace(start, end, 3 if h < 1 else 16)
        push = mpmath.quad(lambda u: left(u) * (1 + square) * share(u), parts)
        variance = mpmath.quad(lambda u: 2 * square * (left(u) * mpmath.exp(-u)) ** 2, parts)
        kept, std = left(start), mpmath.sqrt(variance)
    ((weight,),) = flow.weights(a, b, [a.v])
    close = 1e-11 + 4e-15 / h
    assert float(flow.keep(a, b)) == pytest.approx(float(kept), rel=close)
    assert float(weight) == pytest.approx(float(push), rel=close)
    assert float(flow.std(a, b)) == pytest.approx(float(std), rel=close)


def test_the_straight_form_where_lambda_changes() -> None:
    """Numbers a step are exact: two steps of a constant prediction are one. A function of t costs
    O(h^3) a step.
    """
    times = torch.tensor([0.8, 0.5, 0.3], dtype=torch.float64)
    form = sd.solvers.Straight(0.1)

    def apart(lam: float | Callable[[Tensor], Tensor], times: Tensor) -> float:
        flow = Flow(problem(VP, lam=lam), form, "angle")
        points = flow.points(times)
        a, b, c = (points.part(slice(i, i + 1)) for i in range(3))
        (first,), (second,), (whole,) = (
            flow.weights(x, y, [x.v])[0] for x, y in ((a, b), (b, c), (a, c))
        )
        kept = flow.keep(b, c)
        noise = (kept * flow.std(a, b)).square() + flow.std(b, c).square()
        return max(
            abs(float(kept * flow.keep(a, b) - flow.keep(a, c))),
            abs(float(kept * first + second - whole)),
            abs(float(noise.sqrt() - flow.std(a, c))),
        )

    for lam in (0.0, 0.5, 1.0):
        assert apart(lam, times) < 1e-12
    halves = [apart(lambda t: 0.3 + t, 0.5 + (times - 0.5) * 2.0**-k) for k in (4, 5)]
    assert fitted_order(halves) > 2.75
    steps = sd.solvers.SASolver(2, form, "angle")
    out = [
        sd.sample(
            LAW.model(VP),
            (4, 2),
            solver=steps,
            grid=[1.0, 0.5, 0.2, 0.01],
            stochasticity=lam,
            seed=0,
            dtype=torch.float64,
        ).x
        for lam in (0.7, [0.7, 0.7, 0.7])
    ]
    torch.testing.assert_close(*out, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variable", ["t", "angle", "log_snr", "sigma"])
def test_the_straight_form_of_a_constant_prediction(variable: str) -> None:
    """A path alpha D + sigma E, over its whole length: from alpha = 0 and to sigma = 0 where the
    variable is bounded there.
    """
    flow = Flow(problem(sd.RectifiedFlow()), sd.solvers.Straight(0.2), variable)  # type: ignore[arg-type]
    bounded = variable in ("t", "angle")
    points = flow.points(grid(1.0, 0.9, 0.6, 0.0) if bounded else grid(0.99, 0.9, 0.6, 0.05))
    a, b = points.part(slice(0, 3)), points.part(slice(1, 4))
    weights = flow.weights(a, b, [a.v, points.v[torch.tensor([1, 2, 0])]])
    total = flow.keep(a, b) * (a.alpha * 0.7 - a.sigma * 1.3)
    for (weight,) in weights:
        total = total + weight * (0.7 + 0.2 * 1.3)
    torch.testing.assert_close(total, b.alpha * 0.7 - b.sigma * 1.3, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("order", "weights"), [(2, (3 / 2, -1 / 2)), (3, (23 / 12, -16 / 12, 5 / 12))]
)
def test_the_straight_form_at_scale_1_is_adams_and_bashforths_for_the_velocity(
    order: int, weights: tuple[float, ...]
) -> None:
    """Rectified flow over all of [0, 1], x' = -(noise - data), on equal steps: the textbook's
    weights.
    """
    model, x = (
        flow_model(sd.RectifiedFlow()),
        torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
    )
    times = torch.linspace(1.0, 0.0, 9, dtype=torch.float64)
    solver = sd.ExponentialMultistep(order, sd.solvers.Straight(), "t", startup="published")
    got = integrate(Reverse(model, 4), solver, x, times).x
    past: list[Tensor] = []
    for t in times[:-1].tolist():
        past = [model.net(x, torch.full((4,), t, dtype=torch.float64)), *past]
        rule = {1: (1.0,), 2: (3 / 2, -1 / 2)}.get(min(len(past), order), weights)
        x = x - sum(w * v for w, v in zip(rule, past, strict=False)) / 8
    torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("theta", [0.0, 0.4, 1.0, sd.solvers.Straight(0.2)])
def test_predictions_of_a_form_are_one_whether_evaluated_or_made_of_the_data(
    theta: float | sd.solvers.Straight,
) -> None:
    x, t, here = starts(VP, 3, 0.5), torch.tensor(0.5, dtype=torch.float64), problem(VP, 3)
    flow = Flow(here, theta, "log_snr")
    (at,) = evaluations(flow, flow.points(t[None]))
    for one, two in zip(
        evaluate(here, flow.form, x, at),
        flow.form.from_data(x, here.data(x, t), at.alpha, at.sigma),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


class Circle:
    """A form of one's own, without a base of the library: S = sqrt(alpha^2 + sigma^2), so that with
    phi = arctan(sigma / alpha) the flow is d(x / S) / dphi = (alpha noise - sigma data) / S.
    """

    quantity = "v"
    stochastic, bounded, closes = False, True, False

    def affine(self, points: Points) -> tuple[float, Tensor]:
        return 0.0, 1 / torch.hypot(points.alpha, points.sigma)

    def predictions(self, x, value, alpha, sigma):
        return (value,)

    def from_data(self, x, data, alpha, sigma):
        noise = (x - alpha * data) / sigma
        return ((alpha * noise - sigma * data) / math.hypot(alpha, sigma),)

    def noise(self, x, predictions, alpha, sigma):
        size = math.hypot(alpha, sigma)
        return (sigma * x / size + alpha * predictions[0]) / size

    def keep(self, a: Points, b: Points) -> Tensor:
        return torch.hypot(b.alpha, b.sigma) / torch.hypot(a.alpha, a.sigma)

    def terms(self, u: Tensor, mixing: Tensor, b: Points) -> list[tuple[Tensor, Tensor]]:
        return [(-torch.hypot(b.alpha, b.sigma), 0.5 / u.cosh())]

    def std(self, flow: Flow, a: Points, b: Points) -> Tensor:
        return torch.zeros_like(a.u)


@pytest.mark.parametrize("order", [1, 2])
def test_a_form_of_ones_own_is_as_good_as_a_built_in(order: int) -> None:
    """The rectified flow from alpha = 0 to sigma = 0 in one's own form is Adams and Bashforth's
    method for d(x / S) / dphi, and the adaptive pair finds what the Runge-Kutta pair does.
    """
    here, x = problem(sd.RectifiedFlow(), 3), torch.eye(3, 2, dtype=torch.float64)
    times = grid(1.0, 0.8, 0.55, 0.3, 0.1, 0.0)
    form, method = Circle(), {"variable": "angle", "startup": "published"}
    got = integrate(here, sd.ExponentialMultistep(order, form, **method), x, times).x
    size, phi = torch.hypot(1 - times, times), torch.atan2(times, 1 - times)
    y, past = x / size[0], []
    for i, t in enumerate(times[:-1]):
        past = [here.v(y * size[i], t) / size[i], *past]
        h = phi[i + 1] - phi[i]
        y = y + h * past[0]
        if order == 2 and i:
            y = y + h**2 / (phi[i] - phi[i - 1]) / 2 * (past[0] - past[1])
    torch.testing.assert_close(got, y * size[-1], rtol=1e-12, atol=1e-12)
    pair = sd.solvers.ExponentialPair(3, form, "angle", rtol=1e-6, atol=1e-6)
    one, two = (integrate(here, s, x, times[1:4]).x for s in (pair, sd.RK45(rtol=1e-9, atol=1e-9)))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="is for the probability flow; take sde=False"):
        sd.ExponentialMultistep(order, form, sde=True)


@pytest.mark.parametrize(("scale", "form"), [(1e-7, "data"), (1e7, "noise")])
def test_the_straight_form_of_extreme_scale_is_data_or_noise(scale: float, form: str) -> None:
    x, times = starts(VP, 3, 0.8), torch.linspace(0.8, 0.1, 9, dtype=torch.float64)
    one, two = (
        integrate(problem(VP, 3), sd.solvers.UniPC(form=f), x, times).x
        for f in (sd.solvers.Straight(scale), form)
    )  # type: ignore[arg-type]
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("theta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_noise_to_fifty_digits(theta: float, lam: float) -> None:
    """sigma_s^2 times the integral of 2 lambda^2 exp(-2 (u - u_s) + 2 theta (1 + lambda^2) (u -
    u_s)).
    """
    flow = Flow(problem(VP, lam=lam), theta, "log_snr")
    points = flow.points(grid(0.9, 0.4, 0.3999999, 0.1))
    got = flow.std(points.part(slice(None, -1)), points.part(slice(1, None)))
    with mpmath.workdps(50):
        for i in range(3):
            h = mpmath.mpf(float(points.u[i + 1])) - mpmath.mpf(float(points.u[i]))
            rate = 2 * (theta * (1 + lam**2) - 1)
            integral = 2 * lam**2 * (h if rate == 0 else (1 - mpmath.exp(-rate * h)) / rate)
            expected = float(points.sigma[i + 1]) * float(mpmath.sqrt(integral))
            assert float(got[i]) == pytest.approx(expected, rel=1e-8 if i == 1 else 1e-12)


@pytest.mark.parametrize("name", ["VP", "RectifiedFlow", "user, f and g"])
@pytest.mark.parametrize("theta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("variable", ["log_snr", "sigma", "angle", "t"])
def test_a_constant_prediction_is_integrated_exactly(
    name: str, theta: float, variable: str
) -> None:
    """Whatever the polynomial: with data and noise constant along a path alpha D + sigma E, a step
    of any size stays on it.
    """
    sde = SDES[name]
    flow = Flow(problem(sde), theta, variable)  # type: ignore[arg-type]
    points = flow.points(sde.T * grid(0.95, 0.9, 0.6, 0.05))
    a, b = points.part(slice(2, 3)), points.part(slice(3, None))
    weights = flow.weights(a, b, [points.v[k : k + 1] for k in (2, 1, 0)])
    data, noise = 0.7, -1.3
    total = flow.keep(a, b) * (a.alpha * data + a.sigma * noise)
    predictions = {0.0: (noise,), 1.0: (data,)}.get(theta, (data, noise))
    for node in weights:
        total = total + sum(w * q for w, q in zip(node, predictions, strict=True))
    torch.testing.assert_close(total, b.alpha * data + b.sigma * noise, rtol=1e-12, atol=1e-12)


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "solver",
    [
        sd.solvers.UniPC(),
        sd.solvers.DEIS(),
        sd.solvers.ExponentialSinglestep(4, 0.5),
        sd.solvers.DPMSolverPP(startup="published"),
        sd.ExponentialMultistep(2, sd.solvers.Straight(0.3), "angle", corrector=2),
    ],
    ids=repr,
)
def test_gradients_with_respect_to_the_times(solver: Solver) -> None:
    x = starts(VP, 2, 0.8)

    def end(times: Tensor) -> Tensor:
        return integrate(problem(VP, 2), solver, x, times, options=Options(grad="full")).x

    times = grid(0.8, 0.7, 0.55, 0.45, 0.3).requires_grad_()
    assert torch.autograd.gradcheck(end, (times,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["data", "noise"])
def test_a_form_is_its_number(form: str) -> None:
    number, x, times = (
        {"data": 1.0, "noise": 0.0}[form],
        starts(VP, 3, 0.8),
        torch.linspace(0.8, 0.1, 9, dtype=torch.float64),
    )
    one, two = (
        integrate(problem(VP, 3), sd.solvers.UniPC(form=f), x, times).x for f in (form, number)
    )  # type: ignore[arg-type]
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "solver",
    [
        sd.solvers.SASolver(),
        sd.solvers.SEEDS(),
        sd.solvers.SDEDPMSolverPP(3),
        sd.solvers.Renoise(sd.Heun()),
    ],
    ids=repr,
)
def test_a_stochasticity_that_is_a_function(solver: Solver) -> None:
    """lambda(t) = 0.8, by quadrature, gives what the number gives."""
    x, times, noise = (
        starts(VP, 3, 0.8),
        torch.linspace(0.8, 0.1, 9, dtype=torch.float64),
        sd.White((1, 2, 3), (2,), dtype=torch.float64),
    )
    one = integrate(problem(VP, 3, 0.8), solver, x, times, noise).x
    two = integrate(problem(VP, 3, lambda t: torch.full_like(t, 0.8)), solver, x, times, noise).x
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


# -- orders and cost -------------------------------------------------------------------------------


@pytest.mark.slow
def test_unipc_4_has_order_5() -> None:
    sde = SDES["user, f and g"]
    x = starts(sde, 6, 0.8 * sde.T)

    def end(solver: Solver, n: int) -> Tensor:
        return integrate(
            problem(sde, 6),
            solver,
            x,
            torch.linspace(0.8 * sde.T, 0.2 * sde.T, n + 1, dtype=torch.float64),
        ).x

    exact = end(sd.solvers.DormandPrince(variable="t"), 500)
    assert (
        fitted_order(
            [float((end(sd.solvers.UniPC(4), n) - exact).abs().max()) for n in (40, 80, 160)]
        )
        > 4.75
    )


STAGES = [(0.05, 0.1), (0.1, 1.0), (0.3, 2 / 3), (0.5, 0.6), (0.5, 1.0), (0.7, 0.75), (0.95, 1.0)]
FORMS = [("data", "log_snr"), ("noise", "log_snr"), (0.4, "t"), (sd.solvers.Straight(0.3), "angle")]


@cache
def flow_start_and_end() -> tuple[Tensor, Tensor]:
    x, times = starts(VP, 4, 0.8), torch.linspace(0.8, 0.2, 129, dtype=torch.float64)
    exact = sd.solvers.DormandPrince(variable="t")
    return x, integrate(problem(VP, 4), exact, x, times).x


@pytest.mark.thin(1)
@pairwise("stages, form", STAGES, FORMS)
def test_single_steps_have_their_order_for_any_stages(
    stages: tuple[float, float], form: tuple[Any, Any]
) -> None:
    """Orders 2 and 3 on the probability flow."""
    (r1, r2), (x, exact) = stages, flow_start_and_end()
    single = sd.solvers.ExponentialSinglestep
    for solver in (single(2, *form, r1=r1), single(3, *form, r1=r1, r2=r2)):
        errors = []
        for n in (15, 30, 60):
            times = torch.linspace(0.8, 0.2, n + 1, dtype=torch.float64)
            end = integrate(problem(VP, 4), solver, x, times).x
            errors.append(float((end - exact).abs().max()))
        assert fitted_order(errors) > solver.order - 0.25, solver


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (sd.solvers.PNDM(variable="sigma"), 4),
        (sd.solvers.PLMS(), 3),
        (sd.solvers.PLMS(3, lower_final=True), 2),
    ],
    ids=repr,
)
def test_orders_of_pseudo_starts_in_equal_steps(solver: Solver, order: int) -> None:
    """In steps of equal sigma the weights of equal steps are exact, and the start tells."""
    sde = sd.EDM(0.1, 2.0)
    x = starts(sde, 6, 1.6)

    def end(solver: Solver, n: int) -> Tensor:
        times = torch.linspace(1.6, 0.4, n + 1, dtype=torch.float64)
        return integrate(problem(sde, 6), solver, x, times).x

    exact = end(sd.solvers.DormandPrince(variable="t"), 128)
    errors = [float((end(solver, n) - exact).abs().max()) for n in (80, 160, 320)]
    assert abs(fitted_order(errors) - order) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("solver", [sd.solvers.DPMSolverPP(3), sd.solvers.LMS(4)], ids=repr)
def test_what_a_first_step_of_order_one_costs(solver: sd.ExponentialMultistep) -> None:
    """startup="published": the errors fall at order 2, not at the full one; without any evaluation
    more.
    """
    published = type(solver)(solver.order, startup="published")
    assert published.deterministic_order == 2 < solver.deterministic_order
    sde = sd.RectifiedFlow()
    x = starts(sde, 6, 0.8)

    def end(method: Solver, n: int) -> sd.Solution:
        return integrate(
            problem(sde, 6), method, x, torch.linspace(0.8, 0.2, n + 1, dtype=torch.float64)
        )

    exact = end(sd.solvers.DormandPrince(variable="t"), 500).x
    measured = fitted_order(
        [float((end(published, n).x - exact).abs().max()) for n in (160, 320, 640)]
    )
    assert 1.75 < measured < 2.25
    assert end(published, 10).nfe.tolist() == [10] * 6
    assert end(solver, 10).nfe.tolist() == [10 + solver.startup_evaluations] * 6


@pytest.mark.parametrize(("order", "estimate"), [(2, 2), (3, 3), (4, 3)])
def test_embedded_error_estimates(order: int, estimate: int) -> None:
    """Of the local error of the lower method: O(h^(low + 1))."""
    solver, x = sd.solvers.ExponentialPair(order), starts(VP, 4, 0.6)
    assert solver.error_order == estimate
    sizes = []
    for h in (0.04, 0.02, 0.01):
        here, times = problem(VP, 4), grid(0.6, 0.6 - h)
        (plan,) = solver.plan(here, times)
        assert isinstance(plan, Stages)
        error = solver.step(here, x, plan, Still((4, 2)), solver.init(here, x, times[0])).error
        assert error is not None
        sizes.append(float(error.abs().max()))
    assert fitted_order(sizes) == pytest.approx(estimate, abs=0.25)


@pytest.mark.parametrize(
    "solver",
    [
        sd.solvers.UniPC(),
        sd.ExponentialMultistep(4, "noise"),
        sd.solvers.DEIS(),
        sd.solvers.EulerTrapezoid(),
    ],
    ids=repr,
)
def test_samples_with_grids_of_their_own_are_each_alone(solver: Solver) -> None:
    x, steps = starts(VP, 3, 0.6), torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    times = grid(0.6, 0.5, 0.45) * (1 - steps) + grid(0.05, 0.1, 0.02) * steps**0.8
    together = integrate(problem(VP, 3), solver, x, times, Still((3, 2)))
    alone = [
        integrate(problem(VP, 1), solver, x[i : i + 1], times[:, i], Still((1, 2)))
        for i in range(3)
    ]
    torch.testing.assert_close(
        together.x, torch.cat([each.x for each in alone]), rtol=1e-12, atol=1e-12
    )
    assert together.nfe.tolist() == [int(each.nfe) for each in alone]


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 3, 4])
def test_adaptive_pairs_reach_their_tolerance(order: int) -> None:
    """Against the flow to 1e-11; every sample by itself, and errors fall with the tolerance."""
    x = starts(VP, 6, 0.8)
    exact = integrate(
        problem(VP, 6),
        sd.solvers.DormandPrince(variable="t"),
        x,
        torch.linspace(0.8, 0.05, 400, dtype=torch.float64),
    ).x
    errors = []
    # that of order 2 takes ten thousand steps at 1e-6
    for tolerance in (1e-2, 1e-4) if order == 2 else (1e-4, 1e-6):
        out = integrate(
            problem(VP, 6),
            sd.solvers.ExponentialPair(order, rtol=tolerance, atol=tolerance),
            x,
            grid(0.8, 0.05),
        )
        errors.append(float((out.x - exact).abs().max()))
        assert torch.equal(out.nfe, 1 + order * out.accepted + (order - 1) * out.rejected)
        assert errors[-1] < 20 * tolerance
    assert errors[1] < 0.1 * errors[0]


def test_rows_with_times_of_their_own() -> None:
    """A single step of three samples, each over its own interval, is three steps: ready for
    step-size control by sample.
    """
    solver, x = sd.solvers.ExponentialSinglestep(3, "noise"), starts(VP, 3, 0.6)
    times = grid(0.6, 0.5, 0.45, 0.3, 0.2, 0.44).reshape(2, 3)
    (plan,) = solver.plan(problem(VP, 3), times)
    whole = solver.step(problem(VP, 3), x, plan, Still((3, 2)), ()).x
    for i in range(3):
        alone = integrate(problem(VP, 1), solver, x[i : i + 1], times[:, i]).x
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_there_and_back() -> None:
    """Towards noise and back to data along the flow closes at the method's order."""
    gaps = []
    for n in (40, 80):
        up = torch.linspace(0.2, 0.8, n + 1, dtype=torch.float64)
        x = starts(VP, 4, 0.2)
        there = integrate(problem(VP, 4), sd.solvers.UniPC(2), x, up).x
        gaps.append(
            float(
                (integrate(problem(VP, 4), sd.solvers.UniPC(2), there, up.flip(0)).x - x)
                .abs()
                .max()
            )
        )
    assert fitted_order(gaps) > 2.5
    assert gaps[1] < 1e-4


# -- the ends of time ------------------------------------------------------------------------------


def flow_model(sde: sd.LinearSDE) -> sd.ScoreModel:
    """One whose prediction has a limit at both ends."""
    exact = LAW.model(sde)

    def net(x: Tensor, t: Tensor) -> Tensor:
        t = t.clamp(sde.t_min, sde.t_max)
        alpha, sigma = sde.alpha(t.double()), sde.sigma(t.double())
        data = exact.data(x, t.double())
        return (x - alpha[:, None] * data) / sigma[:, None] - data

    return sd.ScoreModel(net, sde, "flow", time_dtype=torch.float64)


METHODS = [
    sd.solvers.DPMSolverPP(3),
    sd.solvers.UniPC(),
    sd.solvers.UniPC(form="noise"),
    sd.solvers.DEIS(),
    sd.solvers.LMS(3),
    sd.ExponentialMultistep(3, 0.5),
    sd.ExponentialMultistep(3, sd.solvers.Straight(0.2), "angle", corrector=3, startup="published"),
    sd.solvers.ExponentialSinglestep(4),
    sd.solvers.DPMSolver(),
    sd.solvers.SASolver(),
    sd.solvers.SEEDS(),
    sd.solvers.SDEDPMSolverPP(),
    sd.solvers.Ancestral(),
    sd.DDIM(),
]


@pytest.mark.parametrize("solver", METHODS, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_from_alpha_0_to_sigma_0(solver: Solver, steps: int) -> None:
    """Rectified flow over all of [0, 1]: finite, and the law of the data for Gaussian data as the
    steps allow.
    """
    sde = sd.RectifiedFlow()
    times = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise = sd.White(range(5), (2,), dtype=torch.float64)
    lam = 1.0 if solver.solves_sde else 0.0
    out = integrate(Reverse(flow_model(sde), 5, lam), solver, x, times, noise)
    assert out.success
    assert float(out.x.abs().max()) < 4


@pytest.mark.parametrize("solver", METHODS, ids=repr)
def test_the_steps_at_the_ends_are_of_order_one(solver: Solver) -> None:
    """To sigma = 0 they give E[data]; from alpha = 0 they are DDIM's, or at lambda = 1 the exact
    posterior's.
    """
    sde = sd.RectifiedFlow()
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise, lam = sd.White(range(5), (2,), dtype=torch.float64), 1.0 if solver.solves_sde else 0.0

    def end(method: Solver, *times: float) -> Tensor:
        return integrate(Reverse(flow_model(sde), 5, lam), method, x, grid(*times), noise).x

    torch.testing.assert_close(
        end(solver, 0.3, 0.0), flow_model(sde).data(x, 0.3), rtol=1e-9, atol=1e-9
    )
    twin = sd.solvers.Ancestral() if solver.solves_sde else sd.DDIM()
    torch.testing.assert_close(end(solver, 1.0, 0.6), end(twin, 1.0, 0.6), rtol=1e-9, atol=1e-9)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sd.solvers.UniPC(5), "UniPC: order must be 1, 2, 3 or 4, got 5"),
        (lambda: sd.solvers.UniPC(True), "order must be"),
        (
            lambda: sd.solvers.DEIS(form="eps"),
            "DEIS: form must be 'data', 'noise', a number from 0",
        ),
        (lambda: sd.solvers.Straight(0.0), "scale must be a positive number, got 0.0"),
        (lambda: sd.solvers.Straight(True), "scale must be a number, got True"),
        (lambda: sd.solvers.DEIS(form=1.5), "form must be"),
        (lambda: sd.solvers.DEIS(form=True), "form must be"),
        (lambda: sd.solvers.DEIS(form=sd.solvers.Form), "form must be"),
        (lambda: sd.solvers.DEIS(form=[1.0]), "form must be"),
        (
            lambda: sd.solvers.DPMSolver(variable="lambda"),
            "variable must be one of 'log_snr', 'sigma', 'angle', 't', got 'lambda'",
        ),
        (lambda: sd.solvers.DPMSolver(moments="bh2"), "moments must be one of"),
        (lambda: sd.solvers.DPMSolver(2, r1=0.0), "r1 must be None or a number in"),
        (lambda: sd.solvers.DPMSolver(1, r1=0.3), "order 1 has no stage to place: drop r1"),
        (lambda: sd.solvers.DPMSolver(2, r2=0.3), "order 2 has stage r1 alone to place: drop r2"),
        (lambda: sd.solvers.DPMSolver(3, r1=0.8), "order 3 takes stages r1 < r2 with r1 farther"),
        (lambda: sd.solvers.DPMSolver(3, r1=0.667, r2=0.9), "got r1 = 0.667 and r2 = 0.9"),
        (
            lambda: sd.solvers.ExponentialPair(1),
            "order must be 2, 3 or 4, for the probability flow",
        ),
        (lambda: sd.solvers.ExponentialPair(rtol=0, atol=0), "rtol and atol cannot both be 0"),
        (lambda: sd.solvers.SASolver(corrector=5), "corrector must be an int from 0"),
        (
            lambda: sd.solvers.SASolver(startup="none"),
            "startup must be one of 'exact', 'published'",
        ),
    ],
)
def test_bad_arguments(make: Callable[[], Solver], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("h", [0.1, 1.0, 5.0])
def test_long_steps_of_seeds_multiply_the_noise(h: float) -> None:
    """The variance of x / sigma after a step from pure noise, whose right value is 1, in closed
    form: at h = 5 it is 4e4 by SEEDS-1 and 3e6 by SEEDS-2, and 1 in data form.
    """
    u = torch.tensor([-2.0, h - 2.0], dtype=torch.float64)
    times = VP.time_of(2 * u)
    nothing = sd.exact.Gaussian(0.0, 1e-24)

    def variance(solver: Solver) -> float:
        _, covariance = nothing.chain(VP, solver, times, stochasticity=1.0)
        return float(covariance) / float(VP.sigma(times[-1])) ** 2

    grown, half = math.exp(h), math.exp(h / 2)
    slope = 4 / h * (grown - 1 - h)
    kept = 2 - grown - slope * (1 - half)
    second = kept**2 + (grown - 1) * ((half - slope) ** 2 + 1)
    assert variance(sd.solvers.SEEDS(1)) == pytest.approx((2 - grown) ** 2 + grown**2 - 1)
    assert variance(sd.solvers.SEEDS(2)) == pytest.approx(second)
    assert variance(sd.solvers.SDEDPMSolverPP(1)) == pytest.approx(1)
    if h == 5.0:
        assert second == pytest.approx((4 / h) ** 2 * math.exp(3 * h), rel=0.4)


def test_bad_scales_of_noise() -> None:
    """A scale that grows more slowly than rho would take noise away."""
    model = LAW.model(VP)
    with pytest.raises(TypeError, match="scale must be a function of rho"):
        sd.solvers.ERSDE(scale=3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"grow at least as fast as rho; .* at rho = .* is -0\.5"):
        sd.sample(model, (2, 2), solver=sd.solvers.ERSDE(scale=lambda rho: rho**0.5), steps=5)


def test_refusals() -> None:
    """Before any evaluation of the network, in words."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError

    model, x = sd.ScoreModel(net, VP), torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="cannot step from sigma = 0: start at t_min"):
        integrate(Reverse(model, 2), sd.solvers.UniPC(), x, grid(0.0, 0.5))
    with pytest.raises(ValueError, match="carries history"):
        sd.solvers.Churn(sd.solvers.UniPC())
    with pytest.raises(ValueError, match="stochasticity"):
        sd.sample(model, (2, 2), solver=sd.solvers.UniPC(), steps=3, stochasticity=1.0)

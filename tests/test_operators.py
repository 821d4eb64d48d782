"""Models made of models, nested and under every caller; the maps that a diffusion may be; what is
refused, and how.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.protocols import breaks_of, cost_of, facts

F64 = torch.float64
VP = sd.VP()
X = torch.tensor([[0.7, -1.2], [0.1, 0.3], [1.0, 0.2]], dtype=F64)


def net(x: Tensor, t: Tensor) -> Tensor:
    return 0.9 * x * torch.sin(t)[:, None]


BASE = sd.ScoreModel(net, VP, time_dtype=F64)


class Louder(sd.Operator):
    """The noise times 1.3 for t from ``low`` to ``high``."""

    def __init__(self, model: Any, low: float, high: float) -> None:
        super().__init__(model)
        self.low, self.high = low, high

    @property
    def breaks(self) -> tuple[float, ...]:
        return self.low, self.high

    def at(self, times: Tensor, like: Any, piece: Any = None) -> list[Any]:
        inside = piece[0] >= self.low and piece[1] <= self.high
        return [(entry, 1.3 if inside else 1.0) for entry in self.model.at(times, like, piece)]

    def evaluate(self, x: Tensor, at: Any, rows: sd.Rows) -> Tensor:
        entry, factor = at
        return factor * self.value(x, entry, rows)


def by_time(low: float, high: float) -> sd.ScoreModel:
    """The same, written by time."""

    def louder(x: Tensor, t: Tensor) -> Tensor:
        return net(x, t) * (1 + 0.3 * ((t > low) & (t <= high)).to(t))[:, None]

    return sd.ScoreModel(louder, VP, time_dtype=F64)


def test_an_interval_holds_where_no_leg_is_solved() -> None:
    """In chains, single predictions, chains of Monte Carlo, and a density whose breaks are its
    ends.
    """
    model, known = Louder(BASE, 0.2, 0.8), by_time(0.2, 0.8)
    for t in (0.1, 0.2, 0.5, 0.8, 0.9):
        torch.testing.assert_close(model.score(X, t), known.score(X, t), rtol=1e-14, atol=1e-14)
    chain = sd.DDPM.from_sde(VP, 20)
    found, wanted = (
        sd.sample(m, (3, 2), solver=chain, seed=0, dtype=F64).x for m in (model, known)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    whole = Louder(BASE, VP.t_min, VP.t_max)
    everywhere = sd.ScoreModel(lambda x, t: 1.3 * net(x, t), VP, time_dtype=F64)
    found, wanted = (sd.log_prob(m, X).value for m in (whole, everywhere))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_times_on_both_sides_of_a_break_are_refused() -> None:
    with pytest.raises(ValueError, match="one side of each; call it once for each side"):
        Louder(BASE, 0.2, 0.8).score(X, torch.tensor([0.1, 0.5, 0.5]))


def test_breaks_of_nested_operators_add_up_and_costs_multiply() -> None:
    nested = Louder(Louder(BASE, 0.3, 0.6), 0.5, 0.8)
    assert facts(nested).breaks == breaks_of(nested) == (0.3, 0.5, 0.6, 0.8)

    def both(x: Tensor, t: Tensor) -> Tensor:
        inner, outer = ((t > low) & (t <= high) for low, high in ((0.3, 0.6), (0.5, 0.8)))
        return net(x, t) * ((1 + 0.3 * inner.to(t)) * (1 + 0.3 * outer.to(t)))[:, None]

    wanted = sd.ScoreModel(both, VP, time_dtype=F64)
    given: Any = {"x_init": X, "dtype": F64, "last": "noisy"}
    found = sd.sample(nested, (3, 2), solver=sd.solvers.RungeKutta4(), steps=60, **given)
    ends = [VP.t_max, 0.8, 0.6, 0.5, 0.3, VP.t_min]
    state = X
    for start, end in pairwise(ends):
        inside = [t for t in found.times.tolist() if end <= t <= start]
        # Written by time the field has the value below at a break, and a leg that ends there that
        # above.
        nudged = [t + 1e-13 if t == end > VP.t_min else t for t in inside]
        state = sd.sample(
            wanted,
            (3, 2),
            solver=sd.solvers.RungeKutta4(),
            grid=nudged,
            **(given | {"x_init": state}),
        ).x
    torch.testing.assert_close(found.x, state, rtol=1e-9, atol=1e-9)

    class Twice(sd.Operator):
        cost = 2

        def evaluate(self, x: Tensor, at: Any, rows: sd.Rows) -> Tensor:
            return 0.5 * (self.value(x, at, rows) + self.value(x, at, rows))

    eight = Twice(Twice(Twice(BASE)))
    assert cost_of(eight) == 8
    for solver, steps in ((sd.RK45(), None), (sd.Heun(), 9)):
        out = sd.sample(
            eight, (3, 2), solver=solver, steps=steps, max_nfe=60, on_fail="return", seed=0
        )
        assert int(out.nfe.max()) <= 60


@pytest.mark.parametrize("ends", [(1 - 1e-15,), (0.5, 0.5 + 1e-15), (VP.t_min * (1 + 1e-15), 0.5)])
@pytest.mark.parametrize("array", [False, True])
def test_breaks_within_rounding_make_no_step(ends: tuple[float, ...], array: bool) -> None:
    class Jumps(sd.Operator):
        breaks = ends

    grid: Any = {"grid": [1.0, 0.7, 0.5, 0.2, 0.01]} if array else {"steps": 6}
    times = sd.sample(Jumps(BASE), (3, 2), solver=sd.DDIM(), seed=0, **grid).times
    assert float(times.diff().abs().min()) > 1e-6


class Plain:
    """A model that holds a module, and is none."""

    sde, predicts = VP, "noise"

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            self.net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)).double()

    def at(self, times: Tensor, like: Any, piece: Any) -> Any:
        return times.unbind()

    def evaluate(self, x: Tensor, at: Tensor, rows: sd.Rows) -> Tensor:
        return self.net(x)


def test_modules_of_a_plain_model_are_found_inside_an_operator() -> None:
    """Its dtype, and the evaluation mode that switches dropout off."""
    model = sd.Operator(Plain())
    assert facts(model).dtype == F64
    one, two = (
        sd.sample(model, (3, 2), solver=sd.DDIM(), steps=4, seed=0, dtype=F64).x for _ in range(2)
    )
    assert torch.equal(one, two)


class Steered(sd.Operator):
    """A gradient through the model inside, in whatever mode the caller is."""

    def evaluate(self, x: Tensor, at: Any, rows: sd.Rows) -> Tensor:
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            found = self.value(x, at, rows)
            (pull,) = torch.autograd.grad(found.square().sum(), x, create_graph=graph)
        rows.count(0, backward=1)
        return found + 0.1 * pull if graph else found.detach() + 0.1 * pull


def test_a_gradient_is_taken_under_inference_mode_too() -> None:
    model = Steered(BASE)
    given: Any = {"solver": sd.Heun(), "steps": 4, "dtype": F64}
    wanted = sd.sample(model, (3, 2), x_init=X, **given)
    with torch.inference_mode():
        found = sd.sample(model, (3, 2), x_init=X.clone(), **given)
    assert torch.equal(found.x, wanted.x)
    assert wanted.backward is not None
    assert wanted.backward.tolist() == [9, 9, 9]


def test_one_buffer_for_all_outputs_does_not_mix_two_questions() -> None:
    buffer = torch.empty(3, 2, dtype=F64)

    def shared(x: Tensor, t: Tensor) -> Tensor:
        return torch.mul(x, 0.5, out=buffer)

    class Between(sd.Operator):
        cost = 2

        def evaluate(self, x: Tensor, at: Any, rows: sd.Rows) -> Tensor:
            return self.value(x, at, rows) - self.value(x + 1, at, rows)

    model = Between(sd.ScoreModel(shared, VP, time_dtype=F64))
    torch.testing.assert_close(model(X, 0.5), torch.full_like(X, -0.5))


def test_a_prediction_of_ones_own_knows_the_whole_sde() -> None:
    class Angle:
        def coefficients(self, sde: Any, t: Tensor) -> tuple[Tensor, Tensor]:
            level = sde.log_snr(t)
            return -torch.sigmoid(-level).sqrt(), torch.sigmoid(level).sqrt()

    class Own(Plain):
        predicts: Any = Angle()

        def evaluate(self, x: Tensor, at: Tensor, rows: sd.Rows) -> Tensor:
            return 0.1 * x

    velocity = sd.ScoreModel(lambda x, t: 0.1 * x, VP, "v", time_dtype=F64)
    found, wanted = (
        sd.sample(m, (3, 2), solver=sd.solvers.UniPC(), steps=6, x_init=X, dtype=F64).x
        for m in (Own(), velocity)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


class Spread(sd.SDE):
    """No drift, and a diffusion that a test gives."""

    prior = sd.Prior(1.0)

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return 0 * x

    def diffusion(self, t: Tensor) -> Any:
        return self.found


ONE = torch.eye(2, dtype=F64)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (sd.solvers.Matrix(ONE), "a map for each time, values of shape \\(5, ...\\)"),
        (sd.solvers.Coordinates(torch.ones(5, dtype=F64)), "a map for each time"),
        (sd.solvers.Matrix(ONE.expand(5, 2, 2), axis=1), "2 x 2 on axis 1 does not fit"),
        (sd.solvers.Matrix(torch.ones(5, 2, 3, dtype=F64)), "2 x 3 on axis 0 does not fit"),
        (sd.solvers.Coordinates(torch.ones(5, 2, 1, dtype=F64)), "a number for each coordinate"),
    ],
)
def test_maps_that_do_not_fit_are_refused(found: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sd.simulate(Spread(found), torch.zeros(3, 2, dtype=F64), steps=5, seed=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0.5, "breaks must be times"),
        ((0.2, "high"), "breaks must be times"),
        ((t for t in (0.2, 0.8)), "breaks must be times"),
        ((0.2, float("nan")), "breaks must be finite"),
    ],
)
def test_breaks_are_checked(given: Any, message: str) -> None:
    class Jumps(sd.Operator):
        breaks = given

    with pytest.raises((TypeError, ValueError), match=message):
        sd.sample(Jumps(BASE), (3, 2), steps=4, seed=0)


def test_a_property_of_an_operator_that_fails_is_not_taken_for_that_of_its_model() -> None:
    class Jumps(sd.Operator):
        @property
        def breaks(self) -> tuple[float, ...]:
            return (self.low,)

    with pytest.raises(TypeError, match=r"Jumps\.breaks asks for an attribute that is not there"):
        sd.sample(Jumps(BASE), (3, 2), steps=4, seed=0)


def test_an_operator_is_not_trained_and_is_told_so(tmp_path: Any) -> None:
    model = sd.Operator(sd.ScoreModel(Plain().net, VP))
    with pytest.raises(TypeError, match=r"train the one inside, fit\(operator\.model"):
        sd.fit(model, X.float(), out=tmp_path / "run")  # type: ignore[arg-type]


def test_operators_and_plain_models_are_compared() -> None:
    model = sd.exact.Gaussian([0.3, 0.1], [[0.5, 0.1], [0.1, 0.4]]).model(VP)
    assert not sd.testing.check_equivalence(model, sd.Operator(model), verbose=False).failures


def test_a_grid_of_one_time_takes_no_step() -> None:
    for solver in (
        sd.Heun(),
        sd.solvers.RungeKutta4(),
        sd.solvers.Churn(sd.Heun()),
        sd.solvers.EulerTrapezoid(),
        sd.solvers.UniPC(),
    ):
        out = sd.sample(
            BASE,
            (3, 2),
            solver=solver,
            grid=[0.5],
            x_init=X,
            dtype=F64,
            last="noisy",
            seed=0 if solver.stochastic else None,
        )
        assert torch.equal(out.x, X)


def test_the_default_solver_counts_the_times_of_each_grid() -> None:
    starts = torch.tensor([1.0, 0.8, 0.6], dtype=F64)
    one = sd.sample(BASE, (3, 2), t_start=starts, steps=4, x_init=X, dtype=F64)
    two = sd.sample(BASE, (3, 2), grid=one.times, x_init=X, dtype=F64)
    torch.testing.assert_close(one.x, two.x, rtol=1e-12, atol=1e-12)


def test_a_mean_of_another_shape_is_refused() -> None:
    class Short(sd.EulerMaruyama):
        def step(
            self, problem: Any, x: Tensor, plan: Any, noise: Any, state: Any
        ) -> sd.solvers.Step:
            taken = super().step(problem, x, plan, noise, state)
            return sd.solvers.Step(taken.x, taken.mean[:1])

    with pytest.raises(ValueError, match="must return a mean of the shape"):
        sd.sample(BASE, (3, 2), solver=Short(), steps=4, seed=0, last="mean")


class Seam(sd.Operator):
    """A break at which nothing changes."""

    breaks = (0.5,)


@pytest.mark.parametrize(
    "solver",
    [sd.EulerMaruyama(), sd.solvers.Ancestral(), sd.solvers.SRA1(), sd.DDIM(eta=1.0)],
    ids=repr,
)
def test_noise_goes_on_over_a_break(solver: Any) -> None:
    """Each step draws its own, to the bit, as without the break: none is drawn twice."""
    grid = torch.linspace(1.0, 0.1, 10, dtype=F64).tolist()
    grid[5] = 0.5
    one, two = (
        sd.sample(model, (3, 2), solver=solver, grid=grid, seed=3, dtype=F64, last="noisy").x
        for model in (BASE, Seam(BASE))
    )
    assert torch.equal(one, two)


def test_no_leg_of_adaptive_steps_draws_the_noise_of_another() -> None:
    """The variance of 8,000 numbers, which is 1, within 6 standard errors: false alarm 2e-9. Noise
    drawn twice gives 1.5.
    """

    class Seams(sd.Operator):
        breaks = (0.05, 0.1)

    model = Seams(sd.exact.Gaussian([0.0, 0.0], 1.0).model(VP))
    x = sd.sample(model, (4000, 2), solver=sd.AdaptiveSDE(0.02, 0.02), seed=3, dtype=F64).x
    assert abs(float(x.var()) - 1) < 6 * (2 / 8000) ** 0.5

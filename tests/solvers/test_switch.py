"""Several solvers along one grid, against a call for each of them; and no solver at all where a
corrector goes alone.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.solvers import Solver, Switch

LAW = sd.exact.GaussianMixture([[-0.5, 0.3], [0.5, 0.0], [0.2, -0.5]], 0.3)
VP = sd.VP()
MODEL = LAW.model(VP)
GRID = torch.linspace(1.0, 0.05, 11, dtype=torch.float64)


def level(t: float) -> float:
    return float(VP.log_snr(t))


class Later:
    """The noise of the steps from ``first`` on."""

    def __init__(self, noise: sd.solvers.Noise, first: int) -> None:
        self.noise, self.first = noise, first

    def at(self, step: int) -> sd.solvers.StepNoise:
        return self.noise.at(step + self.first)

    def take(self, rows: Tensor) -> Later:
        return Later(self.noise.take(rows), self.first)


def two_calls(one: Solver, two: Solver, at: int, model: sd.Model = MODEL) -> list[sd.Solution]:
    """The solutions of ``one`` over the first ``at`` steps, and of ``two`` over the rest."""
    noise = sd.White(sd.seeds(0, 3), (2,), dtype=torch.float64)
    first = sd.sample(
        model, (3, 2), solver=one, grid=GRID[: at + 1], noise=noise, last="noisy", dtype=GRID.dtype
    )
    rest = sd.sample(
        model,
        (3, 2),
        solver=two,
        grid=GRID[at:],
        noise=Later(noise, at),  # type: ignore[arg-type]
        x_init=first.x,
        dtype=GRID.dtype,
    )
    return [first, rest]


PAIRS = [
    (sd.EulerMaruyama(), sd.solvers.UniPC(3)),
    (sd.Heun(), sd.solvers.SASolver(2)),
    (sd.solvers.DormandPrince(), sd.solvers.EulerTrapezoid()),
    (sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin(0.1)), sd.solvers.PNDM()),
]


@pytest.mark.parametrize("by", ["steps", "log_snr"])
@pytest.mark.parametrize("pair", PAIRS, ids=repr)
def test_a_switch_is_two_calls_to_the_bit(pair: tuple[Solver, Solver], by: str) -> None:
    """States, the state where it switches, and evaluations; also at a level between two times."""
    where = {"steps": (4,)} if by == "steps" else {"log_snr": (level(0.5 * float(sum(GRID[3:5]))),)}
    whole = sd.sample(
        MODEL,
        (3, 2),
        solver=Switch(pair, **where),  # type: ignore[arg-type]
        grid=GRID,
        seed=0,
        trajectory=True,
        dtype=GRID.dtype,
    )
    first, rest = two_calls(*pair, 4)
    assert whole.trajectory is not None
    assert torch.equal(whole.trajectory[4], first.x)
    assert torch.equal(whole.x, rest.x)
    assert torch.equal(whole.nfe, first.nfe + rest.nfe)


def test_levels_are_in_the_units_of_the_data() -> None:
    """Data, SDE and states 10 times as large, and the level less by 2 log 10."""
    wide = sd.exact.GaussianMixture([[-5.0, 3.0], [5.0, 0.0], [2.0, -5.0]], 3.0)
    pair = (sd.Heun(), sd.DDIM())
    ends = [
        sd.sample(
            law.model(sde),
            (3, 2),
            solver=Switch(pair, log_snr=(high,)),
            steps=8,
            seed=0,
            grid="karras",
            dtype=GRID.dtype,
        )
        for law, sde, high in (
            (LAW, sd.EDM(0.01, 8.0), 0.0),
            (wide, sd.EDM(0.1, 80.0), -2 * math.log(10.0)),
        )
    ]
    assert torch.equal(ends[0].nfe, ends[1].nfe)
    torch.testing.assert_close(10 * ends[0].x, ends[1].x, rtol=1e-9, atol=1e-9)


class Jumping(sd.Operator):
    """A model that is declared to jump at t = 0.6, inside of a part."""

    breaks = (0.6,)


def test_pieces_of_a_model_that_jumps_are_parts_of_one_grid() -> None:
    """The steps count from the start of the whole grid, and history begins anew at the jump."""
    grid = torch.tensor([1.0, 0.9, 0.75, 0.6, 0.4, 0.2, 0.05], dtype=torch.float64)
    solver = Switch((sd.Heun(), sd.DDIM()), steps=(4,))
    ends = [
        sd.sample(model, (3, 2), solver=solver, grid=grid, seed=0, dtype=GRID.dtype)
        for model in (MODEL, Jumping(MODEL))
    ]
    assert torch.equal(ends[0].x, ends[1].x)
    assert [end.nfe.tolist() for end in ends] == [[4 * 2 + 2 + 1] * 3] * 2


def test_no_more_evaluations_than_allowed_where_a_part_begins_with_one() -> None:
    """DormandPrince makes 6 a step and one to start: after two steps of DDIM, 7 are too many."""
    solver = Switch((sd.DDIM(), sd.solvers.DormandPrince()), steps=(2,))
    for most, made in ((8, 2), (9, 9)):
        out = sd.sample(
            MODEL, (2, 2), solver=solver, grid=GRID[:5], seed=0, max_nfe=most, on_fail="return"
        )
        assert out.nfe.tolist() == [made] * 2


def test_samples_with_grids_of_their_own() -> None:
    """By steps each has its own times; a level that they pass at different steps is refused."""
    grids = torch.stack([GRID, 0.5 + 0.5 * GRID], dim=1)
    x = torch.ones(2, 2, dtype=torch.float64)

    def end(solver: Solver, times: Tensor, x: Tensor) -> Tensor:
        return sd.sample(
            MODEL, tuple(x.shape), solver=solver, grid=times, x_init=x, seed=0, dtype=x.dtype
        ).x

    by_steps = Switch((sd.Heun(), sd.solvers.UniPC(2)), steps=(4,))
    both = end(by_steps, grids, x)
    for i in range(2):
        torch.testing.assert_close(both[i], end(by_steps, grids[:, i], x[i : i + 1])[0])
    with pytest.raises(ValueError, match="grids of their own pass log_snr at different steps"):
        end(Switch((sd.Heun(), sd.DDIM()), log_snr=(level(0.7),)), grids, x)


TWO = (sd.Heun(), sd.DDIM())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"solvers": TWO}, ValueError, "give either steps"),
        ({"solvers": TWO, "steps": (1,), "log_snr": (0.0,)}, ValueError, "give either steps"),
        ({"solvers": TWO[:1], "steps": ()}, ValueError, "a tuple of two solvers or more"),
        ({"solvers": TWO, "steps": (1, 2)}, ValueError, "one entry less than there are solvers, 1"),
        ({"solvers": TWO, "steps": 3}, ValueError, "one entry less"),
        ({"solvers": TWO, "steps": (0,)}, ValueError, "each of steps must be an int of at least 1"),
        ({"solvers": TWO, "log_snr": ("a",)}, ValueError, "log_snr must be a sequence of numbers"),
        ({"solvers": TWO * 2, "log_snr": (0, 1, 1)}, ValueError, "levels that rise"),
        ({"solvers": (*TWO, sd.RK45()), "steps": (1, 1)}, ValueError, "chooses its own steps"),
        ({"solvers": (sd.Heun(), sd.DDIM), "steps": (1,)}, TypeError, "must be a solver such as"),
    ],
)
def test_bad_arguments(given: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Switch(**given)


@pytest.mark.parametrize("sequence", ["predictor-first", "corrector-first"])
def test_no_predictor_moves_the_time_alone(sequence: str) -> None:
    """The corrector by itself, at the end of each interval or at its start; from noise to data it
    is annealed Langevin dynamics.
    """
    corrector = sd.Langevin(0.2)
    pair = sd.PredictorCorrector(None, corrector, sequence)  # type: ignore[arg-type]
    times = GRID if sequence == "predictor-first" else torch.cat([GRID[:1] + 1e-9, GRID[:-1]])
    out, alone = (
        sd.solvers.integrate(
            sd.reverse.Reverse(MODEL, 3, 0.0),
            solver,
            torch.ones(3, 2, dtype=torch.float64),
            grid,
            sd.White(sd.seeds(0, 3), (2,), dtype=torch.float64),
        )
        for solver, grid in ((pair, GRID), (corrector, times))
    )
    assert out.nfe.tolist() == [10] * 3
    torch.testing.assert_close(out.x, alone.x, rtol=0, atol=1e-6 if times is not GRID else 0)
    with pytest.raises(TypeError, match=r"such as .* or None; got 3"):
        sd.PredictorCorrector(3, corrector)  # type: ignore[arg-type]


class Halves(Solver):
    """A corrector of a user's own: half of the state, at s."""

    evaluations = 0
    needs = frozenset()
    corrects = True

    def step(self, problem: Any, x: Any, plan: Any, noise: Any, state: Any) -> sd.Step:
        return sd.Step(0.5 * x)


@pytest.mark.parametrize(
    "mover", [sd.EulerMaruyama(), sd.DDIM(), sd.solvers.DPMSolverPP(), sd.NCSN((2.0, 1.0))]
)
def test_a_corrector_stays_at_its_time(mover: Solver) -> None:
    """A solver that takes samples from t to s would do so a second time; one that says that it
    stays is taken, whosever it is.
    """
    with pytest.raises(ValueError, match=r"moves samples from t to s.*take one that stays at s"):
        sd.PredictorCorrector(sd.DDIM(), mover)
    model = sd.exact.Gaussian([0.0, 1.0], 1.0).model(sd.VP())
    pair = sd.PredictorCorrector(None, Halves())
    out = sd.sample(model, (3, 2), solver=pair, steps=4, x_init=torch.ones(3, 2), last="noisy")
    torch.testing.assert_close(out.x, torch.full((3, 2), 0.5**4))

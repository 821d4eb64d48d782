"""What users build from the protocols of problems and solvers alone, held against exact oracles."""

from __future__ import annotations

import inspect
import itertools
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from code_blocks import code_blocks
from fixed_solvers import FIXED, MULTISTEP, PAIRS

import sdediff as sd
from sdediff.protocols import facts
from sdediff.reverse import Reverse
from sdediff.solvers import Solver, Step, weighted
from sdediff.units import Units

F64 = torch.float64
LAW = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.3)
VP = sd.VP(0.1, 5.0)
GRID = torch.linspace(1.0, 0.02, 9, dtype=F64)
SEEDS = sd.seeds(3, 4)
START = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))


class Field:
    """The exact noise prediction; rows in ``broken`` are NaN at times inside ``between``."""

    predicts = "noise"

    def __init__(self, sde, broken=(), between=(0.0, 1.0), breaks=()):
        self.sde, self.exact, self.sizes, self.breaks = sde, LAW.model(sde), [], breaks
        self.broken, self.between = torch.tensor(broken, dtype=torch.int64), between

    def at(self, times, like, piece):
        return times.unbind()

    def evaluate(self, x, at, rows):
        self.sizes.append(len(x))
        low, high = self.between
        bad = torch.isin(rows.index, self.broken) & (low < at) & (at < high)
        return torch.where(bad[:, None], torch.nan, self.exact.noise(x, at))


MODEL = Field(VP)


def own_call(model, i, x, solver, **options):
    """Row i of a call, alone."""
    return sd.sample(
        model,
        x[i : i + 1].shape,
        x_init=x[i : i + 1],
        solver=solver,
        seed=[SEEDS[i]],
        dtype=F64,
        **options,
    )


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


# -- a scheduler that is handed the network's outputs one by one -----------------------------------


class Asked(Exception):
    """The network is asked at (x, t)."""


class Tape:
    """A model that answers with the outputs on a tape, and asks where the tape ends."""

    def __init__(self, model):
        self.sde, self.predicts, self.extras = (
            model.sde,
            model.predicts,
            getattr(model, "extras", ()),
        )
        self.planned = []

    def at(self, times, like, piece):
        self.planned += times.tolist()
        return times.unbind()

    def evaluate(self, x, at, rows):
        for output in self.outputs:
            return output
        raise Asked(x, at)


class Scheduler:
    """A loop drives it: ``step`` returns (x, t) where the network is asked next, then (x, None)."""

    def __init__(self, solver, model, times, noise, x):
        tape, units = Tape(model), Units(facts(model).data_std)
        self.problem = Reverse(tape, len(x), float(solver.solves_sde), units=units)
        self.solver, self.noise, self.i, self.answers = solver, noise, 0, []
        self.plans, self.x, self.t = solver.plan(self.problem, times), units.enter(x), times[0]

    def step(self, *answer):
        self.answers += answer[:1]
        while self.i < len(self.plans):
            self.problem.model.outputs = iter(self.answers)
            try:
                state = self.state if self.i else self.solver.init(self.problem, self.x, self.t)
                now = self.problem, self.x, self.plans[self.i], self.noise.at(self.i), state
                made = self.solver.step(*now)
            except Asked as asked:
                return asked.args
            self.x, self.state, self.i, self.answers = made.x, made.state, self.i + 1, []
        return self.problem.units.leave(self.x), None


def timesteps(solver, model, times):
    """The times at which the network will be asked, by a dry run without a network."""
    noise, zeros, asked = sd.White([0], (2,), dtype=F64), torch.zeros(1, 2, dtype=F64), []
    scheduler = Scheduler(solver, model, times, noise, zeros)
    x, t = scheduler.step()
    while t is not None:
        asked.append(float(t))
        nothing = sd.Output(zeros, **dict.fromkeys(scheduler.problem.model.extras, zeros))
        x, t = scheduler.step(nothing, t, x)
    planned = set(scheduler.problem.model.planned)  # the evaluations of a plan tell their times
    assert set(asked) <= planned
    return asked


def driven(solver, model, times, x=None):
    """The result of a loop as those of diffusers are, and how often the network was asked."""
    noise = sd.White(SEEDS, (2,), dtype=F64)
    start = model.sde.prior.from_noise(noise.at(0).normal("prior")) if x is None else x
    scheduler = Scheduler(solver, model, times, noise, start)
    x, now = scheduler.step()
    rows, known = scheduler.problem.batch, timesteps(solver, model, times)
    for t in known:
        assert float(now) == t
        x, now = scheduler.step(model.evaluate(x, now, rows), now, x)
    assert now is None
    return x, len(known)


each_fixed = pytest.mark.parametrize("solver", FIXED, ids=repr)


@pytest.mark.thin(6)
@each_fixed
def test_a_scheduler_that_replays_steps_on_a_tape_is_sample_to_the_bit(solver):
    found, calls = driven(solver, MODEL, GRID)
    out = sd.sample(MODEL, (4, 2), solver=solver, grid=GRID, last="noisy", seed=SEEDS, dtype=F64)
    assert torch.equal(found, out.x)
    assert out.nfe.tolist() == [calls] * 4


SOME = [sd.Heun(), sd.EulerMaruyama(), sd.solvers.UniPC(3), *PAIRS[:2]]


@pytest.mark.parametrize("solver", SOME, ids=repr)
def test_a_scheduler_works_in_the_units_of_the_data(solver):
    model = Field(sd.EDM(0.01, 20.0))
    times = torch.tensor([20.0, 8.0, 3.0, 1.0, 0.3, 0.1], dtype=F64)
    out = sd.sample(model, (4, 2), solver=solver, grid=times, last="noisy", seed=SEEDS, dtype=F64)
    assert torch.equal(driven(solver, model, times)[0], out.x)


@pytest.mark.parametrize("tol", [0.0, 1e-8])
def test_a_scheduler_solves_for_the_inverse_of_ddim_on_a_rising_grid(tol):
    """Without a tolerance a step has as many evaluations as it is told, at times that are known."""
    solver, times = sd.solvers.InverseDDIM(tol=tol, iterations=40 if tol else 5), GRID.flip(0)
    out = sd.encode(MODEL, START, solver=solver, grid=times)
    if not tol:
        found, calls = driven(solver, MODEL, times, START)
        assert out.nfe.tolist() == [calls] * 4
    else:
        scheduler = Scheduler(solver, MODEL, times, sd.White(SEEDS, (2,), dtype=F64), START)
        found, t = scheduler.step()
        while t is not None:
            found, t = scheduler.step(MODEL.evaluate(found, t, scheduler.problem.batch), t, found)
    assert torch.equal(found, out.x)


class Learned(Field):
    """A model that says how much noise an ancestral step has."""

    extras = ("variance",)

    def evaluate(self, x, at, rows):
        return sd.Output(super().evaluate(x, at, rows), variance=torch.sin(3 * x))


CHAINS = {
    "DDPM": (sd.DDPM.from_sde(VP, 8), MODEL),
    "DDPM, beta": (sd.DDPM.from_sde(VP, 8, variance="beta"), MODEL),
    "DDPM, learned": (sd.DDPM.from_sde(VP, 8, variance="learned"), Learned(VP)),
    "NCSN": (sd.NCSN.from_sde(sd.VE(0.1, 5.0), 5, n_steps=2), Field(sd.VE(0.1, 5.0))),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_scheduler_walks_down_a_chain(name):
    chain, model = CHAINS[name]
    found, calls = driven(chain, model, chain.times)
    out = sd.sample(model, (4, 2), solver=chain, last="noisy", seed=SEEDS, dtype=F64)
    assert torch.equal(found, out.x)
    assert out.nfe.tolist() == [calls] * 4


def test_every_solver_with_fixed_steps_was_driven_from_outside():
    classes = [kind for kind in vars(sd.solvers).values() if isinstance(kind, type)]
    kinds = {kind for kind in classes if issubclass(kind, Solver)}
    fixed = {kind for kind in kinds if kind.adaptive is False and not kind.external} - {
        Solver,
        sd.solvers.RungeKutta,
    }
    assert fixed == {type(solver) for solver in FIXED} | {
        sd.PredictorCorrector,
        sd.solvers.InverseDDIM,
        # noise that depends on the state: there is no model to replay
        sd.solvers.Milstein,
        sd.solvers.StratonovichHeun,
        # numbers for one model: tests/interop has it in the scheduler
        sd.solvers.Tuned,
    }


# -- groups of rows --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resampled(Solver):
    """A solver, and after each step systematic resampling in each group, by weights exp(-x_0)."""

    solver: Solver
    group: int = 4

    stochastic = True
    needs = property(lambda self: self.solver.needs)
    solves_sde = property(lambda self: self.solver.solves_sde)
    corrects = property(lambda self: self.solver.corrects)
    plan = property(lambda self: self.solver.plan)
    init = property(lambda self: self.solver.init)

    def step(self, problem, x, plan, noise, state):
        moved, n = self.solver.step(problem, x, plan, noise, state), self.group
        share = torch.softmax(-moved.x[:, 0].reshape(-1, n), dim=1).cumsum(dim=1)
        u = torch.special.ndtr(problem.first(noise.normal("resampling"))[::n])
        places = (u[:, None] + torch.arange(n)) / n
        chosen = torch.searchsorted(share, places).clamp(max=n - 1)
        rows = (chosen + n * torch.arange(len(u))[:, None]).flatten()
        return Step(moved.x[rows], moved.mean[rows], tuple(part[rows] for part in moved.state))


GROUPED = [
    Resampled(sd.DDIM()),
    Resampled(sd.solvers.Ancestral()),
    Resampled(sd.EulerMaruyama()),
    Resampled(sd.solvers.SASolver()),
    sd.PredictorCorrector(sd.solvers.Ancestral(), Resampled(sd.Langevin())),
]
each_grouped = pytest.mark.parametrize("solver", GROUPED, ids=repr)


def groups(model=MODEL, count=12, **options):
    return sd.sample(model, (count, 2), steps=6, dtype=F64, **options)


def test_particles_are_resampled_by_their_weights():
    """How often a particle survives is its share of n, rounded up or down."""
    noise, n = sd.White(sd.seeds(1, 12), (2,), dtype=F64).at(0), 4

    class Still(sd.DDIM):
        def step(self, problem, x, plan, noise, state):
            return Step(x)

    x = torch.randn(12, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    moved = Resampled(Still()).step(Reverse(MODEL, 12), x, None, noise, ()).x
    for start in range(0, 12, n):
        before, after = x[start : start + n], moved[start : start + n]
        counts = (after[None] == before[:, None]).all(dim=2).sum(dim=1)
        wanted = n * torch.softmax(-before[:, 0], dim=0)
        assert int(counts.sum()) == n
        assert bool((counts >= wanted.floor()).all())
        assert bool((counts <= wanted.ceil()).all())


@each_grouped
def test_a_group_depends_on_its_seed_alone(solver):
    """Not on how many groups there are, their order or their neighbours."""
    out = groups(solver=solver, seed=5)
    assert out.seeds == sd.seeds(5, 3)
    last, first = out.seeds[2], out.seeds[0]
    other = groups(solver=solver, count=16, seed=[last, 99, first, last])
    for here, there in ((2, 0), (0, 2), (2, 3)):
        assert torch.equal(out.x[4 * here : 4 * here + 4], other.x[4 * there : 4 * there + 4])
    assert not torch.equal(out.x[:4], out.x[4:8])


@pytest.mark.thin(6)
@each_grouped
@pytest.mark.parametrize("batch_size", [4, 7, 8, 12, 50])
def test_a_batch_splits_no_group(solver, batch_size):
    model = Field(VP)
    out = groups(model, solver=solver, seed=5, batch_size=batch_size)
    assert torch.equal(out.x, groups(solver=solver, seed=5).x)
    assert set(model.sizes) <= {4, 8, 12}
    assert max(model.sizes) <= max(4, batch_size)


def test_a_particle_has_the_seed_that_its_group_makes():
    solver = replace(GROUPED[1])
    rows = [row for seed in sd.seeds(5, 3) for row in sd.seeds(seed, 4)]
    noise = sd.White(rows, (2,), dtype=F64)
    assert torch.equal(groups(solver=solver, seed=5).x, groups(solver=solver, noise=noise).x)


@dataclass(frozen=True)
class Alone(sd.solvers.Ancestral):
    group: int = 4


def test_a_solver_that_only_says_that_it_has_groups_differs_by_its_seeds_alone():
    rows = [row for seed in sd.seeds(5, 3) for row in sd.seeds(seed, 4)]
    assert torch.equal(
        groups(solver=Alone(), seed=5).x, groups(solver=sd.solvers.Ancestral(), seed=rows).x
    )


@dataclass(frozen=True)
class GroupedAdaptive(sd.RK45):
    group: int = 4


WRONG_GROUPS = {
    "no multiple": ({"count": 10}, "rows in groups of 4: ask for a multiple of that, got 10"),
    "batch too small": (
        {"batch_size": 3},
        "groups of 4, which no batch splits: raise batch_size = 3",
    ),
    "a seed a row": ({"seed": [1] * 12}, "one for each of the 3 groups; got 12"),
    "adaptive": (
        {"solver": GroupedAdaptive(), "steps": None},
        "is adaptive, .* cannot have groups of 4",
    ),
    "none": ({"solver": Alone(0)}, "Alone: group must be an int of at least 1, got 0"),
    "no int": ({"solver": Alone(2.5)}, "Alone: group must be an int of at least 1, got 2.5"),
}


@pytest.mark.parametrize("name", WRONG_GROUPS)
def test_wrong_groups_are_refused_before_the_first_call(name):
    wrong, words = WRONG_GROUPS[name]
    options = {"solver": GROUPED[1], "steps": 6, "seed": 5, "count": 12, **wrong}
    model = Field(VP)
    with pytest.raises(ValueError, match=words):
        sd.sample(model, (options.pop("count"), 2), **options)
    assert not model.sizes


def test_simulate_knows_groups():
    @dataclass(frozen=True)
    class Grouped(sd.EulerMaruyama):
        group: int = 4

    rows = [row for seed in sd.seeds(5, 2) for row in sd.seeds(seed, 4)]
    x = torch.zeros(8, 2, dtype=F64)
    out = sd.simulate(VP, x, solver=Grouped(), steps=4, seed=5)
    assert torch.equal(out.x, sd.simulate(VP, x, steps=4, seed=rows).x)
    assert out.seeds == sd.seeds(5, 2)
    with pytest.raises(ValueError, match="in groups of 4: ask for a multiple of that, got 6"):
        sd.simulate(VP, x[:6], solver=Grouped(), steps=4, seed=5)


@dataclass(frozen=True)
class Counting(sd.DDIM):
    """A solver that needs its groups whole."""

    group: int = 4

    def step(self, problem, x, plan, noise, state):
        assert len(x) % self.group == 0
        return super().step(problem, x, plan, noise, state)


def test_a_group_with_a_failed_row_stays_whole_over_a_break_of_the_model():
    options = {"grid": GRID, "seed": 5, "dtype": F64, "last": "noisy"}
    whole = sd.sample(Field(VP, breaks=(0.5,)), (12, 2), solver=Counting(), **options)
    model = Field(VP, broken=(1, 4, 5, 6, 7), between=(0.55, 0.7), breaks=(0.5,))
    out = sd.sample(model, (12, 2), solver=Counting(), **options, on_fail="return", trajectory=True)
    lost = [1, 4, 5, 6, 7]
    assert [failure.sample for failure in out.failures] == lost
    assert all(0.55 < failure.t < 0.7 for failure in out.failures)
    kept = [i for i in range(12) if i not in lost]
    assert torch.equal(out.x[kept], whole.x[kept])
    assert bool(torch.isfinite(out.trajectory).all())
    assert out.accepted[lost].tolist() == [3] * 5
    assert out.accepted[kept].tolist() == [9] * 7  # with the break


# -- a start for each row --------------------------------------------------------------------------

STARTS = torch.tensor([1.0, 0.8, 0.5, 0.8], dtype=F64)
MANY = (
    sd.solvers.Euler(),
    sd.Heun(),
    sd.Heun(variable="sigma"),
    sd.solvers.RungeKutta4(),
    sd.DDIM(),
    sd.DDIM(eta=0.7),
    sd.solvers.Ancestral(),
    sd.EulerMaruyama(),
    sd.solvers.StochasticHeun(),
    sd.solvers.SRA1(),
    sd.ReverseDiffusion(),
    sd.ReverseDiffusion("song"),
    PAIRS[0],
    PAIRS[1],
    PAIRS[4],
    PAIRS[5],
    sd.solvers.DPMSolver(3),
    sd.solvers.SEEDS(2),
    sd.solvers.UniPC(3),
    sd.solvers.DPMSolverPP(3),
    sd.solvers.SASolver(),
    sd.solvers.LMS(),
    sd.solvers.LMS(startup="published"),
    sd.solvers.ERSDE(),
    MULTISTEP[-2],
    sd.solvers.EulerTrapezoid(),
    sd.solvers.Churn(sd.Heun()),
    sd.solvers.Renoise(sd.Heun()),
)
ADAPTIVE = (
    sd.RK45(),
    sd.RK45(variable="t"),
    sd.solvers.RK23(rtol=1e-3, atol=1e-3),
    sd.solvers.DOP853(),
    sd.solvers.Tsit5(variable="log_snr"),
    sd.solvers.ExponentialPair(3),
)
each_kind = pytest.mark.parametrize("solver", MANY + ADAPTIVE, ids=repr)


def of_steps(solver, **options):
    return options if solver.adaptive else {"steps": 6, **options}


@pytest.mark.thin(2)
@each_kind
def test_a_row_with_a_start_of_its_own_is_a_call_of_its_own(solver):
    options = of_steps(solver)
    out = sd.sample(
        MODEL,
        (4, 2),
        x_init=START,
        t_start=STARTS,
        solver=solver,
        seed=SEEDS,
        dtype=F64,
        trajectory=True,
        **options,
    )
    assert "t: (0.5 .. 1) to 0.001" in repr(out)
    for i, start in enumerate(STARTS.tolist()):
        own = own_call(MODEL, i, START, solver, t_start=start, trajectory=True, **options)
        close(out.x[i : i + 1], own.x)
        close(out.trajectory[:, i : i + 1], own.trajectory)
        assert torch.equal(out.times[:, i], own.times)
        for name in ("nfe", "accepted", "rejected", "status"):
            assert getattr(out, name)[i] == getattr(own, name)[0], name


LAST = (sd.DDIM(eta=0.7), sd.solvers.SASolver(), sd.solvers.Renoise(sd.Heun()), sd.RK45())


@pytest.mark.thin(2)
@pytest.mark.parametrize("last", ["noisy", "mean", "denoise"])
@pytest.mark.parametrize("solver", LAST, ids=repr)
def test_starts_go_with_every_last_step_and_every_batch_size(solver, last):
    options = of_steps(solver, last=last)
    call = {
        "x_init": START,
        "t_start": STARTS,
        "solver": solver,
        "seed": SEEDS,
        "dtype": F64,
        **options,
    }
    out, split = (sd.sample(MODEL, (4, 2), batch_size=size, **call) for size in (None, 3))
    close(split.x, out.x)
    assert torch.equal(split.times, out.times)
    for i, start in enumerate(STARTS.tolist()):
        close(out.x[i : i + 1], own_call(MODEL, i, START, solver, t_start=start, **options).x)


UPHILL = [sd.DDIM(), sd.Heun(), sd.solvers.UniPC(3), sd.RK45(), sd.solvers.InverseDDIM()]


@pytest.mark.thin(2)
@pytest.mark.parametrize("solver", UPHILL, ids=repr)
def test_encoding_starts_where_each_row_is(solver):
    starts, options = torch.tensor([0.01, 0.2, 0.4, 0.2], dtype=F64), of_steps(solver)
    out = sd.encode(MODEL, START, t_start=starts, solver=solver, **options)
    for i, start in enumerate(starts.tolist()):
        own = sd.encode(MODEL, START[i : i + 1], t_start=start, solver=solver, **options)
        close(out.x[i : i + 1], own.x)
        if not isinstance(
            solver, sd.solvers.InverseDDIM
        ):  # which goes on until the slowest row is there
            assert int(out.nfe[i]) == int(own.nfe)


ENDS = torch.tensor([0.02, 0.1, 0.2, 0.3], dtype=F64)
GRIDS = STARTS + torch.linspace(0.0, 1.0, 5, dtype=F64)[:, None] * (ENDS - STARTS)


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "solver",
    [
        sd.DDIM(),
        sd.solvers.SRA1(),
        sd.solvers.UniPC(3),
        sd.RK45(),
        sd.solvers.ExponentialPair(2, rtol=1e-3),
    ],
    ids=repr,
)
def test_each_row_may_have_a_grid_of_its_own(solver):
    options = {"last": "noisy", "trajectory": True}
    call = {"x_init": START, "grid": GRIDS, "seed": SEEDS, "dtype": F64, **options}
    out = sd.sample(MODEL, (4, 2), solver=solver, **call)
    for i in range(4):
        own = own_call(MODEL, i, START, solver, grid=GRIDS[:, i], **options)
        close(out.trajectory[:, i : i + 1], own.trajectory)
        assert (int(out.nfe[i]), int(out.rejected[i])) == (int(own.nfe), int(own.rejected))


FAILING = [sd.DDIM(), sd.EulerMaruyama(), sd.solvers.UniPC(3), sd.RK45()]


@pytest.mark.thin(3)
@pytest.mark.parametrize("last", ["noisy", "denoise"])
@pytest.mark.parametrize("solver", FAILING, ids=repr)
def test_a_row_that_fails_says_so_at_its_own_time(solver, last):
    model = Field(VP, broken=(1, 3), between=(0.0, 0.45))
    options = {"solver": solver, "on_fail": "return", "last": last}
    out = sd.sample(model, (4, 2), x_init=START, grid=GRIDS, seed=SEEDS, dtype=F64, **options)
    alone = Field(VP, broken=(0,), between=(0.0, 0.45))
    for i in range(4):
        own = own_call(alone if i in (1, 3) else MODEL, i, START, grid=GRIDS[:, i], **options)
        close(out.x[i : i + 1], own.x)
        assert int(out.status[i]) == int(own.status)
        assert [f.t for f in out.failures if f.sample == i] == [f.t for f in own.failures]
    assert [f.sample for f in out.failures] == [1, 3]


def test_a_denoising_step_that_fails_says_so_at_the_end_of_its_row():
    model = Field(VP, broken=(2, 3), between=(0.15, 0.31))  # the ends of these two alone are there
    out = sd.sample(
        model,
        (4, 2),
        x_init=START,
        grid=GRIDS,
        solver=sd.DDIM(),
        seed=0,
        last="denoise",
        on_fail="return",
        dtype=F64,
    )
    assert [(f.sample, f.t) for f in out.failures if f.sample == 3] == [(3, float(GRIDS[-1, 3]))]
    late = sd.sample(
        MODEL,
        (4, 2),
        x_init=START,
        grid=GRIDS,
        solver=sd.DDIM(),
        seed=0,
        max_nfe=4,
        on_fail="return",
        last="denoise",
    )
    assert [f.t for f in late.failures] == GRIDS[-1].tolist()


def test_a_callback_sees_the_time_of_every_row():
    seen = []
    options = {"solver": sd.DDIM(), "steps": 6, "last": "noisy", "seed": 0, "dtype": F64}
    out = sd.sample(MODEL, (4, 2), x_init=START, t_start=STARTS, callback=seen.append, **options)
    assert torch.equal(torch.stack([shot.t for shot in seen]), out.times[1:])
    assert torch.equal(seen[-1].x, out.x)
    assert [shot.done for shot in seen] == pytest.approx([k / 6 for k in range(1, 7)])


SMOOTH = [sd.DDIM(eta=0.5), sd.solvers.UniPC(2), sd.solvers.Renoise(sd.Heun()), sd.solvers.RK23()]


@pytest.mark.thin(1)
@pytest.mark.parametrize("solver", SMOOTH, ids=repr)
def test_gradients_go_back_to_every_start(solver):
    options = of_steps(solver, grad="full")
    x = START.clone().requires_grad_()
    call = {"x_init": x, "t_start": STARTS, "seed": SEEDS, "dtype": F64, **options}
    out = sd.sample(MODEL, (4, 2), solver=solver, **call).x
    (whole,) = torch.autograd.grad(out.square().sum(), x)
    for i, start in enumerate(STARTS.tolist()):
        own = own_call(MODEL, i, x, solver, t_start=start, **options).x
        (part,) = torch.autograd.grad(own.square().sum(), x)
        torch.testing.assert_close(whole[i], part[i], rtol=1e-9, atol=1e-10)


def refused(words, **options):
    model = Field(VP)
    with pytest.raises(ValueError, match=words):
        sd.sample(model, (4, 2), **{"x_init": START, "seed": 0, **options})
    assert not model.sizes


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (
            sd.solvers.Restart(sd.Heun(), (0.1, 0.4)),
            "Restart goes back at one time of the grid: it takes one grid for all",
        ),
        (
            sd.AdaptiveSDE(),
            "AdaptiveSDE.* steps on one lattice for all samples: call it once for each start",
        ),
        (sd.solvers.SciPy(), "SciPy.* takes one grid, not one for each"),
        (sd.solvers.TorchDiffEq(), "TorchDiffEq.* takes one grid, not one for each"),
        (sd.solvers.TorchSDE("euler"), "TorchSDE.* takes one grid, not one for each"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_start_its_rows_apart_says_so_before_the_first_call(solver, words):
    steps = (
        {}
        if solver.adaptive or isinstance(solver, sd.solvers.SciPy | sd.solvers.TorchDiffEq)
        else {"steps": 6}
    )
    refused(words, solver=solver, t_start=STARTS, **steps)


WRONG_STARTS = {
    "too few": ({"t_start": STARTS[:3]}, "there are 3 starts or grids for 4 samples"),
    "one": ({"t_start": STARTS[:1]}, "there are 1 starts or grids for 4 samples"),
    "none": (
        {"t_start": STARTS[:0]},
        r"t_start must be a number, or one for each sample, \(B,\); got shape \(0,\)",
    ),
    "two dimensions": (
        {"t_start": STARTS[None]},
        r"one for each sample, \(B,\); got shape \(1, 4\)",
    ),
    "late": ({"t_start": STARTS + 0.1}, r"t = 1.1 is outside the usable range"),
    "early": ({"t_start": 1e-4 * STARTS}, r"is outside the usable range"),
    "not finite": ({"t_start": STARTS * torch.nan}, "t = nan is outside"),
    "no state": (
        {"t_start": STARTS, "x_init": None},
        "a start at t = 0.5 below t_max = 1 needs x_init",
    ),
    "at the end": (
        {"t_start": STARTS, "t_end": 0.5},
        "that of sample 2, from 0.5 to 0.5, is not as those before it",
    ),
    "beyond the end": (
        {"t_start": STARTS, "t_end": 0.6},
        "that of sample 2, from 0.5 to 0.6, is not as those",
    ),
    "all beyond": ({"t_start": 0.5 * STARTS, "t_end": 0.6}, "the grid must fall"),
    "a grid too few": (
        {"grid": GRIDS[:, :3], "steps": None},
        "there are 3 starts or grids for 4 samples",
    ),
    "a grid that rises": (
        {"grid": GRIDS.flip(0), "steps": None},
        "the grid must fall, it goes from 0.02 to 1",
    ),
    "a grid that turns": (
        {"grid": GRIDS[[0, 2, 1, 3]], "steps": None},
        "that of sample 0, from 1 to .* sort it",
    ),
    "a grid and a start": (
        {"grid": GRIDS, "t_start": STARTS, "steps": None},
        "an array grid says all",
    ),
    "a rule and starts": (
        {"grid": lambda n: GRID[: n + 1], "t_start": STARTS},
        "drop t_start and t_end",
    ),
    "three dimensions": ({"grid": GRIDS[None], "steps": None}, r"got shape \(1, 5, 4\)"),
}


@pytest.mark.parametrize("name", WRONG_STARTS)
def test_wrong_starts_are_refused_before_the_first_call(name):
    wrong, words = WRONG_STARTS[name]
    refused(words, **{"solver": sd.DDIM(), "steps": 4, **wrong})


def test_wrong_starts_of_other_calls_are_refused():
    with pytest.raises(ValueError, match="there are 3 starts or grids for 4 samples"):
        sd.encode(MODEL, START, t_start=0.1 * STARTS[:3])
    with pytest.raises(ValueError, match="there are 3 starts or grids for 4 samples"):
        sd.simulate(VP, START, t_start=0.1 * STARTS[:3], steps=4)
    out = sd.simulate(VP, START, t_start=0.5 * STARTS, steps=4, seed=SEEDS)
    for i, start in enumerate((0.5 * STARTS).tolist()):
        close(
            out.x[i : i + 1],
            sd.simulate(VP, START[i : i + 1], t_start=start, steps=4, seed=[SEEDS[i]]).x,
        )


# -- there and back --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leapfrog(Solver):
    """x_next = x_before + (the DDIM step from x to the next time) - (that to the time before).

    ``start``: (time, state) before the first.
    """

    start: tuple[float, torch.Tensor] | None = None
    needs = frozenset({"data", "marginal"})
    has_memory = True

    def plan(self, problem, times):
        before = times[:1] if self.start is None else torch.tensor([self.start[0]], dtype=F64)
        alpha, sigma = problem.marginal(torch.cat([before, times]))
        forth, back = ((sigma[s] / sigma[1:-1], alpha[s]) for s in (slice(2, None), slice(-2)))
        keep = forth[0] - back[0]
        return problem.at(times[:-1], "data", keep, forth[1] - back[1] - keep * alpha[1:-1])

    def init(self, problem, x, t):
        return (x if self.start is None else self.start[1] / problem.unit,)

    def step(self, problem, x, plan, noise, state):
        return Step(state[0] + problem.evaluate(x, plan), state=(x,))


@pytest.mark.parametrize("sde", [VP, sd.VE(0.1, 5.0)], ids=repr)
def test_a_step_that_carries_the_state_before_goes_back_to_where_it_came_from(sde):
    model = Field(sde)
    times = torch.linspace(0.9, 0.05, 21, dtype=F64)
    start = float(sde.sigma(0.9)) * START
    down = sd.sample(
        model,
        (4, 2),
        x_init=start,
        solver=Leapfrog(),
        grid=times,
        last="noisy",
        seed=0,
        dtype=F64,
        trajectory=True,
    )
    back = Leapfrog((float(times[-1]), down.x))
    up = sd.encode(model, down.trajectory[-2], solver=back, grid=times[:-1].flip(0))
    torch.testing.assert_close(up.x, start, rtol=0, atol=1e-12)
    ddim = sd.decode(model, start, solver=sd.DDIM(), grid=times)
    home = sd.encode(model, ddim.x, solver=sd.DDIM(), grid=times.flip(0))
    assert float((home.x - start).abs().max()) > 1e-3
    assert down.nfe.tolist() == [20] * 4


@dataclass(frozen=True)
class Coupled(Solver):
    """Two states a sample, rows 2i and 2i + 1, each moved by the noise at the other.

    EDICT (Wallace et al. 2022, arXiv 2211.12446) without its mixing. Both take the noise at the
    noisier end of the interval; from data to noise they move in the other order.
    """

    needs = frozenset({"noise", "marginal"})
    group = 2

    def plan(self, problem, times):
        falls, half = (
            bool(times[0] > times[-1]),
            problem.take(torch.arange(0, len(problem.batch), 2)),
        )
        alpha, sigma = problem.marginal(times)
        keep = alpha[1:] / alpha[:-1]
        noisier = times[:-1] if falls else times[1:]
        at = half.at(noisier, "noise", 0.0, sigma[1:] - keep * sigma[:-1])
        return [(falls, half, *row) for row in zip(keep.tolist(), at, strict=True)]

    def step(self, problem, x, plan, noise, state):
        falls, half, keep, at = plan
        first, second = (x[::2], x[1::2]) if falls else (x[1::2], x[::2])
        first = keep * first + half.evaluate(second, at)
        second = keep * second + half.evaluate(first, at)
        return Step(torch.stack([first, second] if falls else [second, first], dim=1).flatten(0, 1))


def test_two_coupled_states_go_back_to_where_they_came_from():
    times = torch.linspace(0.9, 0.05, 21, dtype=F64)
    twice = START.repeat_interleave(2, dim=0)
    down = sd.sample(
        MODEL,
        (8, 2),
        x_init=twice,
        solver=Coupled(),
        grid=times,
        last="noisy",
        seed=0,
        dtype=F64,
        batch_size=6,
    )
    up = sd.encode(MODEL, down.x, solver=Coupled(), grid=times.flip(0))
    torch.testing.assert_close(up.x, twice, rtol=0, atol=1e-12)


# -- coefficients are made once for a grid ---------------------------------------------------------

CALLS: Counter[str] = Counter()


def counted(name):
    def method(self, *times):
        CALLS[name] += 1
        return getattr(sd.VP, name)(self, *times)

    return method


Watched = type(
    "Watched",
    (sd.VP,),
    {name: counted(name) for name in ("f", "g", "alpha", "sigma", "log_snr", "time_of", "kernel")},
)
WATCHED = Field(Watched(0.1, 5.0))
WATCHED.exact = MODEL.exact  # the network itself counts nothing


def recipe():
    """The solver that docs/own-solver.md writes, and its lines."""
    page = Path(__file__).resolve().parents[2] / "docs" / "own-solver.md"
    (code,) = (block.code for block in code_blocks(page) if "class MidpointMaruyama" in block.code)
    code, _, _ = code.partition("\n\n\nsd.sample")
    space: dict[str, object] = {"sd": sd, "torch": torch, "__name__": "recipe"}
    exec(code, space)
    lines = [line for line in code[code.index("@dataclass") :].splitlines() if line.strip()]
    return space["MidpointMaruyama"](), lines


def test_the_documented_solver_has_ten_lines():
    solver, lines = recipe()
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 100
    assert {"drift", "diffusion"} == solver.needs


def test_the_documented_solver_is_the_midpoint_rule_along_the_path():
    """Against the formula at each step; every row may start where it likes."""
    solver, _ = recipe()
    options = {"seed": SEEDS, "last": "noisy", "dtype": F64}
    out = sd.sample(MODEL, (4, 2), x_init=START, grid=GRID, solver=solver, **options)
    problem, noise, x = Reverse(MODEL, 4, 1.0), sd.White(SEEDS, (2,), dtype=F64), START
    for i, (t, s) in enumerate(itertools.pairwise(GRID)):
        middle = x + (s - t) / 2 * problem.drift(x, t)
        shock = problem.diffuse(noise.at(i).increment(t, s), t)
        x = x + (s - t) * problem.drift(middle, (t + s) / 2) + shock
    torch.testing.assert_close(out.x, x, rtol=0, atol=1e-13)
    starts = {"t_start": STARTS, "steps": 6}
    apart = sd.sample(MODEL, (4, 2), x_init=START, solver=solver, **starts, **options)
    for i, start in enumerate(STARTS.tolist()):
        close(
            apart.x[i : i + 1],
            own_call(MODEL, i, START, solver, t_start=start, steps=6, last="noisy").x,
        )


def coefficients(solver, steps):
    CALLS.clear()
    sd.sample(WATCHED, (4, 2), solver=solver, steps=steps, seed=0, dtype=F64, last="noisy")
    return dict(CALLS)


@pytest.mark.thin(4)
@pytest.mark.parametrize("solver", [recipe()[0], *FIXED], ids=repr)
def test_coefficients_of_the_sde_are_made_once_for_a_grid(solver):
    _ = coefficients(solver, 6)  # what an SDE is asked once for all
    few, many = coefficients(solver, 6), coefficients(solver, 18)
    assert few == many
    assert few


def test_a_solver_without_a_plan_makes_them_in_each_step():
    class Plain(Solver):
        def step(self, problem, x, plan, noise, state):
            t, s = plan
            return Step(x + (s - t) * problem.drift(x, t))

    few, many = (sum(coefficients(Plain(), steps).values()) for steps in (12, 60))
    assert many > few + 40


def test_a_solver_of_the_sde_draws_noise_and_needs_the_diffusion():
    class Own(Solver):
        solves_sde = True

    class Said(Solver):
        needs = frozenset({"score"})
        solves_sde = True

    class Heir(Said):
        pass

    assert Own().needs == {"drift", "diffusion"}
    assert Own().stochastic
    assert not Solver.stochastic
    assert Solver.needs == {"drift"}
    assert Said().needs == Heir().needs == {"score"}


# -- slips -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned(Solver):
    """Euler's method whose plan is changed by a slip."""

    slip: object

    def plan(self, problem, times):
        return self.slip(problem, times, problem.at(times[:-1], "drift", 1.0, times.diff(dim=0)))

    def step(self, problem, x, plan, noise, state):
        return Step(problem.evaluate(x, plan))


def raising(problem, times, entries):
    raise RuntimeError("no such table")


def raising_late(problem, times, entries):
    if float(times[0]) < 0.6:
        raise RuntimeError("no table below 0.6")
    return entries


WRONG_PLANS = {
    "too short": (
        lambda problem, times, entries: entries[:-1],
        "planned 3 steps for a grid of 4; plan.. gives one entry a step",
    ),
    "too long": (
        lambda problem, times, entries: [*entries, None],
        "planned 5 steps for a grid of 4",
    ),
    "an iterator": (
        lambda problem, times, entries: iter(entries),
        "Planned.plan must return a list, .* got list_iterator",
    ),
    "nothing": (
        lambda problem, times, entries: None,
        "Planned.plan must return a list, .* got NoneType",
    ),
    "an error": (raising, "no such table"),
    "an error behind a break": (raising_late, "no table below 0.6"),
    "a singular time": (
        lambda problem, times, entries: problem.at(0 * times[:-1], "score"),
        "score .* t = 0",
    ),
    "no quantity": (
        lambda problem, times, entries: problem.at(times[:-1], "drfit"),
        "no quantity is called 'drfit' .did you mean 'drift'",
    ),
}


@pytest.mark.parametrize("name", WRONG_PLANS)
def test_a_wrong_plan_is_refused_before_the_first_call(name):
    slip, words = WRONG_PLANS[name]
    model = Field(VP, breaks=(0.5,) if "break" in name else ())
    with pytest.raises((TypeError, ValueError, RuntimeError), match=words):
        sd.sample(model, (4, 2), solver=Planned(slip), steps=4, seed=0)
    assert not model.sizes


def test_a_plan_that_is_right_is_eulers():
    out = sd.sample(
        MODEL,
        (4, 2),
        solver=Planned(lambda problem, times, entries: entries),
        steps=4,
        seed=0,
        dtype=F64,
    )
    euler = sd.sample(
        MODEL, (4, 2), solver=sd.solvers.Euler(variable="t"), steps=4, seed=0, dtype=F64
    )
    assert torch.equal(out.x, euler.x)


@dataclass(frozen=True)
class Beyond(Solver):
    """A step that reads the problem at a time outside of its interval."""

    ahead: float

    def step(self, problem, x, plan, noise, state):
        t, s = plan
        return Step(x + (s - t) * problem.drift(x, t + self.ahead * (s - t)))


@pytest.mark.parametrize("ahead", [-0.5, 1.5])
def test_a_step_that_reads_the_problem_outside_its_grid_is_found_by_the_checks(ahead):
    with pytest.raises(ValueError, match=r"grid: the model is asked at times from"):
        sd.testing.check_solver(Beyond(ahead), verbose=False)


@pytest.mark.parametrize("stub", [Tape, Scheduler, Resampled, Leapfrog, Coupled])
def test_a_stub_has_at_most_twenty_lines(stub):
    code = inspect.getsource(stub).split('"""')[2]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20


def test_a_quantity_that_the_problem_does_not_offer_is_refused_by_name():
    class Well(sd.SDE):
        def drift(self, x, t):
            return x - x**3

        def diffusion(self, t):
            return 1.0

    model = sd.ScoreModel(lambda x, t: 2 * (x - x**3), Well(), predicts="score")
    with pytest.raises(
        ValueError,
        match="this problem does not offer data: a solver that evaluates it names it in its needs",
    ):
        Reverse(model, 4).at(GRID, "data")


def test_weighted_takes_every_kind_of_coefficient():
    """A number, one a row, one a coordinate and a matrix."""
    coordinates, matrix = (
        sd.solvers.Coordinates(torch.tensor([2.0, 3.0])),
        sd.solvers.Matrix(torch.eye(2).flip(0)),
    )
    x = START
    found = weighted((0.5, x), (STARTS, x), (coordinates, x), (matrix, x))
    each = STARTS[:, None] * x + torch.tensor([2.0, 3.0]) * x
    torch.testing.assert_close(found, 0.5 * x + each + x.flip(1))

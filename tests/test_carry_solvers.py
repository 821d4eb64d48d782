"""What users build from the protocols of problems and solvers alone, held against exact oracles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import sdediff as sd
from sdediff.protocols import facts
from sdediff.reverse import Reverse
from sdediff.solvers import Solver
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
        self.problem = Reverse(tape, len(x), float(solver.diffuses), units=units)
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


MULTISTEP = (
    sd.DPMSolverPP(2),
    sd.DPMSolverPP(3),
    sd.UniPC(2),
    sd.UniPC(4),
    sd.UniPC(3, lower_final=True),
    sd.DEIS(3),
    sd.LMS(4),
    sd.IPNDM(4),
    sd.SDEDPMSolverPP(3),
    sd.SASolver(3),
    sd.ERSDE(3),
    sd.ExponentialMultistep(4, form=sd.Straight(0.1), variable="angle"),
    sd.ExponentialMultistep(3, form=0.5, corrector=None),
)
PAIRS = [
    sd.PredictorCorrector(predictor, corrector, sequence)
    for predictor, corrector in [
        (sd.ReverseDiffusion(), sd.Langevin(n_steps=2)),
        (sd.ReverseDiffusion("song"), sd.Langevin(rule="song")),
        (sd.EulerTrapezoid(), sd.MetropolisLangevin(n_steps=2)),
    ]
    for sequence in ("predictor-first", "corrector-first")
]
FIXED = [
    sd.Euler(),
    sd.Euler(variable="sigma"),
    sd.Midpoint(),
    sd.Heun(),
    sd.Heun(variable="sigma"),
    sd.RungeKutta4(variable="angle"),
    sd.DormandPrince(variable="log_snr"),
    sd.DDIM(),
    sd.DDIM(eta=0.7),
    sd.Ancestral(),
    sd.EulerMaruyama(),
    sd.StochasticHeun(),
    sd.SRA1(),
    sd.SRA3(),
    sd.ReverseDiffusion(),
    sd.EulerTrapezoid(),
    sd.Langevin(),
    sd.MetropolisLangevin(),
    sd.DPMSolver(3),
    sd.DPMSolverPPSinglestep(2),
    sd.SEEDS(3),
    sd.ExponentialSinglestep(4, form=0.5),
    *MULTISTEP,
    *(replace(solver, startup="published") for solver in MULTISTEP),
    *PAIRS,
    sd.Churn(sd.Heun(variable="sigma"), churn=4.0),
    sd.Renoise(sd.RungeKutta4()),
    sd.Renoise(sd.DPMSolver(2)),
    sd.Restart(sd.Heun(), (0.3, 0.7), rounds=2),
]
each_fixed = pytest.mark.parametrize("solver", FIXED, ids=repr)


@each_fixed
def test_a_scheduler_that_replays_steps_on_a_tape_is_sample_to_the_bit(solver):
    found, calls = driven(solver, MODEL, GRID)
    out = sd.sample(MODEL, (4, 2), solver=solver, grid=GRID, last="noisy", seed=SEEDS, dtype=F64)
    assert torch.equal(found, out.x)
    assert out.nfe.tolist() == [calls] * 4


SOME = [sd.Heun(), sd.EulerMaruyama(), sd.UniPC(3), *PAIRS[:2]]


@pytest.mark.parametrize("solver", SOME, ids=repr)
def test_a_scheduler_works_in_the_units_of_the_data(solver):
    model = Field(sd.EDM(0.01, 20.0))
    times = torch.tensor([20.0, 8.0, 3.0, 1.0, 0.3, 0.1], dtype=F64)
    out = sd.sample(model, (4, 2), solver=solver, grid=times, last="noisy", seed=SEEDS, dtype=F64)
    assert torch.equal(driven(solver, model, times)[0], out.x)


@pytest.mark.parametrize("tol", [0.0, 1e-8])
def test_a_scheduler_solves_for_the_inverse_of_ddim_on_a_rising_grid(tol):
    """Without a tolerance a step has as many evaluations as it is told, at times that are known."""
    solver, times = sd.InverseDDIM(tol=tol, iterations=40 if tol else 5), GRID.flip(0)
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
    fixed = {kind for kind in kinds if kind.adaptive is False and not kind.whole} - {
        Solver,
        sd.solvers.RungeKutta,
    }
    assert fixed == {type(solver) for solver in FIXED} | {sd.PredictorCorrector, sd.InverseDDIM}

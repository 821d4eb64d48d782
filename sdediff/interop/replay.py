"""A solve with fixed steps whose network is called by somebody else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sdediff.constraints import Constrained, Constraint
from sdediff.protocols import Like, Model, Rows, facts
from sdediff.reverse import Reverse
from sdediff.sde import LinearSDE
from sdediff.solvers import Noise, Solver, Step, White
from sdediff.solvers.integrate import require
from sdediff.solvers.noise import Silence

__all__ = ["Replay", "announced", "check_fits", "check_own_grid"]

_LOWEST = -20.0  # log-SNR where a solver starts that cannot start at alpha = 0


def check_fits(solver: object) -> Solver:
    """Return ``solver``; a TypeError or ValueError unless its evaluations are known beforehand."""
    fits = "take a solver with fixed steps: UniPC(3), DDIM() or Heun(), say"
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a solver value, got {solver!r}; {fits}")
    reasons = {
        "is another library's driver, which calls the network itself": solver.external,
        "is adaptive: how often it evaluates depends on what the network returns, and a scheduler "
        "has to list its times beforehand": solver.adaptive,
        "is a chain with a grid of its own, and here the number of steps comes from the pipeline; "
        "Ancestral() takes its steps on any grid": solver.times is not None and solver.stochastic,
        f"takes rows in groups of {solver.group}, which no pipeline makes": solver.group != 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"{solver!r} {reason}; {fits}")
    return solver


def check_own_grid(solver: Solver, steps: int | None, given: object) -> None:
    """A ValueError unless a pipeline asks for as many evaluations as a solver with ``times``
    makes.
    """
    count = len(cast(Tensor, solver.times)) - 1
    if given is not None or steps != count:
        asked = "timesteps= or sigmas=" if given is not None else f"{steps} steps"
        raise ValueError(
            f"{solver!r} has a grid of its own, of {count} evaluations: ask for "
            f"num_inference_steps={count} in place of {asked}"
        )


class Asked(Exception):
    """The network is asked at (x, t)."""


class Tape:
    """A model that answers with the outputs on a tape, and raises `Asked` where the tape ends."""

    declared_data_std = 1.0

    def __init__(self, sde: LinearSDE, predicts: Any) -> None:
        self.sde = sde
        self.predicts = predicts
        self.outputs: Iterator[Tensor] = iter(())

    def at(self, times: Tensor, like: Like, piece: Any) -> Sequence[Tensor]:
        """The times themselves."""
        return times.unbind()

    def evaluate(self, x: Tensor, at: Tensor, rows: Rows) -> Tensor:
        """The next output of the tape."""
        for output in self.outputs:
            return output
        raise Asked(x, at)


class Replay:
    """A solve along ``times`` from the state x that stops wherever the network is asked.

    ``asked`` is (state, time) of the evaluation that it waits for, and None at the end, when
    ``x`` is E[x_0 | x] at the last time, as with ``last="denoise"`` of `sample`, or the last state
    of a solver that ``ends_clean``. `answer` hands it
    the output. The current step is then taken anew with all outputs that it has had so far, which
    gives the same numbers as long as a step has no side effects and its noise is stateless.
    """

    def __init__(
        self,
        solver: Solver,
        tape: Tape,
        constraint: Constraint | None,
        times: Tensor,
        x: Tensor,
        noise: Noise | None,
    ) -> None:
        self.solver = solver
        self.tape = tape
        self.times = times
        self.noise = noise if solver.stochastic else None
        self.silent = Silence(solver)
        model: Model = tape if constraint is None else Constrained(tape, constraint)
        lam = float(solver.solves_sde)
        self.problem = Reverse(model, len(x), lam, like=Like.of(x), known=facts(model))
        require(self.problem, solver)
        self.plans = solver.plan(self.problem, times) if len(times) > 1 else []
        self.x = x
        self.step = 0
        self.answers: list[Tensor] = []
        self.memory: tuple[Tensor, ...] = ()
        self.handed: Tensor | None = None
        self.asked: tuple[Tensor, Tensor] | None = None
        self._advance()

    def answer(self, output: Tensor, sample: Tensor) -> None:
        """Go on with the network's ``output`` at ``sample``, the state that was asked for, which
        the caller may have changed.

        Between steps a change is a change of the state. Between the stages of a step it reaches
        the network alone.
        """
        if not self.answers:
            self.x = self._changed(sample)
        self.answers.append(output.to(self.x.dtype))
        self._advance()

    def hand(self, dtype: torch.dtype) -> Tensor:
        """The state at which the network is asked, or at the end the result, rounded to
        ``dtype``.
        """
        self.handed = (self.x if self.asked is None else self.asked[0]).to(dtype)
        return self.handed

    def _advance(self) -> None:
        while True:
            try:
                made = self._take(self.x, self.answers)
            except Asked as asked:
                self.asked = asked.args
                return
            if isinstance(made, Tensor):
                self.x, self.asked = made, None
                return
            self.x, self.memory, self.answers = made.x, made.state, []
            self.step += 1

    def _take(self, x: Tensor, answers: Sequence[Tensor]) -> Step | Tensor:
        """The current step from x with these outputs; after the last one E[x_0 | x]."""
        self.tape.outputs = iter(answers)
        if self.step == len(self.plans):
            return x if self.solver.ends_clean else self.problem.clean(x, self.times[-1])
        noise = self.silent if self.noise is None else self.noise.at(self.step)
        memory = self.memory if self.step else self.solver.init(self.problem, x, self.times[0])
        return self.solver.step(self.problem, x, self.plans[self.step], noise, memory)

    def _changed(self, sample: Tensor) -> Tensor:
        """The state of a step that asks the network at ``sample``: what was handed out has been
        rounded, so that where nothing was changed the state stays as it was.
        """
        given = sample.to(self.x.dtype)
        if self.asked is not None and self.asked[0] is not self.x:  # noise was added before
            given = self._before(given)
        return given if self.handed is None else torch.where(sample == self.handed, self.x, given)

    def _before(self, sample: Tensor) -> Tensor:
        """The state x for which ratio x + noise, where the step asks first, is ``sample``."""
        noise, there = (self._first(x) for x in (torch.zeros_like(sample), sample))
        ratio = ((there - noise) * sample).sum() / (sample * sample).sum()
        return (sample - noise) / ratio

    def _first(self, x: Tensor) -> Tensor:
        try:
            self._take(x, ())
        except Asked as asked:
            state: Tensor = asked.args[0]
            return state
        raise RuntimeError(f"{self.solver!r} takes a step without an evaluation")


def announced(
    solver: Solver, tape: Tape, constraint: Constraint | None, times: Tensor
) -> tuple[Tensor, list[tuple[int, float]]]:
    """The grid, and (step, t) of each evaluation along it, from a dry run without a network.

    Where the grid starts at alpha = 0 and the solver cannot, it starts where log-SNR is -20. A
    network that predicts noise says nothing of the data at alpha = 0: that is a ValueError.
    """
    sde = tape.sde
    vanished = float(sde.alpha(times[0])) == 0.0
    try:
        asked, finite = _dry_run(solver, tape, constraint, times)
        if finite or not vanished:
            return times, asked
    except ValueError as error:
        if not vanished or tape.predicts == "noise":
            if vanished:
                error.add_note(
                    "timestep_spacing='leading' starts below, and so do timesteps= of your own"
                )
            raise
    times = torch.cat([sde.time_of(torch.tensor([_LOWEST], dtype=times.dtype)), times[1:]])
    return times, _dry_run(solver, tape, constraint, times)[0]


def _dry_run(
    solver: Solver, tape: Tape, constraint: Constraint | None, times: Tensor
) -> tuple[list[tuple[int, float]], bool]:
    """The evaluations, and whether a state of ones with outputs of 0.1 stays finite."""
    x = torch.ones(1, 1)
    noise = White([0], (1,)) if solver.stochastic else None
    replay = Replay(solver, tape, constraint, times, x, noise)
    found = []
    while replay.asked is not None:
        state, t = replay.asked
        found.append((replay.step, float(t)))
        replay.answer(torch.full_like(state, 0.1), state)
    return found, bool(torch.isfinite(replay.x).all())

"""The solver that tuning starts from, on its grid, with exactly so many evaluations."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdediff.options import check_solver, default_solver
from sdediff.protocols import Facts
from sdediff.sde import LinearSDE
from sdediff.solvers import (
    DEIS,
    IPNDM,
    DPMSolverPP,
    ExponentialMultistep,
    Solver,
    Straight,
)

__all__ = [
    "OTHERS",
    "OTHER_GRIDS",
    "Start",
    "check_falls",
    "check_smooth",
    "check_start",
    "start_of",
]


OTHERS: Final = (
    DPMSolverPP(2, startup="published"),
    DEIS(2, startup="published"),
    DEIS(3, startup="published"),
    IPNDM(3, startup="published"),
    ExponentialMultistep(2, form="noise", startup="published"),
    ExponentialMultistep(1, form=Straight(), variable="angle", corrector=1, startup="published"),
)
"""Where tuning may start too if no solver is named: one of them may suit a model better than the
default. The last is no published one: it has the default's form, of order 1.
"""
OTHER_GRIDS: Final = ("uniform", "log_snr", "karras")
"""On which it starts from these."""


def check_smooth(known: Facts) -> None:
    """A ValueError for a model whose field jumps: solvers begin anew there, and so are no sums
    along one grid.
    """
    if known.breaks:
        raise ValueError(
            f"the model's field jumps at t = {', '.join(f'{t:g}' for t in known.breaks)}, as "
            "guidance in an interval does, and solvers begin anew there: tuning makes one table "
            "for a field without jumps; leave the interval out"
        )


class Start(NamedTuple):
    """A solver and how many steps it takes."""

    solver: Solver
    steps: int


def check_start(solver: object) -> Solver:
    """Return ``solver``; an error unless it is one with fixed steps that draws no noise."""
    found = check_solver(solver)  # type: ignore[arg-type]
    fits = "take ExponentialMultistep(), UniPC(3) or DDIM(), say, or None for the default"
    reasons = {
        "is adaptive, so that its evaluations are no fixed number": found.adaptive,
        "draws noise, so that it has no one result to come near": found.stochastic
        or found.solves_sde,
        "is another library's driver, which calls the network itself": found.external,
        "is a chain or a table with a grid of its own": found.times is not None,
        f"takes rows in groups of {found.group}": found.group != 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"tuning starts from a deterministic solver with fixed steps, and "
                f"{found!r} {reason}; {fits}"
            )
    return found


def start_of(
    sde: LinearSDE,
    solver: Solver | None,
    nfe: int,
    *,
    denoise: bool,
    known: Facts,
) -> Start:
    """The most steps for which ``solver``, None being the default one of a model of which so much
    is ``known``, makes at most ``nfe`` evaluations of the network; a ValueError unless it makes
    exactly so many.
    """
    cost = known.cost
    calls, rest = divmod(nfe, cost)
    if rest:
        raise ValueError(
            f"nfe = {nfe} counts evaluations of the network, and each call of this model makes "
            f"{cost} at most: take a multiple of {cost}"
        )
    given = calls - denoise
    most = 0
    for steps in range(1, given + 1):
        own = solver or default_solver(
            sde,
            steps,
            stochastic=False,
            details=known.details,
            guidance=known.guidance_scale,
        )
        count = own.evaluations * steps + getattr(own, "startup_evaluations", 0)
        if count > given:
            break
        most, exact, found = steps, count == given, own
    if not most:
        least = "the one of the end, E[x_0 | x], and " if denoise else ""
        raise ValueError(
            f"nfe = {nfe} is too few: it counts {least}those of one step at least; "
            f"take {cost * (1 + denoise)} or more"
            + ("" if solver is None else f", and as many as {solver!r} needs")
        )
    if not exact:
        raise ValueError(
            f"{found!r} makes {cost * found.evaluations} evaluations a step, so that no number of "
            f"steps makes nfe = {nfe}{' with that of the end' if denoise else ''}: take another nfe"
        )
    return Start(check_start(found), most)


def check_falls(solver: Solver, times: Tensor) -> None:
    """A ValueError unless the evaluations of ``solver`` are at ``times`` that fall."""
    if bool((times.diff() >= 0).any()) or not bool(torch.isfinite(times).all()):
        raise ValueError(
            f"{solver!r} evaluates twice at one time, or goes back: tuning starts from a solver "
            "with one evaluation at each of its times, ExponentialMultistep() or UniPC(3), say"
        )

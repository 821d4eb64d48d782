"""Why two solvers or two models that should agree do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.model import ScoreModel
from sdediff.modules import evaluating
from sdediff.predictions import PREDICTIONS
from sdediff.solvers import Noise, Solver
from sdediff.testing.equivalences.case import Case
from sdediff.testing.orders import Still, fitted_order
from sdediff.testing.report import likely_slip

__all__ = ["Run", "cause"]

Lam = float | Callable[[Tensor], Tensor]

_SHARES: Final = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Run:
    """Two solvers, each with its model and stochasticity, on one case."""

    case: Case
    pair: tuple[Solver, Solver]
    models: tuple[ScoreModel, ScoreModel]
    lams: tuple[Lam, ...]
    labels: tuple[str, str]
    bound: float
    refinable: bool

    def states(self, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        """What each makes of the start, at all times of the grid."""
        found = []
        for solver, model, lam in zip(self.pair, self.models, self.lams, strict=True):
            with evaluating(model):
                found.append(self.case.solve(solver, lam, model=model, noise=noise))
        return found[0], found[1]

    def short(self, share: float) -> Run:
        """On one step, that share of the middle interval of the grid."""
        t, s = self.case.grid[(k := (len(self.case.grid) - 1) // 2) : k + 2]
        return replace(self, case=replace(self.case, grid=(t, t + share * (s - t))))


def cause(run: Run) -> str:
    """The likely one, "" where none is recognised."""
    if run.models[0] is not run.models[1] and (found := _misread(run)):
        return found
    draws = [solver.stochastic for solver in run.pair]
    if draws[0] != draws[1]:
        one, other = (run.labels[i] for i in (draws.index(True), draws.index(False)))
        return f"{one} draws noise and {other} does not"
    if draws[0] and (found := _noise(run)):
        return found
    return _order(run) if run.refinable else ""


def _misread(run: Run) -> str:
    """Whether a network of one model, read as another prediction, is the other model; else how
    their noises differ.
    """
    t = run.case.times[len(run.case.times) // 2]
    x = run.case.start(t)
    for i, name in ((1, "b"), (0, "a")):
        mine, due = run.models[i], _noise_of(run.models[1 - i], x, t)
        for way in PREDICTIONS:
            read = copy.copy(mine)
            read.predicts = way
            if way != mine.predicts and _close(_noise_of(read, x, t), due, run.bound):
                return (
                    f"the network of {name} predicts {way}, and is declared to predict "
                    f"{mine.predicts}"
                )
    one, other = (_noise_of(model, x, t).numpy() for model in run.models)
    slip = likely_slip(one, other)
    return f"their noise predictions differ by {slip}" if slip else ""


def _noise_of(model: ScoreModel, x: Tensor, t: Tensor) -> Tensor:
    try:
        with evaluating(model):
            return model.noise(x, t)
    except ValueError:
        return torch.full_like(x, torch.nan)


def _noise(run: Run) -> str:
    """Whether only the noise differs, and how."""
    still = run.states(Still((run.case.rows, *run.case.law.event)))
    if not _close(*still, run.bound):
        return ""
    one, other = (noisy[1] - quiet[1] for noisy, quiet in zip(run.states(), still, strict=True))
    ratio = float((one * other).sum() / other.square().sum()) if bool(other.any()) else float("nan")
    if not _close(one, ratio * other, 1e-6):
        return (
            "without noise they agree: the noise is of another stream or number, or of more than "
            "one draw"
        )
    if abs(ratio - 1) < 1e-6:
        return "without noise, and in the first step, they agree: the noise of later steps differs"
    named = likely_slip(one.numpy(), other.numpy())
    known = f" ({named})" if named and "constant" not in named else ""
    return (
        f"without noise they agree: the noise of the first has {ratio:.6g} times the size in the "
        f"first step{known}"
    )


def _order(run: Run) -> str:
    """How fast one step of the one approaches one step of the other as it shrinks."""
    gaps = []
    for share in _SHARES:
        one, other = run.short(share).states()
        gaps.append(float((one[-1] - other[-1]).abs().max()))
    if not all(0 < gap < float("inf") for gap in gaps):
        return ""
    power = fitted_order(gaps, 10.0)
    said = f"one step h differs as h^{power:.1f}"
    if power >= 1.3:
        return f"two discretizations of one process: {said}"
    kind = "drift" if power >= 0.75 else "amount of noise (stochasticity, eta)"
    return f"{said}: another {kind}"


def _close(given: Tensor, expected: Tensor, bound: float) -> bool:
    size: Any = expected.abs().max()
    return bool((given - expected).abs().max() <= bound * size)

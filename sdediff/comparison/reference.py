"""Where the exact flow takes each start, by a tight solve that another method checks, and draws of
the law asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.comparison.allowance import OutOfTimeError
from sdediff.comparison.measuring import Solve, errors_of
from sdediff.comparison.record import Reference
from sdediff.metrics.samples import check_sample
from sdediff.options import STRONG
from sdediff.protocols import Facts
from sdediff.solvers import DOP853, Heun, Solution, Solver, Tsit5, seeds
from sdediff.solvers.given import described

__all__ = [
    "Against",
    "Truth",
    "fixed",
    "flow_draws",
    "given_draws",
    "tolerance_of",
    "truth",
    "truth_in",
]

_FINE: Final = 1e-9
_COARSE: Final = 1e-5
_MOST: Final = 5000
_STREAM: Final = 1
"""Which of the seed's streams the reference set has; the samples compared have the seed itself."""

Against = Tensor | Callable[[int], Tensor]
"""Draws of the law asked for, a function of how many are wanted, or an object with ``sample(count,
seed=)``.
"""


@dataclass(frozen=True)
class Truth:
    """The exact flow's samples ``x``, float64 where the device has it; None where there are none.
    ``good``: those that came to their end.
    """

    x: Tensor | None
    good: Tensor | None
    facts: Reference


def tolerance_of(known: Facts) -> float:
    """The reference's tolerance by default: tight, or what a network in single precision allows."""
    exact = known.dtype is None or torch.finfo(known.dtype).eps < 1e-10
    return _FINE if exact and known.device.type != "mps" else _COARSE


def truth(solve: Solve, known: Facts, tolerance: float | None, seed: int) -> Truth:
    """The reference: DOP853 at a tight tolerance, in double precision, checked by the default
    solver at as many evaluations (Tsit5 where there is no Gaussian kernel, or strong guidance).
    """
    tight = tolerance_of(known) if tolerance is None else tolerance
    main = DOP853(rtol=tight, atol=tight * known.data_std)
    name = f"DOP853 at {tight:.0e}"
    kind = torch.float32 if known.device.type == "mps" else torch.float64
    try:
        found = solve(solver=main, seed=seed, dtype=kind, max_nfe=_MOST)
        spent = float(found.nfe.double().mean())
        if smooth(solve, known):
            steps = max(100, round(spent))
            words = f"the default solver in {steps} steps"
            other = solve(steps=steps, seed=seed, dtype=kind)
        else:
            words = f"Tsit5 at {tight:.0e}"
            second = Tsit5(rtol=tight, atol=tight * known.data_std)
            other = solve(solver=second, seed=seed, dtype=kind, max_nfe=_MOST)
    except OutOfTimeError:
        raise
    except Exception as error:
        return _none(name, error)
    return _checked(solve, found, other, name, words)


def smooth(solve: Solve, known: Facts) -> bool:
    """Whether the default solver follows the flow closely: there is a Gaussian kernel, and no
    strong guidance.
    """
    return "kernel" in solve.model.sde.offers and known.guidance_scale <= STRONG


def fixed(solve: Solve, known: Facts) -> Solver | None:
    """What follows the flow in fixed steps: None, the default solver, or Heun's method."""
    return None if smooth(solve, known) else Heun()


def truth_in(solve: Solve, known: Facts, steps: int, seed: int) -> Truth:
    """A reference of known cost: `fixed` in so many steps, at least 2, checked by half as many."""
    solver = fixed(solve, known)
    name = f"{'the default solver' if solver is None else described(solver)} in {steps} steps"
    words = f"the same in {steps // 2} steps"
    kind = torch.float32 if known.device.type == "mps" else torch.float64
    try:
        found, other = (
            solve(solver=solver, steps=each, seed=seed, dtype=kind) for each in (steps, steps // 2)
        )
    except OutOfTimeError:
        raise
    except Exception as error:
        return _none(name, error)
    return _checked(solve, found, other, name, words)


def _none(name: str, error: Exception) -> Truth:
    """No reference, since the user's network failed in it."""
    note = f"there is none: {type(error).__name__}: {' '.join(str(error).split())}"
    return Truth(None, None, Reference(name, 0.0, None, "", note))


def _checked(solve: Solve, found: Solution, other: Solution, name: str, words: str) -> Truth:
    """The result of a solve as a reference, with the distance of another one as its error."""
    spent = float(found.nfe.double().mean())
    good = (found.status == 0) & (other.status == 0)
    lost = int((~good).sum())
    if lost == len(good):
        why = f"there is none: {(found.failures or other.failures)[0]}"
        return Truth(None, None, Reference(name, spent, None, words, why))
    note = f"{lost} of {len(good)} samples have none" if lost else ""
    error_ = errors_of(solve.inside(other.x), solve.inside(found.x), good)
    return Truth(found.x, good, Reference(name, spent, error_, words, note))


def flow_draws(solve: Solve, known: Facts, seed: int, *, steps: int | None = None) -> Tensor | None:
    """Draws of the probability flow's law, from other starts than those of the seed, by a tight
    solve, or by so many steps of `fixed`; None where it cannot be solved.
    """
    other = seeds(seed, range(_STREAM, _STREAM + 1))[0]
    tight = max(_COARSE, tolerance_of(known))
    tightly: Any = {
        "solver": DOP853(rtol=tight, atol=tight * known.data_std),
        "max_nfe": _MOST,
    }
    try:
        stepped = {"solver": fixed(solve, known), "steps": steps}
        found = solve(seed=other, **(tightly if steps is None else stepped))
    except OutOfTimeError:
        raise
    except Exception:  # of the user's network: the reference has said which
        return None
    good = found.status == 0
    return found.x[good.to(found.x.device)] if int(good.sum()) >= 2 else None


def given_draws(against: Any, shape: tuple[int, ...], known: Facts, seed: int) -> Tensor:
    """Draws of the law that the user gave; a TypeError or ValueError unless they are like the
    samples.
    """
    count, *event = shape
    if isinstance(against, Tensor):
        drawn = against
    elif hasattr(against, "sample"):
        drawn = against.sample(count, seed=seeds(seed, range(_STREAM, _STREAM + 1))[0])
    elif callable(against):
        drawn = against(count)
    else:
        raise TypeError(
            "against must be draws (m, *event), a function from a number to so many draws, or an "
            f"object with sample(count, seed=); got {described(against)}"
        )
    drawn = check_sample("against", drawn, 2)
    if tuple(drawn.shape[1:]) != tuple(event):
        raise ValueError(
            f"against has draws of shape {tuple(drawn.shape[1:])}, and samples have "
            f"{tuple(event)}: they have to be the same"
        )
    return drawn.to(known.device)

"""How a solve is to be driven, and what a user's callback sees of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from sdediff.solvers.given import Record
from sdediff.solvers.solution import MOST_NFE
from sdediff.solvers.solver import Solver
from sdediff.solvers.stepping import Control, Reached, Stepped

__all__ = ["Observer", "Options", "Snapshot"]


class Snapshot(NamedTuple):
    """What a callback sees after a step: copies, so that what it does to them does not reach the
    solve.
    """

    step: int
    """Number of steps (attempts, if adaptive) made."""
    done: float
    """Share of the way that is behind, 0 to 1."""
    t: Tensor
    """Time, () or (rows,)."""
    x: Tensor
    """States (rows, *event) of the samples still moving."""
    rows: Tensor | None
    """Which samples those are; None: all."""
    nfe: Tensor
    """Evaluations so far, (B,)."""


class Observer(Protocol):
    """What stands between the driver's loop and its steps: it sees every step, and may end a
    sample's way.
    """

    def attempt(self, control: Control, stepped: Stepped) -> Reached:
        """Do what `Control.attempt` does, by calling it."""


@dataclass(frozen=True)
class Options(Record):
    """How to drive a solve; `sdediff.sample` documents each."""

    last: Literal["mean", "noisy"] = "noisy"
    trajectory: bool = False
    callback: Callable[[Snapshot], None] | None = None
    max_nfe: int | None = None
    on_fail: Literal["raise", "return"] = "raise"
    grad: Literal["none", "full", "checkpoint"] = "none"
    progress: Callable[[float], None] | None = None
    observer: Observer | None = None

    def limit(self, solver: Solver) -> int | None:
        """Evaluations a sample at most: ``max_nfe``, and `MOST_NFE` for an adaptive solver without
        one.
        """
        return MOST_NFE if self.max_nfe is None and solver.adaptive else self.max_nfe

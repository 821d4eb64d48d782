"""How a solve is to be driven, and what a user's callback sees of it; options that functions
share.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from sdediff.solvers.given import Record, check_choice
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solution import MOST_NFE, Failure
from sdediff.solvers.solver import Solver, Step

__all__ = [
    "Control",
    "Observer",
    "Options",
    "Reached",
    "Shared",
    "Snapshot",
    "Stepped",
    "check_grad",
]

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


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


Reached = Iterable[tuple[int, Tensor, Tensor | None]]
Stepped = Callable[[Problem, Tensor, Any, StepNoise, tuple[Tensor, ...]], Step]
"""A solver's ``step``, or one that keeps less for a gradient."""


class Control(Protocol):
    """What the driver's loop asks of a way of stepping."""

    accepted: Tensor  # steps of every sample, int64 on the host
    rejected: Tensor
    failures: list[Failure]
    final: Tensor
    """States of all samples where they stopped."""
    active: bool
    """Whether there is a step left to take."""
    extras: Mapping[str, Tensor] = {}
    """What the last step said of each sample beside its state."""

    @property
    def done(self) -> float:
        """The share of the way that is behind."""

    def where(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(t, x, samples): times and states of the rows that still move, and which samples these
        are (None: all).
        """

    def attempt(self, stepped: Stepped) -> Reached:
        """Take a step by the solver's ``step`` and judge it.

        Returns (k, state, rows) for each time of the grid that was reached, for a trajectory.
        """

    def cap(self, max_nfe: int) -> None:
        """Stop the samples whose next step could evaluate the network more than ``max_nfe``
        times.
        """

    def hold(self, failed: Tensor) -> None:
        """Leave samples where they are that failed before: ``failed`` is a mask (rows,)."""

    def stop(self, samples: Tensor, x: Tensor) -> None:
        """End the way of ``samples``, int64 (k,), at states x (k, *event): they have not failed."""


def check_grad(grad: object) -> None:
    """A ValueError unless ``grad`` says how to keep gradients, and torch keeps a graph if it asks
    for one.
    """
    check_choice("grad", grad, ("none", "full", "checkpoint"))
    if grad != "none" and not torch.is_grad_enabled():
        where = "torch.inference_mode" if torch.is_inference_mode_enabled() else "torch.no_grad"
        raise ValueError(
            f"grad={grad!r} keeps the graph of the solve, and {where} is on, under which there "
            "is none: call it outside of that, "
            "or under torch.enable_grad() (inference_mode(False) first, where that is on), or "
            "drop grad"
        )


@dataclass(frozen=True)
class Shared:
    """``defaults`` of options by name, which the docstrings of ``records`` explain, a paragraph
    for each.
    """

    defaults: Mapping[str, Any]
    records: tuple[type, ...]

    def takes(self, record: type, *, without: Collection[str] = ()) -> Callable[[_F], _F]:
        """Decorate a function with ``**options: Unpack[record]``: its signature and its docstring
        show the options one by one, except those in ``without``, which `chosen` refuses.
        """
        kinds = {name: kind.__forward_arg__ for name, kind in record.__annotations__.items()}
        names = [name for name in kinds if name not in without]

        def shown(function: _F) -> _F:
            own = inspect.signature(function)
            *named, _ = own.parameters.values()
            added = [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=self.defaults[name],
                    annotation=kinds[name],
                )
                for name in names
            ]
            made: Any = function
            made.__signature__ = own.replace(parameters=[*named, *added])
            words = inspect.cleandoc(function.__doc__ or "")
            made.__doc__ = f"{words}\n\n{self.documented(names)}"
            return function

        return shown

    def documented(self, names: Collection[str]) -> str:
        """What the records say of these options."""
        found: list[str] = []
        for record in self.records:
            text = inspect.cleandoc(record.__doc__ or "")
            for entry in re.split(r"\n+(?=``\w+``(?:, ``\w+``)*: )", text)[1:]:
                if set(re.findall(r"``(\w+)``", entry.partition(": ")[0])) & set(names):
                    found.append(entry)
        return "\n".join(found)

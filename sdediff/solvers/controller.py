"""Step size controllers: the norms of the errors go in, verdicts and factors come out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sdediff.solvers.given import NotNegative, Part, Positive, Record, Share

__all__ = ["Controller", "PIController", "Verdict", "judge"]

_LEAST: Final = 1e-10  # norms outside these two say no more than the ends do
_MOST: Final = 1e10


class Verdict(NamedTuple):
    """What a controller says of one step of every row."""

    accepted: Tensor
    """Whether the row takes the step, bool (rows,) on the host."""
    factor: Tensor
    """The length of the next step over that of this one, float64 (rows,) on the host, finite and
    positive, and below 1 where the step was rejected.
    """
    history: tuple[Tensor, ...] = ()
    """What the controller is handed with the next norms: tensors (rows, ...) on the host."""


@runtime_checkable
class Controller(Protocol):
    """What accepts or rejects the steps of an adaptive solve, and how long the next ones are.

    A controller is a function without side effects: what it remembers travels in ``history``, which
    the driver keeps with the rows. A controller of your own is passed as ``RK45(controller=...)``;
    one that is a frozen dataclass keeps solvers comparable.
    """

    @property
    def goal(self) -> float:
        """The norm of the error that the first step aims at; 1 is the tolerance."""

    def start(self, rows: int) -> tuple[Tensor, ...]:
        """The history before the first step."""

    def judge(self, norm: Tensor, history: tuple[Tensor, ...], order: float) -> Verdict:
        """The verdict on steps whose errors have the norms ``norm``, float64 (rows,) on the host.

        A norm of 1 is the tolerance. Norms are clipped to 1e-10 and 1e10, and one that is no number
        is 1e10, so that no controller need look for those. The estimates of the errors are
        O(h^order).
        """


@dataclass(frozen=True)
class PIController(Record, Controller):
    """A proportional integral controller: with e the norm of the error of a step of length h, q the
    order of its estimate and e_before the norm of the last accepted step,

        h_next = h (goal / e)^(integral / q) (e_before / goal)^(proportional / q),

    where e <= 1, which accepts the step. Where e > 1 the step is rejected and retried at the lesser
    of that and safety h e^(-1 / q).

    ``goal`` in (0, 1]: the norm that steps aim at. At a tenth of the tolerance few steps are
    rejected and no single one makes most of the error, which was cheapest on flows of mixtures at a
    given error of the result (docs/solvers.md). Steps that draw noise aim at 0.6 by default: the
    estimate is mostly noise, and little is gained by a smaller goal.
    ``safety`` in (0, 1): a retry aims at this part of the step that would just be accepted, because
    another rejection costs a whole step.
    ``shrink`` in (0, 1) and ``grow`` > 1 bound the factor: outside them the estimate's power law is
    no guide. A step that follows a rejected one is no longer than it, because the reason for the
    rejection is still near.
    ``integral`` > 0 and ``proportional`` >= 0: the exponents, 0.7 and 0.4 by Hairer and Wanner. The
    second makes a step shorter if the error has grown since the step before, so that step sizes
    oscillate less where stability bounds them. 1 and 0 are the classical rule.
    ``least`` in (0, 1]: e_before counts as this part of the goal at least, because an error that is
    0 by chance would shorten the next step for nothing.

    A ValueError names an argument that is out of range. Sources: Hairer and Wanner, Solving
    Ordinary Differential Equations II, IV.2; Hairer, Norsett and Wanner I, II.4.
    """

    goal: Share = 0.1
    safety: Part = 0.9
    shrink: Part = 0.2
    grow: Positive = 10.0
    integral: Positive = 0.7
    proportional: NotNegative = 0.4
    least: Share = 0.01

    def __post_init__(self) -> None:
        if self.grow <= 1:
            raise ValueError(f"PIController: grow must be above 1, got {self.grow!r}")

    def start(self, rows: int) -> tuple[Tensor, ...]:
        """(e_before / goal, whether the step before was rejected)."""
        return torch.ones(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.bool)

    def judge(self, norm: Tensor, history: tuple[Tensor, ...], order: float) -> Verdict:
        # by NumPy, whose operations on so few numbers take a third of the time of torch's
        e, before, retry = (each.numpy() for each in (norm, *history))
        ok, excess = e <= 1, e / self.goal
        factor = excess ** (-self.integral / order) * before ** (self.proportional / order)
        again = np.minimum(self.safety * e ** (-1 / order), factor)
        found = np.where(ok, factor, again).clip(self.shrink, np.where(retry, 1.0, self.grow))
        kept = np.where(ok, excess.clip(self.least), before)
        accepted, length, *memory = map(torch.from_numpy, (ok, found, kept, ~ok))
        return Verdict(accepted, length, tuple(memory))


def judge(
    controller: Controller, norm: Tensor, history: tuple[Tensor, ...], order: float
) -> Verdict:
    """The verdict of ``controller`` on error norms (rows,); a ValueError unless it fits them."""
    rows, name = len(norm), type(controller).__name__
    clipped = np.maximum(np.fmin(norm.numpy(), _MOST), _LEAST)  # fmin of NaN and _MOST is _MOST
    found = controller.judge(torch.from_numpy(clipped), history, order)
    accepted, factor, kept = found if isinstance(found, Verdict) else (None, None, None)
    if not (
        isinstance(accepted, Tensor)
        and isinstance(factor, Tensor)
        and accepted.dtype == torch.bool
        and accepted.shape == factor.shape == norm.shape
        and isinstance(kept, tuple)
        and all(isinstance(part, Tensor) and part.shape[:1] == norm.shape for part in kept)
    ):
        raise ValueError(
            f"{name}.judge must return Verdict(accepted, factor, history), tensors of {rows} rows: "
            f"bool ({rows},), float64 ({rows},) and a tuple of any; got {found!r}"
        )
    factor = factor.to(torch.float64)
    size = factor.numpy()
    wrong = ~((size > 0) & (size < np.where(accepted.numpy(), math.inf, 1.0)))
    if wrong.any():
        e, bad = clipped[wrong][0], size[wrong][0]
        raise ValueError(
            f"{name}.judge gave the factor {bad:g} for an error of norm {e:g}: it must be finite "
            "and positive, and below 1 where the step is rejected"
        )
    return Verdict(accepted, factor, kept)

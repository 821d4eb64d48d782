"""Events: times at which a function of the state changes its sign."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from sdediff.solvers.functions import Function, FunctionProblem
from sdediff.solvers.given import Record

__all__ = ["Event", "ridders"]

_MOST: Final = 60


@dataclass(frozen=True)
class Event(Record):
    """A sign change of ``function``(x, t), (rows,), on a sample's way.

    ``direction`` is which changes count: ``"rising"`` from negative to positive on the way,
    ``"falling"``, or ``"either"``. A ``terminal`` event ends the way of its sample the first time
    (True, or 1 as in SciPy; there is no other count). Looked at are the ends of the steps: of two
    changes within one step none is seen, so that a function which changes fast needs more steps.
    The time is found within 1e-10 of the length of the way, or 4 units in the last place of the
    state's dtype if that is more, by Ridders' method on states within the step (`Dense`). A start
    at 0 is no change. The time of a function that arrives at 0 and stays there is the first one.
    """

    function: Function
    terminal: bool = False
    direction: Literal["either", "rising", "falling"] = "either"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"Event: function must be a function g(x, t), got {self.function!r}")

    def value(self, problem: FunctionProblem, x: Tensor, t: Tensor) -> Tensor:
        """The function at states of the rows of a problem, float64 (rows,)."""
        found = problem.call("the function of an event", self.function, x, t)
        if found.shape != (len(x),):
            raise ValueError(
                "the function of an event must return one number a sample, "
                f"({len(x)},); got {tuple(found.shape)}"
            )
        if found.dtype == torch.bool:  # whose changes do not lie between their values
            raise TypeError(
                "the function of an event must return numbers that change their sign, not bools: "
                "x[:, 0] - 1 say in place of x[:, 0] > 1"
            )
        return found.to("cpu", torch.float64, copy=True)

    def happened(self, before: Tensor, after: Tensor) -> Tensor:
        """Which rows changed their sign, bool (rows,)."""
        rose = (before < 0) & (after >= 0)
        fell = (before > 0) & (after <= 0)
        return {"either": rose | fell, "rising": rose, "falling": fell}[self.direction]


def ridders(
    g: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, fa: Tensor, fb: Tensor, near: float
) -> Tensor:
    """Where g, of values ``fa`` at times a and ``fb`` at b of another sign (or 0), changes its
    sign: (rows,), within ``near`` (Ridders 1979).
    """
    side, found = fa.sign(), b
    for _ in range(_MOST):
        m = 0.5 * (a + b)
        fm = g(m)
        root = (fm.square() - fa * fb).sqrt()
        new = torch.where(root > 0, m + (m - a) * side * fm / root, m)
        # where g is 0 at b, the end of the bracket: whether it is there just before
        before = b - (b - a) * (near / (b - a).abs()).clamp(max=0.5)
        new = torch.where(fb == 0, before, new)
        fn = g(new)
        moved, found = (new - found).abs(), new
        swap = (new - a).abs() < (m - a).abs()
        low, flow = torch.where(swap, new, m), torch.where(swap, fn, fm)
        high, fhigh = torch.where(swap, m, new), torch.where(swap, fm, fn)
        early = flow.sign() != side
        late = ~early & (fhigh.sign() != side)
        after = ~early & ~late
        a, fa = (
            torch.where(late, low, torch.where(after, high, a)),
            torch.where(late, flow, torch.where(after, fhigh, fa)),
        )
        b, fb = (
            torch.where(early, low, torch.where(late, high, b)),
            torch.where(early, flow, torch.where(late, fhigh, fb)),
        )
        if bool((((moved <= near) & (fb != 0)) | ((b - a).abs() <= near)).all()):
            break
    return torch.where(fb == 0, b, found)

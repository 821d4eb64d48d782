"""Whether a step of any library keeps what it promises: a function step(x, t, s) of arrays of NumPy
or torch, held against an equation whose solution or law is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sdediff.solvers import DOP853, solve_ode
from sdediff.solvers.given import check_choice, real
from sdediff.testing.convergence import fitted_order, measured
from sdediff.testing.report import (
    Check,
    Comparison,
    Report,
    Skip,
    SolverError,
    compare,
    require,
    settle,
)

__all__ = ["Equation", "StepFunction", "check_step"]

Array = NDArray[np.float64]
StepFunction = Callable[[Any, float, float], Any]
"""step(x, t, s): the states (rows, d) at time s that follow the states x at time t."""

_ODE_STEPS: Final = (8, 16, 32)
_SDE_STEPS: Final = (4, 8, 16)
_SDE_ROWS: Final = 1 << 17
_SHORT: Final = 1e-3  # a step so short, as a share of the times, that only its noise matters
_SURE: Final = 5.0  # standard errors that chance may explain: one false alarm in two million


@dataclass(frozen=True)
class Equation:
    """dx = drift(x, t) dt + diffusion(t) dw between two ``times``: what a step solves.

    ``drift(x, t)`` takes states (rows, d), arrays of the library under test, and a number, and
    returns slopes (rows, d). ``diffusion(t)`` returns a number; it is None for an ODE. With a
    diffusion the drift has to be affine in x and to treat each coordinate by itself, a(t) x + c(t),
    so that the law of the solution is known. ``x_init`` (d,) is where all rows of an SDE start; the
    rows of an ODE start at it, a half of it and a quarter of it. ``times`` rise or fall.
    """

    drift: Callable[[Any, Any], Any]
    diffusion: Callable[[Any], Any] | None = None
    x_init: tuple[float, ...] = (1.0, -0.4)
    times: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def curved(cls) -> Equation:
        """dx = (1 + t) x / (1 + x^2) dt, an ODE that is not linear.

        It is written by operators alone, so that x may be an array of any library.
        """
        return cls(lambda x, t: (1 + t) * x / (1 + x * x))

    @classmethod
    def relaxing(cls) -> Equation:
        """dx = (t - 2 (1 + t) x) dt + (0.5 + t) dw, an SDE whose law is known."""
        return cls(lambda x, t: t - 2 * (1 + t) * x, lambda t: 0.5 + t)

    def spread(self, t: float) -> float:
        """diffusion(t), 0 for an ODE."""
        return 0.0 if self.diffusion is None else float(self.diffusion(t))

    def grid(self, n: int) -> list[float]:
        """n steps of one length."""
        start, end = self.times
        return [start + (end - start) * k / n for k in range(n)] + [end]


@dataclass(frozen=True)
class _Subject:
    """A step function with what it is held against; arrays are NumPy's outside of it."""

    step: StepFunction
    equation: Equation
    order: float | None
    arrays: Literal["torch", "numpy"]

    def given(self, x: Array) -> Any:
        return torch.from_numpy(x.copy()) if self.arrays == "torch" else x.copy()

    def at(self, x: Array, t: float, s: float) -> Array:
        """One step."""
        return _array(self.step(self.given(x), t, s))

    def solve(self, x: Array, n: int) -> Array:
        """n steps over the times of the equation."""
        for t, s in itertools.pairwise(self.equation.grid(n)):
            x = self.at(x, t, s)
        return x

    def slope(self, x: Array, t: float) -> Array:
        return np.broadcast_to(_array(self.equation.drift(self.given(x), t)), x.shape)

    def integrate(self, slope: Callable[[Array, float], Array], x: Array) -> Array:
        """The solution of dx = slope dt at the end, to 1e-12."""
        times = torch.tensor(self.equation.times, dtype=torch.float64)
        solver = DOP853(1e-12, 1e-12)

        def field(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            rows = zip(y.numpy(), np.broadcast_to(_array(t), (len(y),)), strict=True)
            return torch.from_numpy(np.stack([slope(row, float(when)) for row, when in rows]))

        return _array(solve_ode(field, torch.from_numpy(x[None].copy()), times, solver).x[0])

    def moments(self) -> tuple[Array, Array]:
        """Mean and standard deviation (d,) of the solution at the end, m' = a m + c and
        V' = 2 a V + b^2.
        """
        sign = math.copysign(1.0, self.equation.times[1] - self.equation.times[0])
        start = np.asarray(self.equation.x_init, np.float64)
        zero, one = np.zeros((1, len(start))), np.ones((1, len(start)))

        def slope(both: Array, t: float) -> Array:
            mean, variance = both
            free = self.slope(zero, t)[0]
            rate = self.slope(one, t)[0] - free
            noise = sign * self.equation.spread(t) ** 2
            return np.stack([rate * mean + free, 2 * rate * variance + noise])

        mean, variance = self.integrate(slope, np.stack([start, np.zeros_like(start)]))
        return mean, np.sqrt(variance)

    @property
    def many(self) -> Array:
        """All rows at the start of the SDE."""
        return np.tile(np.asarray(self.equation.x_init, np.float64), (_SDE_ROWS, 1))

    def shocks(self, size: float) -> Array:
        """What a short step from the start adds, less its mean, over what its noise should be."""
        start, end = self.equation.times
        s = start + size * (end - start)
        moved = self.at(self.many, start, s)
        due = self.equation.spread(start) * math.sqrt(abs(s - start))
        shocks: Array = (moved - moved.mean(axis=0)) / due
        return shocks


_CONTRACTS: Final[dict[str, Check]] = {}


def _contract(name: str) -> Callable[[Check], Check]:
    def enter(check: Check) -> Check:
        _CONTRACTS[name] = check
        return check

    return enter


def check_step(
    step: StepFunction,
    equation: Equation | None,
    order: float | None,
    arrays: Literal["torch", "numpy"],
    verbose: bool,
) -> Report:
    """What `check_solver` does with a function step(x, t, s)."""
    if not isinstance(equation, Equation):
        raise TypeError(
            "check_solver takes a step function with the equation that it solves: pass "
            f"equation=Equation(drift, diffusion), or Equation.curved(); got {equation!r}"
        )
    order = None if order is None else real("order", order)
    check_choice("arrays", arrays, ("torch", "numpy"))
    subject = _Subject(step, equation, order, arrays)
    if equation.diffusion is not None:
        _check_affine(subject)
    findings = tuple(settle(name, check(subject)) for name, check in _CONTRACTS.items())
    name = getattr(step, "__name__", repr(step))
    return Report(name, findings, "contract").conclude(SolverError, verbose)


def _check_affine(subject: _Subject) -> None:
    """A ValueError unless the law of the solution can be computed."""
    d, start = len(subject.equation.x_init), subject.equation.times[0]
    x = np.stack([np.zeros(d), np.ones(d), np.full(d, 2.0), np.arange(d) == 0])
    zero, one, two, first = subject.slope(x, start)
    straight = np.allclose(two - zero, 2 * (one - zero), rtol=1e-9)
    if not straight or not np.allclose(first[1:], zero[1:], rtol=1e-9):
        raise ValueError(
            "Equation: with a diffusion the drift has to be a(t) x + c(t), coordinate by "
            "coordinate, so that the law is known; take Equation.relaxing(), or leave out the "
            "diffusion to test the drift alone"
        )


@_contract("arrays")
def _arrays(subject: _Subject) -> Iterator[Comparison]:
    """The kind, shape and dtype of the states are kept, and they are not written to."""
    start, end = subject.equation.times
    for dtype in (np.float64, np.float32):
        x = subject.given(_rows(subject.equation).astype(dtype))
        before = _array(x).copy()
        out = subject.step(x, start, 0.5 * (start + end))
        kinds = [_kind(each) for each in (x, out)]
        said = f"{kinds[0]} comes back as {kinds[1]}"
        yield require(kinds[0] == kinds[1], said, hint="make new arrays like x")
        same = bool((_array(x) == before).all())
        yield require(same, "the states that step was given are changed", hint="x += in place")


@_contract("rows")
def _independent(subject: _Subject) -> Iterator[Comparison]:
    """A row moves as it does alone."""
    if subject.equation.diffusion is not None:
        raise Skip("draws noise")
    x, hint = _rows(subject.equation), "a mean, norm or step size over the batch"
    whole = subject.solve(x, 8)
    for row in range(len(x)):
        alone = subject.solve(x[row : row + 1], 8)
        yield compare("a row alone", alone, whole[row : row + 1], {}, 1e-9, scale=1.0, hint=hint)


@_contract("order")
def _order(subject: _Subject) -> Iterator[Comparison]:
    """The error at the end of the ODE against the number of steps."""
    if subject.equation.diffusion is not None:
        raise Skip("draws noise: see weak order")
    x = _rows(subject.equation)
    exact = subject.integrate(subject.slope, x)
    errors = [float(np.abs(subject.solve(x, n) - exact).max()) for n in _ODE_STEPS]
    yield _against("order", errors, subject.order)


@_contract("noise")
def _noise(subject: _Subject) -> Iterator[Comparison]:
    """The variance of a short step is diffusion^2 times its length."""
    _needs_noise(subject)
    ratio = float(subject.shocks(_SHORT).var())
    at = {"t": subject.equation.times[0]}
    what = "the variance of a short step over diffusion^2 |s - t|"
    yield compare(what, ratio, 1.0, at, 0.03, scale=1.0, hint=_wrong_noise(ratio))


@_contract("fresh noise")
def _fresh(subject: _Subject) -> Iterator[Comparison]:
    """Steps, rows and coordinates have noise of their own."""
    _needs_noise(subject)
    first, second = subject.shocks(_SHORT), subject.shocks(_SHORT)
    pairs = {
        "two steps": (first, second, "seed the generator once, outside of step"),
        "neighbouring rows": (first[1:], first[:-1], "draw noise of the shape of x"),
    }
    if first.shape[1] > 1:
        hint = "draw noise of the shape of x: one Brownian motion a coordinate"
        pairs["neighbouring coordinates"] = (first[:, 1:], first[:, :-1], hint)
    for what, (a, b, hint) in pairs.items():
        found = float((a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean()))
        bound = _SURE / math.sqrt(a.size)
        said = f"the correlation of the noise of {what}"
        yield compare(said, found, 0.0, {}, bound, scale=1.0, hint=hint)


@_contract("weak order")
def _weak(subject: _Subject) -> Iterator[Comparison]:
    """Mean and spread at the end of the SDE against the number of steps; errors are counted in
    spreads, and may exceed the claim by five standard errors of the draws.
    """
    _needs_noise(subject)
    mean, std = subject.moments()
    errors = []
    for n in _SDE_STEPS:
        x = subject.solve(subject.many, n)
        off = [(x.mean(axis=0) - mean) / std, x.std(axis=0) / std - 1]
        errors.append(float(np.sqrt(np.square(off).sum())))
    chance = _SURE * math.sqrt(1.5 * len(mean) / _SDE_ROWS)
    shown = ", ".join(f"{error:.2g}" for error in errors)
    seen = [error for error in errors if error > chance]
    note = f"{fitted_order(seen):.2f}" if len(seen) > 1 else "too exact to be measured"
    note = f"{note}, errors {shown}, of which chance explains {chance:.2g}"
    if subject.order is None:
        yield require(True, "", note=f"measured: {note}")
        return
    for fewer, more in itertools.pairwise(errors):
        gap = max(0.0, more - fewer * 2 ** (0.25 - subject.order))
        said = f"the error in law does not fall at order {subject.order:g} (measured: {note})"
        yield Comparison(gap, chance, "", said, "a wrong drift or noise, or too high a claim")
    yield require(True, "", note=f"{note}, for a claim of {subject.order:g}")


def _against(what: str, errors: list[float], claim: float | None) -> Comparison:
    """The order that the errors show, against the claim where there is one."""
    if claim is not None:
        return measured(what, errors, claim)
    order = fitted_order([max(error, 1e-300) for error in errors])
    return require(True, "", note=f"measured: {order:.2f}")


def _wrong_noise(ratio: float) -> str:
    """The likely slip where a step's variance is ``ratio`` times what it should be."""
    if ratio < 0.05:
        return "noise of size h where sqrt(h) is due"
    return f"the noise is too {'large' if ratio > 1 else 'small'} by a factor {ratio**0.5:.3g}"


def _needs_noise(subject: _Subject) -> None:
    if subject.equation.diffusion is None:
        raise Skip("the equation has no diffusion")


def _kind(x: Any) -> str:
    """The type, shape and dtype of an array in words."""
    if not hasattr(x, "shape"):
        return type(x).__name__
    return f"{type(x).__name__} {tuple(x.shape)} of {x.dtype}"


def _rows(equation: Equation) -> Array:
    """Three starts of an ODE, (3, d)."""
    return np.outer([1.0, 0.5, 0.25], equation.x_init)


def _array(x: Any) -> Array:
    found: Array = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    return found

"""torchdiffeq and SciPy as solvers of the probability flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.solvers.arithmetic import rowwise
from sdediff.solvers.external.driver import External, Run, Stop, check_method
from sdediff.solvers.problem import Problem
from sdediff.solvers.solution import Status
from sdediff.solvers.solver import check_tolerances, tolerances

__all__ = ["SciPy", "TorchDiffEq"]


class _Method(NamedTuple):
    order: float
    evaluations: int  # a step; 1 where the method does not tell
    adaptive: bool = True


_TORCHDIFFEQ: Final = {
    "dopri5": _Method(5, 6),
    "dopri8": _Method(8, 13),
    "bosh3": _Method(3, 3),
    "fehlberg2": _Method(2, 2),
    "adaptive_heun": _Method(2, 1),
    "euler": _Method(1, 1, False),
    "midpoint": _Method(2, 2, False),
    "heun2": _Method(2, 2, False),
    "heun3": _Method(3, 3, False),
    "rk4": _Method(4, 4, False),
    "explicit_adams": _Method(4, 1, False),
    "implicit_adams": _Method(4, 5, False),  # at most
}
_NOT_TORCHDIFFEQ: Final = {
    "fixed_adams": "it is 'implicit_adams' under an older name",
    "scipy_solver": "take SciPy('LSODA'), which lands on every time and counts its steps",
}


class _Ode(External):
    """What the two share: a method by name, and tolerances."""

    method: str
    rtol: float
    atol: float | None

    needs = frozenset({"drift"})

    @property
    def _facts(self) -> _Method:
        raise NotImplementedError

    @property
    def order(self) -> float:
        return self._facts.order

    @property
    def evaluations(self) -> int:
        return self._facts.evaluations

    @property
    def adaptive(self) -> bool:
        return self._facts.adaptive


def _existing(problem: Problem, x: Tensor) -> float:
    """The root of the share of coordinates that exist: by so much padding lowers a root mean square
    over all of them.
    """
    missing = 0 if problem.mask is None else int((~problem.mask).sum())
    return math.sqrt(1 - missing / x.numel())


@dataclass(frozen=True)
class _Rms:
    """torchdiffeq's own norm, over what exists: ``share`` is that of `_existing`."""

    share: float

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        # Kept out of the graph: a gradient through the size of the first step would have to go
        # through the times of all stages.
        return x.abs().pow(2).mean().sqrt() / self.share


class _Slope:
    """dx / dt, with the callbacks that torchdiffeq looks for."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.proposed: Tensor | None = None

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.run.drift(x, t)

    def callback_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        """A step of length dt is about to be taken from (t, x): where t has moved, the one before
        was accepted.
        """
        self.proposed = dt.detach()
        if float(t) != float(self.run.t):
            self.run.arrive(t, x)


class _CountingSlope(_Slope):
    def callback_reject_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        """A step was rejected."""
        self.run.rejected += 1


@dataclass(frozen=True)
class TorchDiffEq(_Ode):
    """A method of torchdiffeq's ``odeint`` on the probability flow in t.

    Adaptive: ``dopri5``, ``dopri8``, ``bosh3``, ``fehlberg2``, ``adaptive_heun``. They take no
    steps and land on every time of a ``grid``, by one call of ``odeint`` an interval: two
    evaluations more at the start, one at every other time. Tolerances are for the root mean square
    over all of the batch that exists, so that a sample depends on the others in it: `RK45` is per
    sample. Fixed: ``euler``, ``midpoint``, ``heun2``, ``heun3``, ``rk4`` (the 3/8 rule),
    ``explicit_adams`` and ``implicit_adams`` (both of order 4 at least, by RK4 at the start). The
    grid is their steps; the Adams methods need it uniform in t. Only ``implicit_adams`` reads
    ``rtol`` and ``atol``.

    torchdiffeq rounds times to the state's dtype; times of the grid are restored, and none lies
    outside its span. ``grad="full"`` differentiates the steps that were taken, ``"checkpoint"``
    evaluates the network again in the backward pass.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float | None = None

    library = "torchdiffeq"

    def __post_init__(self) -> None:
        check_method(self, self.method, tuple(_TORCHDIFFEQ), _NOT_TORCHDIFFEQ)
        check_tolerances(self)

    @property
    def _facts(self) -> _Method:
        return _TORCHDIFFEQ[self.method]

    def pieces(self, intervals: int) -> list[tuple[int, int]]:
        """With fixed steps one call for the whole grid."""
        return super().pieces(intervals) if self.adaptive else [(0, intervals)] if intervals else []

    def check(self, run: Run) -> None:
        """The Adams methods of torchdiffeq have the coefficients of equal steps, whatever the
        grid.
        """
        h = run.times.diff()
        if (
            self.method.endswith("adams")
            and len(h)
            and bool(((h - h.mean()).abs() > 1e-9 * h.mean().abs()).any())
        ):
            raise ValueError(
                f"{self!r} has the coefficients of equal steps: take grid='uniform', or another "
                "method"
            )

    def advance(self, run: Run, x: Tensor, first: int, last: int) -> Sequence[Tensor]:
        from torchdiffeq import odeint

        kind = torch.float32 if x.device.type == "mps" else torch.float64
        times = run.times[first : last + 1].to(kind).to(x.device)
        options: dict[str, Any] = {"norm": _Rms(_existing(run.problem, x))}
        slope = _CountingSlope(run) if self.adaptive else _Slope(run)
        if self.adaptive:
            # Without step_t a step goes beyond the end, and the state there is interpolated.
            options |= {"step_t": times[-1:], "dtype": kind, "first_step": run.memory}
        elif self.method == "explicit_adams":
            # Adams-Bashforth of order 4; those of order 11, torchdiffeq's default, are not stable
            options["max_order"] = 5
        rtol, atol = tolerances(self, run.problem, x.dtype)
        states: Tensor = odeint(
            slope, x, times, rtol=rtol, atol=atol, method=self.method, options=options
        )
        run.memory = slope.proposed
        return states[1:].unbind()


_SCIPY: Final = {
    "RK23": _Method(3, 3),
    "RK45": _Method(5, 6),
    "DOP853": _Method(8, 12),
    "Radau": _Method(5, 1),
    "BDF": _Method(5, 1),
    "LSODA": _Method(12, 1),
}


@dataclass(frozen=True)
class SciPy(_Ode):
    """A method of SciPy's ``solve_ivp`` on the probability flow in t.

    ``RK23``, ``RK45``, ``DOP853``; ``Radau``, ``BDF`` and ``LSODA``, which are implicit.
    ``SciPy("RK45", 1e-5, 1e-5)`` is the sampler of Song et al. 2021 (arXiv 2011.13456, D.4). SciPy
    integrates in float64 on the host whatever the state's dtype and device, so that the problem
    sees float64 states, and the result is cast back. Tolerances are for the root mean square over
    the whole batch, so that a sample depends on the others in it: `RK45` is per sample, and stays
    on the device.

    It lands on every time of a ``grid`` and starts anew there. The implicit methods are told that
    samples do not depend on each other: a Jacobian by differences takes an evaluation for each
    coordinate of the event (``LSODA``: two). Rejected steps are derived from the evaluations for
    the explicit methods and 0 for the others. No gradients.
    """

    method: str = "RK45"
    rtol: float = 1e-5
    atol: float | None = None

    library = "SciPy"

    def __post_init__(self) -> None:
        check_method(self, self.method, tuple(_SCIPY), {})
        check_tolerances(self)

    @property
    def _facts(self) -> _Method:
        return _SCIPY[self.method]

    def check(self, run: Run) -> None:
        """NumPy arrays carry no gradients."""
        if run.options.grad != "none":
            raise ValueError(
                f"{self!r} computes in NumPy, which keeps no graph: take grad='none', or RK45() "
                "or TorchDiffEq('dopri5')"
            )

    def advance(self, run: Run, x: Tensor, first: int, last: int) -> Sequence[Tensor]:
        from scipy import integrate

        kind = torch.float32 if x.device.type == "mps" else torch.float64

        def slope(t: float, y: Any) -> Any:
            state = torch.from_numpy(y.copy()).to(kind).to(x.device).reshape(x.shape)
            return rowwise(run.drift(state, float(t))).flatten().double().cpu().numpy()

        def state(y: Any) -> Tensor:
            return torch.from_numpy(y.copy()).to(x.dtype).to(x.device).reshape(x.shape)

        start, end = run.times[[first, last]].tolist()
        y = x.double().cpu().numpy().ravel()
        # Padding, whose error is 0, then does not loosen the root mean square over all coordinates.
        rtol, atol = (
            _existing(run.problem, x) * each for each in tolerances(self, run.problem, kind)
        )
        solver = getattr(integrate, self.method)(
            slope, start, y, end, rtol=rtol, atol=atol, **self._structure(x)
        )
        steps = 0
        while solver.status == "running":
            # BDF subtracts memory that it has not written yet; what it gives is looked at
            with np.errstate(all="ignore"):
                words = solver.step()
            steps += 1
            if solver.status == "failed":
                raise Stop(
                    Status.STEP_TOO_SMALL if "step size" in words else Status.DRIVER_STOPPED, words
                )
            if solver.status == "running":
                run.arrive(solver.t, state(solver.y))
        # f and a probe to start with, then so many evaluations an attempt
        if self.method in ("RK23", "RK45", "DOP853"):
            run.rejected += round((solver.nfev - 2) / self.evaluations) - steps
        return [state(solver.y)]

    def _structure(self, x: Tensor) -> dict[str, Any]:
        """What the implicit methods are told of the Jacobian: there is a block for each sample."""
        if self.method == "LSODA":
            return {"lband": rowwise(x).shape[1] - 1, "uband": rowwise(x).shape[1] - 1}
        if self.method in ("Radau", "BDF"):
            from scipy.sparse import eye_array, kron

            rows, d = rowwise(x).shape
            return {"jac_sparsity": kron(eye_array(rows), np.ones((d, d)), format="csc")}
        return {}

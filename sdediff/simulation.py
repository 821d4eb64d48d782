"""The forward SDE, simulated by the solvers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from sdediff.arguments import (
    Grid,
    Span,
    check_seed,
    check_solver,
    check_states,
    make_times,
    row_seeds,
)
from sdediff.sde import SDE
from sdediff.sde.base import drift_of
from sdediff.solvers import (
    EulerMaruyama,
    Noise,
    Options,
    Problem,
    Snapshot,
    Solution,
    Solver,
    White,
)
from sdediff.solvers.arithmetic import at_least_float32, planned, weighted
from sdediff.solvers.coefficients import Coef
from sdediff.solvers.given import callback_of, check_choice, flag
from sdediff.solvers.options import check_grad
from sdediff.solving import check_count, check_dtype, check_group
from sdediff.units import Units

__all__ = ["Forward", "simulate"]


def simulate(
    sde: SDE,
    x_0: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    grid: Grid | None = None,
    t_start: float | Tensor | None = None,
    t_end: float | None = None,
    seed: int | Sequence[int] | None = None,
    noise: Noise | None = None,
    trajectory: bool = False,
    callback: Callable[[Snapshot], None] | None = None,
    on_fail: Literal["raise", "return"] = "raise",
    grad: Literal["none", "full", "checkpoint"] = "none",
    dtype: torch.dtype | None = None,
) -> Solution:
    """Carry states x_0 (B, *event) from t_start (default 0) forward to t_end (default t_max): dx =
    drift(x, t) dt + g(t) dw.

    For any `SDE`, with a Gaussian kernel or without: for a `LinearSDE` the same law comes at once
    from ``perturb``. ``solver`` is one that takes the diffusion in its steps, `EulerMaruyama` by
    default; where the diffusion is 0 at all times, so that this is an ODE, it may be any, `RK45`
    say. The other arguments and the result are those of `sample`; ``nfe`` counts evaluations of
    the drift. ``dtype`` is that of the state and its noise, torch.float32 or torch.float64, by
    default that of x_0, float32 at least. Under VE the states at t = 0 carry noise already, and x_0
    should.

    Raises ValueError or TypeError before any work, `SolveError` where a state goes bad.
    """
    if isinstance(sde, type) or not isinstance(sde, SDE):
        got = sde.__name__ if isinstance(sde, type) else type(sde).__name__
        hint = (
            "pass model.sde"
            if isinstance(getattr(sde, "sde", None), SDE)
            else "pass an instance, VP() say"
        )
        raise TypeError(f"sde must be an SDE, got {got}; {hint}")
    x_0 = at_least_float32(check_states("x_0", x_0))
    # the user's own tensor stays out of the solve
    x_0 = x_0.to(x_0.dtype if dtype is None else check_dtype(dtype), copy=True)
    solver = EulerMaruyama() if solver is None else check_solver(solver)
    units = Units(sde.data_std)
    span = Span(sde, 0.0, sde.t_max, whole=True)
    times = make_times(span, solver, steps, grid, t_start, t_end, unit=units.unit)
    if not solver.solves_sde and not _vanishes(sde, times, x_0):
        raise ValueError(
            f"{solver!r} integrates no diffusion, and the forward SDE has one; use EulerMaruyama()"
        )
    check_count(times, len(x_0))
    _ = check_group(solver, len(x_0), None)
    check_choice("on_fail", on_fail, ("raise", "return"))
    check_grad(grad)
    seeds = check_seed(seed, noise, tuple(x_0.shape), x_0.device, solver.group)
    if seeds is not None:
        rows = row_seeds(seeds, solver.group)
        noise = White(rows, x_0.shape[1:], dtype=x_0.dtype, device=x_0.device)
    callback = callback_of("callback", callback, "of a Snapshot")
    trajectory = flag("trajectory", trajectory)
    options = Options(
        trajectory=trajectory, callback=units.outside(callback), on_fail="return", grad=grad
    )
    found = solver.solve(
        Forward(sde, len(x_0), units.unit), units.enter(x_0), times, noise, options
    )
    return replace(units.left(found), seeds=seeds).failed((), on_fail)


def _vanishes(sde: SDE, times: Tensor, x: Tensor) -> bool:
    """Whether the diffusion is 0 at the times of a grid and at 64 between its ends."""
    low, high = float(times.min()), float(times.max())
    between = torch.linspace(low, high, 64, dtype=torch.float64)
    sizes = planned(64 + times.numel(), None, sde.diffusion(torch.cat([times.flatten(), between])))
    event = x.shape[1:]
    # no matrix of the kind that people write takes this to 0, unless it is 0
    probe = torch.linspace(1, 2, event.numel(), dtype=torch.float64).exp().reshape(1, *event)
    return all(not bool(weighted((size, probe)).any()) for size in sizes[0])


class Forward(Problem):
    """dx = drift(x, t) dt + g(t) dw, the forward SDE itself, for states in units of ``unit``."""

    offers = frozenset({"drift", "diffusion"})

    def __init__(self, sde: SDE, samples: int, unit: float = 1.0) -> None:
        super().__init__(samples)
        self.sde, self.unit = sde, unit

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        drift = drift_of(self.sde, weighted((self.unit, x)), t)
        return self.seen(x, drift / self.unit)  # a copy: the SDE may return one tensor each time

    def diffusion(self, t: Tensor) -> Coef:
        g: Coef = self.sde.diffusion(t)
        return g * (1 / self.unit)

"""Data to latents and back, along the probability flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from sdediff.arguments import (
    Grid,
    Span,
    check_model,
    check_shape,
    check_solver,
    check_states,
    default_solver,
    intervals,
)
from sdediff.protocols import Model, facts
from sdediff.solvers import Options, RungeKutta4, Snapshot, Solution, Solver
from sdediff.solving import Solving, check_deterministic

__all__ = ["decode", "encode", "flow_solver", "state_dtype"]


def encode(
    model: Model,
    x: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    grid: Grid | None = None,
    t_start: float | Tensor | None = None,
    t_end: float | None = None,
    condition: Mapping[str, Tensor] | None = None,
    mask: Tensor | None = None,
    batch_size: int | None = None,
    trajectory: bool = False,
    callback: Callable[[Snapshot], None] | None = None,
    progress: bool = False,
    max_nfe: int | None = None,
    on_fail: Literal["raise", "return"] = "raise",
    grad: Literal["none", "full", "checkpoint"] = "none",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Solution:
    """Carry data x (B, *event) from t_min up to t_max along dx = [drift(x, t) - g^2 / 2 score(x,
    t)] dt; no noise is drawn.

    The probability flow of Song et al. 2021 (arXiv 2011.13456, eq. 13), uphill: the latents are the
    ``x`` of the result, and `decode` brings them back. x is taken for a state at ``t_start``, by
    default t_min, as it is. ``solver`` is any that draws no noise; with ``steps=N`` or a ``grid``
    that rises it takes fixed steps: `DDIM` is then DDIM inversion (Song et al. 2021, arXiv
    2010.02502, Section 4.3), explicit, so that N steps up and N steps down differ by an error of
    order 1 / N. By default `RK45`, or with steps the deterministic default of `sample`. ``dtype``
    is that of x unless given, float32 at least. All else is as for `sample`.

    Raises ValueError or TypeError before the first evaluation of the network, `SolveError` after
    it.
    """
    solver = flow_solver("encode", model, solver, steps, grid)
    kind = state_dtype("x", x, dtype)
    solving = Solving.checked(
        model,
        facts(model),
        x.shape,
        Span.encoding(model.sde),
        solver,
        steps=steps,
        grid=grid,
        t_start=t_start,
        t_end=t_end,
        condition=condition,
        mask=mask,
        batch_size=batch_size,
        trajectory=trajectory,
        callback=callback,
        progress=progress,
        max_nfe=max_nfe,
        on_fail=on_fail,
        grad=grad,
        dtype=kind,
        device=device,
    )
    return _carry("encoding", solving, x)


def decode(
    model: Model,
    z: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    grid: Grid | None = None,
    t_start: float | Tensor | None = None,
    t_end: float | None = None,
    condition: Mapping[str, Tensor] | None = None,
    mask: Tensor | None = None,
    batch_size: int | None = None,
    trajectory: bool = False,
    callback: Callable[[Snapshot], None] | None = None,
    progress: bool = False,
    max_nfe: int | None = None,
    on_fail: Literal["raise", "return"] = "raise",
    grad: Literal["none", "full", "checkpoint"] = "none",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Solution:
    """Carry latents z (B, *event) from t_max down to t_min along the probability flow: the inverse
    of `encode`.

    The result is the state at the end as it is: ``sample(model, z.shape, x_init=z, last="noisy")``
    without noise. The arguments are those of `encode`, a ``grid`` falls.

    Raises ValueError or TypeError before the first evaluation of the network, `SolveError` after
    it.
    """
    solver = flow_solver("decode", model, solver, steps, grid)
    kind = state_dtype("z", z, dtype)
    solving = Solving.checked(
        model,
        facts(model),
        z.shape,
        Span.reverse(model.sde),
        solver,
        steps=steps,
        grid=grid,
        t_start=t_start,
        t_end=t_end,
        condition=condition,
        mask=mask,
        batch_size=batch_size,
        trajectory=trajectory,
        callback=callback,
        progress=progress,
        max_nfe=max_nfe,
        on_fail=on_fail,
        grad=grad,
        dtype=kind,
        device=device,
    )
    return _carry("decoding", solving, z)


def flow_solver(
    what: str, model: Model, solver: Solver | None, steps: int | None, grid: Grid | None
) -> Solver:
    """A deterministic solver, the default one if none is given."""
    check_model(model)
    if solver is None:
        default = default_solver(model.sde, intervals(steps, grid), stochastic=False)
        # under an SDE without a Gaussian kernel
        solver = RungeKutta4() if default.stochastic else default
    return check_deterministic(check_solver(solver), what)


def state_dtype(name: str, x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """``dtype``, or that of the states x, float32 at least; a ValueError unless they are finite
    numbers (B, *event).
    """
    check_shape(check_states(name, x).shape)
    return torch.promote_types(x.dtype, torch.float32) if dtype is None else dtype


def _carry(title: str, solving: Solving, x: Tensor) -> Solution:
    start = x.to(solving.dtype).to(solving.device)

    def part(rows: Tensor, options: Options) -> Solution:
        problem, units = solving.reverse(rows), solving.units
        own = units.enter(start[rows.to(solving.device)], problem.mask)
        times = solving.times if solving.times.ndim == 1 else solving.times[:, rows]
        return units.left(solving.solver.solve(problem, own, times, None, options), problem.mask)

    return solving.run(title, part)

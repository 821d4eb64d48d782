"""Data to latents and back, along the probability flow."""

from __future__ import annotations

from typing import Final, Literal, Unpack

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
from sdediff.options import LikelihoodOptions, SolveOptions, takes
from sdediff.protocols import Model, facts
from sdediff.solvers import Options, RungeKutta4, Solution, Solver
from sdediff.solving import Solving, check_deterministic, chosen

__all__ = ["decode", "encode", "flow_solver", "state_dtype"]

_NOISE: Final = ("last", "noise", "x_init", "stochasticity")
"""What the probability flow from given states leaves no room for."""


@takes(SolveOptions, without=_NOISE)
def encode(
    model: Model,
    x: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Carry data x (B, *event) from t_min up to t_max along dx = [drift(x, t) - g^2 / 2 score(x,
    t)] dt; no noise is drawn.

    The probability flow of Song et al. 2021 (arXiv 2011.13456, eq. 13), uphill: the latents are the
    ``x`` of the result, and `decode` brings them back. x is taken for a state at ``t_start``, by
    default t_min, as it is. ``solver`` is any that draws no noise; with ``steps=N`` or a ``grid``
    that rises it takes fixed steps: `DDIM` is then DDIM inversion (Song et al. 2021, arXiv
    2010.02502, Section 4.3), explicit, so that N steps up and N steps down differ by an error of
    order 1 / N. By default `RK45`, or with steps the deterministic default of `sample`.

    Raises ValueError or TypeError before the first evaluation of the network, `SolveError` after
    it. The options are those of `sdediff.options.SolveOptions`:
    """
    return _carry("encode", model, ("x", x), solver, steps, chosen(encode, options))


@takes(SolveOptions, without=_NOISE)
def decode(
    model: Model,
    z: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Carry latents z (B, *event) from t_max down to t_min along the probability flow: the inverse
    of `encode`.

    The result is the state at the end as it is: ``sample(model, z.shape, x_init=z, last="noisy")``
    without noise. ``solver`` and ``steps`` are those of `encode`.

    Raises ValueError or TypeError before the first evaluation of the network, `SolveError` after
    it. The options are those of `sdediff.options.SolveOptions`:
    """
    return _carry("decode", model, ("z", z), solver, steps, chosen(decode, options))


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


def _carry(
    what: Literal["encode", "decode"],
    model: Model,
    given: tuple[str, Tensor],
    solver: Solver | None,
    steps: int | None,
    options: LikelihoodOptions,
) -> Solution:
    name, x = given
    solver = flow_solver(what, model, solver, steps, options["grid"])
    options["dtype"] = state_dtype(name, x, options["dtype"])
    ends = (model.sde.t_min, model.sde.t_max)
    span = Span(model.sde, *(ends if what == "encode" else reversed(ends)))
    solving = Solving.checked(model, facts(model), x.shape, span, solver, steps, options)
    start = x.to(solving.dtype).to(solving.device)

    def part(rows: Tensor, options: Options) -> Solution:
        problem, units = solving.reverse(rows), solving.units
        own = units.enter(start[rows.to(solving.device)], problem.mask)
        times = solving.times if solving.times.ndim == 1 else solving.times[:, rows]
        return units.left(solving.solver.solve(problem, own, times, None, options), problem.mask)

    return solving.run(f"{what[:-1]}ing", part)

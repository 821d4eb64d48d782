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
from sdediff.solvers import Options, RungeKutta4, Solution, Solver, rowwise
from sdediff.solvers.given import reals
from sdediff.solving import Solving, check_deterministic, chosen

__all__ = ["decode", "encode", "flow_solver", "slerp", "state_dtype"]

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
    """Carry data x (B, *event) to their latents: from t_min up to t_max along the probability
    flow dx = [drift(x, t) - g^2 / 2 score(x, t)] dt. No noise is drawn.

        z = sd.encode(model, x).x
        back = sd.decode(model, z).x

    The data are taken as states at ``t_start``, by default t_min, as they are.
    ``solver``: any solver without noise, by default `RK45`, or with ``steps`` the deterministic
    default of `sample`. With ``solver=DDIM()`` and ``steps=N`` this is DDIM inversion (Song et al.
    2021, arXiv 2010.02502, Section 4.3). Its steps are explicit, so N steps up and N steps down
    differ by an error of order 1 / N.
    ``steps``: the number of steps of a solver with fixed steps. A ``grid`` of times must rise.

    (Song et al. 2021, arXiv 2011.13456, eq. 13.) Raises ValueError or TypeError before the first
    evaluation of the network, and `SolveError` after it if a sample fails. The options are those of
    `SolveOptions`:
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
    """Carry latents z (B, *event) back to data, from t_max down to t_min along the probability
    flow: the inverse of `encode`.

    The result is the state at t_min as it is, without a last denoising step. It is the one of
    ``sample(model, z.shape, x_init=z, last="noisy")`` without noise. ``solver`` and ``steps`` are
    as in `encode`.

    Raises ValueError or TypeError before the first evaluation of the network, and `SolveError`
    after it if a sample fails. The options are those of `SolveOptions`:
    """
    return _carry("decode", model, ("z", z), solver, steps, chosen(decode, options))


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation of latents a and b (B, *event): on the great circle between their
    directions, at ``weight`` of the angle omega between them.

        (sin((1 - w) omega) a / |a| + sin(w omega) b / |b|) / sin(omega) ((1 - w) |a| + w |b|)

    ``weight`` is a number or a tensor (B,), in [0, 1]; at 0 the result is a, and at 1 it is b. Each
    of the three arguments may have one entry for all B:
    ``slerp(z[:1], z[1:2], torch.linspace(0, 1, 9))`` is nine latents on the way from one to
    another. Latents of high dimension lie close to a sphere, and a straight line between two of
    them leaves this sphere. Raises ValueError if a sample is zero, or if a and b are opposite,
    because then no great circle is the shortest. (Shoemake 1985, Animating Rotation with
    Quaternion Curves, SIGGRAPH.)
    """
    for name, z in (("a", a), ("b", b)):
        check_shape(check_states(name, z).shape)
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"a and b must have one event, got {tuple(a.shape[1:])} and {tuple(b.shape[1:])}"
        )
    w = reals("weight", weight)
    counts = {len(a), len(b), w.numel()} - {1}
    if w.ndim > 1 or len(counts) > 1:
        raise ValueError(
            f"weight must be a number or (B,), beside a and b of {len(a)} and {len(b)} samples; "
            f"got {tuple(w.shape)}"
        )
    if not bool(((w >= 0) & (w <= 1)).all()):
        raise ValueError("weight is the share of the way from a to b, in [0, 1]")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    w = w.reshape(-1, 1).to(dtype).to(a.device)
    flat = [rowwise(z).to(dtype) for z in (a, b)]
    sizes = [z.norm(dim=1, keepdim=True) for z in flat]
    for name, size in zip("ab", sizes, strict=True):
        if not bool((size > 0).all()):
            raise ValueError(f"sample {int((size == 0).int().argmax())} of {name} is zero")
    u, v = (z / size for z, size in zip(flat, sizes, strict=True))
    apart, together = (u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True)
    if not bool((together > torch.finfo(dtype).eps).all()):
        raise ValueError(
            f"sample {int(together.argmin())} of a and b are opposite: no great circle between "
            "them is the shortest; go by way of a third sample"
        )
    omega = 2 * torch.atan2(apart, together)
    near = omega < torch.finfo(dtype).eps ** 0.5
    sine = torch.where(near, 1.0, omega.sin())
    shares = [torch.where(near, k, (k * omega).sin() / sine) for k in (1 - w, w)]
    size = (1 - w) * sizes[0] + w * sizes[1]
    found: Tensor = (
        shares[0] * (size / sizes[0]) * flat[0] + shares[1] * (size / sizes[1]) * flat[1]
    )
    return found.reshape(-1, *a.shape[1:]).to(torch.promote_types(a.dtype, b.dtype))


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

"""What the arguments of `sample` have to be: checked before any work, each refusal says what was
wrong and how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Final, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from sdediff import solvers
from sdediff.calls import check_condition, check_states, one_place
from sdediff.options import Grid, check_solver, default_solver, intervals
from sdediff.processes import current
from sdediff.protocols import Facts, Model, check_model, has_weights
from sdediff.sde import SDE, LinearSDE
from sdediff.sde.base import check_span
from sdediff.solvers import GRIDS, LogSNR, Noise, Solver
from sdediff.solvers.given import (
    check_name,
    integer,
    plain,
    real,
    reals,
)
from sdediff.solvers.legs import snapped
from sdediff.solvers.noise import device_of

__all__ = [
    "Grid",
    "Span",
    "check_condition",
    "check_device",
    "check_model",
    "check_seed",
    "check_shape",
    "check_solver",
    "check_start",
    "check_states",
    "default_solver",
    "intervals",
    "make_times",
    "row_seeds",
]

_MOST_STEPS: Final = 10**8


def check_device(model: Model, known: Facts, device: torch.device | str | None) -> torch.device:
    """The model's device."""
    if device is None:
        return known.device
    place = device_of(device)
    if has_weights(model) and not one_place(place, known.device):
        raise ValueError(
            f"the model is on {known.device} and device is {place}; move the model first: "
            f"model.to({str(place)!r})"
        )
    return place


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """(B, *event), positive ints."""
    one = shape if isinstance(shape, tuple) else plain(shape)
    given = (one,) if isinstance(one, int) else tuple(one) if isinstance(one, Iterable) else ()
    hint = f": shape is (B, *event) with positive ints, (64, 1, 28, 28) say; got {shape!r}"
    if not given:
        raise ValueError(f"shape must have a first dimension, the number of samples{hint}")
    return tuple(integer(f"shape[{i}]", n, 1, hint=hint) for i, n in enumerate(given))


def check_seed(
    seed: int | Sequence[int] | None,
    noise: Noise | None,
    shape: tuple[int, ...],
    device: torch.device | None = None,
    group: int = 1,
) -> tuple[int, ...] | None:
    """One seed a sample, or one for each ``group`` of rows; None where there is a noise object.

    That is for these samples and on this device, as far as it says.
    """
    count = shape[0] // group
    if noise is not None:
        if seed is not None:
            raise ValueError("seed and noise are two ways to say the same: pass one of them")
        seeds, event = getattr(noise, "seeds", None), getattr(noise, "event", None)
        if seeds is not None and event is not None and (len(seeds), *event) != shape:
            raise ValueError(
                f"the noise is for samples of shape {(len(seeds), *event)}, and shape is {shape}"
            )
        place = getattr(noise, "device", None)
        if place is not None and device is not None and not one_place(torch.device(place), device):
            raise ValueError(
                f"the noise is on {place}, and the states are on {device}: make it with "
                f"device={str(device)!r}"
            )
        return None
    if seed is None:
        return solvers.seeds(current().once(solvers.fresh_seed), count)
    either = (
        f"one non-negative int, or one for each of the {count} "
        f"{'samples' if group == 1 else 'groups'}"
    )
    one = seed if isinstance(seed, int) else plain(seed)
    if isinstance(one, Real) or not isinstance(one, Iterable):
        return solvers.seeds(integer("seed", one, kind=either), count)
    given = tuple(integer("seed", s, kind=either) for s in one)
    if len(given) != count:
        raise ValueError(f"seed must be {either}; got {len(given)} of them")
    return given


def row_seeds(seeds: tuple[int, ...], group: int = 1) -> tuple[int, ...]:
    """A seed for each row: row j of a ``group`` has the seed j that the group's seed makes."""
    if group == 1:
        return seeds
    return tuple(row for seed in seeds for row in solvers.seeds(seed, group))


class Span(NamedTuple):
    """Where a solve goes by default, from ``start`` to ``end``: its times lie in the usable range
    of ``sde``, or, if ``whole``, in [0, T].

    ``details``: the standard deviation of the details of the data over that of the data, if a grid
    without a name is to be made for them.
    """

    sde: SDE
    start: float
    end: float
    whole: bool = False
    details: float | None = None


def make_times(
    span: Span,
    solver: Solver,
    steps: int | None,
    grid: Grid | None,
    t_start: float | Tensor | None,
    t_end: float | None,
    *,
    unit: float = 1.0,
    breaks: tuple[float, ...] = (),
) -> Tensor:
    """The grid, float64 on the host, inside the span and in its direction: (N + 1,), or (N + 1, B)
    where samples have their own.

    ``unit`` is the standard deviation of the data. A grid of N steps passes the ``breaks`` of a
    model at times of its own. Raises ValueError or TypeError for arguments that are wrong.
    """
    n = _check_spacing(span, solver, steps, grid, t_start, t_end)
    if solver.times is not None:
        return solver.times if t_start is None else _from_level(solver, solver.times, t_start)
    sde = span.sde
    usable = (sde.t_min, sde.t_max, "the usable range [t_min, t_max]", sde)
    bounds = (0.0, sde.T, "[0, T]", sde) if span.whole else usable
    start = torch.tensor(span.start, dtype=torch.float64) if t_start is None else _starts(t_start)
    end = span.end
    if t_end is not None:
        end = real("t_end", t_end, "; all samples of a call share it: call once for each")
    array = grid is not None and not isinstance(grid, str) and not callable(grid)
    if array:
        times = reals("grid", grid if isinstance(grid, Tensor) else np.asarray(grid))
    elif callable(grid):
        times = reals("grid(steps)", grid(n))
        if times.shape != (n + 1,):
            raise ValueError(
                f"the grid function must return steps + 1 = {n + 1} times, got shape "
                f"{tuple(times.shape)}"
            )
    elif solver.adaptive:
        times = torch.stack([start, torch.full_like(start, end)])
    elif not end and _arrives(span):
        # to the usable range's end by name, and the rest in one step
        rest = make_times(span, solver, n - 1, grid, t_start, None, unit=unit) if n > 1 else start
        times = torch.cat([rest if n > 1 else rest[None], torch.zeros_like(start)[None]])
    else:
        check_span(torch.stack([start, torch.full_like(start, end)]), *bounds)
        linear = "kernel" in sde.offers
        own = sde.spacing if linear and solver.spacing == "uniform" else solver.spacing
        spaced = GRIDS[str(grid or (own if linear else "uniform"))]
        snr: LogSNR | None = None
        if linear:
            process = cast(LinearSDE, sde)
            process = process if unit == 1 else process.scaled(1 / unit)
            snr = LogSNR(process.log_snr, process.time_of, not grid, None if grid else span.details)
        few, back = torch.unique(start, return_inverse=True)
        with torch.no_grad():
            made = [spaced(n, each, end, snr) for each in few.tolist()]
        times = torch.stack(made, dim=1)[:, back]
    times = solvers.check_grid(times)
    arrives = len(times) > 1 and not bool(times[-1].any()) and _arrives(span)
    check_span(times[:-1] if arrives else times, *bounds)
    if breaks and not array and not solver.adaptive and times.ndim == 1:
        times = snapped(times, breaks)
    backward = span.start > span.end
    if len(times) > 1 and bool((times[1] > times[0]).any()) == backward:
        raise _wrong_way(times, backward)
    return times


def _arrives(span: Span) -> bool:
    """Whether a solve may go on to t = 0, below the usable range: sampling, to data without
    noise.
    """
    sde = span.sde
    if span.start <= span.end or sde.t_min <= 0 or "kernel" not in sde.offers:
        return False
    return float(cast(LinearSDE, sde).sigma(0.0)) == 0


def _check_spacing(
    span: Span,
    solver: Solver,
    steps: int | None,
    grid: Grid | None,
    t_start: float | Tensor | None,
    t_end: float | None,
) -> int:
    """The number of steps, 0 where it is not given; a ValueError or TypeError unless the arguments
    go together.
    """
    kind = type(solver).__name__
    array = grid is not None and not isinstance(grid, str) and not callable(grid)
    ends = t_start is not None or t_end is not None
    if solver.times is not None:
        if steps is not None or grid is not None or t_end is not None:
            raise ValueError(
                f"{kind} has a grid of its own; drop steps, grid and t_end, and choose the number "
                "of its steps where it is made, by DDPM.from_sde(sde, N) or tune(..., nfe=N), say"
            )
        if span.start < span.end:
            raise ValueError(
                f"{kind} has a grid of its own, from noise to data: take another solver"
            )
        return 0
    n = 0 if steps is None else integer("steps", integer("steps", steps, 1), 1, _MOST_STEPS)
    if array and isinstance(plain(grid), int | float):
        raise TypeError(
            "grid must be a name, a function of the number of steps or an array of times, got "
            f"{grid!r}; write steps={grid!r}?"
        )
    if array and (n or ends):
        raise ValueError(
            "an array grid says all: drop steps, t_start and t_end (or pass steps alone)"
        )
    if callable(grid) and ends:
        raise ValueError("a grid function returns the times themselves: drop t_start and t_end")
    if solver.adaptive and not n and grid is not None and not array:
        named = f"grid={grid!r}" if isinstance(grid, str) else "a grid function"
        raise ValueError(
            f"{named} takes steps=N: pass it too, with a solver of fixed steps (the default then "
            f"is one), or drop the grid: {kind} chooses its own steps"
        )
    if solver.adaptive and n:
        raise ValueError(
            f"{kind} chooses its own steps: drop steps (set rtol and atol), or pass grid=[...] "
            "as the times to land on"
        )
    if not solver.adaptive and not array and not n:
        raise ValueError(f"{kind} takes fixed steps: pass steps=N, or grid as an array of times")
    if isinstance(grid, str):
        check_name("grid", grid, GRIDS)
    return n


def _from_level(solver: Solver, times: Tensor, t_start: float | Tensor) -> Tensor:
    """The times of a discrete model from ``t_start`` on; a ValueError unless that is one of them,
    at which the model can be evaluated.
    """
    start = real("t_start", t_start, f"; all samples of a {type(solver).__name__} start together")
    levels = times[:-1] if solver.ends_clean else times
    near = int((levels - start).abs().argmin())
    if not abs(float(levels[near]) - start) <= 1e-9 * float(levels[0]):
        raise ValueError(
            f"{solver!r} starts at one of its own times, solver.times: the nearest to t_start = "
            f"{start:.6g} is solver.times[{near}] = {float(levels[near]):.6g}"
        )
    return times[near:]


def _wrong_way(times: Tensor, backward: bool) -> ValueError:
    """The refusal of a grid that rises where it is to fall, or falls where it is to rise."""
    times = times if times.ndim == 1 else times[:, (times[1] > times[0]) == backward][:, 0]
    way = "sampling goes back in time, from noise to data: the grid must fall"
    way = way if backward else "this goes forward in time, from data to noise: the grid must rise"
    return ValueError(f"{way}, it goes from {times[0]:g} to {times[-1]:g}")


def _starts(t_start: float | Tensor) -> Tensor:
    """The start, (), or the starts of the samples, (B,)."""
    given = plain(t_start)
    if isinstance(given, int | float):
        return torch.tensor(real("t_start", given), dtype=torch.float64)
    start = reals("t_start", given, "cpu")
    if start.ndim != 1 or not len(start):
        raise ValueError(
            "t_start must be a number, or one for each sample, (B,); got shape "
            f"{tuple(start.shape)}"
        )
    return start


def check_start(
    sde: SDE,
    x_init: Tensor | None,
    shape: tuple[int, ...],
    start: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """States at the start, or None for a draw from the prior."""
    if x_init is None:
        if start < sde.t_max * (1 - 1e-6):
            way = f"sde.perturb(x_0, {start:g}, noise), say"
            raise ValueError(
                f"a start at t = {start:g} below t_max = {sde.t_max:g} needs x_init: "
                f"{way if 'kernel' in sde.offers else 'the states at that time'}"
            )
        try:
            prior = sde.prior
        except NotImplementedError as error:
            raise ValueError(str(error)) from error
        if isinstance(prior, type) or not (
            hasattr(prior, "from_noise") and hasattr(prior, "log_prob")
        ):
            kind = type(sde).__name__
            raise TypeError(
                f"the prior of {kind} must be a Prior, `prior = Prior(std)` in the class say; "
                f"got {prior!r}"
            )
        return None
    return check_states("x_init", x_init, shape).to(dtype).to(device)

"""What the arguments of `sample` have to be: checked before any work, each refusal says what was wrong and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff import solvers
from sdediff.lending import reading
from sdediff.names import nearest
from sdediff.protocols import Facts, Model, check_model
from sdediff.samples import check_condition, check_seed, check_shape, check_states, one_place
from sdediff.sde import SDE, LinearSDE
from sdediff.sde.base import check_span, prior_of
from sdediff.solvers import (
    GRIDS,
    RK45,
    AdaptiveSDE,
    EulerMaruyama,
    ExponentialMultistep,
    ExponentialSinglestep,
    LogSNR,
    Renoise,
    Solver,
    Straight,
)
from sdediff.solvers.legs import snapped
from sdediff.solvers.scalars import device_of, plain, real, reals, whole

__all__ = [
    "Grid",
    "Span",
    "check_choice",
    "check_condition",
    "check_device",
    "check_grad",
    "check_model",
    "check_seed",
    "check_shape",
    "check_solver",
    "check_start",
    "check_states",
    "check_stochasticity",
    "default_solver",
    "intervals",
    "make_times",
    "one_stochasticity",
]

Grid = str | Callable[[int], Tensor] | Tensor | Sequence[float]
_MOST_STEPS: Final = 10**8


def check_device(model: Facts, device: torch.device | str | None) -> torch.device:
    """The model's device."""
    place = model.device if device is None else device_of(device)
    if model.has_weights and not one_place(place, model.device):
        raise ValueError(f"the model is on {model.device} and device is {place}; move the model first: model.to({str(place)!r})")
    return place


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """One of the known words."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}{nearest(str(value), known)}")


def check_grad(grad: object) -> None:
    """What to keep for gradients: a ValueError for "full" or "checkpoint" where torch keeps no graph."""
    check_choice("grad", grad, ("none", "full", "checkpoint"))
    if grad != "none" and not torch.is_grad_enabled():
        where = "torch.inference_mode" if torch.is_inference_mode_enabled() else "torch.no_grad"
        raise ValueError(
            f"grad={grad!r} keeps the graph of the solve, and {where} is on, under which there is none: call it outside of that, "
            "or under torch.enable_grad() (inference_mode(False) first, where that is on), or drop grad"
        )


def check_solver(solver: Solver) -> Solver:
    """A TypeError unless it is a solver value."""
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, type):
        raise TypeError(f"solver must be a value, not a class: write {solver.__name__}()")
    names = [
        name for name in solvers.__all__ if isinstance(getattr(solvers, name), type) and issubclass(getattr(solvers, name), Solver)
    ]
    spelled = {name.lower(): name for name in names}
    given = str(solver).lower().replace("-", "").replace("_", "").replace("+", "p")
    close = difflib.get_close_matches(given, spelled, n=1, cutoff=0.3) or ["eulermaruyama"]
    raise TypeError(f"solver must be a solver value, got {solver!r}; did you mean sdediff.{spelled[close[0]]}()?")


def default_solver(sde: SDE, steps: int | None, *, stochastic: bool) -> Solver:
    """The rule of docs/solvers.md: by the number of steps, and by whether noise is asked for; RK45 where there are no steps.

    Without noise: the equation in the form that is straight while data and noise do not change, at the scale of details,
    polynomials in the angle arctan(sigma / alpha), the first steps of lower orders: an evaluation a step, and none more to start.
    With noise: single steps of order 2, from 12 of them on of order 3, and exact noise: so many evaluations a step; AdaptiveSDE
    where there are no steps.
    """
    if steps is None:
        return AdaptiveSDE() if stochastic else RK45()
    if "kernel" not in sde.offers:
        return EulerMaruyama()
    if stochastic:
        few = not isinstance(steps, int) or steps < 12
        return Renoise(ExponentialSinglestep(2, form=0.3) if few else ExponentialSinglestep(3))
    order = next((order for least, order in _BY_STEPS if isinstance(steps, int) and steps >= least), 2)
    return ExponentialMultistep(order, form=Straight(0.1), variable="angle", corrector=None, startup="published")


_BY_STEPS: Final = ((20, 4), (8, 3))
"""The order, from so many steps on; with fewer, 2."""


def intervals(steps: int | None, grid: Grid | None) -> int | None:
    """How many steps there will be; None where the solver is to choose."""
    if grid is None or isinstance(grid, str) or callable(grid):
        return None if steps is None else whole("steps", steps, 1)
    return (grid.numel() if isinstance(grid, Tensor) else np.size(np.asarray(grid))) - 1


class Span(NamedTuple):
    """Where a solve goes by default, and which times it may take."""

    start: float
    end: float
    low: float
    high: float
    what: str
    sde: SDE

    @classmethod
    def reverse(cls, sde: SDE) -> Span:
        """From t_max to t_min."""
        return cls(sde.t_max, sde.t_min, sde.t_min, sde.t_max, "the usable range [t_min, t_max]", sde)

    @classmethod
    def encoding(cls, sde: SDE) -> Span:
        """From t_min to t_max."""
        return cls(sde.t_min, sde.t_max, sde.t_min, sde.t_max, "the usable range [t_min, t_max]", sde)

    @classmethod
    def forward(cls, sde: SDE) -> Span:
        """From 0 to t_max."""
        return cls(0.0, sde.t_max, 0.0, sde.T, "[0, T]", sde)


def make_times(
    span: Span,
    solver: Solver,
    steps: int | None,
    grid: Grid | None,
    t_start: float | Tensor | None,
    t_end: float | None,
    unit: float = 1.0,
    breaks: tuple[float, ...] = (),
) -> Tensor:
    """The grid, float64 on the host, inside the span and in its direction: (N + 1,), or (N + 1, B) where samples have their own.

    ``unit`` is the standard deviation of the data. A grid of N steps passes the ``breaks`` of a model at times of its own.
    """
    kind = type(solver).__name__
    array = grid is not None and not isinstance(grid, str) and not callable(grid)
    if solver.times is not None:
        if any(value is not None for value in (steps, grid, t_start, t_end)):
            raise ValueError(
                f"{kind} is a discrete model with a grid of its own; drop steps, grid, t_start and t_end, and choose its number "
                "of levels where it is made, DDPM.from_sde(sde, N) say"
            )
        if span.start < span.end:
            raise ValueError(f"{kind} is a discrete model with a grid of its own, from noise to data: take another solver")
        return solver.times
    steps = None if steps is None else whole("steps", steps, 1, _MOST_STEPS)
    if isinstance(plain(grid), int | float):
        raise TypeError(
            f"grid must be a name, a function of the number of steps or an array of times, got {grid!r}; write steps={grid!r}?"
        )
    if array and any(value is not None for value in (steps, t_start, t_end)):
        raise ValueError("an array grid says all: drop steps, t_start and t_end (or pass steps alone)")
    if callable(grid) and (t_start is not None or t_end is not None):
        raise ValueError("a grid function returns the times themselves: drop t_start and t_end")
    if solver.adaptive and steps is None and grid is not None and not array:
        named = f"grid={grid!r}" if isinstance(grid, str) else "a grid function"
        raise ValueError(
            f"{named} takes steps=N: pass it too, with a solver of fixed steps (the default then is one), "
            f"or drop the grid: {kind} chooses its own steps"
        )
    if solver.adaptive and steps is not None:
        raise ValueError(
            f"{kind} chooses its own steps: drop steps (set rtol and atol), or pass grid=[...] as the times to land on"
        )
    if not solver.adaptive and not array and steps is None:
        raise ValueError(f"{kind} takes fixed steps: pass steps=N, or grid as an array of times")
    if grid is not None and isinstance(grid, str) and grid not in GRIDS:
        raise ValueError(f"no grid is called {grid!r}{nearest(grid, GRIDS)}; known: {', '.join(GRIDS)}")
    start = _starts(span, t_start)
    end = span.end if t_end is None else real("t_end", t_end, "; all samples of a call share it: call once for each")
    bounds = (span.low, span.high, span.what, span.sde)
    if grid is not None and array:
        times = reals("grid", grid if isinstance(grid, Tensor) else np.asarray(grid))
    elif callable(grid):
        times = reals("grid(steps)", grid(steps or 0))
        if times.shape != ((steps or 0) + 1,):
            raise ValueError(f"the grid function must return steps + 1 = {(steps or 0) + 1} times, got shape {tuple(times.shape)}")
    elif solver.adaptive:
        times = torch.stack([start, torch.full_like(start, end)])
    else:
        check_span(torch.stack([start, torch.full_like(start, end)]), *bounds)
        spaced = grid if isinstance(grid, str) else None
        few, back = torch.unique(start, return_inverse=True)
        grids = [_named(span.sde, unit, spaced, solver.spacing, steps or 0, each, end) for each in few.tolist()]
        times = torch.stack(grids, dim=1)[:, back]
    times = check_span(solvers.check_grid(times), *bounds)
    if not array and not solver.adaptive and times.ndim == 1:
        times = snapped(times, breaks)
    _check_way(span, times)
    return times


def _check_way(span: Span, times: Tensor) -> None:
    """A ValueError unless the grid goes the way of the span."""
    backward = span.start > span.end
    if len(times) > 1 and bool((times[1] > times[0]).any()) == backward:
        times = times if times.ndim == 1 else times[:, (times[1] > times[0]) == backward][:, 0]
        way = "sampling goes back in time, from noise to data: the grid must fall"
        way = way if backward else "this goes forward in time, from data to noise: the grid must rise"
        raise ValueError(f"{way}, it goes from {times[0]:g} to {times[-1]:g}")


def _starts(span: Span, t_start: float | Tensor | None) -> Tensor:
    """The start, (), or the starts of the samples, (B,)."""
    given = plain(t_start)
    if given is None:
        return torch.tensor(span.start, dtype=torch.float64)
    if isinstance(given, int | float):
        return torch.tensor(real("t_start", given), dtype=torch.float64)
    start = reals("t_start", given, "cpu")
    if start.ndim != 1 or not len(start):
        raise ValueError(f"t_start must be a number, or one for each sample, (B,); got shape {tuple(start.shape)}")
    return start


@torch.no_grad()
def _named(sde: SDE, unit: float, grid: str | None, spacing: str, steps: int, start: float, end: float) -> Tensor:
    """The grid of that name, or without a name the solver's own, which is the SDE's where it has no better one than uniform."""
    own = sde.spacing if spacing == "uniform" else spacing
    if "kernel" not in sde.offers:
        return GRIDS["uniform" if grid is None else grid](steps, start, end, None)
    process: LinearSDE = sde.scaled(1 / unit)
    return GRIDS[own if grid is None else grid](steps, start, end, LogSNR(process.log_snr, process.time_of, bounded=grid is None))


def one_stochasticity(value: object) -> float:
    """A number for all samples and times; a ValueError unless it is one."""
    return real("stochasticity", value, "; one for all samples, or a function of t")


def check_stochasticity(
    solver: Solver, stochasticity: float | Callable[[Tensor], Tensor] | None, times: Tensor
) -> float | Callable[[Tensor], Tensor]:
    """lambda >= 0, at all times of the grid if it is a function, and 0 where the solver has no noise along the path."""
    if stochasticity is None:
        return 1.0 if solver.diffuses else 0.0
    if not callable(stochasticity):
        stochasticity = one_stochasticity(stochasticity)
    if not callable(stochasticity) and not 0 <= stochasticity < float("inf"):
        raise ValueError(f"stochasticity must be a finite number >= 0 or a function of t, got {stochasticity!r}")
    if not solver.diffuses and (callable(stochasticity) or stochasticity != 0):
        raise ValueError(f"{type(solver).__name__} draws no noise along the path: stochasticity must be 0; EulerMaruyama takes any")
    if not callable(stochasticity):
        return stochasticity
    values = reals("stochasticity(t)", reading("stochasticity", stochasticity, "t", times))
    if values.shape not in (times.shape, ()) or not bool((torch.isfinite(values) & (values >= 0)).all()):
        got = f"shape {tuple(values.shape)}" if values.shape not in (times.shape, ()) else f"{float(values.min()):.4g}"
        raise ValueError(f"stochasticity(t) must be finite and >= 0, shaped as t, {tuple(times.shape)}; got {got}")
    return stochasticity


def check_start(
    model: Model, x_init: Tensor | None, shape: tuple[int, ...], start: float, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """States at the start, or None for a draw from the prior."""
    if x_init is None:
        if start < model.sde.t_max * (1 - 1e-6):
            raise ValueError(
                f"a start at t = {start:g} below t_max = {model.sde.t_max:g} needs x_init: sde.perturb(x_0, {start:g}, noise), say"
            )
        try:
            _ = prior_of(model.sde)
        except NotImplementedError as error:
            raise ValueError(str(error)) from error
        return None
    return check_states("x_init", x_init, shape).to(dtype).to(device)

"""The one entry point to sampling: arguments are checked, a problem is built, a solver solves it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import solvers
from sdediff.model import ScoreModel
from sdediff.names import nearest
from sdediff.progress import progress_bar
from sdediff.reverse import Reverse
from solvers import DDIM, GRIDS, RK45, Failure, Noise, Options, Snapshot, Solution, SolveError, Solver, Status, White, rowwise
from solvers.solution import merge

__all__ = ["sample"]

Grid = str | Callable[[int], Tensor] | Tensor | Sequence[float]


def sample(
    model: ScoreModel,
    shape: Sequence[int],
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    grid: Grid | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    last: Literal["denoise", "mean", "noisy"] | None = None,
    seed: int | Sequence[int] | None = None,
    noise: Noise | None = None,
    x_init: Tensor | None = None,
    stochasticity: float | Callable[[Tensor], Tensor] | None = None,
    condition: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    trajectory: bool = False,
    callback: Callable[[Snapshot], None] | None = None,
    progress: bool = False,
    max_nfe: int | None = None,
    on_fail: Literal["raise", "return"] = "raise",
    grad: Literal["none", "full", "checkpoint"] = "none",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Solution:
    """Draw samples of shape ``shape`` = (B, *event) by solving the reverse process from noise at t_max to data at t_min.

    ``solver``: any solver value; by default `DDIM` where ``steps`` or ``grid`` is given, else `RK45`.
    ``steps``, ``grid``: fixed-step solvers take ``steps=N`` intervals, uniform in t unless ``grid`` names another spacing or is a
    function of N; or ``grid`` as a falling array of times. Adaptive solvers take no ``steps``; an array is where they must land.
    ``t_start``, ``t_end``: the span of a grid made from ``steps``, by default the SDE's usable range. A start below t_max needs
    ``x_init``.
    ``last``: ``"denoise"`` ends with one more evaluation, E[x_0 | x]; ``"mean"`` adds no noise in the last stochastic step;
    ``"noisy"`` returns the state at ``t_end``. Default: ``"denoise"``, or ``"noisy"`` where ``t_end`` is given.
    ``seed``: an int, from which sample i takes seed i of `seeds`, or one int a sample; None draws one from the operating system.
    The result holds the seeds. Sample i depends on its seed alone, not on B; torch's global generator plays no part
    (``torch.manual_seed`` does nothing here) and is not touched. ``noise``: a noise object in place of seeds.
    ``x_init``: (B, *event) states at the start, in place of a draw from the prior.
    ``stochasticity``: lambda >= 0 of dx = [f x - (1 + lambda^2)/2 g^2 score] dt + lambda g dw, a number or a function of t; by
    default 1 for stochastic solvers. Other solvers admit 0 only.
    ``condition``: tensors with leading dimension B for the network. ``batch_size``: solve so many samples at a time.
    ``trajectory``: keep the state at every time of the grid. ``callback``: sees a `Snapshot` after each step. ``progress``: show
    a bar. ``max_nfe``: no sample has the network evaluated more often.
    ``on_fail``: ``"raise"`` a `SolveError`, or ``"return"`` what there is.
    ``grad``: ``"full"`` keeps the graph, ``"checkpoint"`` recomputes each step in the backward pass.
    ``dtype``: of the state, float32 or float64. ``device``: the model's by default.

    Raises ValueError or TypeError before the first evaluation of the network, `SolveError` after it.
    """
    _check_model(model)
    shape = _check_shape(shape)
    device = _check_device(model, device)
    solver = _check_solver(solver, steps, grid)
    times = _times(model, solver, steps, grid, t_start, t_end)
    if last is None:
        last = "denoise" if t_end is None else "noisy"
    _check_choice("last", last, ("denoise", "mean", "noisy"))
    _check_choice("on_fail", on_fail, ("raise", "return"))
    _check_choice("grad", grad, ("none", "full", "checkpoint"))
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the state's dtype must be torch.float32 or torch.float64, got {dtype}; the network keeps its own")
    for name, value in (("batch_size", batch_size), ("max_nfe", max_nfe)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    lam = _check_stochasticity(solver, stochasticity)
    condition = _check_condition(condition, shape[0])
    sample_seeds = _check_seed(seed, noise, shape[0])
    if sample_seeds is not None:
        noise = White(sample_seeds, shape[1:], dtype=dtype, device=device)
    x_start = _check_start(model, x_init, shape, float(times[0]), dtype, device)

    options = Options("mean" if last == "mean" else "noisy", trajectory, callback, max_nfe, "return", grad)
    parts = []
    chunk = shape[0] if batch_size is None else batch_size
    with _evaluating(model), progress_bar("sampling", total=shape[0], show=progress) as bar:
        for first in range(0, shape[0], chunk):
            rows = torch.arange(first, min(first + chunk, shape[0]))
            part_noise = noise if noise is None or len(rows) == shape[0] else noise.take(rows)
            x = x_start[rows.to(device)] if x_start is not None else _draw(model, part_noise)
            problem = Reverse(model, len(rows), lam, {k: v[rows.to(v.device)] for k, v in condition.items()})
            watched = replace(options, callback=_with_bar(callback, bar.update, first, len(rows)) if progress else callback)
            parts.append(_solve(problem, solver, x, times, part_noise, watched, denoise=last == "denoise"))
    solution = replace(merge(parts), seeds=sample_seeds)
    if solution.failures and on_fail == "raise":
        raise SolveError(solution)
    return solution


def _solve(
    problem: Reverse, solver: Solver, x: Tensor, times: Tensor, noise: Noise | None, options: Options, *, denoise: bool
) -> Solution:
    solution = solver.solve(problem, x, times, noise, options)
    if not denoise:
        return solution
    if options.max_nfe is not None:
        late = [i for i, n in enumerate(solution.nfe.tolist()) if n >= options.max_nfe and not int(solution.status[i])]
        solution = _fail(solution, late, Status.MAX_NFE, float(times[-1]))
    rows = torch.nonzero(solution.status == 0).flatten()
    if not len(rows):
        return solution
    whole = len(rows) == len(x)
    with torch.set_grad_enabled(options.grad != "none"):
        part, state = (problem, solution.x) if whole else (problem.take(rows), solution.x[rows.to(x.device)])
        clean = part.data(state, times[-1])
    lost = rows[~torch.isfinite(rowwise(clean)).all(dim=1).cpu()].tolist()
    out = solution.x.clone()
    out[rows.to(x.device)] = clean
    if lost:
        out[lost] = solution.x[lost]
    frames = solution.trajectory
    if frames is not None:
        frames = torch.cat([frames[:-1], out[None]])
    solution = replace(solution, x=out, nfe=problem.monitor.nfe, trajectory=frames)
    return _fail(solution, lost, Status.NETWORK_NOT_FINITE, float(times[-1]))


def _fail(solution: Solution, samples: list[int], status: Status, t: float) -> Solution:
    if not samples:
        return solution
    marks = solution.status.clone()
    marks[samples] = int(status)
    failures = solution.failures + tuple(Failure(i, status, t) for i in samples)
    return replace(solution, status=marks, failures=tuple(sorted(failures, key=lambda f: f.sample)))


def _draw(model: ScoreModel, noise: Noise | None) -> Tensor:
    if noise is None:
        raise ValueError("sampling from the prior needs noise; pass seed or x_init")
    return model.sde.prior.from_noise(noise.at(0).normal("prior"))


def _with_bar(
    callback: Callable[[Snapshot], None] | None, update: Callable[[float], None], first: int, count: int
) -> Callable[[Snapshot], None]:
    def both(snapshot: Snapshot) -> None:
        update(first + snapshot.done * count)
        if callback is not None:
            callback(snapshot)

    return both


@contextmanager
def _evaluating(model: ScoreModel) -> Iterator[None]:
    """Put the network into evaluation mode (no dropout) and back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_model(model: ScoreModel) -> None:
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"model must be a ScoreModel, got {type(model).__name__}; wrap the network: ScoreModel(net, sde, predicts='noise')"
        )


def _check_device(model: ScoreModel, device: torch.device | str | None) -> torch.device:
    place = model.device if device is None else torch.device(device)
    has_weights = any(True for _ in model.parameters())
    if has_weights and (place.type, place.index or 0) != (model.device.type, model.device.index or 0):
        raise ValueError(f"the model is on {model.device} and device is {place}; move the model first: model.to({str(place)!r})")
    return place


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    given = (shape,) if isinstance(shape, int) else tuple(shape)
    if not given or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in given):
        raise ValueError(f"shape must be (B, *event) with positive ints, (64, 1, 28, 28) say; got {shape!r}")
    return given


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}{nearest(str(value), known)}")


def _check_solver(solver: Solver | None, steps: int | None, grid: Grid | None) -> Solver:
    if solver is None:
        return RK45() if steps is None and grid is None else DDIM()
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, type):
        raise TypeError(f"solver must be a value, not a class: write {solver.__name__}()")
    names = [
        name for name in solvers.__all__ if isinstance(getattr(solvers, name), type) and issubclass(getattr(solvers, name), Solver)
    ]
    close = difflib.get_close_matches(str(solver), names, n=1, cutoff=0.3) or ["EulerMaruyama"]
    raise TypeError(f"solver must be a solver value, got {solver!r}; did you mean sdediff.{close[0]}()?")


def _times(
    model: ScoreModel, solver: Solver, steps: int | None, grid: Grid | None, t_start: float | None, t_end: float | None
) -> Tensor:
    """The grid, float64 on the host, inside the usable range and falling."""
    sde = model.sde
    name = type(solver).__name__
    array = grid is not None and not isinstance(grid, str) and not callable(grid)
    if solver.times is not None:
        if any(value is not None for value in (steps, grid, t_start, t_end)):
            raise ValueError(f"{name} is a discrete model with a grid of its own; drop steps, grid, t_start and t_end")
        return solver.times
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps must be an int of at least 1, got {steps!r}")
    if array and any(value is not None for value in (steps, t_start, t_end)):
        raise ValueError("an array grid says all: drop steps, t_start and t_end (or pass steps alone)")
    if callable(grid) and (t_start is not None or t_end is not None):
        raise ValueError("a grid function returns the times themselves: drop t_start and t_end")
    if solver.adaptive and (steps is not None or (grid is not None and not array)):
        raise ValueError(
            f"{name} chooses its own steps: drop steps (set rtol and atol), or pass grid=[...] as the times to land on"
        )
    if not solver.adaptive and not array and steps is None:
        raise ValueError(f"{name} takes fixed steps: pass steps=N, or grid as an array of times")
    if grid is not None and isinstance(grid, str) and grid not in GRIDS:
        raise ValueError(f"no grid is called {grid!r}{nearest(grid, GRIDS)}; known: {', '.join(GRIDS)}")
    start = sde.t_max if t_start is None else float(t_start)
    end = sde.t_min if t_end is None else float(t_end)
    if grid is not None and array:
        times = torch.as_tensor(np.asarray(grid, dtype=np.float64) if not isinstance(grid, Tensor) else grid)
    elif callable(grid):
        times = torch.as_tensor(grid(steps or 0))
        if times.shape != ((steps or 0) + 1,):
            raise ValueError(f"the grid function must return steps + 1 = {(steps or 0) + 1} times, got shape {tuple(times.shape)}")
    elif solver.adaptive:
        times = torch.tensor([start, end], dtype=torch.float64)
    else:
        sde.check_time(torch.tensor([start, end], dtype=torch.float64))
        times = GRIDS[grid if isinstance(grid, str) else "uniform"](steps or 0, start, end)
    times = sde.check_time(solvers.check_grid(times))
    if len(times) > 1 and times[1] > times[0]:
        raise ValueError(
            f"sampling goes back in time, from noise to data: the grid must fall, it goes from {times[0]:g} to {times[-1]:g}"
        )
    return times


def _check_stochasticity(
    solver: Solver, stochasticity: float | Callable[[Tensor], Tensor] | None
) -> float | Callable[[Tensor], Tensor]:
    if stochasticity is None:
        return 1.0 if solver.diffuses else 0.0
    if not callable(stochasticity) and not 0 <= float(stochasticity) < float("inf"):
        raise ValueError(f"stochasticity must be a finite number >= 0 or a function of t, got {stochasticity!r}")
    if not solver.diffuses and (callable(stochasticity) or stochasticity != 0):
        raise ValueError(f"{type(solver).__name__} draws no noise along the path: stochasticity must be 0; EulerMaruyama takes any")
    return stochasticity if callable(stochasticity) else float(stochasticity)


def _check_condition(condition: Mapping[str, Tensor] | None, count: int) -> dict[str, Tensor]:
    for name, value in (condition or {}).items():
        if not isinstance(value, Tensor) or value.ndim < 1 or value.shape[0] != count:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"condition {name!r} must be a tensor with leading dimension {count}, got {got}; "
                "what all samples share goes into the network by functools.partial"
            )
    return dict(condition or {})


def _check_seed(seed: int | Sequence[int] | None, noise: Noise | None, count: int) -> tuple[int, ...] | None:
    if noise is not None:
        if seed is not None:
            raise ValueError("seed and noise are two ways to say the same: pass one of them")
        return None
    if seed is None:
        return solvers.seeds(solvers.fresh_seed(), count)
    if isinstance(seed, int):
        return solvers.seeds(seed, count)
    given = tuple(int(s) for s in seed)
    if len(given) != count or min(given) < 0:
        raise ValueError(f"seed must be one non-negative int, or one for each of the {count} samples; got {len(given)} of them")
    return given


def _check_start(
    model: ScoreModel, x_init: Tensor | None, shape: tuple[int, ...], start: float, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    if x_init is None:
        if start < model.sde.t_max * (1 - 1e-6) and start < model.sde.t_max - 1e-12:
            raise ValueError(
                f"a start at t = {start:g} below t_max = {model.sde.t_max:g} needs x_init: sde.perturb(x_0, {start:g}, noise), say"
            )
        return None
    if not isinstance(x_init, Tensor) or tuple(x_init.shape) != shape or not x_init.is_floating_point():
        got = f"{x_init.dtype} {tuple(x_init.shape)}" if isinstance(x_init, Tensor) else type(x_init).__name__
        raise ValueError(f"x_init must be a floating-point tensor of shape {shape}, got {got}")
    if not bool(torch.isfinite(x_init).all()):
        raise ValueError("x_init contains values that are not finite")
    return x_init.to(dtype).to(device)

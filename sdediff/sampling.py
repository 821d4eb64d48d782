"""The one entry point to sampling: arguments are checked, a problem is built, a solver solves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from sdediff.arguments import (
    Grid,
    Span,
    check_choice,
    check_condition,
    check_device,
    check_model,
    check_seed,
    check_shape,
    check_solver,
    check_start,
    check_stochasticity,
    default_solver,
    intervals,
    make_times,
)
from sdediff.model import ScoreModel, evaluating
from sdediff.progress import progress_bar
from sdediff.reverse import Reverse
from sdediff.sde import Prior
from solvers import (
    Failure,
    Noise,
    Options,
    Snapshot,
    Solution,
    SolveError,
    Solver,
    Status,
    White,
    rowwise,
)
from solvers.solution import merge

__all__ = ["sample"]


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

    ``solver``: any solver value. By default, with ``steps=N`` or a ``grid``, an `ExponentialMultistep` of order 2 to 4 by N, or
    `Renoise` where ``stochasticity`` is given (docs/solvers.md: the rule and what it was chosen by), or `EulerMaruyama` under an
    SDE without a Gaussian kernel; with neither, `RK45`, or `AdaptiveSDE` where ``stochasticity`` is given.
    ``steps``, ``grid``: fixed-step solvers take ``steps=N`` intervals, spaced as ``solver.spacing`` says (``"central"`` for
    the default and others in the angle, ``"logistic"`` for the other exponential integrators, else ``"uniform"``) unless ``grid``
    is another name, a function of N, or a falling array of times.
    Adaptive solvers take no ``steps``; an array is where they must land. The network is evaluated N times (``solver.evaluations``
    times N: 2 or 3 N by the stochastic default; more in the first steps of a multistep solver with ``startup="exact"``), and once
    more for ``last="denoise"``.
    ``t_start``, ``t_end``: the span of a grid made from ``steps``, by default the SDE's usable range. A start below t_max needs
    ``x_init``.
    ``last``: ``"denoise"`` ends with one more evaluation, E[x_0 | x]; ``"mean"`` adds no noise in the last stochastic step;
    ``"noisy"`` returns the state at ``t_end``. Default: ``"denoise"``, or ``"noisy"`` where ``t_end`` is given or there is no
    Gaussian kernel.
    ``seed``: an int, from which sample i takes seed i of `seeds`, or one int a sample; None draws one from the operating system.
    The result holds the seeds. Sample i depends on its seed alone, not on B; torch's global generator plays no part
    (``torch.manual_seed`` does nothing here) and is not touched. ``noise``: a noise object in place of seeds.
    ``x_init``: (B, *event) states at the start, in place of a draw from the prior.
    ``stochasticity``: lambda >= 0 of dx = [f x - (1 + lambda^2)/2 g^2 score] dt + lambda g dw, a number or a function of t; by
    default 1 for stochastic solvers. Other solvers admit 0 only. Given without a solver, it chooses a stochastic one.
    ``condition``: tensors with leading dimension B for the network. ``batch_size``: solve so many samples at a time.
    ``trajectory``: keep the state at every time of the grid. ``callback``: sees a `Snapshot` after each step. ``progress``: show
    a bar. ``max_nfe``: no sample has the network evaluated more often.
    ``on_fail``: ``"raise"`` a `SolveError`, or ``"return"`` what there is.
    ``grad``: ``"full"`` keeps the graph, ``"checkpoint"`` recomputes each step in the backward pass.
    ``dtype``: of the state, float32 or float64. ``device``: the model's by default.

    Raises ValueError or TypeError before the first evaluation of the network, `SolveError` after it.
    """
    check_model(model)
    shape = check_shape(shape)
    device = check_device(model, device)
    sde, linear = model.sde, "kernel" in model.sde.offers
    noisy = stochasticity is not None and (callable(stochasticity) or stochasticity != 0)
    solver = check_solver(solver, default_solver(sde, intervals(steps, grid), stochastic=noisy))
    times = make_times(Span.reverse(sde), solver, steps, grid, t_start, t_end)
    if last is None:
        last = "denoise" if t_end is None and linear else "noisy"
    check_choice("last", last, ("denoise", "mean", "noisy"))
    if last == "denoise" and not linear:
        raise ValueError(f"last='denoise' takes E[x_0 | x], which {sde!r} does not have: it is no LinearSDE; use 'mean' or 'noisy'")
    check_choice("on_fail", on_fail, ("raise", "return"))
    check_choice("grad", grad, ("none", "full", "checkpoint"))
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the state's dtype must be torch.float32 or torch.float64, got {dtype}; the network keeps its own")
    for name, value in (("batch_size", batch_size), ("max_nfe", max_nfe)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    least = solver.evaluations + (1 if solver.begins else 2)
    if solver.adaptive and max_nfe is not None and max_nfe < least:
        raise ValueError(f"{solver!r} takes {least} evaluations to make its first step; raise max_nfe = {max_nfe}")
    lam = check_stochasticity(solver, stochasticity, times)
    condition = check_condition(condition, shape[0])
    sample_seeds = check_seed(seed, noise, shape)
    if sample_seeds is not None:
        noise = White(sample_seeds, shape[1:], dtype=dtype, device=device)
    x_start = check_start(model, x_init, shape, float(times[0]), dtype, device)

    options = Options("mean" if last == "mean" else "noisy", trajectory, callback, max_nfe, "return", grad)
    parts = []
    chunk = shape[0] if batch_size is None else batch_size
    with evaluating(model), progress_bar("sampling", total=shape[0], show=progress) as bar:
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
    prior: Prior = model.sde.prior
    return prior.from_noise(noise.at(0).normal("prior"))


def _with_bar(
    callback: Callable[[Snapshot], None] | None, update: Callable[[float], None], first: int, count: int
) -> Callable[[Snapshot], None]:
    def both(snapshot: Snapshot) -> None:
        update(first + snapshot.done * count)
        if callback is not None:
            callback(snapshot)

    return both

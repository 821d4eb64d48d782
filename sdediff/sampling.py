"""The one entry point to sampling: arguments are checked, a problem is built, a solver solves
it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor

from sdediff.arguments import (
    Grid,
    Span,
    check_seed,
    check_shape,
    check_solver,
    check_start,
    check_stochasticity,
    default_solver,
    intervals,
    one_stochasticity,
    row_seeds,
)
from sdediff.protocols import Model, facts
from sdediff.reverse import Reverse
from sdediff.sde import SDE
from sdediff.solvers import (
    Failure,
    Noise,
    Options,
    Snapshot,
    Solution,
    Solver,
    Status,
    White,
    rowwise,
)
from sdediff.solvers.given import check_choice
from sdediff.solvers.legs import legs_of
from sdediff.solvers.masked import masked
from sdediff.solving import Solving
from sdediff.suitability import short_of_noise

__all__ = ["sample"]


def sample(
    model: Model,
    shape: Sequence[int],
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    grid: Grid | None = None,
    t_start: float | Tensor | None = None,
    t_end: float | None = None,
    last: Literal["denoise", "mean", "noisy"] | None = None,
    seed: int | Sequence[int] | None = None,
    noise: Noise | None = None,
    x_init: Tensor | None = None,
    stochasticity: float | Callable[[Tensor], Tensor] | None = None,
    condition: Mapping[str, Tensor] | None = None,
    mask: Tensor | None = None,
    batch_size: int | None = None,
    trajectory: bool = False,
    callback: Callable[[Snapshot], None] | None = None,
    progress: bool = False,
    max_nfe: int | None = None,
    on_fail: Literal["raise", "return"] = "raise",
    grad: Literal["none", "full", "checkpoint"] = "none",
    compile: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Solution:
    """Draw samples of shape ``shape`` = (B, *event) by solving the reverse process from noise at
    t_max to data at t_min.

    ``solver``: any solver value. By default, with ``steps=N`` or a ``grid``, an
    `ExponentialMultistep` of order 2 to 4 by N, or `Renoise` where ``stochasticity`` is given
    (docs/solvers.md: the rule and what it was chosen by), or `EulerMaruyama` under an SDE without a
    Gaussian kernel; with neither, `RK45`, or `AdaptiveSDE` where ``stochasticity`` is given.
    ``steps``, ``grid``: fixed-step solvers take ``steps=N`` intervals, spaced as ``solver.spacing``
    says (``"central"`` for the default and others in the angle, ``"logistic"`` for the other
    exponential integrators, else ``"uniform"``, where the SDE's own ``spacing`` counts:
    ``"karras"`` for `EDM`) unless ``grid`` is another name, a function of N, or an array of falling
    times.
    Adaptive solvers take no ``steps``; an array is where they must land. The network is evaluated N
    times (``solver.evaluations`` times N: 2 or 3 N by the stochastic default; more in the first
    steps of a multistep solver with ``startup="exact"``), and once more for ``last="denoise"``.
    ``t_start``, ``t_end``: the span of a grid made from ``steps``, by default the SDE's usable
    range. A start below t_max needs ``x_init``. ``t_start`` may be (B,), a start for each sample,
    and an array ``grid`` (N + 1, B).
    ``last``: ``"denoise"`` ends with one more evaluation, E[x_0 | x]; ``"mean"`` adds no noise in
    the last stochastic step; ``"noisy"`` returns the state at ``t_end``. Default: ``"denoise"``, or
    ``"noisy"`` where ``t_end`` is given or there is no Gaussian kernel.
    ``seed``: an int, from which sample i takes seed i of `seeds`, or one int a sample (a group of
    rows, if the solver has groups); None draws one from the operating system.
    The result holds the seeds. Sample i depends on its seed alone, not on B; torch's global
    generator plays no part (``torch.manual_seed`` does nothing here) and is not touched. ``noise``:
    a noise object in place of seeds. ``x_init``: (B, *event) states at the start, in place of a
    draw from the prior.
    ``stochasticity``: lambda >= 0 of dx = [f x - (1 + lambda^2)/2 g^2 score] dt + lambda g dw, a
    number or a function of t; by default 1 for stochastic solvers. Other solvers admit 0 only.
    Given without a solver, it chooses a stochastic one. ``condition``: tensors with leading
    dimension B for the network. ``mask``: which coordinates exist, True or 1, for samples of
    different sizes in one batch: (B, *event), or its first dimensions, or 1 in place of some. The
    others are 0 in every state and have no noise, and no norm counts them; a network that needs to
    know of them takes a condition. ``batch_size``: solve so many samples at a time. ``trajectory``:
    keep the state at every time of the grid. ``callback``: sees a `Snapshot` after each step.
    ``progress``: show a bar. ``max_nfe``: no sample has the network evaluated more often; adaptive
    solvers have a limit of 50,000 by default. ``on_fail``: ``"raise"`` a `SolveError`, or
    ``"return"`` what there is.
    ``grad``: ``"full"`` keeps the graph, ``"checkpoint"`` recomputes each step in the backward
    pass.
    ``compile``: run the network by torch.compile, with solvers of fixed steps.
    ``dtype``: of the state, float32 or float64. ``device``: the model's by default; ``x_init`` and
    ``condition`` are taken there.

    States, given or returned, are in the user's units where the model has a `Normalizer`. A
    UserWarning says where the process ends before noise has taken over, for data of the model's
    ``data_std``: samples from the prior are then off.

    Raises ValueError or TypeError before the first evaluation of the network, `SolveError` after
    it.
    """
    known = facts(model)
    shape = check_shape(shape)
    if solver is None:
        noisy = stochasticity is not None and (
            callable(stochasticity) or one_stochasticity(stochasticity) != 0
        )
        solver = default_solver(model.sde, intervals(steps, grid), stochastic=noisy)
    elif not isinstance(solver, Solver):
        check_solver(solver)
    if last is not None:
        _check_last(model.sde, last)
    elif t_end is None and "kernel" in model.sde.offers:
        last = "denoise"
    solving = Solving.checked(
        model,
        known,
        shape,
        Span.reverse(model.sde),
        solver,
        steps=steps,
        grid=grid,
        t_start=t_start,
        t_end=t_end,
        last="mean" if last == "mean" else "noisy",
        condition=condition,
        mask=mask,
        batch_size=batch_size,
        trajectory=trajectory,
        callback=callback,
        progress=progress,
        max_nfe=max_nfe,
        on_fail=on_fail,
        grad=grad,
        compile=compile,
        dtype=dtype,
        device=device,
    )
    return _sampled(solving, seed, noise, x_init, stochasticity, denoise=last == "denoise")


def _check_last(sde: SDE, last: str) -> None:
    check_choice("last", last, ("denoise", "mean", "noisy"))
    if last == "denoise" and "kernel" not in sde.offers:
        raise ValueError(
            f"last='denoise' takes E[x_0 | x], which {sde!r} does not have: it is no LinearSDE; "
            "use 'mean' or 'noisy'"
        )


def _sampled(
    solving: Solving,
    seed: int | Sequence[int] | None,
    noise: Noise | None,
    x_init: Tensor | None,
    stochasticity: float | Callable[[Tensor], Tensor] | None,
    *,
    denoise: bool,
) -> Solution:
    """The samples of these seeds, or of the noise given."""
    solver = solving.solver
    times = solving.times
    units = solving.units
    sde = solving.model.sde
    shape = (solving.count, *solving.event)
    device = solving.device
    dtype = solving.dtype
    lam: float | Callable[[Tensor], Tensor] = 1.0 if solver.diffuses else 0.0
    if stochasticity is not None:
        lam = check_stochasticity(solver, stochasticity, times.reshape(-1))
    seeds = check_seed(seed, noise, shape, device, solver.group)
    if seeds is not None:
        keys = seeds if solver.group == 1 else row_seeds(seeds, solver.group)
        noise = White(keys, solving.event, dtype=dtype, device=device)
    drawn = cast(Noise, noise)
    if solving.mask is not None:
        drawn = masked(drawn, solving.mask)
    x_start = check_start(sde, x_init, shape, float(times[0].min()), dtype, device)
    # A chain is for a start from noise; of other solves as much is known if the data's scale is.
    declared = solver.times is not None or solving.facts.declared_data_std is not None
    if x_start is None and declared and "kernel" in sde.offers:
        wrong = short_of_noise(sde, solving.facts.data_std)
        if wrong is not None:
            warnings.warn(wrong, stacklevel=3)

    def part(rows: Tensor, options: Options) -> Solution:
        own = drawn if len(rows) == solving.count else drawn.take(rows)
        problem = solving.reverse(rows, lam)
        if x_start is None:
            x = sde.prior.from_noise(own.at(0).normal("prior"))
            x = x if units.unit == 1 else units.from_model(x)
        else:
            x = units.enter(x_start[rows.to(device)], problem.mask)
        grid = times if times.ndim == 1 else times[:, rows]
        inside = solver.solve(problem, x, grid, own, options)
        solution = inside
        if units.unit != 1 or units.normalizer is not None or problem.mask is not None:
            solution = units.left(inside, problem.mask)
        return _denoised(problem, solver, inside, solution, grid, options) if denoise else solution

    return replace(solving.run("sampling", part), seeds=seeds)


def _denoised(
    problem: Reverse,
    solver: Solver,
    inside: Solution,
    solution: Solution,
    times: Tensor,
    options: Options,
) -> Solution:
    """``solution`` with E[x_0 | x] in place of each x, which solvers see as that of ``inside``."""
    if options.max_nfe is not None:
        late = [
            i
            for i, n in enumerate(solution.nfe.tolist())
            if n >= options.max_nfe and not int(solution.status[i])
        ]
        solution = _fail(solution, late, Status.MAX_NFE, times[-1])
    rows = torch.nonzero(solution.status == 0).flatten()
    if not len(rows):
        return solution
    whole = len(rows) == len(inside.x)
    with torch.set_grad_enabled(options.grad != "none"):
        # At a break the value counts that is inside of what was solved last; a chain knows nothing
        # of breaks.
        piece = None
        if problem.breaks and solver.times is None:
            piece = legs_of(problem, times)[1][-1].problem.piece
        last = problem if piece is None else problem.within(piece, times)
        part, state = (
            (last, inside.x) if whole else (last.take(rows), inside.x[rows.to(inside.x.device)])
        )
        end = times[-1] if whole or times.ndim == 1 else times[-1, rows]
        clean = part.clean(state, end)
    out = solution.x.clone()
    out[rows.to(out.device)] = clean
    lost: list[int] = []
    if not bool(torch.isfinite(clean).all()):
        lost = rows[~torch.isfinite(rowwise(clean)).all(dim=1).cpu()].tolist()
        out[lost] = solution.x[lost]
    frames = solution.trajectory
    if frames is not None:
        frames = torch.cat([frames[:-1], out[None]])
    backward = problem.monitor.backward_passes.total
    solution = replace(
        solution, x=out, nfe=problem.monitor.evaluations.total, backward=backward, trajectory=frames
    )
    return _fail(solution, lost, Status.NETWORK_NOT_FINITE, times[-1]) if lost else solution


def _fail(solution: Solution, samples: list[int], status: Status, end: Tensor) -> Solution:
    """Note failures at ``end``, () or a time for each sample."""
    if not samples:
        return solution
    marks = solution.status.clone()
    marks[samples] = int(status)
    ends = end.expand(len(marks)).tolist()
    failures = solution.failures + tuple(Failure(i, status, ends[i]) for i in samples)
    return replace(solution, status=marks, failures=tuple(sorted(failures, key=lambda f: f.sample)))

"""The one entry point to sampling: arguments are checked, a problem is built, a solver solves
it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, Unpack, cast

import torch
from torch import Tensor

from sdediff.arguments import (
    Span,
    check_seed,
    check_shape,
    check_solver,
    check_start,
    default_solver,
    intervals,
    row_seeds,
)
from sdediff.options import SolveOptions, takes
from sdediff.protocols import Model, facts
from sdediff.reverse import Reverse
from sdediff.sde import SDE
from sdediff.solvers import (
    Noise,
    Options,
    Solution,
    Solver,
    Status,
    White,
    rowwise,
)
from sdediff.solvers.given import check_choice
from sdediff.solvers.legs import legs_of
from sdediff.solvers.masked import masked
from sdediff.solvers.solution import failing
from sdediff.solving import Solving, chosen
from sdediff.stochasticity import asks_for_noise, check_stochasticity
from sdediff.suitability import short_of_noise

__all__ = ["sample"]


@takes(SolveOptions)
def sample(
    model: Model,
    shape: Sequence[int],
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    seed: int | Sequence[int] | None = None,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Draw samples: solve the reverse process from noise at t_max to data at t_min.

        out = sd.sample(model, (64, 3, 32, 32), steps=20, seed=0)
        out.x  # the samples, (64, 3, 32, 32)

    ``model``: a `ScoreModel`, or any other model, such as a guided one.
    ``shape``: (B, *event), the number of samples and the shape of one.
    ``solver``: any solver, by default one that is chosen by the number of steps (the rule is in
    docs/solvers.md): with ``steps`` or a ``grid`` an `ExponentialMultistep` of order 1 to 4, or, if
    ``stochasticity`` is given, of order 2 for the reverse SDE; without both `RK45`, or
    `AdaptiveSDE` if ``stochasticity`` is given. Under an SDE without a Gaussian kernel it is
    `EulerMaruyama`, and a process such as a degradation has a default solver of its own.
    ``steps``: the number of steps N of a solver with fixed steps, spaced as ``grid`` says. The
    network is evaluated N times (``solver.evaluations`` times N; more in the first steps of a
    multistep solver with ``startup="exact"``), and once more for ``last="denoise"``. Adaptive
    solvers take no ``steps``.
    ``seed``: an int, from which sample i takes seed i of `seeds`; or one int for each sample (for
    each group of rows, if the solver has groups). None draws one from the operating system. The
    result holds the seeds. Sample i depends on its seed alone, and not on B. torch's global
    generator is neither used nor changed, so ``torch.manual_seed`` has no effect here.

    The result is a `Solution`. If the model has a `Normalizer`, states that you pass and states
    that are returned are in your units. A UserWarning says if the process ends while too much of
    the data is left, for data of the model's ``data_std``: samples that start from the prior are
    then wrong.

    Raises ValueError or TypeError before the first evaluation of the network, and `SolveError`
    after it if a sample fails. The options are those of `SolveOptions`:
    """
    taken = chosen(sample, options)
    known = facts(model)
    shape = check_shape(shape)
    stochasticity, last = taken["stochasticity"], taken["last"]
    noisy = asks_for_noise(stochasticity)
    # The forms and the grid for sizes of details were measured without noise alone.
    details = known.details if solver is None and not noisy else None
    if solver is None:
        count = intervals(steps, taken["grid"])
        solver = default_solver(
            model.sde,
            count,
            stochastic=noisy,
            details=details,
            guidance=known.guidance_scale,
        )
    elif not isinstance(solver, Solver):
        check_solver(solver)
    if last is not None:
        _check_last(model.sde, solver, last)
    elif taken["t_end"] is None and "kernel" in model.sde.offers and not solver.ends_clean:
        last = "denoise"
    span = Span(model.sde, model.sde.t_max, model.sde.t_min, details=details)
    inner: Literal["mean", "noisy"] = "mean" if last == "mean" else "noisy"
    solving = Solving.checked(model, known, shape, span, solver, steps, taken, inner)
    return _sampled(solving, seed, taken, denoise=last == "denoise")


def _check_last(sde: SDE, solver: Solver, last: str) -> None:
    check_choice("last", last, ("denoise", "mean", "noisy"))
    if last == "denoise" and solver.ends_clean:
        raise ValueError(
            f"{solver!r} ends at the data itself, where nothing is left to denoise: use 'mean' "
            "or 'noisy'"
        )
    if last == "denoise" and "kernel" not in sde.offers:
        raise ValueError(
            f"last='denoise' takes E[x_0 | x], which {sde!r} does not have: it is no LinearSDE; "
            "use 'mean' or 'noisy'"
        )


def _sampled(
    solving: Solving,
    seed: int | Sequence[int] | None,
    options: SolveOptions,
    *,
    denoise: bool,
) -> Solution:
    """The samples of these seeds, or of the noise given."""
    solver = solving.solver
    times = solving.times
    units = solving.units
    sde = solving.model.sde
    stochasticity, noise = options["stochasticity"], options["noise"]
    shape = (solving.count, *solving.event)
    device = solving.device
    dtype = solving.dtype
    lam: float | Callable[[Tensor], Tensor] = 1.0 if solver.solves_sde else 0.0
    if stochasticity is not None:
        lam = check_stochasticity(solver, stochasticity, times)
    seeds = check_seed(seed, noise, shape, device, solver.group)
    if seeds is not None:
        keys = seeds if solver.group == 1 else row_seeds(seeds, solver.group)
        noise = White(keys, solving.event, dtype=dtype, device=device)
    drawn = cast(Noise, noise)
    if solving.mask is not None:
        drawn = masked(drawn, solving.mask)
    x_start = check_start(sde, options["x_init"], shape, float(times[0].min()), dtype, device)
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
            x = (solver.prior or sde.prior).from_noise(own.at(0).normal("prior"))
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
    """``solution`` with E[x_0 | x] in place of each x, which solvers see as that of ``inside``;
    itself where no noise is left.
    """
    ends = times[-1].expand(len(inside.x))
    if not bool(ends.any()) and not bool(problem.marginal(ends)[1].any()):
        return solution
    if options.max_nfe is not None:
        late = torch.nonzero((solution.nfe >= options.max_nfe) & (solution.status == 0)).flatten()
        words = f"{options.max_nfe:,} evaluations"
        solution = solution.failed(failing(late, ends[late], Status.MAX_NFE, words))
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
    lost = rows[:0]
    if not bool(torch.isfinite(clean).all()):
        lost = rows[~torch.isfinite(rowwise(clean)).all(dim=1).cpu()]
        out[lost.to(out.device)] = solution.x[lost.to(out.device)]
    frames = solution.trajectory
    if frames is not None:
        frames = torch.cat([frames[:-1], out[None]])
    backward = problem.monitor.backward_passes.total
    solution = replace(
        solution, x=out, nfe=problem.monitor.evaluations.total, backward=backward, trajectory=frames
    )
    if not len(lost):
        return solution
    return solution.failed(failing(lost, ends[lost], Status.NETWORK_NOT_FINITE))

"""The options that sampling, encoding and the likelihood share: each has its type, its default and
its documentation here alone. The solver where none is given.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from sdediff import solvers
from sdediff.calls import Condition
from sdediff.sde import SDE
from sdediff.solvers import (
    RK45,
    AdaptiveSDE,
    EulerMaruyama,
    ExponentialMultistep,
    Noise,
    Snapshot,
    Solver,
    Straight,
    given,
)
from sdediff.solvers.given import integer
from sdediff.solvers.grid import COARSE, FINE, fine
from sdediff.solvers.options import Shared

__all__ = [
    "DEFAULTS",
    "SHARED",
    "Grid",
    "Kind",
    "LikelihoodOptions",
    "Probe",
    "SolveOptions",
    "Stochasticity",
    "check_solver",
    "chosen",
    "default_solver",
    "documented",
    "intervals",
    "takes",
]

Stochasticity = float | Callable[[Tensor], Tensor] | Sequence[float] | Tensor
Grid = str | Callable[[int], Tensor] | Tensor | Sequence[float]
Kind = Literal["exact", "hutchinson", "hutch++"]
Probe = Literal["hadamard", "rademacher", "gaussian"]


class SolveOptions(TypedDict, total=False):
    """The options of `sample`, `encode`, `decode`, `log_prob` and `bits_per_dim`; each function
    takes those that its signature shows.

    ``grid``: how times are spaced. A name or a function of N goes with ``steps=N``; the default is
    ``solver.spacing``: ``"inner"`` for the default solver and others in the angle, with noise
    ``"central"``, ``"logistic"`` for other exponential integrators, else ``"uniform"``, where the
    spacing of the SDE counts (``"karras"`` for `EDM`). Or it is an array of the N + 1 times
    themselves. Then pass no steps, and neither ``t_start`` nor ``t_end``: the array has them. Its
    times fall in a solve from noise to data, as of `sample`, and rise in one from data to noise. An
    array (N + 1, B) gives each sample its own times. Adaptive solvers take no names and no
    functions, but an array, and reach each of its times exactly.
    ``t_start``, ``t_end``: the times at which the solve starts and ends, by default those of the
    usable range of the SDE. ``t_start`` may be (B,), one start for each sample (one for all in
    `log_prob`). A start of `sample` below t_max needs ``x_init``. `DDPM` and `NCSN` start at one of
    their own ``times``, all samples together. `sample` may end at t = 0 where sigma(0) = 0, by
    ``t_end=0.0`` or a grid that ends so: exponential integrators, `DDIM` and Runge-Kutta methods in
    sigma take a step to there, and solvers that evaluate there refuse.
    ``last``: ``"denoise"`` ends with one more evaluation, which returns E[x_0 | x]; ``"mean"`` adds
    no noise in the last stochastic step; ``"noisy"`` returns the state at ``t_end``. The default is
    ``"denoise"``, or ``"noisy"`` where ``t_end`` is given or the SDE has no Gaussian kernel.
    ``noise``: a noise object, in place of ``seed``.
    ``x_init``: states (B, *event) at the start, in place of a draw from the prior.
    ``stochasticity``: lambda >= 0 of dx = [f x - (1 + lambda^2)/2 g^2 score] dt + lambda g dw, a
    number, a function of t, or one number for each step of the grid (`SASolver`'s tau a step). The
    default is 1 for stochastic solvers; the others take 0 alone. Where it is given and no solver
    is, the default solver is a stochastic one.
    ``condition``: tensors with leading dimension B, by the names of the network's arguments. A
    number, or a tensor with leading dimension 1, is the same for all samples.
    ``mask``: which coordinates exist, True or 1, for samples of different sizes in one batch. Its
    shape is (B, *event), or the first dimensions of that, or has 1 in place of some. The other
    coordinates are 0 in every state, have no noise, and count in no norm and no density. A network
    that needs to know of them takes a condition.
    ``batch_size``: how many samples are solved at a time; by default all of them.
    ``trajectory``: whether the result keeps the state at every time of the grid.
    ``callback``: a function that is called with a `Snapshot` after each step.
    ``progress``: whether a progress bar is shown.
    ``max_nfe``: the most evaluations of the network for any sample. Adaptive solvers have a limit
    of 50,000 by default.
    ``on_fail``: ``"raise"`` raises `SolveError` where a sample fails, ``"return"`` returns the
    partial result.
    ``grad``: ``"full"`` keeps the graph of the solve, ``"checkpoint"`` computes each step again in
    the backward pass. A log-density under ``"full"`` has gradients to x and to the network's
    parameters, except with a compiled network, which has no second derivatives.
    ``compile``: whether the network is run by torch.compile; solvers with fixed steps only.
    ``dtype``: the dtype of the state, torch.float32 or torch.float64. The default is float32 for
    `sample` and otherwise the dtype of the given states, float32 at least. A log-density is
    accumulated in float64; ``dtype`` is then what the network sees, and the dtype of the latents.
    ``device``: the device of the solve, by default the model's; ``x_init`` and ``condition`` are
    moved there.
    """

    grid: Grid | None
    t_start: float | Tensor | None
    t_end: float | None
    last: Literal["denoise", "mean", "noisy"] | None
    noise: Noise | None
    x_init: Tensor | None
    stochasticity: Stochasticity | None
    condition: Condition | None
    mask: Tensor | None
    batch_size: int | None
    trajectory: bool
    callback: Callable[[Snapshot], None] | None
    progress: bool
    max_nfe: int | None
    on_fail: Literal["raise", "return"]
    grad: Literal["none", "full", "checkpoint"]
    compile: bool
    dtype: torch.dtype | None
    device: torch.device | str | None


class LikelihoodOptions(SolveOptions, total=False):
    """What `log_prob` and `bits_per_dim` take beside `SolveOptions`: how the divergence of the
    drift is computed.

    ``divergence``: ``"exact"`` takes d vector-Jacobian products an evaluation, where d is the
    number of coordinates. ``"hutchinson"`` takes ``probes`` of them, is unbiased and has a standard
    error. ``"hutch++"`` takes ``probes`` too, and spends a third of them on the dominant
    directions, which is better where these are few. All share the forward pass with the drift.
    ``probes``: the number k of probes, by default 8, and 12 for hutch++; at most d with Hadamard
    probes. Or, with ``"hutchinson"``, the probes themselves: a tensor (k, B, *event), or a function
    of x that returns one, of vectors v with E[v v^T] = I in the units in which the network sees x.
    Each estimate is the integral of v^T (d drift / dx) v, as in other code, and the standard error
    is that of independent probes.
    ``probe``: ``"hadamard"`` for orthogonal signs, whose variance is (d - k) / (d - 1) times that
    of independent ones, and 0 at k = d (for d without a Hadamard matrix the next number with one
    takes its place); ``"rademacher"`` for independent signs; ``"gaussian"`` for normals. Probes are
    drawn once for the solve, for each sample from its own seed.
    """

    divergence: Kind
    probes: int | Tensor | Callable[[Tensor], Tensor] | None
    probe: Probe


DEFAULTS: Final[LikelihoodOptions] = {
    "grid": None,
    "t_start": None,
    "t_end": None,
    "last": None,
    "noise": None,
    "x_init": None,
    "stochasticity": None,
    "condition": None,
    "mask": None,
    "batch_size": None,
    "trajectory": False,
    "callback": None,
    "progress": False,
    "max_nfe": None,
    "on_fail": "raise",
    "grad": "none",
    "compile": False,
    "dtype": None,
    "device": None,
    "divergence": "exact",
    "probes": None,
    "probe": "hadamard",
}

SHARED: Final = Shared(DEFAULTS, (SolveOptions, LikelihoodOptions))
takes: Final = SHARED.takes
documented: Final = SHARED.documented
chosen: Final = partial(given.chosen, defaults=DEFAULTS)


def check_solver(solver: Solver) -> Solver:
    """A TypeError unless it is a solver value."""
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, type):
        raise TypeError(f"solver must be a value, not a class: write {solver.__name__}()")
    names = [
        name
        for name in solvers.__all__
        if isinstance(getattr(solvers, name), type) and issubclass(getattr(solvers, name), Solver)
    ]
    spelled = {name.lower(): name for name in names}
    given = str(solver).lower().replace("-", "").replace("_", "").replace("+", "p")
    close = difflib.get_close_matches(given, spelled, n=1, cutoff=0.3) or ["eulermaruyama"]
    raise TypeError(
        f"solver must be a solver value, got {solver!r}; did you mean "
        f"sdediff.solvers.{spelled[close[0]]}()?"
    )


def default_solver(
    sde: SDE,
    steps: int | None,
    *,
    stochastic: bool,
    details: float | None = None,
    guidance: float = 1.0,
) -> Solver:
    """The process's own, or by the rule of docs/solvers.md: by the number of steps, and by whether
    noise is asked for; RK45 where there are no steps.

    Without noise: the equation in the form that is straight while data and noise do not change, at
    the scale of details, polynomials in the angle arctan(sigma / alpha), the first steps of lower
    orders: an evaluation a step, and none more to start. With noise: the reverse SDE in the same
    form, by lines in the angle, each state corrected by the line to the prediction there; an
    evaluation a step too; AdaptiveSDE where there are no steps.

    ``details``: the standard deviation of the details of the data over that of the data, where it
    was measured. Below `FINE` and above `COARSE` it is the scale of the form without noise, but
    half of it with fewer than 8 steps in the first case and with 15 or more in the second; between,
    the scale is 0.1. Where the details are `fine` the orders differ too.
    ``guidance``: the model's ``guidance_scale``. Above `STRONG` orders are lower without noise, for
    predictions change much from step to step.
    """
    if sde.solver is not None:
        return sde.solver
    if steps is None:
        return AdaptiveSDE() if stochastic else RK45()
    if "kernel" not in sde.offers:
        return EulerMaruyama()
    if stochastic:
        return ExponentialMultistep(2, form=Straight(0.1), variable="angle", corrector=1, sde=True)
    count = steps if isinstance(steps, int) else 0
    small = fine(details, count)
    rule = _BY_STEPS if small is None else _BY_STEPS_IF_FINE
    if guidance > STRONG:
        rule = ((_STEPS_BY_SCALE * min(guidance, _LARGEST), 2, 2), (0, 1, 1))
    order, corrector = next((row[1:] for row in rule if count >= row[0]), (2, 2))
    if details is None or FINE <= details <= COARSE:
        scale = 0.1
    else:
        halved = count < _FEW if details < FINE else count >= _MANY
        scale = details / 2 if halved else details
    return ExponentialMultistep(
        order, form=Straight(scale), variable="angle", corrector=corrector, startup="published"
    )


STRONG: Final = 2.0
"""Of the scale of guidance."""
_STEPS_BY_SCALE, _LARGEST = 3, 8.0
"""Under strong guidance the order is 1, and 2 from three times the scale on, or eight."""
_Rule = tuple[tuple[float, int, int], ...]
_BY_STEPS: Final[_Rule] = ((20, 4, 4), (15, 4, 3), (8, 3, 3))
"""From so many steps on, the order and that of the corrector; with fewer, 2 and 2."""
_BY_STEPS_IF_FINE: Final[_Rule] = ((25, 4, 4), (10, 3, 3))
"""The same where details are fine."""
_FEW, _MANY = 8, 15
"""With fewer steps half the size of fine details is the scale, and from so many on half that of
coarse ones: measured.
"""


def intervals(steps: int | None, grid: Grid | None) -> int | None:
    """How many steps there will be; None where the solver is to choose."""
    if grid is None or isinstance(grid, str) or callable(grid):
        return None if steps is None else integer("steps", steps, 1)
    shape = grid.shape if isinstance(grid, Tensor) else np.shape(grid)
    return shape[0] - 1 if shape else None

"""The options that sampling, encoding and the likelihood share: each has its type, its default and
its documentation here alone.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Literal, TypedDict, TypeVar

import torch
from torch import Tensor

from sdediff.default import Grid
from sdediff.solvers import Noise, Snapshot

__all__ = ["DEFAULTS", "Kind", "LikelihoodOptions", "Probe", "SolveOptions", "documented", "takes"]

Kind = Literal["exact", "hutchinson", "hutch++"]
Probe = Literal["hadamard", "rademacher", "gaussian"]


class SolveOptions(TypedDict, total=False):
    """The options of `sample`, `encode`, `decode`, `log_prob` and `bits_per_dim`; each function
    takes those that its signature shows.

    ``grid``: how times are spaced. A name or a function of N goes with ``steps=N``; the default is
    ``solver.spacing``: ``"central"`` for the default solver and others in the angle, ``"logistic"``
    for other exponential integrators, else ``"uniform"``, where the spacing of the SDE counts
    (``"karras"`` for `EDM`). An array of times excludes ``steps``, ``t_start`` and ``t_end``; it
    falls where a solve goes from noise to data, and rises the other way. (N + 1, B) gives each
    sample its own times. Adaptive solvers take an array alone, and land on its times.
    ``t_start``, ``t_end``: the times at which the solve starts and ends, by default those of the
    usable range of the SDE. ``t_start`` may be (B,), one start for each sample (one for all in
    `log_prob`). A start of `sample` below t_max needs ``x_init``.
    ``last``: ``"denoise"`` ends with one more evaluation, which returns E[x_0 | x]; ``"mean"`` adds
    no noise in the last stochastic step; ``"noisy"`` returns the state at ``t_end``. The default is
    ``"denoise"``, or ``"noisy"`` where ``t_end`` is given or the SDE has no Gaussian kernel.
    ``noise``: a noise object, in place of ``seed``.
    ``x_init``: states (B, *event) at the start, in place of a draw from the prior.
    ``stochasticity``: lambda >= 0 of dx = [f x - (1 + lambda^2)/2 g^2 score] dt + lambda g dw, a
    number or a function of t. The default is 1 for stochastic solvers; the others take 0 alone.
    Where it is given and no solver is, the default solver is a stochastic one.
    ``condition``: tensors with leading dimension B, by the names of the network's arguments.
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
    stochasticity: float | Callable[[Tensor], Tensor] | None
    condition: Mapping[str, Tensor] | None
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
    probes.
    ``probe``: ``"hadamard"`` for orthogonal signs, whose variance is (d - k) / (d - 1) times that
    of independent ones, and 0 at k = d (for d without a Hadamard matrix the next number with one
    takes its place); ``"rademacher"`` for independent signs; ``"gaussian"`` for normals. Probes are
    drawn once for the solve, for each sample from its own seed.
    """

    divergence: Kind
    probes: int | None
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

_F = TypeVar("_F", bound=Callable[..., Any])


def takes(record: type, *, without: Collection[str] = ()) -> Callable[[_F], _F]:
    """Decorate a function with ``**options: Unpack[record]``: its signature and its docstring show
    the options one by one, except those in ``without``, which it refuses (`solving.chosen`).
    """
    kinds = {name: kind.__forward_arg__ for name, kind in record.__annotations__.items()}
    names = [name for name in kinds if name not in without]

    def shown(function: _F) -> _F:
        own = inspect.signature(function)
        *named, _ = own.parameters.values()
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=dict(DEFAULTS)[name],
                annotation=kinds[name],
            )
            for name in names
        ]
        made: Any = function
        made.__signature__ = own.replace(parameters=[*named, *added])
        made.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{documented(names)}"
        return function

    return shown


def documented(names: Collection[str]) -> str:
    """What the records say of these options, a paragraph for each."""
    found: list[str] = []
    for record in (SolveOptions, LikelihoodOptions):
        text = inspect.cleandoc(record.__doc__ or "")
        for entry in re.split(r"\n+(?=``\w+``(?:, ``\w+``)*: )", text)[1:]:
            if set(re.findall(r"``(\w+)``", entry.partition(": ")[0])) & set(names):
                found.append(entry)
    return "\n".join(found)

"""`compare`: error against cost of solvers on one model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Unpack

from torch import Tensor

from sdediff.arguments import check_condition, check_device, check_shape
from sdediff.comparison.allowance import Allowance
from sdediff.comparison.candidates import Solvers, candidates, jobs
from sdediff.comparison.measuring import RealData, Solve, quality_of
from sdediff.comparison.record import Comparison
from sdediff.comparison.reference import Against, given_draws
from sdediff.comparison.running import Comparing
from sdediff.masks import check_mask
from sdediff.metrics.extractors import Features, feature_function
from sdediff.metrics.samples import check_sample
from sdediff.options import DEFAULTS, SolveOptions
from sdediff.processes import current
from sdediff.protocols import Facts, Model, facts
from sdediff.solvers import fresh_seed, given
from sdediff.solvers.given import integer, real
from sdediff.solvers.options import Shared
from sdediff.solving import check_dtype
from sdediff.units import Units

__all__ = ["CompareOptions", "compare", "prepared"]

_COUNT: Final = 512
"""Samples by default."""


class CompareOptions(SolveOptions, total=False):
    """What `compare` takes beside options of `sample`.

    ``tolerances``: those at which adaptive solvers are run, rtol, and atol in units of the standard
    deviation of the data.
    ``grids``: names of grids, or functions of the number of steps, on each of which each solver
    with fixed steps is run; by default each solver is on its own.
    ``reference``: the tolerance of the reference; by default 1e-9, and 1e-5 for networks in single
    precision.
    ``against``: the law asked for, where that is not the flow's: draws (m, *event) in the user's
    units, a function from a number to so many draws, or an object with ``sample(count, seed=)``,
    as the laws of `sdediff.exact` have it. A guided law, or a posterior whose law is known.
    ``data``: real samples (m, *event) in the user's units, for the quality of samples: each solver
    is compared with one part of them, and so is another part, that real data stand beside.
    ``features``: from samples (B, *event) to features (B, k), between which the Frechet distance to
    ``data`` is taken; or the file of the weights of Inception or DINOv2, or what
    `sdediff.metrics.extractor` made; by default their values.
    ``budget_s``: the seconds that the comparison may take. The cheapest solves are made first; what
    is expected not to end in time is left out, a solve that turns out slower is stopped, and the
    number of samples is lowered, to no less than 16, where the reference alone would take more than
    a third of them. If it does so all the same, one of a fixed number of steps has its place. What
    was left out is said.
    """

    tolerances: Sequence[float]
    grids: Sequence[str | Callable[[int], Tensor]] | None
    reference: float | None
    against: Against | None
    data: Tensor | None
    features: Features | None
    budget_s: float | None


_DEFAULTS: Final[Any] = {
    **DEFAULTS,
    "tolerances": (1e-1, 1e-2, 1e-3, 1e-4),
    "grids": None,
    "reference": None,
    "against": None,
    "data": None,
    "features": None,
    "budget_s": None,
}
_KEPT: Final = ("condition", "mask", "batch_size", "dtype", "device")
"""Options of `sample` that all solves share."""
_LEFT: Final = tuple(
    name for name in SolveOptions.__annotations__ if name not in (*_KEPT, "progress")
)
_SHARED: Final = Shared(_DEFAULTS, (SolveOptions, CompareOptions))


@_SHARED.takes(CompareOptions, without=_LEFT)
def compare(
    model: Model,
    shape: Sequence[int] | None = None,
    *,
    solvers: Solvers | None = None,
    nfe: Sequence[int] = (5, 10, 20, 50),
    seed: int | None = 0,
    **options: Unpack[CompareOptions],
) -> Comparison:
    """Measure solvers on a model: the error of each at each number ``nfe`` of evaluations.

        found = sd.compare(model, (256, 2), nfe=[5, 10, 20])
        print(found)  # a table
        found.recommend(nfe=10).sentence

    ``shape``: (B, *event), by default 512 samples of the shape that ``data``, ``against`` or the
    model has.
    ``solvers``: a list, or a dict by name, of solvers, of functions from a number of steps to a
    solver (``lambda n: sd.DDPM.from_sde(sde, n)``), and of None for the library's default. By
    default those that the field uses and that the model allows.
    ``nfe``: numbers of evaluations of the network. All evaluations of a step and the last one of
    ``last="denoise"`` count, and each solver makes as many steps as it can within the number. If a
    solver cannot make a step, or fails, its row says so, and the other rows remain.
    ``seed``: as in `sample`.

    The error of a sample is its distance from where the exact probability flow takes the same
    start,

        e_i = |x_i - x_i^*| / (sqrt(d) data_std),

    and the table has its median, root mean square, 90th percentile and maximum. x^* is a tight
    adaptive solve. Its own error is estimated by a second method and reported; an error below three
    times that is marked. Solvers that draw noise have no such error. Their samples are compared
    with draws of the target law by energy distance, sliced Wasserstein distance and log ratio of
    standard deviations, each with its floor (`Comparison.floor`). The target is the law of the
    flow, from other starts, unless you pass another one as ``against``. With ``data`` each solver
    has a quality too, because on a trained network the exact flow does not always give the best
    pictures (docs/choosing-a-solver.md).

    The result has `Comparison.recommend`, ``plot``, ``markdown`` and ``to_json``. The same seed
    gives the same result except for the seconds, in any order of the solvers, unless ``budget_s``
    ends it early. Inside `sdediff.processes.together` several processes share the samples of
    each solve, and the first one measures.

    Raises ValueError or TypeError before the first evaluation of the network. The options:
    """
    work = prepared(model, shape, solvers, nfe, seed, options)
    work.run()
    return work.result


def prepared(
    model: Model,
    shape: Sequence[int] | None,
    solvers: Solvers | None,
    nfe: Sequence[int],
    seed: int | None,
    options: CompareOptions,
) -> Comparing:
    """The comparison that `compare` makes, its arguments checked and nothing evaluated yet."""
    taken: Any = given.chosen(compare, options, _DEFAULTS)
    known = facts(model)
    if "degrade" in model.sde.offers:
        raise ValueError(
            f"{model.sde!r} has no probability flow, which compare measures errors against: judge "
            "what TACoS() and NaiveSampling() restore by its distance from the data"
        )
    size = check_shape(_shape(shape, taken, known))
    known = replace(known, device=check_device(model, known, taken["device"]))
    shared = _shared(taken, size, known)
    budgets = [integer("nfe", each, 1) for each in _several("nfe", nfe)]
    tolerances = [
        _positive("tolerances", each) for each in _several("tolerances", taken["tolerances"])
    ]
    for name in ("budget_s", "reference"):
        if taken[name] is not None:
            taken[name] = _positive(name, taken[name])
    allowance = Allowance(taken["budget_s"])
    taken["features"] = feature_function(taken["features"], known.device)
    seed = current().once(fresh_seed) if seed is None else integer("seed", seed)
    real = _real_data(taken, size, known, seed)
    every = jobs(
        candidates(solvers, model, taken["grids"]), model, known, size, budgets, tolerances
    )
    if all(job.refused for job in every):
        why = f"{every[0].candidate.name}: {every[0].refused}" if every else "give some"
        raise ValueError(f"no solver fits this model and these numbers of evaluations: {why}")
    solve = Solve(model, size, Units(known.data_std, known.normalizer), shared)
    against = taken["against"]
    drawn = None if against is None else given_draws(against, size, known, seed)
    unseen = None if real is None else quality_of(real.unseen, real, solve.inside)
    return Comparing(solve, known, every, seed, taken, allowance, real, size[0], drawn, unseen)


def _shared(taken: Any, size: tuple[int, ...], known: Facts) -> Any:
    """The options of `sample` that all solves share, checked."""
    shared: Any = {name: taken[name] for name in _KEPT if taken[name] is not None}
    if "condition" in shared:
        given = shared["condition"]
        shared["condition"] = check_condition(given, size[0], known.net, known.device)
    if "mask" in shared:
        shared["mask"] = check_mask(shared["mask"], size, known.device)
    if "dtype" in shared:
        check_dtype(shared["dtype"])
    if "batch_size" in shared:
        integer("batch_size", shared["batch_size"], 1)
    return shared


def _shape(shape: Sequence[int] | None, taken: Any, known: Facts) -> Sequence[int]:
    """The shape given, or `_COUNT` samples like the data, the draws or what the model says."""
    if shape is not None:
        return shape
    for each in (taken["data"], taken["against"]):
        if isinstance(each, Tensor):
            return (_COUNT, *each.shape[1:])
    event = getattr(taken["against"], "event", None) or getattr(known.net, "event", None)
    if event is None:
        raise ValueError("shape is needed, as nothing says that of a sample: (512, 1, 28, 28), say")
    return (_COUNT, *event)


def _real_data(taken: Any, size: tuple[int, ...], known: Facts, seed: int) -> RealData | None:
    if taken["data"] is None:
        if taken["features"] is not None:
            raise ValueError("features are of samples and of data: pass data too")
        return None
    data = check_sample("data", taken["data"], 4)
    if tuple(data.shape[1:]) != size[1:]:
        raise ValueError(
            f"data have shape {tuple(data.shape[1:])} and samples {size[1:]}: they have to be the "
            "same"
        )
    return RealData.of(data.to(known.device), size[0], taken["features"], seed)


def _several(name: str, given: Any) -> list[Any]:
    """Numbers in a sequence, at least one."""
    if isinstance(given, str) or not isinstance(given, Iterable) or not len(found := list(given)):
        raise ValueError(f"{name} must be a list of numbers, at least one; got {given!r}")
    return found


def _positive(name: str, value: Any) -> float:
    number = real(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return number

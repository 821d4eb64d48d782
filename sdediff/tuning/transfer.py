"""A tuned solver on another model than the one that it was made for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Unpack, cast

import torch

from sdediff.arguments import Span, check_shape
from sdediff.describing import Own, build
from sdediff.options import SolveOptions, takes
from sdediff.protocols import Model, facts
from sdediff.sde import LinearSDE
from sdediff.solvers import Tuned
from sdediff.solving import Solving, chosen
from sdediff.tuning.fingerprint import differences
from sdediff.tuning.guard import Bound, bounds
from sdediff.tuning.search import UNUSED, states_dtype
from sdediff.tuning.start import check_smooth, start_of
from sdediff.tuning.trials import Trials, tolerance_for

__all__ = ["Transfer", "moved", "transfer"]

_WORSE: Final = 1.05
"""Times the error of the start: from there on it is said."""


@dataclass(frozen=True)
class Transfer:
    """What a tuned solver is worth on a model: ``here`` its errors over those of the solver that it
    was made from, the ratios of the median and of the 90th percentile with upper bounds; ``there``
    the same on the model that it was made for; ``differences`` in what the models differ, in words.
    """

    here: dict[str, Bound]
    there: dict[str, float]
    differences: tuple[str, ...]

    @property
    def gap(self) -> dict[str, float]:
        """``here`` over ``there``: 1 where nothing is lost."""
        return {name: each.ratio / self.there[name] for name, each in self.here.items()}


def _ratio(errors: Mapping[str, Any], name: str) -> float:
    """Of a quantile that the file has, also where that of the start is 0 or infinite."""
    tuned, start = (float(errors[part][name]) for part in ("tuned", "start"))
    return 1.0 if tuned == start else tuned / start if start else math.inf


def moved(solver: Tuned, model: Model) -> Tuned:
    """The same solver under the model's SDE, for data of its standard deviation: the times are
    those of the same arctan(sigma / alpha), or the nearest that the SDE has.
    """
    unit = facts(model).data_std
    sde = cast(LinearSDE, model.sde)
    sde = sde if unit == 1 else sde.scaled(1 / unit)
    ends = sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64))
    angles = torch.tensor(solver.angles, dtype=torch.float64)
    levels = torch.clamp(-2 * angles.tan().log(), ends[0], ends[1])
    times = sde.time_of(levels)
    times[0] = sde.t_max
    if solver.made.get("last") != "noisy":
        times[-1] = 0.0
    there = torch.atan2(sde.sigma(times), sde.alpha(times))
    return replace(solver, grid=tuple(times.tolist()), angles=tuple(there.tolist()))


@takes(SolveOptions, without=(*UNUSED, "grid", "last"))
def transfer(
    solver: Tuned,
    model: Model,
    shape: Sequence[int],
    *,
    seed: int = 0,
    **options: Unpack[SolveOptions],
) -> Transfer:
    """Measure a tuned solver on ``model``, with B starts, of ``shape`` = (B, *event), against the
    solver that it was made from, on its own grid.

    A UserWarning says where the model is another than that which the solver was made for, and the
    error there is more than 1.05 times that of the solver that it was made from. ``solver`` fits
    the model, by `moved` if need be.
    """
    taken = chosen(transfer, options)
    shape, known = check_shape(shape), facts(model)
    check_smooth(known)
    sde = cast(LinearSDE, model.sde)
    denoise = solver.made.get("last") != "noisy"
    try:
        given = build(solver.made["start"])
    except (Own, KeyError):
        given = None
    start = start_of(sde, given, solver.nfe * known.cost, denoise=denoise, known=known)
    taken["dtype"] = states_dtype(known, taken["dtype"])
    span = Span(sde, sde.t_max, sde.t_min, details=known.details if given is None else None)
    solving = Solving.checked(model, known, shape, span, start.solver, start.steps, taken)
    tolerance = tolerance_for(solving, start.solver, denoise=denoise)
    trials = Trials.drawn(solving, seed, tolerance, denoise=denoise)
    here = bounds(
        trials.errors_of(solver, solver.times), trials.errors_of(start.solver, solving.times)
    )
    own = solver.made.get("errors", {})
    there = {name: _ratio(own, name) if name in own.get("tuned", {}) else math.nan for name in here}
    found = Transfer(here, there, tuple(differences(solver.made.get("model", {}), solving)))
    if found.differences and max(each.ratio for each in here.values()) > _WORSE:
        ratios = ", ".join(f"{name} {each.ratio:.2f}" for name, each in here.items())
        warnings.warn(
            f"{solver!r} was made for another model ({'; '.join(found.differences)}), and its "
            f"errors here are those of {start.solver!r} times {ratios}: tune for this model",
            stacklevel=2,
        )
    return found

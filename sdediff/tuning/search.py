"""A solver for one model and one number of evaluations, better than the one that it is made
from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Self, Unpack, cast

import torch
from torch import Tensor

from sdediff.arguments import Span, check_shape
from sdediff.describing import encode
from sdediff.files import plain
from sdediff.options import SolveOptions, takes
from sdediff.processes import current
from sdediff.progress import Bar, progress_bar
from sdediff.protocols import Facts, Model, facts
from sdediff.sde import LinearSDE
from sdediff.solvers import GRIDS, LogSNR, Solver, Tuned, seeds
from sdediff.solvers.given import check_choice, integer, real
from sdediff.solving import Solving, chosen
from sdediff.tuning.fingerprint import fingerprint
from sdediff.tuning.fit import Adjusted, Best, Descent, before, has_gradients, score
from sdediff.tuning.grids import LocalErrors, cheapest, fine_grid
from sdediff.tuning.guard import QUANTILES, Bound, bounds
from sdediff.tuning.start import (
    OTHER_GRIDS,
    OTHERS,
    check_falls,
    check_smooth,
    check_start,
    start_of,
)
from sdediff.tuning.trials import Trials, tolerance_for
from sdediff.tuning.unrolled import Scheme, tabled, unrolled

__all__ = ["UNUSED", "states_dtype", "tune"]

Method = Literal["dp", "grid", "all"]

_FINE: Final = 33
"""Times among which dynamic programming chooses."""
_POWERS: Final = (1.0, 2.0, 4.0)
"""Of local errors, as sums of which the error at the end is taken: what happens to them on the way
is not known.
"""
_SAME: Final = 1e-4
"""How far a solver's errors may be from those of its sums: more than the rounding of a network in
float32 says that it is no sum.
"""
_TAIL, _HEAVY_TAIL = 0.3, 2.0
"""Weights of the tail in the loss; the second where the first gains little, or is not sure."""
_LITTLE: Final = -0.4
"""A score above this counts as little gain."""
_TRYING: Final = 1 / 2
"""The share of the time after which no other solver is tried, if gradients follow."""
_HEAT: Final = 1 / 4
"""The share of the time left that each descent has before the best of them goes on."""
UNUSED: Final = (
    "t_start",
    "t_end",
    "noise",
    "x_init",
    "stochasticity",
    "mask",
    "trajectory",
    "callback",
    "max_nfe",
    "on_fail",
    "grad",
    "compile",
)


@takes(SolveOptions, without=UNUSED)
def tune(
    model: Model,
    shape: Sequence[int],
    *,
    nfe: int,
    solver: Solver | None = None,
    method: Method = "grid",
    seconds: float = 100.0,
    seed: int = 0,
    **options: Unpack[SolveOptions],
) -> Tuned:
    """Make a solver for ``model`` that is better at ``nfe`` evaluations than the default one.

        tuned = sd.tune(model, (512, 2), nfe=5)
        out = sd.sample(model, (16, 2), solver=tuned, seed=0)  # without steps

    It learns from accurate solves of the model. The new solver is returned only if, with a
    confidence of 95 %, it is better than the solver from which it starts; else that one is
    returned. ``tuned.made`` says which, with the figures, and ``tuned.save`` writes a file.

    ``shape``: (B, *event) for B training starts, at least 32, better 256 or more. B more are held
    out: half of them to choose among the attempts, half to decide by a paired bootstrap of the
    median and of the 90th percentile of the error, which both have to be smaller.
    ``nfe``: how often the network is evaluated for one sample, as ``out.nfe`` counts. A guided
    model evaluates it more than once in a call, `ClassifierFree` twice: take a multiple of that.
    ``solver``: where to start, on its own grid; by default the solver of `sample`. In this case six
    other solvers on four grids are tried too, for one of them may suit the model better.
    ``method``: what is changed. ``"dp"`` changes the times alone, by dynamic programming over the
    local errors of one step along exact trajectories (Chen et al. 2024, arXiv 2405.11326, there for
    Euler's method), in seconds; those of the other solvers too, at no further evaluation.
    ``"grid"`` goes on by gradients through the solve (Tong et al. 2024, arXiv 2405.15506).
    ``"all"`` also changes each coefficient of each state: all multistep weights, the scale of the
    network's input, and the time that the network gets with it. If the network has no gradients,
    the result is that of ``"dp"``, and ``tuned.made`` says so.
    ``seconds``: the time that may be spent, without the accurate solves: dynamic programming, with
    64 evaluations of up to 128 samples, then up to 45 solves of the B / 2 starts held out for
    choosing, which stop when half of the time is over (with ``"dp"`` all of it), then gradients.
    ``last``: ``"denoise"``, the default, uses the last evaluation for the result E[x_0 | x], and so
    does the starting solver. ``"noisy"`` returns the state at t_min.

    Gradients need the memory of all evaluations of ``batch_size`` samples. A condition has B rows,
    and the samples that are held out have the same rows. States are float64 if the device has that.
    Inside `sdediff.processes.together` several processes share the starts; the first alone does the
    dynamic programming. Raises ValueError or TypeError before the first evaluation.
    """
    taken = chosen(tune, options)
    shape, nfe = check_shape(shape), integer("nfe", nfe, 1)
    check_choice("method", method, ("dp", "grid", "all"))
    limit = real("seconds", seconds)
    if not limit > 0:
        raise ValueError(f"seconds must be positive, got {seconds!r}")
    if shape[0] < 32:
        raise ValueError(
            f"shape = {shape} asks for {shape[0]} starts, too few to tell solvers apart: take 256"
        )
    known = facts(model)
    sde = model.sde
    if "kernel" not in sde.offers:
        raise ValueError(f"{sde!r} has no Gaussian kernel: tuning moves times by their log-SNR")
    check_smooth(known)
    last = taken["last"] or "denoise"
    check_choice("last", last, ("denoise", "noisy"))
    denoise = last == "denoise"
    others = OTHERS if solver is None else ()
    solver = None if solver is None else check_start(solver)
    details = known.details if solver is None else None
    start = start_of(cast(LinearSDE, sde), solver, nfe, denoise=denoise, known=known)
    taken["dtype"] = states_dtype(known, taken["dtype"])
    span = Span(sde, sde.t_max, sde.t_min, details=details)
    solving = Solving.checked(model, known, shape, span, start.solver, start.steps, taken)
    if solving.times.ndim > 1:
        raise ValueError("grid must be one grid for all samples, (N + 1,)")
    show = solving.progress and current().first
    shown = progress_bar("tuning", total=limit, show=show)
    with torch.inference_mode(False), shown as bar:
        work = _Work.begun(
            solving, start.solver, others, integer("seed", seed), bar, denoise=denoise
        )
        return work.improved(method, limit)


def states_dtype(known: Facts, dtype: torch.dtype | None) -> torch.dtype | None:
    """float64 where the user has not said otherwise and the device has it."""
    return torch.float64 if dtype is None and known.device.type != "mps" else dtype


class _Found(NamedTuple):
    """Something that was tried: what ``solver`` makes along ``times``, from which gradients can go
    on, or what they have made of that.
    """

    name: str
    scheme: Scheme
    score: float
    solver: Solver
    times: Tensor


@dataclass(eq=False)
class _Work:
    """What tuning knows and has found so far; the first of ``found`` is the start."""

    solving: Solving
    others: Sequence[Solver]
    sde: LinearSDE
    training: Trials
    choosing: Trials
    deciding: Trials
    bar: Bar
    began: float
    found: list[_Found]
    notes: list[str]
    _of_start: Tensor | None = None

    @classmethod
    def begun(
        cls,
        solving: Solving,
        solver: Solver,
        others: Sequence[Solver],
        seed: int,
        bar: Bar,
        *,
        denoise: bool,
    ) -> Self:
        """Draw the starts, solve them tightly, and unroll the solver."""
        unit = solving.units.unit
        sde = cast(LinearSDE, solving.model.sde)
        sde = sde if unit == 1 else sde.scaled(1 / unit)
        scheme = unrolled(solver, sde, solving.times, denoise=denoise)
        check_falls(solver, scheme.times)
        own, other = seeds(seed, 2)
        fine = fine_grid(sde, solving.times, _FINE)
        bar.update(0, "reference of the training starts")
        tolerance = tolerance_for(solving, solver, denoise=denoise)
        training = Trials.drawn(solving, own, tolerance, denoise=denoise, times=fine)
        bar.update(0, "reference of the starts held out")
        held_out = Trials.drawn(solving, other, tolerance, denoise=denoise)
        half = len(held_out) // 2
        choosing, deciding = held_out.part(slice(0, half)), held_out.part(slice(half, None))
        by_driver = deciding.errors_of(solver, solving.times)
        away = (by_driver - deciding.errors(scheme)).abs()
        if not bool((away <= _SAME * (1 + by_driver)).all()):
            raise ValueError(
                f"{solver!r} is no sum of the model's predictions with coefficients known "
                f"beforehand (its errors differ by {float(away.max()):.2g}): take another start"
            )
        start = _Found("start", scheme, 0.0, solver, solving.times)
        now = time.monotonic()
        return cls(solving, others, sde, training, choosing, deciding, bar, now, [start], [])

    def judged(self, scheme: Scheme) -> float:
        """Against the start, on the starts that are held out for choosing."""
        if self._of_start is None:
            self._of_start = self.choosing.errors(self.found[0].scheme)
        return score(self.choosing.errors(scheme), self._of_start)

    def improved(self, method: Method, seconds: float) -> Tuned:
        """The best of what the method finds, if it is surely better than the start."""
        start = self.found[0]
        if method != "dp" and not has_gradients(self.training, start.scheme):
            self.notes.append("the model's answers have no gradients: times by 'dp' alone")
            method = "dp"
        self._try_grids(self.began + seconds * (1 if method == "dp" else _TRYING))
        if method != "dp":
            self._by_gradients(method, self.began + seconds)
        best = min(self.found, key=lambda each: each.score)
        if best is start:
            return self._tuned(best, {})
        decided = bounds(self.deciding.errors(best.scheme), self.deciding.errors(start.scheme))
        better = all(each.upper < 1 - _SAME for each in decided.values())
        return self._tuned(best if better else start, decided)

    def _try_grids(self, deadline: float) -> None:
        """Try the solver of the start on the grids of dynamic programming, and the others on
        theirs, on published ones, and on that of the start; the others until ``deadline``.
        """
        self.bar.update(0, "local errors")
        start = self.found[0]
        steps = len(start.times) - 1
        ends = float(start.times[0]), float(start.times[-1])
        schedule = LogSNR(self.sde.log_snr, self.sde.time_of, bounded=True)
        usual = {"of the start": start.times}
        usual |= {name: GRIDS[name](steps, *ends, schedule) for name in OTHER_GRIDS}
        solvers = (start.solver, *self.others)
        paths = current().once(lambda: self._by_programming(solvers, steps))
        if not paths[0]:
            many = f"it chooses among {_FINE} times, for fewer steps"
            twice = "the start makes more than one evaluation a step"
            self.notes.append(f"no dynamic programming: {many if steps >= _FINE else twice}")
        fine = cast(Tensor, self.training.times)
        tries = []
        for solver, own in zip(solvers, paths, strict=True):
            grids = {f"by dp, power {power:g}": fine[list(path)] for path, power in own.items()}
            grids |= {} if solver is start.solver else usual
            tries += [(f"{solver!r}, grid {name}", solver, grids[name]) for name in grids]
        for done, each in enumerate(tries):
            if each[1] is not start.solver and not before(deadline):
                self.notes.append(f"time for {done} of {len(tries)} solvers and grids alone")
                break
            self._show(each[0])
            self._try(*each)

    def _by_programming(
        self, solvers: Sequence[Solver], steps: int
    ) -> list[dict[tuple[int, ...], float]]:
        """For each solver the cheapest paths along the times of the training starts, each with the
        first power of local errors that leads to it; none where two steps make other than two
        evaluations.
        """
        if steps >= _FINE:
            return [{} for _ in solvers]
        known = LocalErrors.measured(self.training, self.sde)
        found: list[dict[tuple[int, ...], float]] = []
        for solver in solvers:
            cost = known.of(solver)
            found.append({})
            if bool(torch.isfinite(cost[0, 1, 2:]).all()):
                for power in _POWERS:
                    found[-1].setdefault(tuple(cheapest(cost**power, steps)), power)
        return found

    def _try(self, name: str, solver: Solver, times: Tensor) -> None:
        if any(each.solver is solver and torch.equal(each.times, times) for each in self.found):
            return
        scheme = unrolled(solver, self.sde, times, denoise=self.training.denoise)
        if len(scheme.times) == len(self.found[0].scheme.times):
            self.found.append(_Found(name, scheme, self.judged(scheme), solver, times))

    def _by_gradients(self, method: Method, deadline: float) -> None:
        """Descend from the start and from the best of the others, each for a while, and once more
        with a heavier tail if there is `_LITTLE` gain; then go on with the best.
        """
        if not before(deadline):
            self.notes.append("no time was left for gradients: give more seconds, or fewer starts")
            return
        heat = _HEAT * (deadline - time.monotonic())
        start, *others = self.found
        usable = [each for each in others if math.isfinite(each.score)]
        begins = [start, *sorted(usable, key=lambda each: each.score)[:1]]
        descents: dict[str, tuple[Descent, _Found]] = {}
        takes: float | None = None

        def descend(begin: _Found, tail: float) -> None:
            nonlocal takes
            every = method == "all"
            adjusted = Adjusted(begin.solver, self.sde, begin.times, self.training, every=every)
            best = Best(begin.scheme, begin.score)
            made = Descent(adjusted, self.training, self.judged, best, tail=tail, takes=takes)
            descents[f"{method}, from {begin.name}, tail {tail:g}"] = made, begin
            made.go_on(min(time.monotonic() + heat, deadline), self._show)
            takes = made.takes

        for begin in begins:
            descend(begin, _TAIL)
        best, begin = min(descents.values(), key=lambda each: each[0].best.score)
        if best.best.score > _LITTLE:
            descend(begin, _HEAVY_TAIL)
            best, _ = min(descents.values(), key=lambda each: each[0].best.score)
        best.go_on(deadline, self._show)
        if any(each.lost for each, _ in descents.values()):
            self.notes.append("gradients ended where they, or the model's answers, are not finite")
        for name, (each, begin) in descents.items():
            found = each.best
            self.found.append(_Found(name, found.scheme, found.score, begin.solver, begin.times))

    def _show(self, note: str) -> None:
        self.bar.update(time.monotonic() - self.began, note)

    def _tuned(self, best: _Found, decided: dict[str, Bound]) -> Tuned:
        """The solver, and in ``made`` how it came about."""
        start = self.found[0]
        improved = best is not start
        errors = {
            name: self.deciding.errors(each.scheme) for name, each in (("start", start), ("", best))
        }
        made = {
            "model": fingerprint(self.solving),
            "start": encode(start.solver),
            "start_grid": start.times.tolist(),
            "last": "denoise" if self.training.denoise else "noisy",
            "improved": improved,
            "how": best.name,
            "errors": {
                name or "tuned": {
                    key: float(each.quantile(share)) for key, share in QUANTILES.items()
                }
                for name, each in errors.items()
            },
            "bounds": {name: list(each) for name, each in decided.items()},
            "starts": {
                "training": len(self.training),
                "choosing": len(self.choosing),
                "deciding": len(self.deciding),
            },
            "tried": {each.name: each.score for each in self.found},
            "notes": list(self.notes),
            "seconds": round(time.monotonic() - self.began, 1),
        }
        end = 0.0 if self.training.denoise else float(self.solving.times[-1])
        return tabled(best.scheme, self.sde, end, plain(made))

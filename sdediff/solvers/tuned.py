"""A solver that is a table of numbers: made for one model and one number of evaluations, and kept
in a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.given import check_name, reals
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver, Step

__all__ = ["Tuned"]

_FORMAT: Final = "sdediff tuned solver"
_VERSION: Final = 1
_NEAR: Final = 1e-6
"""How far the angle of the process may be from the table's: the rounding of a time in float32."""

Row = tuple[float, ...]


class _Plan(NamedTuple):
    at: Any  # the entry of the evaluation
    numbers: Row  # of the state and of the data predictions, the earliest first


@dataclass(frozen=True, repr=False)
class Tuned(Solver):
    """z_{k+1} = keep_k z_k + sum over j <= k of weights_kj d_j,    d_j = E[x_0 | x_j] at grid_j,

    where z = x / hypot(alpha, sigma), so that the numbers are those of the angles arctan(sigma /
    alpha) alone, and lengths are in units of the data's standard deviation.

    The general linear method with one evaluation a step: every deterministic solver with fixed
    steps that is linear in the model's predictions is one. `sdediff.tune` makes it from such a
    solver, by moving its times and its numbers. The last state is the result, with nothing left to
    denoise; the number of evaluations is K, and all K predictions are kept during a solve.

    ``grid``: the K + 1 times, which fall: those of the evaluations and that of the result, which
    may be the last evaluation's.
    ``angles``: arctan(sigma / alpha) there, by which a process is known for which the numbers hold.
    ``keep`` has K numbers, ``weights`` K rows of 1, 2, ..., K. ``made``: what the numbers were made
    from and how good they were, numbers and words alone. Raises ValueError for numbers that do not
    fit one another.
    """

    grid: tuple[float, ...]
    angles: tuple[float, ...]
    keep: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    made: Mapping[str, Any] = field(default_factory=dict)

    needs = frozenset({"data", "marginal"})
    has_memory = True
    ends_clean = True

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(self.keep)
        rows = tuple(_numbers(f"weights[{k}]", row) for k, row in enumerate(self.weights))
        for name, value in (
            ("grid", _numbers("grid", self.grid)),
            ("angles", _numbers("angles", self.angles)),
            ("keep", _numbers("keep", self.keep)),
            ("weights", rows),
        ):
            object.__setattr__(self, name, value)
        if not count or not len(self.grid) == len(self.angles) == count + 1:
            raise ValueError(
                "Tuned: K numbers in keep go with K + 1 in grid and in angles, K >= 1; "
                f"got {count}, {len(self.grid)} and {len(self.angles)}"
            )
        if [len(row) for row in rows] != list(range(1, count + 1)):
            raise ValueError(
                f"Tuned: weights must have rows of 1 to {count} numbers, got rows of "
                f"{[len(row) for row in rows]}"
            )
        steps = [t - s for t, s in zip(self.grid, self.grid[1:], strict=False)]
        if min(steps[:-1], default=1.0) <= 0 or steps[-1] < 0:
            raise ValueError(f"Tuned: the times in grid must fall, got {self.grid}")
        if not isinstance(self.made, Mapping):
            raise TypeError(f"Tuned: made must be a mapping, got {self.made!r}")

    def __repr__(self) -> str:
        """The number of evaluations, and what the numbers were made for."""
        model = self.made.get("model")
        made_for = model.get("sde") if isinstance(model, Mapping) else None
        return f"Tuned(nfe={self.nfe}, made_for={made_for!r})"

    @property
    def nfe(self) -> int:
        """Evaluations of the model in a solve, which of a guided one are more of its network."""
        return len(self.keep)

    @property
    def times(self) -> Tensor:
        """The grid, (K + 1,)."""
        return torch.tensor(self.grid, dtype=torch.float64)

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """An entry for each evaluation; a ValueError for another grid, or a process whose angles
        are not those of the table.
        """
        if times.shape != (self.nfe + 1,) or not torch.equal(times, self.times):
            raise ValueError(
                f"{self!r} goes along its own grid, from its first time to its last: its numbers "
                "hold for no other; drop t_start"
            )
        alpha, sigma = problem.marginal(times)
        angles = torch.atan2(sigma, alpha)
        away = float((angles - torch.tensor(self.angles, dtype=torch.float64)).abs().max())
        if not away <= _NEAR:
            raise ValueError(
                f"{self!r} was made for another process, or for data of another standard "
                f"deviation: arctan(sigma / alpha) differs by {away:.2g} at its times; "
                "sdediff.tuning.moved(solver, model) has the times for this one"
            )
        size = torch.hypot(alpha, sigma).tolist()
        at = problem.at(times[:-1], "data")
        return [
            _Plan(at[k], (keep * size[k + 1] / size[k], *(size[k + 1] * each for each in row)))
            for k, (keep, row) in enumerate(zip(self.keep, self.weights, strict=True))
        ]

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        """One evaluation, and the sum; the state are the predictions so far."""
        known = (*state, problem.evaluate(x, plan.at))
        pairs: list[tuple[Number, Tensor]] = list(zip(plan.numbers, (x, *known), strict=True))
        moved = weighted(*pairs)
        return Step(moved.clone() if moved is x else moved, None, known)

    def save(self, path: str | Path) -> None:
        """Write the solver as JSON, which `load` reads; a file that is there is replaced."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "grid": self.grid,
            "angles": self.angles,
            "keep": self.keep,
            "weights": self.weights,
            "made": dict(self.made),
        }
        Path(path).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The solver in a file that `save` wrote; nothing in it is run. Raises ValueError for
        another file, or one of a later version.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no JSON, so no tuned solver: {error}") from error
        if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
            raise ValueError(f"{path} is no tuned solver: Tuned.save writes one")
        if content.get("version") != _VERSION:
            raise ValueError(
                f"{path} has version {content.get('version')!r} of the format, and this sdediff "
                f"reads version {_VERSION}: load it with the version that wrote it"
            )
        parts = {name: each for name, each in content.items() if name not in ("format", "version")}
        names = ("grid", "angles", "keep", "weights", "made")
        for name in parts:
            check_name(f"part of {path}", name, names)
        lacking = [name for name in names if name not in parts]
        if lacking:
            raise ValueError(f"{path} lacks {', '.join(lacking)}: it is damaged")
        for name in names[:-1]:
            if not isinstance(parts[name], list):
                raise ValueError(f"{path} has {parts[name]!r} as {name}, which must be a list")
        return cls(**parts)


def _numbers(name: str, value: Any) -> Row:
    """Finite numbers, (n,), as a tuple."""
    found = reals(f"Tuned: {name}", value)
    if found.ndim != 1 or not all(map(math.isfinite, found.tolist())):
        raise ValueError(f"Tuned: {name} must be a row of finite numbers, got {value!r}")
    return tuple(found.tolist())

"""Calls as a user would write them: the line of code that makes a solver and samples with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from torch import Tensor

from sdediff import solvers
from sdediff.solvers import Solver

__all__ = ["call", "written"]

_LONGEST: Final = 8
_ALWAYS: Final = ("order", "rtol", "atol")
"""Fields that are written though they have their defaults."""


def written(value: object) -> str | None:
    """Python code for a value, ``sd`` being this library; None where a field holds what no short
    code makes, such as a tensor or a function.

    A class that is not in `sdediff.solvers` is written by its own name.
    """
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if isinstance(value, tuple):
        if len(value) > _LONGEST:
            return None
        parts = [written(part) for part in value]
        inner = ", ".join(part for part in parts if part is not None)
        return None if None in parts else f"({inner},)" if len(parts) == 1 else f"({inner})"
    if not is_dataclass(value) or isinstance(value, type):
        return None
    return _record(value)


def _record(value: Any) -> str | None:
    """A dataclass with the fields that differ from their defaults."""
    arguments: list[str] = []
    for each in fields(value):
        given = getattr(value, each.name)
        if isinstance(given, Tensor):
            return None
        if not each.init or (each.name not in _ALWAYS and given == each.default):
            continue
        code = written(given)
        if code is None:
            return None
        arguments.append(f"{each.name}={code}")
    name = type(value).__name__
    place = "sd.solvers." if getattr(solvers, name, None) is type(value) else ""
    return f"{place}{name}({', '.join(arguments)})"


def call(
    shape: tuple[int, ...],
    solver: Solver | None,
    otherwise: str,
    *,
    steps: int | None,
    seed: int,
    shared: Mapping[str, Any],
    grid: object = None,
    stochasticity: float | None = None,
) -> str:
    """The call of `sample` for samples of a shape; a solver that cannot be written is what
    ``otherwise`` says. ``shared``: options that all solves have; those that change the samples are
    written, tensors by their names.
    """
    parts = [f"model, {shape!r}"]
    if solver is not None:
        parts.append(f"solver={written(solver) or otherwise}")
    if steps is not None:
        parts.append(f"steps={steps}")
    if grid is not None:
        parts.append(f"grid={grid!r}" if isinstance(grid, str) else "grid=grid")
    if stochasticity is not None:
        parts.append(f"stochasticity={stochasticity!r}")
    parts += [f"{name}={name}" for name in ("condition", "mask") if name in shared]
    if "dtype" in shared:
        parts.append(f"dtype={shared['dtype']}")
    return f"out = sd.sample({', '.join(parts)}, seed={seed})"

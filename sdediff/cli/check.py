"""``sdediff check``: an SDE goes through `check_sde` and `check_equivalences`, a solver through
`check_solver`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from sdediff.cli.names import SDES, make_sde
from sdediff.sde import SDE
from sdediff.solvers import Solver
from sdediff.solvers.given import nearest
from sdediff.testing import (
    EquivalenceError,
    SDEError,
    SolverError,
    check_equivalences,
    check_sde,
    check_solver,
)

__all__ = ["load", "run"]


def run(target: str, *, quiet: bool) -> bool:
    """Print the tables, and what fails on stderr; whether all holds.

    The equivalences are left out where the SDE is not consistent: they would say the same, less
    clearly.
    """
    value = load(target)
    try:
        if isinstance(value, Solver):
            check_solver(value, verbose=not quiet)
        else:
            check_sde(value, verbose=not quiet)
            if not quiet:
                print()
            check_equivalences(value, verbose=not quiet)
    except (SDEError, SolverError, EquivalenceError) as error:
        print(error, file=sys.stderr)
        return False
    return True


def load(target: str) -> SDE | Solver:
    """What is called that: FILE.py:Name, an instance, a class or a function that takes no
    arguments; or a built-in SDE.
    """
    file, colon, name = target.rpartition(":")
    if not colon:
        if target.endswith(".py"):
            raise ValueError(
                f"{target} lacks the name of the SDE or solver in it: write {target}:Name"
            )
        if target.lower() not in SDES:
            ours = f"one of {', '.join(SDES)}"
            raise ValueError(
                f"no SDE is called {target!r}{nearest(target, SDES)}: write FILE.py:Name for "
                f"your own, or {ours}"
            )
        return make_sde(target)
    path = Path(file)
    if not name.isidentifier():
        raise ValueError(
            f"{target!r}: after the colon stands the name of an SDE or a solver in {file}, got "
            f"{name!r}"
        )
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"no Python file {file!r}: write FILE.py:Name")
    module = _load(path)
    if not hasattr(module, name):
        known = [
            key
            for key, value in vars(module).items()
            if not key.startswith("_") and _theirs(value, module)
        ]
        there = f"; it has {', '.join(known)}" if known else "; it defines no SDE and no solver"
        raise ValueError(f"{file} has no {name!r}{nearest(name, known)}{there}")
    return _make(getattr(module, name), name, file)


def _theirs(value: object, module: ModuleType) -> bool:
    """Whether it can be checked, and is not only imported there."""
    return isinstance(value, SDE | Solver) or (
        _is_class(value) and getattr(value, "__module__", "") == module.__name__
    )


def _is_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, SDE | Solver)


def _make(value: object, name: str, file: str) -> SDE | Solver:
    if isinstance(value, SDE | Solver):
        return value
    if not callable(value) or (isinstance(value, type) and not _is_class(value)):
        raise TypeError(
            f"{name} in {file} must be an SDE or a solver, a class of one or a function that "
            f"returns one; got {value!r}"
        )
    try:
        made = value()
    except TypeError as error:
        hint = (
            f"if it needs arguments, make an instance in the file, mine = {name}(...), and check "
            f"{file}:mine"
        )
        raise TypeError(f"{name}() failed: {error}; {hint}") from error
    if not isinstance(made, SDE | Solver):
        raise TypeError(f"{name}() in {file} must return an SDE or a solver, got {made!r}")
    return made


def _load(path: Path) -> ModuleType:
    """Run the file as a module, with its folder on the import path while it loads."""
    spec = importlib.util.spec_from_file_location(f"_checked_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    with _importing(module, path.resolve().parent):
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
            raise ValueError(
                f"{path} does not load: {type(error).__name__}: {error}{line}"
            ) from error
    return module


@contextmanager
def _importing(module: ModuleType, folder: Path) -> Iterator[None]:
    sys.modules[module.__name__] = module  # dataclasses look their module up
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))

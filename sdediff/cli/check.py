"""``sdediff check``: an SDE named as FILE.py:Name, or a built-in, goes through `testing.check_sde`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from sdediff.cli.names import SDES, make_sde
from sdediff.names import nearest
from sdediff.sde import SDE
from sdediff.testing import SDEError, check_sde

__all__ = ["load_sde", "run"]


def run(target: str, *, quiet: bool) -> bool:
    """Print the table, and what fails on stderr; whether all identities hold."""
    sde = load_sde(target)
    try:
        check_sde(sde, verbose=not quiet)
    except SDEError as error:
        print(error, file=sys.stderr)
        return False
    return True


def load_sde(target: str) -> SDE:
    """The SDE of that name: FILE.py:Name with an instance, a class or a function that takes no arguments; or a built-in."""
    file, colon, name = target.rpartition(":")
    if not colon:
        if target.endswith(".py"):
            raise ValueError(f"{target} lacks the name of the SDE in it: write {target}:Name")
        if target.lower() not in SDES:
            ours = f"one of {', '.join(SDES)}"
            raise ValueError(f"no SDE is called {target!r}{nearest(target, SDES)}: write FILE.py:Name for your own, or {ours}")
        return make_sde(target)
    path = Path(file)
    if not name.isidentifier():
        raise ValueError(f"{target!r}: after the colon stands the name of an SDE in {file}, got {name!r}")
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"no Python file {file!r}: write FILE.py:Name")
    module = _load(path)
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if not key.startswith("_") and _is_sde(value)]
        there = f"; it has {', '.join(known)}" if known else "; it defines no SDE"
        raise ValueError(f"{file} has no {name!r}{nearest(name, known)}{there}")
    return _make(getattr(module, name), name, file)


def _is_sde(value: object) -> bool:
    return isinstance(value, SDE) or (isinstance(value, type) and issubclass(value, SDE))


def _make(value: object, name: str, file: str) -> SDE:
    if isinstance(value, SDE):
        return value
    if not callable(value) or (isinstance(value, type) and not _is_sde(value)):
        raise TypeError(f"{name} in {file} must be an SDE, a class of one or a function that returns one; got {value!r}")
    try:
        made = value()
    except TypeError as error:
        hint = f"if it needs arguments, make an instance in the file, sde = {name}(...), and check {file}:sde"
        raise TypeError(f"{name}() failed: {error}; {hint}") from error
    if not isinstance(made, SDE):
        raise TypeError(f"{name}() in {file} must return an SDE, got {made!r}")
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
            raise ValueError(f"{path} does not load: {type(error).__name__}: {error}{line}") from error
    return module


@contextmanager
def _importing(module: ModuleType, folder: Path) -> Iterator[None]:
    sys.modules[module.__name__] = module  # dataclasses look their module up
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))

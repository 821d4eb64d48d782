"""Evaluation mode for one thread: no dropout in its calls, and the other threads see the modules as they were."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
from torch import nn

from sdediff.modules import modules_behind

__all__ = ["evaluating"]


class _Entered(threading.local):
    """The modules that a thread evaluates, by identity, one set for each `evaluating` that it is inside."""

    def __init__(self) -> None:
        self.modules: list[frozenset[int]] = []


_ENTERED: Final = _Entered()
_LOCK: Final = threading.Lock()
_USERS: Final[dict[int, int]] = {}
"""How many calls evaluate the module with this id. The calls hold the module, so that no other takes its id."""
_BEFORE: Final[dict[int, bool]] = {}
"""The flag that a module of one mode for all threads returns to."""


class _PerThread:
    """What a module's class is mixed with while a thread evaluates it: ``training`` is False in that thread.

    Threads that Python did not start, autograd's, compute for one that may evaluate: to them it is False too.
    """

    def __init_subclass__(cls) -> None:
        """Keep the hooks of the module's class, registries say, from seeing a class of ours."""

    @property
    def training(self) -> bool:
        """The thread's mode."""
        entered = _ENTERED.modules
        if entered:
            if any(id(self) in modules for modules in entered):
                return False
        elif isinstance(threading.current_thread(), _FOREIGN_THREAD):
            return False
        return bool(vars(self)["training"])

    @training.setter
    def training(self, mode: bool) -> None:
        vars(self)["training"] = mode

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As the module's own class does, so that a copy made meanwhile is of that class."""
        reduced: Any = super().__reduce_ex__(protocol)
        return _blank, (vars(type(self)).get("own_class"),), *reduced[2:]


def _blank(kind: type) -> object:
    return object.__new__(kind)


_ONE_MODE: Final = (torch.jit.ScriptModule, nn.DataParallel)
_FOREIGN_THREAD: Final = threading._DummyThread


@functools.lru_cache(maxsize=1024)
def _per_thread(kind: Any) -> Any:
    names = {"own_class": kind, "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind)(kind.__name__, (_PerThread, kind), names)


@contextmanager
def evaluating(*calls: object) -> Iterator[None]:
    """Evaluate the modules behind ``calls`` in evaluation mode, in this thread, and leave them as they are for all others.

    So a thread that samples does not disturb one that trains the same network, nor another one that samples. For as long the
    modules' classes have a ``training`` of their own for each thread. Compiled and scripted modules and `nn.DataParallel` cannot
    have that: their flags are those of all threads, set by the first call that evaluates them and set back by the last.
    """
    modules: dict[int, nn.Module] = {}
    one_mode = False
    for call in calls:
        found = modules_behind(call)
        one_mode |= found.compiled
        modules.update((id(module), module) for module in found.every)
    one_mode = one_mode or any(
        isinstance(module, _ONE_MODE)
        or vars(module).get("_compiled_call_impl") is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in modules.values()
    )
    with _LOCK:
        new = [module for key, module in modules.items() if key not in _USERS]
        for key in modules:
            _USERS[key] = _USERS.get(key, 0) + 1
        shared = list(modules.values()) if one_mode else _split(new)
        shared = [module for module in shared if id(module) not in _BEFORE]
        _BEFORE.update((id(module), module.training) for module in shared)
        for module in shared:
            module.training = False
    _ENTERED.modules.append(frozenset(modules))
    try:
        yield
    finally:
        _ENTERED.modules.pop()
        with _LOCK:
            for key, module in modules.items():
                _USERS[key] -= 1
                if _USERS[key]:
                    continue
                del _USERS[key]
                if "own_class" in vars(type(module)):
                    object.__setattr__(module, "__class__", vars(type(module))["own_class"])
                if key in _BEFORE:
                    module.training = _BEFORE.pop(key)


def _split(modules: list[nn.Module]) -> list[nn.Module]:
    """Give the modules a mode for each thread; returns those that cannot have it."""
    rest = []
    for module in modules:
        if hasattr(type(module), "training"):  # a property of its own
            rest.append(module)
            continue
        try:
            object.__setattr__(module, "__class__", _per_thread(cast(Any, type(module))))
        except Exception:  # a class that cannot be derived from, or is laid out in its own way
            rest.append(module)
    return rest

"""The torch modules that a callable uses, however callables wrap each other; and evaluation mode
for one thread.
"""

from __future__ import annotations

import dis
import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, Final, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from sdediff.sde import SDE

__all__ = ["Found", "evaluating", "first_fact", "modules_behind"]

_MOST: Final = 2000
"""Objects that a search looks at before it ends."""
_FOREIGN: Final = frozenset({"builtins", "numpy", "scipy", "sdediff", "solvers", "torch"})
"""Packages whose functions hold no network of the user's; what is stored in their objects is looked
at.
"""
_COMPILED: Final = "_torchdynamo_orig_callable"
_OWN: Final = frozenset(vars(nn.Module()))
_LEAVES: Final = (type, Tensor, SDE, str, bytes, int, float, complex)

_Fact = TypeVar("_Fact", torch.device, torch.dtype)
_Names = frozenset[str] | None
"""Attributes of an object that the code which reaches it names; None: all of them."""


class Found(NamedTuple):
    """What a search has found."""

    modules: tuple[nn.Module, ...]
    """The modules, the nearest first, their registered submodules left out."""
    every: tuple[nn.Module, ...]
    """The modules and their registered submodules."""
    compiled: bool
    """Whether the search came through a function that torch compiled."""


def modules_behind(call: object) -> Found:
    """The modules that ``call`` is or uses.

    The search follows `functools.partial`, bound methods, closures, defaults, globals that the code
    names, decorators with ``__wrapped__``, compiled functions, objects with ``__call__`` and, of
    these and of modules, the attributes that the code names; where this finds no module with parts
    or parameters, all attributes. It does not follow names that the code computes.
    """
    for first in (frozenset[str](), None):
        found: list[nn.Module] = []
        inside: dict[int, nn.Module] = {}
        # the objects are held, so that no other takes their id
        seen: dict[tuple[int, _Names], object] = {}
        queue: deque[tuple[object, _Names]] = deque([(call, first)])
        while queue and len(seen) < _MOST:
            part, names = queue.popleft()
            # an object may object to being looked at, as proxies do outside their context
            with suppress(Exception):
                if part is None or isinstance(part, _LEAVES) or (id(part), names) in seen:
                    continue
                seen[id(part), names] = part
                if not isinstance(part, nn.Module):
                    queue.extend(_parts(part, names))
                elif id(part) not in inside:
                    found.append(part)
                    queue.extend((value, names) for value in _enter(part, inside))
        if any(vars(module).get("_modules") or vars(module).get("_parameters") for module in found):
            break
    compiled = any(type(part) is FunctionType and _COMPILED in vars(part) for part in seen.values())
    return Found(tuple(found), tuple(inside.values()), compiled)


def first_fact(module: nn.Module, read: Callable[[Tensor], _Fact | None]) -> _Fact | None:
    """What ``read`` says of the first parameter of which it says something; of the first such
    buffer if no parameter will do.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if (fact := read(tensor)) is not None:
            return fact
    return None


def _enter(outer: nn.Module, inside: dict[int, nn.Module]) -> list[object]:
    """Note a module and its registered submodules in ``inside``; returns what else they keep and
    may call.
    """
    before = len(inside)
    stack: list[nn.Module | None] = [outer]
    while stack:
        module = stack.pop()
        if module is not None and id(module) not in inside:
            inside[id(module)] = module
            stack.extend(vars(module).get("_modules", {}).values())
    return [
        value
        for module in list(inside.values())[before:]
        if not type(module).__module__.startswith("torch.") or "forward" in vars(module)
        for name, value in vars(module).items()
        if name not in _OWN
        and (
            callable(value)
            or hasattr(type(value), "evaluate")
            or isinstance(value, list | tuple | dict)
        )
    ]


def _parts(part: Any, names: _Names) -> Iterator[tuple[object, _Names]]:
    """What to look at next, with the attributes that matter of it."""
    if isinstance(part, functools.partial):
        for value in (part.func, *part.args, *part.keywords.values()):
            yield value, names
    elif isinstance(part, MethodType):
        yield from _function(part.__func__, names, part.__self__)
    elif isinstance(part, FunctionType):
        yield from _function(part, names, None)
    elif isinstance(part, weakref.ref):
        yield part(), names
    elif isinstance(part, dict | list | tuple | set | frozenset):
        yield from (
            (value, names)
            for value in islice(part.values() if isinstance(part, dict) else part, _MOST)
        )
    else:
        yield from _object(part, names)


def _function(function: object, names: _Names, owner: object) -> Iterator[tuple[object, _Names]]:
    """What a function reaches: its owner, its cells, its defaults, what it wraps and the globals
    that its code names.
    """
    if not isinstance(function, FunctionType):
        yield owner, names
        return
    attributes, globals_ = _named(function.__code__)
    own = None if names is None else attributes
    if owner is not None:
        yield owner, own
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents, own
        except ValueError:  # a name that is not bound yet
            continue
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield value, own
    for wrapped in ("__wrapped__", _COMPILED):
        yield vars(function).get(wrapped), own
    if (function.__module__ or "").partition(".")[0] not in _FOREIGN:
        yield from ((function.__globals__.get(name), own) for name in globals_)


def _object(part: Any, names: _Names) -> Iterator[tuple[object, _Names]]:
    """What an object holds or computes under the names; all that it holds where there are none."""
    is_module, held = isinstance(part, ModuleType), getattr(part, "__dict__", {})
    home = part.__name__ if is_module else type(part).__module__
    if (home or "").partition(".")[0] in _FOREIGN:
        yield from ((value, names) for value in held.values() if callable(value) and not is_module)
        return
    if names is None:
        yield from ((value, names) for value in held.values() if not is_module)
    for name in sorted((names or frozenset()) | {"__call__", "__wrapped__"}):
        if name in held:
            yield held[name], names
        elif not is_module:
            yield _member(part, getattr(type(part), name, None)), names
    for kind in type(part).__mro__ if names is None else ():
        yield from (
            (_member(part, member), names)
            for member in vars(kind).values()
            if isinstance(member, MemberDescriptorType)
        )


def _member(part: object, member: object) -> object:
    """What an object has of its class: a method, the method behind a property, or a slot's
    value.
    """
    if isinstance(member, FunctionType):
        return MethodType(member, part)
    if isinstance(member, property):
        return None if member.fget is None else MethodType(member.fget, part)
    return (
        getattr(part, member.__name__, None) if isinstance(member, MemberDescriptorType) else None
    )


@functools.lru_cache(maxsize=1024)
def _named(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """(attributes, globals) that the code and the code inside it name."""
    attributes, globals_ = set(code.co_names), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            globals_.add(str(instruction.argval))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = _named(constant)
            attributes |= inner[0]
            globals_ |= inner[1]
    return frozenset(attributes), frozenset(globals_)


class _Entered(threading.local):
    """The modules that a thread evaluates, by identity, one set for each `evaluating` that it is
    inside.
    """

    def __init__(self) -> None:
        self.modules: list[frozenset[int]] = []


_ENTERED: Final = _Entered()
_LOCK: Final = threading.Lock()
_USERS: Final[dict[int, int]] = {}
"""How many calls evaluate the module with this id. The calls hold the module, so that no other
takes its id.
"""
_BEFORE: Final[dict[int, bool]] = {}
"""The flag that a module of one mode for all threads returns to."""


class _PerThread:
    """What a module's class is mixed with while a thread evaluates it: ``training`` is False in
    that thread.

    Threads that Python did not start, autograd's, compute for one that may evaluate: to them it is
    False too.
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
    names = {
        "own_class": kind,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    return type(kind)(kind.__name__, (_PerThread, kind), names)


@contextmanager
def evaluating(*calls: object) -> Iterator[None]:
    """Evaluate the modules behind ``calls`` in evaluation mode, in this thread, and leave them as
    they are for all others.

    So a thread that samples does not disturb one that trains the same network, nor another one that
    samples. For as long the modules' classes have a ``training`` of their own for each thread.
    Compiled and scripted modules and `nn.DataParallel` cannot have that: their flags are those of
    all threads, set by the first call that evaluates them and set back by the last.
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
        shared = list(modules.values()) if one_mode else _moded(new)
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


def _moded(modules: list[nn.Module]) -> list[nn.Module]:
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

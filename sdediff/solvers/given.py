"""What users hand over: numbers, of Python, of NumPy or tensors of one, kept as Python's own;
flags, devices and functions.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, TypeAlias, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Count",
    "Finite",
    "Natural",
    "NotNegative",
    "Numbers",
    "Part",
    "Positive",
    "Record",
    "Share",
    "WrittenError",
    "callback_of",
    "check_choice",
    "check_name",
    "chosen",
    "described",
    "fact",
    "flag",
    "integer",
    "nearest",
    "plain",
    "plain_fields",
    "reading",
    "real",
    "reals",
    "within",
]

Positive: TypeAlias = float
NotNegative: TypeAlias = float
Finite: TypeAlias = float
Part: TypeAlias = float
Share: TypeAlias = float
Count: TypeAlias = int
Natural: TypeAlias = int
_T = TypeVar("_T")
Numbers: TypeAlias = float | Sequence[Any] | NDArray[Any] | Tensor
"""What a tensor of numbers can be made of; sequences may be nested."""
_MOST: Final = sys.float_info.max
_RANGES: Final = {
    "Positive": (math.ulp(0.0), _MOST, "a positive number"),
    "NotNegative": (0.0, _MOST, "a finite number >= 0"),
    "Finite": (-_MOST, _MOST, "a finite number"),
    "Part": (math.ulp(0.0), math.nextafter(1.0, 0.0), "a number in (0, 1)"),
    "Share": (math.ulp(0.0), 1.0, "a number in (0, 1]"),
}
"""The least and the largest number of a field declared as one of these, and the words for them."""
_LEAST: Final = {"Count": 1, "Natural": 0}

_NUMERIC: Final = re.compile(r"\b(int|float|bool|" + "|".join([*_RANGES, *_LEAST]) + r")\b")
_CHOICE: Final = re.compile(r"(?:Final\[)?Literal\[([^\]]*)\]")
_FUNCTION: Final = " | Callable[[Tensor], Tensor]"
_PLAIN: Final = frozenset({bool, int, float, str, type(None)})


if TYPE_CHECKING:
    from builtins import property as fact
else:

    def fact(default: Callable[[Any], Any]) -> Any:
        """A fact about a class, with its default: a plain class attribute, for which type checkers
        see a property, so that a subclass may override it by an attribute, a field or a property.
        """
        return default(None)


def plain(value: object) -> Any:
    """Return Python's own number for one of NumPy or a 0-d array or tensor, and anything else as it
    is.

    A tensor that asks for gradients stays a tensor.
    """
    if isinstance(value, Tensor):
        return value if value.ndim or value.requires_grad else value.item()
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim):
        number = value.item()
        return float(number) if isinstance(number, np.floating) else number  # a long double's item
    if isinstance(value, Real) and not isinstance(value, int | float):  # a fraction, say
        return operator.index(value) if isinstance(value, Integral) else float(value)
    return value


def integer(
    name: str,
    value: object,
    least: int = 0,
    most: int | None = None,
    *,
    kind: str = "",
    hint: str = "",
) -> int:
    """Return ``value`` as an int; a ValueError unless it is a whole number (no bool) from ``least``
    to ``most``.

    ``kind`` are other words for that.
    """
    number = value if type(value) is int else plain(value)
    if not isinstance(number, bool | Tensor | np.ndarray):
        try:
            found = operator.index(number)
        except TypeError:
            pass
        else:
            if least <= found and (most is None or found <= most):
                return found
    if isinstance(value, torch.Generator):
        hint = "; pass generator.initial_seed()"
    elif isinstance(value, np.random.Generator):
        hint = "; draw one: int(generator.integers(2**63))"
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{name} must be {kind or f'an int {limits}'}, got {value!r}{hint}")


def real(name: str, value: object, hint: str = "") -> float:
    """Return ``value`` as a float; a ValueError unless it is one real number (no bool)."""
    if type(value) is float:
        return value
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise ValueError(f"{name} must be a number, got {_shown(value)}{hint}")
    try:
        return float(number)
    except OverflowError as error:
        raise ValueError(
            f"{name} must be a number that a float can hold, of at most 1.8e308{hint}"
        ) from error


def flag(name: str, value: object) -> bool:
    """Return ``value`` as a bool; a ValueError unless it is True or False, or 1 or 0."""
    if isinstance(value, bool):
        return value
    number = plain(value)
    if isinstance(number, int) and number in (0, 1):
        return bool(number)
    raise ValueError(f"{name} must be True or False, got {_shown(value)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` if a known name is near, else nothing."""
    names = {k.lower(): k for k in known}
    close = get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """One of the known words."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, known))}, got "
            f"{_shown(value)}{nearest(str(value), known)}"
        )


def check_name(what: str, name: str, known: Collection[str]) -> None:
    """A ValueError unless a ``what`` is called ``name``, with the nearest name and the others."""
    if name not in known:
        raise ValueError(
            f"no {what} is called {name!r}{nearest(name, known)}; known: {', '.join(known)}"
        )


def described(value: object) -> str:
    """The dtype and the shape of a tensor, the type of anything else, for an error."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__


def chosen(function: Callable[..., Any], options: Mapping[str, Any], defaults: _T) -> _T:
    """All options, a dict: those that ``function`` was given, and the others as in ``defaults``.
    Raises TypeError for one that is not in its signature, with the nearest name.
    """
    every: Any = defaults
    taken = inspect.signature(function).parameters
    for name in options:
        if name not in taken:
            own = ", ".join(known for known in taken if known in every)
            raise TypeError(
                f"{function.__name__} takes no option {name!r}{nearest(name, taken)}; its options "
                f"are {own}"
            )
    return cast(_T, {**every, **options})


def callback_of(name: str, value: _T, call: str) -> _T:
    """Return ``value``; a TypeError unless it is None or can be called, as ``call`` says."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function {call}, or None; got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    return (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor) and value.ndim
        else repr(value)
    )


def reals(name: str, value: Numbers, device: torch.device | str | None = None) -> Tensor:
    """Return ``value`` as a float64 tensor on ``device``, by default its own.

    A TypeError if it holds no numbers, a ValueError if it is complex: its imaginary part would be
    lost.
    """
    if value.is_complex() if isinstance(value, Tensor) else np.iscomplexobj(value):
        raise ValueError(
            f"{name} must be real, got complex numbers; pass their real part if it is meant"
        )
    if isinstance(value, Tensor):
        return value.to(device, torch.float64)
    try:
        return torch.as_tensor(value, dtype=torch.float64, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"{name} must be a number or a tensor of numbers, got {value!r} ({error})"
        ) from error


def plain_fields(record: Any) -> None:
    """Keep the numbers among a dataclass's fields as Python's own, those in tuples too, and check
    those that are declared by a range, as `within` says.

    A tensor of one number is taken for a number where the field's type says that it is one.
    """
    for field in fields(record) if is_dataclass(record) else ():
        kind = field.type if isinstance(field.type, str) else _declared(field.type)
        value = getattr(record, field.name, None)
        kept = value if type(value) in _PLAIN else _kept(value, kind)
        if kept is not value:
            object.__setattr__(record, field.name, kept)
        within(f"{type(record).__name__}: {field.name}", kept, kind)


def within(name: str, value: object, kind: str) -> None:
    """A ValueError unless ``value`` lies in the range that ``kind`` names: ``"Positive"``, or
    ``"Positive | None"`` say. ``"Positive | Callable[[Tensor], Tensor]"`` may be a function too.
    """
    if callable(value) and kind.endswith(_FUNCTION):
        return
    bare = kind.removesuffix(_FUNCTION).removesuffix(" | None")
    either = "a function of t or " if kind.endswith(_FUNCTION) else ""
    either = "None or " if kind.endswith(" | None") else either
    if value is None and kind.endswith(" | None"):
        return
    if bare in _LEAST:
        _ = integer(name, value, _LEAST[bare], kind=f"{either}an int of at least {_LEAST[bare]}")
    if bare in _RANGES:
        low, high, words = _RANGES[bare]
        number = value if type(value) is float else real(name, value)
        if not low <= number <= high:
            raise ValueError(f"{name} must be {either}{words}, got {value!r}")


def _declared(kind: type) -> str:
    """The type that a field is declared with, as it would be written."""
    return getattr(kind, "__name__", str(kind))


def _kept(given: object, kind: str) -> Any:
    """What a field declared as ``kind`` keeps of what it is given."""
    if isinstance(given, Tensor | np.ndarray) and not _NUMERIC.search(kind):
        return given
    kept = plain(given)
    if kind.removesuffix(" | None") in ("int", *_LEAST) and _counts(kept):
        return operator.index(kept)
    if isinstance(kept, np.ndarray | Tensor) and kind.startswith("tuple"):
        return tuple(kept.tolist())
    if type(kept) in (list, tuple) and kind.startswith("tuple"):
        return tuple(map(plain, kept))
    return kept


class Record:
    """Base of dataclasses with numbers as fields: those of NumPy are kept as Python's own, before
    any check sees them.

    A field that is declared as a ``float``, or as that or None, must be a number, one declared as a
    ``bool`` a flag, and one that is a `Literal` of words a word. One declared as `Positive`,
    `NotNegative`, `Finite`, `Part` (0 < value < 1), `Share` (0 < value <= 1), `Count` (1, 2, ...)
    or `Natural` (0, 1, ...), or as that or None, must lie in that range.
    """

    def __init_subclass__(cls) -> None:
        """Let a subclass's own checks see Python's numbers."""
        super().__init_subclass__()
        own = vars(cls).get("__post_init__")
        if own is not None:
            # not by assignment, which mypy takes for a mistake
            setattr(cls, "__post_init__", _after_numbers(own))  # noqa: B010

    def __post_init__(self) -> None:
        """Keep Python's own numbers, and check the fields whose types say what they hold."""
        plain_fields(self)
        record: Any = self
        for field in fields(record) if is_dataclass(record) else ():
            kind = field.type if isinstance(field.type, str) else _declared(field.type)
            value = getattr(record, field.name, None)
            name = f"{type(self).__name__}: {field.name}"
            if kind == "tuple[float, float]" and not (isinstance(value, tuple) and len(value) == 2):
                raise ValueError(f"{name} must be two numbers, (low, high); got {value!r}")
            if kind == "tuple[float, ...] | None" and not (
                value is None
                or (isinstance(value, tuple) and all(type(each) in (int, float) for each in value))
            ):
                raise ValueError(f"{name} must be a sequence of numbers, or None; got {value!r}")
            if kind == "float" or (kind == "float | None" and value is not None):
                _ = type(value) is float or real(name, value)
            if kind == "bool" and not isinstance(value, bool):
                object.__setattr__(self, field.name, flag(name, value))
            if words := _CHOICE.fullmatch(kind):
                check_choice(name, value, [word.strip("\"' ") for word in words[1].split(",")])


def _counts(value: object) -> bool:
    """Whether a value that is no number of Python's stands for a whole one."""
    return isinstance(value, SupportsIndex) and not isinstance(
        value, int | Tensor | np.ndarray | type
    )


def _after_numbers(check: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(check)
    def checked(self: Any, *given: Any) -> None:
        Record.__post_init__(self)
        check(self, *given)

    return checked


class WrittenError(ValueError):
    """A function wrote to a tensor that it was handed to read."""


def reading(
    who: str, function: Callable[..., Any], names: str, /, *args: Tensor, **condition: Any
) -> Any:
    """Return ``function(*args, **condition)``; raise `WrittenError` if the function wrote to one of
    these tensors.

    Torch's version counters tell. Tensors made under `torch.inference_mode` have none, so the
    function gets copies of them. ``who`` is what the error calls the function, ``names`` what its
    signature calls ``args``, ``"x, t"`` say.
    """
    tensors = (
        {name: value for name, value in condition.items() if isinstance(value, Tensor)}
        if condition
        else {}
    )
    lent = (*args, *tensors.values()) if tensors else args
    try:
        before = [value._version for value in lent]
    except RuntimeError:  # no counters: under inference_mode the copies have none either
        condition |= {name: value.clone() for name, value in tensors.items()}
        return function(*[value.clone() for value in args], **condition)
    try:
        out = function(*args, **condition)
    except RuntimeError as error:
        if "single memory location" not in str(error):
            raise
        # one time for all samples, seen as (B,)
        raise _written(who, names, condition, names.split(", ")[-1]) from error
    if [value._version for value in lent] == before:
        return out
    known = [*names.split(", "), *tensors]
    first = next(
        name for name, value, old in zip(known, lent, before, strict=True) if value._version != old
    )
    raise _written(who, names, condition, first)


def _written(who: str, names: str, condition: Iterable[str], first: str) -> WrittenError:
    """The error that says that ``first`` was written to, and how to mend it."""
    copied = [f"{name}.clone()" if name == first else name for name in names.split(", ")]
    copied += [
        f"{name}={name}.clone()" if name == first else f"{name}={name}" for name in condition
    ]
    return WrittenError(
        f"{who} writes to {first} in place (by an activation with inplace=True, by {first}[...] "
        f"= or by {first} += ...), and "
        f"{first} is not its own: take a copy first, {first} = {first}.clone(), or hand over "
        f"lambda {', '.join([*names.split(', '), *condition])}: function({', '.join(copied)})"
    )

"""Which rows of a test with many parameters are in the default run; the slow run has the rest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def pairwise(
    names: str, *values: Iterable[Any], also: Callable[..., bool] = lambda *row: False
) -> pytest.MarkDecorator:
    """The product of ``values`` as parameters; a row outside the default run is marked slow.

    In the default run the longest list is gone through once, and the others in turn beside it, so
    that each value is in a row; rows for which ``also`` is true are in it too. Names of SDEs go
    to the fixture ``sde``.
    """
    lists = [list(each) for each in values]
    long = max(range(len(lists)), key=lambda i: len(lists[i]))
    rows = []
    for places in itertools.product(*(range(len(each)) for each in lists)):
        row = [each[i] for each, i in zip(lists, places, strict=True)]
        turn = all(i == places[long] % len(each) for each, i in zip(lists, places, strict=True))
        marks = [] if turn or also(*row) else [pytest.mark.slow]
        rows.append(pytest.param(*row, marks=marks, id="-".join(map(label, row))))
    arguments = names.split(", ")
    named = [
        name
        for name, each in zip(arguments, lists, strict=True)
        if name == "sde" and isinstance(each[0], str)
    ]
    return pytest.mark.parametrize(arguments, rows, indirect=named)


def label(value: Any) -> str:
    """What a value is called in the name of a test, the same in every process."""
    return value if isinstance(value, str) else getattr(value, "__name__", repr(value))


def spread(count: int) -> list[int]:
    """The numbers below ``count``, in an order whose first n lie about evenly for every n.

    The fractions of i times the golden ratio have no period, so that the first n meet every value
    of a parameter that comes back every few rows.
    """
    golden = (math.sqrt(5) - 1) / 2
    return sorted(range(count), key=lambda i: i * golden % 1)

"""A product of parameters, of which the default run has a few rows and the slow run the rest."""

from __future__ import annotations

import itertools
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

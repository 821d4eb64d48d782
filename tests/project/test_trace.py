"""The counter behind `make trace` counts right on a package whose every entry is known."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tools.trace import Function, traced

FIRST = """\
from counted_outside import outside
from counted_package.second import doubled, numbers


def total(values):
    kept = [value for value in values if value]
    kept.sort(key=lambda value: -value)
    kept = [doubled(value) for value in kept]
    if not kept:
        return outside(0)
    return outside(sum(numbers(kept)) + sum(value for value in kept))


def never():
    return 0
"""
SECOND = """\
def numbers(values):
    for value in values:
        yield value


def doubled(value):
    class Body:
        factor = 2

    return Body.factor * value
"""
OUTSIDE = """\
def outside(value):
    return value
"""


def test_a_known_call_is_counted_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files and three functions; lambdas, a class body and what lies outside are left out.

    The lines are five of `total`, whose first `return` is not reached, two of `numbers`, and three
    of `doubled`, one of them in the body of its class.
    """
    folder = tmp_path / "counted_package"
    folder.mkdir()
    for name, text in {"__init__": "", "first": FIRST, "second": SECOND}.items():
        (folder / f"{name}.py").write_text(text)
    (tmp_path / "counted_outside.py").write_text(OUTSIDE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("outside", "package", "package.first", "package.second"):
        # The undoing takes away again what is imported under the name in the meantime.
        monkeypatch.setitem(sys.modules, f"counted_{name}", sys)
        del sys.modules[f"counted_{name}"]
    importlib.invalidate_caches()
    first = importlib.import_module("counted_package.first")
    second = importlib.import_module("counted_package.second")

    outer, sums = sys.gettrace(), []
    trace = traced(lambda: sums.append(first.total([3, 0, 4])), [folder], mark=second.numbers)

    assert sums == [28]
    total = Function("counted_package/first.py", 5, "total")
    doubled = Function("counted_package/second.py", 6, "doubled")
    numbers = Function("counted_package/second.py", 1, "numbers")
    assert trace.functions == (total, doubled, numbers)
    assert trace.files == ("counted_package/first.py", "counted_package/second.py")
    assert trace.lines == 5 + 2 + 3
    assert trace.before == (total, doubled, doubled)
    assert trace.entries == (total, doubled, doubled, *3 * [numbers])
    assert traced(lambda: first.total([]), [folder], mark=second.numbers).before is None
    assert sys.gettrace() is outer


def test_an_error_in_the_call_ends_the_tracing(tmp_path: Path) -> None:
    outer = sys.gettrace()
    with pytest.raises(ZeroDivisionError):
        traced(lambda: 1 / 0, [tmp_path])
    assert sys.gettrace() is outer

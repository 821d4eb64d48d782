"""Threads wait asleep, which is decided before torch is loaded."""

from __future__ import annotations

import ast
import importlib
import os
from pathlib import Path

import pytest

import sdediff
from sdediff import _threads


@pytest.mark.parametrize(("before", "after"), [(None, "passive"), ("active", "active")])
def test_the_policy_of_the_user_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if before is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    importlib.reload(_threads)
    assert os.environ["OMP_WAIT_POLICY"] == after


def test_it_is_the_first_of_our_modules_that_is_loaded() -> None:
    tree = ast.parse(Path(str(sdediff.__file__)).read_text(encoding="utf-8"))
    first = next(n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "sdediff")
    before = [
        n.module for n in tree.body[: tree.body.index(first)] if isinstance(n, ast.ImportFrom)
    ]
    assert [alias.name for alias in first.names] == ["_threads"]
    assert set(before) <= {"importlib", "typing"}

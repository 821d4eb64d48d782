"""The golden table: every solver, SDE, prediction and way to call gives the numbers it gave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import golden
import numpy as np
import pytest

SCRIPT = Path(golden.__file__)


@pytest.mark.slow
def test_the_golden_table_holds() -> None:
    """In a process of its own, at one thread: float64 states are held to 1e-12, as by hand."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr


def table() -> dict[str, golden.Row]:
    return {
        "sample/a": {
            "x": np.array([[1.0, -200.0], [np.nan, 0.5]]),
            "nfe": np.array([3, 4]),
            "status": np.array([0, 1]),
        },
        "sample/single": {"x": np.array([1.0, 2.0], dtype=np.float32)},
        "chain/b": {"refused": np.array(1)},
    }


def changed(key: str, name: str, at: tuple[int, ...], by: float) -> dict[str, golden.Row]:
    """The table with one number moved."""
    new = table()
    new[key][name][at] += by
    return new


def said(now: dict[str, golden.Row]) -> tuple[bool, str]:
    lines: list[str] = []
    return golden.compare(table(), now, lines.append), "\n".join(lines)


def test_the_same_table_passes(tmp_path: Path) -> None:
    golden.save(tmp_path / "table.npz", table())
    good, text = said(golden.load(tmp_path / "table.npz"))
    assert good
    assert "FAILED" not in text
    assert text.splitlines()[-1].split() == ["all", "3", "3", "0", "0"]


@pytest.mark.parametrize(
    ("now", "passes"),
    [
        (changed("sample/a", "x", (1, 1), 1.9e-10), True),  # 1e-12 of 200, the largest
        (changed("sample/a", "x", (1, 1), 2.1e-10), False),
        (changed("sample/a", "x", (1, 1), np.nan), False),
        (changed("sample/single", "x", (0,), 1e-5), True),
        (changed("sample/single", "x", (0,), 1e-4), False),
        (changed("sample/a", "nfe", (0,), 1), False),
        (changed("sample/a", "status", (1,), -1), False),
        (changed("chain/b", "refused", (), -1), False),
        ({key: row for key, row in table().items() if key != "chain/b"}, False),
        (table() | {"chain/new": {"nfe": np.array([1])}}, False),
        (table() | {"chain/b": {"x": np.array([1.0])}}, False),
        (table() | {"sample/single": {"x": np.array([1.0, 2.0])}}, False),
    ],
)
def test_what_the_comparison_rejects(now: dict[str, golden.Row], *, passes: bool) -> None:
    good, text = said(now)
    assert good == passes
    assert ("FAILED" in text) != passes


@pytest.mark.thin(0)
def test_a_case_reaches_the_table_and_back(tmp_path: Path) -> None:
    """One family from end to end; all cases have a key of their own."""
    out = str(tmp_path / "table.npz")
    assert golden.main(["-k", "overflow", "--write", "--table", out]) == 0
    assert golden.main(["-k", "overflow", "--table", out]) == 0
    assert golden.main(["-k", "no such case", "--table", out]) == 1

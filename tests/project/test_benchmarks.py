"""The benchmarks run and say what they measured; their figures are nobody's assertion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "timing.py")


CHEAP = ("adaptive_sde.py", "noise.py")
"""What the default run runs; the others in the slow one."""


@pytest.mark.thin(0)
@pytest.mark.parametrize(
    "script",
    [pytest.param(name, marks=[] if name in CHEAP else pytest.mark.slow) for name in SCRIPTS],
)
def test_benchmark_runs(script: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run = subprocess.run(
        [sys.executable, str(FOLDER / script), "--quick", "--json", str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)},
    )
    assert run.returncode == 0, run.stderr
    assert "ratio" in run.stdout or script == "few_steps.py"
    assert json.loads(out.read_text())

"""Hours of work in one process, in small: no growth, and equal results of equal seeds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_rounds_of_work_leave_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    script = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--minutes", "0.5"]
    done = subprocess.run(
        [*script, "--json", str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    states, quarter = found["states"], len(found["states"]) // 4
    early, late = states[quarter : 2 * quarter], states[-quarter:]
    assert len(set(found["results"])) == 1
    assert late[-1]["files"] == early[0]["files"]
    assert late[-1]["threads"] == early[0]["threads"]
    grown = statistics.median(each["bytes"] for each in late)
    grown -= statistics.median(each["bytes"] for each in early)
    assert grown < 4e6

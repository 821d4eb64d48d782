"""Processes of Accelerate's launcher, on CPUs by gloo."""

from __future__ import annotations

import os
import subprocess
import sys


def start(processes: int, *words: object) -> subprocess.Popen[str]:
    """Run a script or ``-m module`` in so many processes; one is started without the launcher."""
    # of its launchers --multi_gpu is the one that starts several processes on one machine
    launcher = [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
        *("--num_processes", str(processes), "--main_process_port", "0"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
    ]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else ()), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )


def launched(*words: object, processes: int = 2) -> str:
    """What they print, once all of them have come to their end."""
    process = start(processes, *words)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-3000:]
    return out

"""The command line in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sdediff.cli import main

POINTS = np.random.Generator(np.random.PCG64(0)).normal(size=(60, 2)).astype(np.float32)


def command(*words: object) -> None:
    """Run the command line in this process, without leaving a trace in torch's global generator."""
    with torch.random.fork_rng():
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            if stop.code not in (0, None):
                raise


def trained_on_points(folder: Path, steps: int, *more: object) -> Path:
    """A run in ``folder``, trained on `POINTS`, which lie there as ``points.npy``."""
    np.save(folder / "points.npy", POINTS)
    given = ["--data", folder / "points.npy", "--out", folder / "run", "--steps", steps]
    command("train", *given, "--device", "cpu", "--quiet", *more)
    return folder / "run"


def refuse(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a command which fails prints; its exit code is 2."""
    with pytest.raises(SystemExit) as stop:
        command(*words)
    text = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "Traceback" not in text
    assert text.count("\n") == 0 or text.startswith("Usage")
    return text

"""The command line in this process."""

from __future__ import annotations

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


def refuse(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a command which fails prints; its exit code is 2."""
    with pytest.raises(SystemExit) as stop:
        command(*words)
    text = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "Traceback" not in text
    assert text.count("\n") == 0 or text.startswith("Usage")
    return text

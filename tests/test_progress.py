"""Progress where there is no terminal."""

from __future__ import annotations

import pytest

import sdediff as sd
from sdediff import progress


def test_lines_now_and_then_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress_bar("work", total=10, show=True, start=2) as bar:
        for clock[0], done in ((1.0, 3), (12.0, 4), (13.0, 5), (20.0, 10)):
            bar.update(done, f"step {done}")
    assert capsys.readouterr().err.splitlines() == [
        "work   40%  step 4  36 s left",
        "work  100%  step 10  0 s left",
    ]


def test_preparations_do_not_count_in_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything said of it before something is done; a budget may be overdrawn a little."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress_bar("tuning", total=100, show=True) as bar:
        for clock[0], done in ((50.0, 0), (60.0, 10), (100.0, 50), (152.0, 102)):
            bar.update(done, "best")
    assert capsys.readouterr().err.splitlines() == [
        "tuning    0%  best",
        "tuning   10%  best  90 s left",
        "tuning   50%  best  50 s left",
        "tuning  100%  best  0 s left",
    ]


def test_nothing_is_shown_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("work", total=1, show=False) as bar:
        bar.update(1)
    assert capsys.readouterr() == ("", "")


def test_sampling_in_parts_counts_samples(capsys: pytest.CaptureFixture[str]) -> None:
    model = sd.exact.Gaussian([0.0, 0.0], 1.0).model(sd.VP())
    sd.sample(model, (6, 2), solver=sd.DDIM(), steps=2, seed=0, batch_size=2, progress=True)
    assert capsys.readouterr().err.splitlines() == ["sampling  100%    0 s left"]

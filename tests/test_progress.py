"""Progress where there is no terminal."""

from __future__ import annotations

import pytest

from sdediff import progress


def test_lines_now_and_then_and_at_the_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress_bar("work", total=10, show=True, start=2) as bar:
        for clock[0], done in ((1.0, 3), (12.0, 4), (13.0, 5), (20.0, 10)):
            bar.update(done, f"step {done}")
    assert capsys.readouterr().err.splitlines() == ["work   40%  step 4  36 s left", "work  100%  step 10  0 s left"]


def test_nothing_is_shown_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("work", total=1, show=False) as bar:
        bar.update(1)
    assert capsys.readouterr() == ("", "")

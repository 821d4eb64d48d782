"""``sdediff compare``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import POINTS, command, refuse

from sdediff.comparison import Comparison


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    np.savez(folder / "points.npz", x=POINTS, labels=np.arange(len(POINTS)) % 2)
    given = ["--data", folder / "points.npz", "--out", folder / "run", "--labels"]
    command("train", *given, "--steps", 2, "--device", "cpu", "--quiet")
    return folder / "run"


SHORT = ["--nfe", "3,6", "--count", 12, "--quiet", "--device", "cpu", "--condition", "label=0,1"]


@pytest.mark.slow
def test_a_run_is_compared(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = tmp_path / "tuned.json"
    tuning = ("tune", run, "--nfe", 6, "--count", 32, "--method", "dp", "--seconds", 1)
    command(*tuning, *SHORT[4:], "--guidance", 2, "--out", tuned)
    solvers = ["--solvers", f"ddim,default,ddpm,{tuned}", "--guidance", 2]
    data = ["--data", run.parent / "points.npz"]
    command("compare", run, *SHORT, *solvers, *data, "--out", tmp_path / "new" / "here")
    printed = capsys.readouterr().out
    assert "real data, held out" in printed
    lines = [each for each in printed.splitlines() if each.startswith("sdediff sample ")]
    assert len(lines) == 1
    drawing = shlex.split(lines[0])[1:-1]
    assert drawing[1:2] == [str(run)]
    assert drawing[-9:-1] == "--count 12 --seed 0 --condition label=0,1 --guidance 2".split()
    command(*drawing, tmp_path / "drawn.npy", "--quiet", "--device", "cpu")
    assert np.load(tmp_path / "drawn.npy").shape == (12, 2)
    found = Comparison.from_json((tmp_path / "new" / "here" / "compare.json").read_text())
    assert {row.solver for row in found.rows} == {"ddim", "default", "ddpm", str(tuned)}
    assert next(row for row in found.rows if row.solver == str(tuned)).slowest == 6
    assert all(row.slowest <= row.budget for row in found.measured if row.slowest and row.budget)
    assert found.shape == (12, 2)
    assert (tmp_path / "new" / "here" / "compare.md").read_text() == found.markdown()
    assert (tmp_path / "new" / "here" / "compare.png").stat().st_size > 1000
    command("compare", run, *SHORT, "--solvers", "ddim", "--grids", "karras,log_snr", "--error", 9)
    printed = capsys.readouterr().out
    assert "ddim, karras" in printed
    assert "Median error 9 takes the fewest evaluations, 3, by ddim, " in printed
    assert "no grid is called 'karas'" in refuse(
        capsys, "compare", run, *SHORT, "--grids", "karras,karas"
    )
    missing = refuse(capsys, "compare", run, *SHORT, "--solvers", "ddim,nowhere.json")
    assert "--solvers nowhere.json: there is no such file; sdediff tune makes one" in missing
    assert "--budget-seconds must be a positive number" in refuse(
        capsys, "compare", run, *SHORT, "--budget-seconds", 0
    )
    assert "--error must be a positive number, got -1" in refuse(
        capsys, "compare", run, *SHORT, "--error", -1
    )


@pytest.mark.slow
def test_what_was_measured_is_kept_when_it_is_stopped(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdediff.comparison.running import Comparing

    whole = Comparing._row
    made: list[Any] = []

    def one(self: Comparing, job: Any) -> Any:
        if made:
            raise KeyboardInterrupt
        made.append(job)
        return whole(self, job)

    monkeypatch.setattr(Comparing, "_row", one)
    with pytest.raises(SystemExit) as stop:
        command("compare", run, *SHORT, "--solvers", "ddim", "--out", tmp_path)
    assert stop.value.code == 130
    found = Comparison.from_json((tmp_path / "compare.json").read_text())
    assert len(found.rows) == 1
    assert any("stopped" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--solvers", "ddmi"], "ddim"),
        (["--nfe", "0"], "at least 1"),
        (["--nfe", "a"], "write numbers"),
        (["--nfe", "1", "--solvers", "heun"], "no solver fits"),
        (["--data", "digits"], "the run makes (2,)"),
        (["--budget-seconds", "-1"], "positive"),
        (["--condition", "label=7"], "label"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    condition = [] if "--condition" in options else SHORT[-2:]
    assert words in refuse(capsys, "compare", run, "--device", "cpu", *condition, *options)

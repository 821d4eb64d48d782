"""``sdediff evaluate``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import POINTS, command, refuse
from filelock import FileLock

from sdediff import metrics
from sdediff.cli.sample import Drawing


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    np.savez(folder / "points.npz", x=POINTS, labels=np.arange(len(POINTS)) % 2)
    given = ["--data", folder / "points.npz", "--out", folder / "run", "--labels"]
    command("train", *given, "--steps", 2, "--device", "cpu", "--quiet")
    return folder / "run"


HOW = ["--steps", 3, "--condition", "label=0,1", "--guidance", 2, "--seed", 3, "--device", "cpu"]


def against(run: Path) -> list[object]:
    return ["--against", run.parent / "points.npz", "--quiet"]


def test_drawn_samples_and_those_of_a_file_are_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, read, file = (tmp_path / name for name in ("drawn.json", "read.json", "x.npz"))
    command("evaluate", run, *against(run), *HOW, "--count", 50, "--out", drawn)
    printed = capsys.readouterr().out
    assert "Frechet distance" in printed
    assert "50 samples, features: values; reference of 60 data, fixed" in printed
    command("sample", run, *HOW, "--count", 50, "--out", file, "--quiet")
    command("evaluate", run, *against(run), "--samples", file, "--out", read)
    first, second = (json.loads(path.read_text()) for path in (drawn, read))
    assert first["metrics"] == second["metrics"]
    assert first["drawn"]["condition"] == ["label=0,1"]
    assert second["samples"] == str(file)
    x = torch.from_numpy(np.load(file)["x"])
    expected = metrics.frechet_distance(x, torch.from_numpy(POINTS))
    assert first["metrics"]["frechet"]["value"] == pytest.approx(float(expected), rel=1e-6)


def test_a_set_in_shards_is_drawn_first_and_measured_by_the_first(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of two processes draws what the first does not, and measures nothing; the first
    draws what the second has left.
    """
    sizes = ["--count", 50, "--batch-size", 5]
    evaluate = ["evaluate", run, *against(run), *HOW, *sizes]
    command(*evaluate, "--out", tmp_path / "plain.json")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert "2 processes share this work" in refuse(capsys, *evaluate)
    given = [*evaluate, "--samples", tmp_path / "set", "--out"]
    claim = tmp_path / "set" / "000" / ".000001.lock"
    monkeypatch.setattr("sdediff.cli.sharded._BATCHES", 2)
    with monkeypatch.context() as patch:
        patch.setattr("sdediff.cli.sharded.Shards.fill", lambda self, draw, **_: 0)
        command(*given, tmp_path / "none.json")  # as if another process drew them
    claim.parent.mkdir()
    with FileLock(claim):
        command(*given, tmp_path / "none.json")
    command(*given, tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()
    for name in ("manifest.json", "000/000002.safetensors"):
        (tmp_path / "set" / name).unlink()
    monkeypatch.setenv("RANK", "0")
    command(*given, tmp_path / "set.json")
    command(*given, tmp_path / "again.json")
    found = [json.loads((tmp_path / f"{n}.json").read_text()) for n in ("plain", "set", "again")]
    assert found[0]["metrics"] == found[1]["metrics"] == found[2]["metrics"]


def test_what_was_drawn_is_measured_when_it_is_stopped(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Drawing.batch

    def one(self: Drawing, rows: range, bar: Any) -> Any:
        if rows.start:
            raise KeyboardInterrupt
        return whole(self, rows, bar)

    monkeypatch.setattr(Drawing, "batch", one)
    with pytest.raises(SystemExit) as stop:
        command("evaluate", run, *against(run), *HOW, "--count", 50, "--batch-size", 20)
    assert stop.value.code == 130
    found = capsys.readouterr()
    assert "20 of 50 samples are complete" in found.err
    assert "20 samples, features: values" in found.out


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: object) -> str:
        return refuse(capsys, "evaluate", run, *against(run), *words)

    assert "--out x.txt must end in .json" in said("--out", "x.txt")
    assert "no features is called 'incepton'" in said("--features", "incepton")
    assert "nothing is downloaded: pass --weights PATH" in said("--features", "inception")
    assert "--weights and --sha256 are of" in said("--weights", "w.pth")
    assert "--reference" in said("--reference", "none")
    assert "no file or folder" in said("--samples", tmp_path / "no.npy")
    np.save(tmp_path / "other.npy", np.zeros((5, 3), np.float32))
    assert "samples of shape (3,)" in said("--samples", tmp_path / "other.npy")
    other = ["--against", tmp_path / "other.npy"]
    assert "has samples of shape (3,), and the run makes (2,)" in said(*other)


@pytest.mark.slow
def test_the_classifier_of_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real digits as samples, in [-1, 1] as `sample` writes them: all metrics, and those of samples
    that are the data themselves.
    """
    from sdediff.data import load_data

    digits = load_data("digits")
    run = tmp_path / "run"
    command("train", "--data", "digits", "--steps", 1, "--out", run, "--device", "cpu", "--quiet")
    np.save(tmp_path / "x.npy", digits.x.numpy() * 1.0000001)
    given = ["--against", "digits", "--features", "classifier", "--samples", tmp_path / "x.npy"]
    command("evaluate", run, *given, "--out", tmp_path / "out.json", "--quiet")
    found = json.loads((tmp_path / "out.json").read_text())["metrics"]
    assert found["frechet"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["precision"]["value"] == found["recall"]["value"] == 1
    assert 9 < found["score"]["value"] < 11
    assert "Classifier score" in capsys.readouterr().out

"""``sdediff sample`` to a folder of shards, by one process and by several."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import command, refuse, trained_on_points
from launched import launched, start

import sdediff as sd
from sdediff.sampling import sample
from sdediff.shards import MANIFEST, SET, Shards
from sdediff.solvers.solution import Status, failing


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on_points(tmp_path_factory.mktemp("sharded"), 2)


def words(run: Path, *more: object) -> list[object]:
    sizes = ["--count", 20, "--batch-size", 3, "--shard-size", 6]
    return ["sample", run, "--steps", 3, "--seed", 5, "--device", "cpu", *sizes, *more]


@pytest.fixture
def among_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is process 1 of 3."""
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)


def read(folder: Path) -> dict[str, torch.Tensor]:
    shards = Shards.open(folder)
    parts = [shards.read(k) for k in range(len(shards))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_a_folder_holds_the_samples_of_a_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The batches are the same, so that not a bit differs."""
    command(*words(run, "--out", tmp_path / "set"))
    assert f"20 samples in 4 shards; {tmp_path / 'set' / MANIFEST}" in capsys.readouterr().err
    plain = [word for word in words(run) if word not in ("--shard-size", 6)]
    command(*plain, "--quiet", "--out", tmp_path / "x.npz")
    found = read(tmp_path / "set")
    with np.load(tmp_path / "x.npz") as file:
        for name, key in (("x", "x"), ("seed", "seeds"), ("nfe", "nfe")):
            np.testing.assert_array_equal(found[name].numpy(), file[key])
    assert found["index"].tolist() == list(range(20))
    before = (tmp_path / "set" / MANIFEST).read_bytes()
    command(*words(run, "--out", tmp_path / "set"))
    assert "nothing was missing: 20 samples" in capsys.readouterr().err
    assert (tmp_path / "set" / MANIFEST).read_bytes() == before


def test_a_stopped_set_is_gone_on_with_by_another_number_of_processes(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    among_three: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = iter(range(100))

    def watched(*args: object, **kw: object) -> object:
        if next(calls) == 3:  # in the second batch of its second shard
            signal.raise_signal(signal.SIGTERM)
        return sample(*args, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr("sdediff.cli.sample.sample", watched)
    with pytest.raises(SystemExit) as stop:
        command(*words(run, "--out", tmp_path / "set"))
    assert stop.value.code == 128 + signal.SIGTERM
    assert "stopped; 1 of 4 shards are in" in capsys.readouterr().err
    assert Shards.open(tmp_path / "set").missing() == [0, 2, 3]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    command(*words(run, "--quiet", "--out", tmp_path / "set"))
    command(*words(run, "--quiet", "--out", tmp_path / "other"))
    for name, tensor in read(tmp_path / "other").items():
        assert torch.equal(read(tmp_path / "set")[name], tensor)
    assert capsys.readouterr().err == ""


def test_a_set_knows_what_its_bits_depend_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another version of the library is another set; other threads round otherwise, and are
    told.
    """
    given = words(run, "--quiet", "--out", tmp_path / "set")
    command(*given)
    description = json.loads((tmp_path / "set" / SET).read_text())
    assert description["threads"] == torch.get_num_threads()
    assert description["sdediff"] == sd.__version__
    (tmp_path / "set" / "000" / "000001.safetensors").unlink()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    with pytest.warns(UserWarning, match="begun with threads 1, and here it is 5: sums round by"):
        command(*given)
    assert Shards.open(tmp_path / "set").missing() == []
    monkeypatch.setattr("sdediff.cli.sharded.__version__", "9.9.9")
    assert f'with sdediff "{sd.__version__}", and "9.9.9" is asked' in refuse(capsys, *given)


def test_samples_that_fail_are_told_and_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sample 7, whose network is made to return no numbers."""
    made = 0

    def watched(model: object, shape: object, **kw: object) -> object:
        nonlocal made
        out = sample(model, shape, **kw)  # type: ignore[arg-type]
        made += len(out.x)
        if made == 9:
            row = torch.tensor([1])
            return out.failed(failing(row, torch.tensor(0.5), Status.NETWORK_NOT_FINITE))
        return out

    monkeypatch.setattr("sdediff.cli.sample.sample", watched)
    with pytest.raises(SystemExit) as stop:
        command(*words(run, "--quiet", "--out", tmp_path / "set"))
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("sample 7 failed at t = 0.5: the network's output is not finite")
    assert said[1].startswith("1 of 20 samples failed: 19 samples in 4 shards")
    assert read(tmp_path / "set")["index"].tolist() == [i for i in range(20) if i != 7]


def test_what_is_refused(
    run: Path, tmp_path: Path, among_three: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    assert "--shard-size is of a folder" in refuse(capsys, *words(run, "--out", tmp_path / "x.npz"))
    file = ["sample", run, "--steps", 3, "--device", "cpu", "--out", tmp_path / "x.npz"]
    assert "3 processes share this work and exchange their results" in refuse(capsys, *file)
    assert "--count" in refuse(capsys, *words(run, "--out", out, "--count", 10**14))
    assert "there is no folder" in refuse(capsys, *words(run, "--out", tmp_path / "no" / "set"))
    assert not list(tmp_path.iterdir())
    command(*words(run, "--quiet", "--out", out))
    said = refuse(capsys, *words(run, "--seed", 6, "--out", out))
    assert "holds a set with seed 5, and 6 is asked for: choose another folder" in said
    os.environ["RANK"] = "3"
    assert "RANK=3, WORLD_SIZE=3" in refuse(capsys, *words(run, "--out", out))


# -- real processes --------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_two_and_three_processes_write_the_same_set(run: Path, tmp_path: Path) -> None:
    for processes in (1, 2, 3):
        given = words(run, "--quiet", "--out", tmp_path / str(processes))
        launched("-m", "sdediff", *given, processes=processes)
    one = {p.relative_to(tmp_path / "1"): p.read_bytes() for p in (tmp_path / "1").rglob("*.*")}
    assert {name.name for name in one} >= {SET, MANIFEST, "000003.safetensors"}
    for other in ("2", "3"):
        folder = tmp_path / other
        assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*")} == one


@pytest.mark.slow
def test_a_killed_worker_is_made_good_by_the_same_command(run: Path, tmp_path: Path) -> None:
    given = words(run, "--quiet", "--count", 600, "--out", tmp_path / "set")
    process = start(2, "-m", "sdediff", *given)
    shards = tmp_path / "set" / "000"
    until = time.monotonic() + 400
    while time.monotonic() < until and len(list(shards.glob("0*.safetensors"))) < 3:
        time.sleep(0.02)
    workers = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    process.communicate(timeout=500)
    assert process.returncode != 0
    left = Shards.open(tmp_path / "set").missing()
    assert 0 < len(left) < 100
    launched("-m", "sdediff", *given)
    assert Shards.open(tmp_path / "set").missing() == []
    command(*words(run, "--quiet", "--count", 600, "--out", tmp_path / "whole"))
    names = [p.relative_to(tmp_path / "set") for p in (tmp_path / "set").rglob("*.*")]
    assert len(names) == 102
    for name in names:
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    """50,000 samples, of 13 MB, in 50 shards, by a process of their own that says its most."""
    np.save(tmp_path / "points.npy", np.random.Generator(np.random.PCG64(0)).normal(size=(60, 64)))
    data = ["--data", tmp_path / "points.npy", "--raw", "--out", tmp_path / "run", "--quiet"]
    command("train", *data, "--steps", 2, "--device", "cpu")
    program = (
        "import resource, sys; from sdediff.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    most = {}
    for count in (5_000, 50_000):
        given = ["sample", tmp_path / "run", "--steps", 3, "--count", count, "--batch-size", 1000]
        out = ["--shard-size", 1000, "--device", "cpu", "--quiet", "--out", tmp_path / str(count)]
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, given + out)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        most[count] = int(done.stdout.split()[-1])
        shutil.rmtree(tmp_path / str(count))
    assert most[50_000] < most[5_000] + 6 * 1024  # kB

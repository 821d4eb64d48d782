"""What a user of the command line can lose: by signals, folders, damaged runs and options that do
not go together.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import command, refuse, trained_on_points

import sdediff as sd
from sdediff.cli import _short_warnings
from sdediff.cli.app import spoken
from sdediff.cli.names import make_solver
from sdediff.sampling import sample


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on_points(tmp_path_factory.mktemp("command line"), 2)


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


# -- sampling that is stopped ----------------------------------------------------------------------


@pytest.fixture
def stopped_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """Have a signal come in the batch after so many."""

    def arrange(batches: int, number: int) -> None:
        calls = iter(range(1000))

        def watched(*args: object, **kw: object) -> object:
            if next(calls) == batches:
                signal.raise_signal(number)
            return sample(*args, **kw)  # type: ignore[arg-type]

        monkeypatch.setattr("sdediff.cli.sample.sample", watched)

    yield arrange
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_samples_that_are_complete_outlive_a_signal(
    run: Path,
    tmp_path: Path,
    stopped_after: Callable[[int, int], None],
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    words = [
        "sample",
        run,
        "--steps",
        3,
        "--count",
        10,
        "--batch-size",
        3,
        "--seed",
        5,
        "--quiet",
        "--out",
    ]
    command(*words, tmp_path / "whole.npz")
    stopped_after(2, number)
    with pytest.raises(SystemExit) as stop:
        command(*words, tmp_path / "x.npz")
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err == f"stopped; wrote 6 of 10 samples to {tmp_path / 'x.npz'}\n"
    whole, part = read(tmp_path / "whole.npz"), read(tmp_path / "x.npz")
    for name in ("x", "seeds", "nfe"):
        np.testing.assert_array_equal(part[name], whole[name][:6])


def test_a_partial_set_goes_beside_a_file_that_is_there(
    run: Path,
    tmp_path: Path,
    stopped_after: Callable[[int, int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "sample",
        run,
        "--steps",
        3,
        "--count",
        6,
        "--batch-size",
        3,
        "--quiet",
        "--out",
        tmp_path / "x.npy",
    ]
    command(*words)
    stopped_after(1, signal.SIGTERM)
    with pytest.raises(SystemExit):
        command(*words)
    assert len(np.load(tmp_path / "x.npy")) == 6
    assert len(np.load(tmp_path / "x.partial.npy")) == 3
    stopped_after(0, signal.SIGTERM)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command(*words)
    assert stop.value.code == 143
    assert capsys.readouterr().err == "stopped; nothing was written\n"


def test_samples_that_succeed_are_kept_when_others_fail(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sdediff.networks import MLP

    forward = MLP.forward

    def broken(self: MLP, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = forward(self, x, t)
        return torch.where(x[:, :1] > 0, out, torch.nan) if len(x) == 4 else out

    monkeypatch.setattr(MLP, "forward", broken)
    with pytest.raises(SystemExit) as stop:
        command(
            "sample",
            run,
            "--steps",
            3,
            "--count",
            7,
            "--batch-size",
            4,
            "--quiet",
            "--out",
            tmp_path / "x.npz",
        )
    said, kept = capsys.readouterr().err, read(tmp_path / "x.npz")
    assert stop.value.code == 2
    assert said.startswith("error: sample ")
    assert f"; wrote {len(kept['x'])} of 7 samples to {tmp_path / 'x.npz'}\n" in said
    assert 3 <= len(kept["x"]) < 7
    assert len(kept["seeds"]) == len(kept["nfe"]) == len(kept["x"])
    assert np.isfinite(kept["x"]).all()


def test_a_limit_of_evaluations_is_an_option_and_named_where_it_is_reached(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command(
            "sample",
            run,
            "--count",
            2,
            "--rtol",
            1e-6,
            "--max-nfe",
            20,
            "--quiet",
            "--out",
            tmp_path / "x.npz",
        )
    assert stop.value.code == 2
    assert "--max-nfe is reached" in capsys.readouterr().err
    command(
        "sample", run, "--count", 2, "--max-nfe", 50_000, "--quiet", "--out", tmp_path / "x.npz"
    )
    assert len(read(tmp_path / "x.npz")["x"]) == 2


@pytest.mark.slow
def test_a_process_that_is_told_to_end_writes_its_samples(run: Path, tmp_path: Path) -> None:
    words = [
        "sample",
        str(run),
        "--solver",
        "euler",
        "--steps",
        "20",
        "--count",
        "1000000",
        "--batch-size",
        "2",
    ]
    script = "from sdediff.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words, "--out", str(tmp_path / "x.npy")],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    time.sleep(0.5)
    first = process.stderr.readline()  # after 10 seconds at most: "sampling 0% ..."
    assert "sampling" in first
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert len(np.load(tmp_path / "x.npy")) % 2 == 0


# -- damaged runs and sizes that cannot be ---------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["data"].pop("event"),
            "data event is null, where the shape of a sample is expected",
        ),
        (lambda c: c["data"].update(event=[]), r"data event is [], where"),
        (lambda c: c["data"].update(event=[2.5]), r"data event is [2.5], where"),
        (lambda c: c["data"].update(event=[0]), r"data event is [0], where"),
        (lambda c: c["data"].update(event=[10**7, 10**7]), "lower --count"),
        (lambda c: c.update(data=None), "data is null, where an object is expected"),
        (lambda c: c.update(model=None), "model is null, where an object is expected"),
        (lambda c: c["network"]["parameters"].update(depth=10**9), "does not fit the network MLP"),
    ],
)
def test_damaged_runs_are_one_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict], object],
    message: str,
) -> None:
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))
    assert message in refuse(capsys, "sample", run, "--out", tmp_path / "x.npy")


def test_more_samples_than_memory_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refuse(capsys, "sample", run, "--count", 10**12, "--out", tmp_path / "x.npy")
    assert "1000000000000 samples of shape (2,) take 2.16e+05 GB" in said
    assert "lower --count" in said


def test_an_unfinished_run_is_warned_of_in_one_line(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["training"]["steps"] = 9
    (run / "config.json").write_text(json.dumps(config))
    with pytest.warns(
        UserWarning, match=r"run is unfinished: it has made 2 of 9 steps; go on with resume"
    ):
        command("sample", run, "--steps", 2, "--count", 2, "--out", tmp_path / "x.npy", "--quiet")
    with _short_warnings():
        assert (
            warnings.formatwarning("two\n lines", UserWarning, "file.py", 3)
            == "warning: two lines\n"
        )


# -- options ---------------------------------------------------------------------------------------


def test_empty_paths_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for words in (["train"], ["demo"], ["sample", run]):
        assert "--out is empty; name a path" in refuse(capsys, *words, "--out", "")
    assert "the run folder is empty" in refuse(capsys, "sample", "", "--out", tmp_path / "x.npy")
    assert not list((tmp_path / "empty").iterdir())


def test_resume_and_overwrite(
    trained: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", trained.parent / "points.npy", "--device", "cpu", "--steps", 2]
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert "pass one of them" in refuse(capsys, *words, "--out", run, "--resume", "--overwrite")
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}
    command(*words, "--out", tmp_path / "new", "--resume")
    assert f"there is no run in {tmp_path / 'new'} yet: starting one" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}


def test_the_demo_overwrites_a_demo_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert "holds a run that is no demo" in refuse(capsys, "demo", "--out", run)
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}
    (tmp_path / "real.png").write_text("mine")
    assert "holds real.png" in refuse(capsys, "demo", "--out", tmp_path)


def test_tolerances_beside_fixed_steps_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--steps", 3], ["--solver", "heun"], ["--solver", "ddpm", "--steps", 3]):
        for tolerance in ("--rtol", "--atol"):
            said = refuse(
                capsys, "sample", run, *words, tolerance, 0.1, "--out", tmp_path / "x.npy"
            )
            assert "--rtol and --atol are for solvers that choose their own" in said
    assert "RK45: --rtol must be a finite number" in refuse(
        capsys, "sample", run, "--rtol", -1, "--out", tmp_path / "x.npy"
    )


def test_the_absolute_tolerance_is_for_data_of_any_size() -> None:
    for data_std in (1.0, 1e-4):
        solver, _ = make_solver("ode", sd.VE(), None, None, None, data_std)
        assert solver == sd.RK45(1e-4, 1e-4 * data_std)
        solver, _ = make_solver("adaptive-sde", sd.VE(), None, None, 0.3, data_std)
        assert solver == sd.AdaptiveSDE(0.05, 0.3)


@pytest.mark.parametrize(
    ("command_name", "message", "said"),
    [
        ("train", "lr must be positive, got -1.0", "--lr must be positive, got -1.0"),
        (
            "train",
            "images of mixed size; pass image_size= to crop",
            "images of mixed size; pass --image-size to crop",
        ),
        ("train", "batch_size must be an int", "--batch-size must be an int"),
        ("train", "take steps=20 or drop steps", "take --steps 20 or drop --steps"),
        (
            "train",
            "trained with training batch_size = 16",
            "trained with training --batch-size = 16",
        ),
        ("sample", "pass it: load('run', net=Mine(...))", "pass it: load('run', net=Mine(...))"),
        (
            "sample",
            "Heun takes fixed steps: pass steps=N",
            "Heun takes fixed steps: pass --steps N",
        ),
        ("sample", "the data and the seed of all steps", "the data and the seed of all steps"),
        ("sample", "two\n  lines", "two lines"),
        ("evaluate", 'features="x" needs sha256="..."', '--features "x" needs --sha256 "..."'),
    ],
)
def test_messages_name_options(command_name: str, message: str, said: str) -> None:
    assert spoken(ValueError(message), [command_name]) == said


def test_no_memory_is_one_line() -> None:
    assert spoken(MemoryError(), ["train"]) == "not enough memory; take a smaller --batch-size"

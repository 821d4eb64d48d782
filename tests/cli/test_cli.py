"""The command line, as its user meets it: exit codes, one-line errors, files whole or absent."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import POINTS, command, refuse, trained_on_points

import sdediff as sd
from sdediff.checkpoint import read_config
from sdediff.cli import main
from sdediff.cli.names import SOLVERS, Request, make_solver


@pytest.fixture
def points(tmp_path: Path) -> Path:
    np.save(tmp_path / "points.npy", POINTS)
    return tmp_path / "points.npy"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on_points(tmp_path_factory.mktemp("trained"), 20, "--batch-size", 16)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.thin(0)
def test_the_package_is_the_command_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sdediff", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "sample" in done.stdout


@pytest.mark.thin(2)
@pytest.mark.parametrize("sde", ["vp", "ve", "subvp"])
def test_train_and_sample(points: Path, tmp_path: Path, sde: str) -> None:
    out = tmp_path / "deep" / "run"
    command(
        "train",
        "--sde",
        sde,
        "--data",
        points,
        "--out",
        out,
        "--steps",
        6,
        "--checkpoint-every",
        2,
        "--batch-size",
        8,
        "--quiet",
    )
    assert json.loads((out / "config.json").read_text())["sde"]["class"].lower() == sde
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "losses.csv",
        "model.safetensors",
        "training.safetensors",
    ]
    command(
        "sample",
        out,
        "--solver",
        "euler-maruyama",
        "--steps",
        5,
        "--count",
        7,
        "--seed",
        1,
        "--out",
        tmp_path / "x.npz",
        "--quiet",
    )
    file = np.load(tmp_path / "x.npz")
    assert file["x"].shape == (7, 2)
    assert file["nfe"].tolist() == [6] * 7
    command(
        "sample",
        out,
        "--solver",
        "euler-maruyama",
        "--steps",
        5,
        "--count",
        3,
        "--seed",
        1,
        "--out",
        tmp_path / "y.npy",
        "--quiet",
    )
    # in float32 a matrix product rounds differently in a batch of another size
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), file["x"][:3], rtol=1e-4, atol=1e-4)


@pytest.mark.thin(3)
@pytest.mark.parametrize("solver", sorted(SOLVERS.keys() - {"ncsn", "tacos", "naive"}))
def test_every_named_solver(run: Path, tmp_path: Path, solver: str) -> None:
    steps = [] if SOLVERS[solver](Request(sd.VP(), 10, None, None)).adaptive else ["--steps", "10"]
    command(
        "sample",
        run,
        "--solver",
        solver,
        *steps,
        "--count",
        2,
        "--out",
        tmp_path / "x.npy",
        "--quiet",
    )
    assert np.isfinite(np.load(tmp_path / "x.npy")).all()


@pytest.mark.slow
def test_a_tuned_solver_is_a_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "tuned.json", tmp_path / "x.npy"
    tuning = ("tune", run, "--nfe", 3, "--count", 32, "--seconds", 0.2)
    command(*tuning, "--method", "dp", "--out", file)
    assert "16 starts held out" in capsys.readouterr().out
    solver = sd.solvers.Tuned.load(file)
    assert solver.nfe == 3
    command("sample", run, "--solver", file, "--count", 2, "--seed", 1, "--out", out, "--quiet")
    want = sd.sample(sd.load(run), (2, 2), solver=solver, seed=1).x
    np.testing.assert_array_equal(np.load(out), want.numpy())
    said = refuse(capsys, "sample", run, "--solver", file, "--steps", 5, "--out", out)
    assert "grid of its own: drop --steps" in said
    told = json.loads(file.read_text())
    told["made"]["model"]["run"] = "another"
    file.write_text(json.dumps(told))
    capsys.readouterr()
    with pytest.warns(UserWarning, match="was tuned for the run another, and this is the run "):
        command("sample", run, "--solver", file, "--count", 2, "--out", out, "--quiet")
    told["made"]["model"] |= {"run": read_config(run)["run"], "guidance": 2.0}
    file.write_text(json.dumps(told))
    with pytest.warns(UserWarning, match="with guidance 2, and this is the run [0-9a-f]+: "):
        command("sample", run, "--solver", file, "--count", 2, "--out", out, "--quiet")
    assert "tuning starts from a name" in refuse(
        capsys, *tuning, "--solver", file, "--out", tmp_path / "other.json"
    )
    command(*tuning, "--solver", "ddim", "--out", file, "--quiet")
    assert json.loads(file.read_text())["made"]["start"]["class"] == "DDIM"
    assert "--out must be a .json file" in refuse(capsys, *tuning, "--out", tmp_path / "x.txt")


def test_without_a_solver_it_is_the_librarys(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("sample", run, "--steps", 9, "--count", 2, "--out", tmp_path / "x.npy")
    assert "2 samples by the default solver" in (told := capsys.readouterr().err)
    assert "10.0 evaluations each" in told
    command("sample", run, "--count", 2, "--out", tmp_path / "x.npy")
    assert "RK45" in capsys.readouterr().err


def test_images_from_a_folder_to_a_grid(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.fromarray((np.arange(63).reshape(7, 9) * i % 255).astype(np.uint8)).save(
            tmp_path / "pictures" / f"{i}.png"
        )
    command(
        "train",
        "--data",
        tmp_path / "pictures",
        "--out",
        tmp_path / "run",
        "--steps",
        2,
        "--batch-size",
        2,
        "--quiet",
    )
    command(
        "sample",
        tmp_path / "run",
        "--solver",
        "ddim",
        "--steps",
        3,
        "--count",
        6,
        "--out",
        tmp_path / "grid.png",
        "--quiet",
    )
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[0] > 3 * 9
        assert grid.size[1] > 2 * 7


def test_a_seed_makes_training_reproducible(points: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        command(
            "train",
            "--data",
            points,
            "--out",
            tmp_path / name,
            "--steps",
            4,
            "--seed",
            seed,
            "--device",
            "cpu",
            "--quiet",
        )
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_resume(
    run: Path, points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = [
        "train",
        "--data",
        points,
        "--out",
        run,
        "--steps",
        30,
        "--batch-size",
        16,
        "--device",
        "cpu",
        "--quiet",
    ]
    assert "already holds a run" in refuse(capsys, *again)
    command(*again, "--resume")
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 30
    assert "sde class = VP, not VE" in refuse(capsys, *again, "--resume", "--sde", "ve")


@pytest.mark.slow
def test_ctrl_c_leaves_a_usable_checkpoint(points: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--data",
        str(points),
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "1000000",
        "--device",
        "cpu",
        "--checkpoint-every",
        "5",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", "from sdediff.cli import main; main()", *words],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "model.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"stopped after step \d+; .* go on with --resume", err)
    assert "Traceback" not in err
    with pytest.warns(UserWarning, match=r"is unfinished: it has made \d+ of 1000000 steps"):
        command(
            "sample",
            tmp_path / "run",
            "--solver",
            "ddim",
            "--steps",
            2,
            "--count",
            2,
            "--out",
            tmp_path / "x.npy",
            "--quiet",
        )
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


def test_quiet_prints_nothing_and_loud_shows_progress(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    command(
        "sample",
        run,
        "--steps",
        3,
        "--solver",
        "ddim",
        "--count",
        2,
        "--out",
        tmp_path / "x.npy",
        "--quiet",
    )
    assert capfd.readouterr() == ("", "")
    command(
        "sample", run, "--steps", 3, "--solver", "ddim", "--count", 2, "--out", tmp_path / "x.npy"
    )
    shown = capfd.readouterr().err
    assert "sampling" in shown
    assert "4.0 evaluations each" in shown


def test_bad_input_to_train(
    points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert "did you mean 'subvp'" in refuse(capsys, "train", "--sde", "subpv", "--out", out)
    assert "did you mean 'digits'" in refuse(capsys, "train", "--data", "digit", "--out", out)
    assert "did you mean 'likelihood'" in refuse(
        capsys, "train", "--weighting", "likelyhood", "--data", points, "--out", out
    )
    assert "is no device" in refuse(
        capsys, "train", "--device", "gpu", "--data", points, "--out", out
    )
    np.save(tmp_path / "nan.npy", np.where(POINTS > 2, np.nan, POINTS))
    assert "nan" in refuse(capsys, "train", "--data", tmp_path / "nan.npy", "--out", out).lower()
    (tmp_path / "file").write_text("")
    assert "choose another folder" in refuse(
        capsys, "train", "--data", points, "--out", tmp_path / "file" / "run", "--quiet"
    )
    assert "must be positive" in refuse(
        capsys, "train", "--data", points, "--out", out, "--lr", "-1", "--quiet"
    )
    assert not out.exists()


def test_bad_input_to_sample(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.npy"
    assert "did you mean 'euler-maruyama'" in refuse(
        capsys, "sample", run, "--solver", "euler-mayurama", "--out", out
    )
    assert "chooses its own steps: drop --steps" in refuse(
        capsys, "sample", run, "--solver", "ode", "--steps", 10, "--out", out
    )
    assert "no run folder" in refuse(capsys, "sample", tmp_path / "rnu", "--out", out)
    assert "must end in .npy or .npz (the data are no images)" in refuse(
        capsys, "sample", run, "--out", tmp_path / "x.png"
    )
    assert "there is no folder" in refuse(capsys, "sample", run, "--out", tmp_path / "no" / "x.npy")
    assert "NCSN needs alpha = 1" in refuse(capsys, "sample", run, "--solver", "ncsn", "--out", out)
    assert make_solver("ncsn", sd.VE(), 30, None, None) == (
        sd.NCSN.from_sde(sd.VE(), 30, n_steps=5),
        None,
    )
    assert "take N <= 1000" in refuse(
        capsys, "sample", run, "--solver", "ddpm", "--steps", 2000, "--out", out
    )
    (run / "model.safetensors").write_bytes(b"")
    assert "model.safetensors is damaged" in refuse(capsys, "sample", run, "--out", out)
    assert not out.exists()


def test_usage_errors_have_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["train"],
        ["sample"],
        ["tarin"],
        ["train", "--out", "x", "--steps", "0"],
        ["train", "--out", "x", "--stps", "3"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_demo_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything the demo writes, after 3 steps of training."""
    command("demo", "--out", tmp_path / "demo", "--steps", 3, "--count", 8, "--device", "cpu")
    files = {p.name for p in (tmp_path / "demo").iterdir()}
    grids = {
        "euler-maruyama.png",
        "adaptive-sde.png",
        "predictor-corrector.png",
        "ode.png",
        "ddpm.png",
        "real.png",
        "process.png",
        "solvers.png",
    }
    assert files == grids | {
        "config.json",
        "losses.csv",
        "model.safetensors",
        "training.safetensors",
        "results.json",
        "table.txt",
    }
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert [row["name"] for row in results["solvers"]] == [
        "euler-maruyama",
        "adaptive-sde",
        "predictor-corrector",
        "ode",
        "ddpm",
    ]
    assert results["held_out"]["recognised"] > 0.8
    assert sum(results["solvers"][0]["quality"]["counts"]) == 8
    assert (tmp_path / "demo" / "table.txt").read_text().strip() in capsys.readouterr().out


@pytest.mark.thin(0)
@pytest.mark.parametrize("raw", [False, True], ids=["points", "fields"])
def test_arrays_are_standardised_and_samples_are_in_their_units(
    raw: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network sees mean 0 and variance 1 a channel; the folder keeps the map; samples come back
    in the units of the file.
    """
    rng = np.random.default_rng(0)
    mean, data = np.array([300.0, -200.0]), rng.normal(size=(60, 2, 4, 4) if raw else (400, 2))
    data = mean.reshape(2, 1, 1) + 40 * data if raw else mean + 40 * data
    np.save(tmp_path / "data.npy", data)
    arguments = [
        "train",
        "--data",
        tmp_path / "data.npy",
        "--out",
        tmp_path / "run",
        "--steps",
        2 if raw else 300,
        "--device",
        "cpu",
    ]
    if raw:
        assert "--raw on the command line" in refuse(capsys, *arguments)
    command(*arguments, *(["--raw"] if raw else []))
    assert "data are standardised, samples are not: Normalizer(mean=[" in capsys.readouterr().err
    normalizer = sd.load(tmp_path / "run").normalizer
    assert normalizer == sd.Normalizer.of(torch.from_numpy(data).float())
    assert "raw is for an .npy" in refuse(
        capsys, "train", "--data", "digits", "--raw", "--out", tmp_path / "other"
    )
    command(
        "sample",
        tmp_path / "run",
        "--steps",
        12,
        "--count",
        4 if raw else 1000,
        "--out",
        tmp_path / "x.npy",
        "--quiet",
    )
    x = np.load(tmp_path / "x.npy")
    axes = (0, 2, 3) if raw else (0,)  # the fields were hardly trained
    np.testing.assert_allclose(x.mean(axes), mean, rtol=0, atol=40 if raw else 6)
    np.testing.assert_allclose(x.std(axes), 40, rtol=0.6 if raw else 0.1)

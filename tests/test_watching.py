"""What a run says while it goes on, and what is left of it in the morning: tables, validation,
samples, and errors that say where.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import POINTS, command
from gradients import Labelled
from small_runs import DATA, make, train
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sdediff as sd
from sdediff import files
from sdediff.networks import initialised
from sdediff.sources import batch, seed_of
from sdediff.states import read_tensors
from sdediff.training import Watch

HELD_OUT = torch.randn(40, 2, generator=torch.Generator().manual_seed(1)) * 0.3 + 0.5


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# -- tables ----------------------------------------------------------------------------------------


def test_the_loss_of_every_step_is_on_the_disk(tmp_path: Path) -> None:
    means: dict[int, float] = {}
    train(tmp_path / "run", steps=25, callback=lambda step, loss: means.update({step: loss}))
    rows = table(tmp_path / "run" / "losses.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 26))
    losses = [float(row["loss"]) for row in rows]
    for step, mean in means.items():
        part = losses[(step - 1) // 10 * 10 : step]
        assert mean == pytest.approx(sum(part) / len(part), rel=1e-5)
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == pytest.approx(
        [1e-3 * (k + 1) / 100 * 0.5 * (1 + np.cos(np.pi * k / 25)) for k in range(25)], rel=1e-6
    )
    assert min(float(row["gradient_norm"]) for row in rows) > 0


def test_a_row_of_a_killed_run_is_written_once(tmp_path: Path) -> None:
    """Rows after the last checkpoint, and half a row, are what a kill leaves."""
    train(tmp_path / "whole", steps=12)
    train(tmp_path / "run", steps=7)
    with open(tmp_path / "run" / "losses.csv", "a") as file:
        file.write("8,0.5,1,1\n9,0.25")
    train(tmp_path / "run", steps=12, resume=True)
    steps = [int(row["step"]) for row in table(tmp_path / "run" / "losses.csv")]
    assert steps == list(range(1, 13))


def test_a_table_of_another_tool_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "losses.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"losses.csv is no table of a run; move it away"):
        train(tmp_path / "run", steps=2)
    assert (tmp_path / "run" / "losses.csv").read_text() == "epoch,loss\n1,2\n"


def test_a_run_that_takes_the_place_of_another_takes_its_tables(tmp_path: Path) -> None:
    watch = Watch(held_out=HELD_OUT, every=2, samples=2, steps=2)
    train(tmp_path / "run", steps=4, watch=watch)
    assert len(list((tmp_path / "run").glob("samples-step-*"))) == 2
    train(tmp_path / "run", steps=3, seed=1, overwrite=True)
    assert len(table(tmp_path / "run" / "losses.csv")) == 3
    assert not (tmp_path / "run" / "validation.csv").exists()
    assert not list((tmp_path / "run").glob("samples-step-*"))


# -- validation ------------------------------------------------------------------------------------


def test_validation_is_the_mean_loss_of_the_averaged_model_by_time(tmp_path: Path) -> None:
    """Against the loss called by hand, on times and noise of a seed for each batch."""
    watch = Watch(held_out=HELD_OUT, every=5, bins=4)
    plain = train(tmp_path / "plain", steps=10)
    model = train(tmp_path / "run", steps=10, watch=watch)
    assert torch.equal(plain.noise(DATA, 0.5), model.noise(DATA, 0.5))  # looking changes nothing
    rows = table(tmp_path / "run" / "validation.csv")
    assert {row["step"] for row in rows} == {"5", "10"}
    found = {row["quantity"]: float(row["value"]) for row in rows if row["step"] == "10"}
    loss = sd.DenoisingScoreMatching(stratified=True)
    losses, times = [], []
    with torch.no_grad(), torch.random.fork_rng():
        for number, part in enumerate(HELD_OUT.split(16)):
            torch.manual_seed(seed_of(0, number))
            state = torch.get_rng_state()
            losses.append(loss(model, part))
            generator = torch.Generator()
            generator.set_state(state)
            times.append(loss.draw(model, len(part), generator)[0])
    every, t = torch.cat(losses), torch.cat(times)
    assert found["validation_loss"] == pytest.approx(float(every.mean()), rel=1e-6)
    edges = np.linspace(model.sde.t_min, model.sde.t_max, 5)
    for low, high in pairwise(edges):
        inside = (t >= low) & (t < high)
        name = f"validation_loss_t_{low:.3f}_{high:.3f}"
        assert found[name] == pytest.approx(float(every[inside].mean()), rel=1e-6)


def test_samples_quality_and_conditions_are_watched(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def quality(x: Tensor) -> dict[str, float]:
        seen.append(x)
        return {"mean": float(x.mean())}

    labels = torch.arange(40) % 5
    model = sd.fit(
        sd.ScoreModel(initialised(Labelled, 0), sd.VP()),
        DATA,
        out=tmp_path / "run",
        condition={"label": torch.arange(50) % 5},
        steps=4,
        batch_size=16,
        device="cpu",
        watch=Watch(
            held_out=TensorDataset(HELD_OUT, labels),
            every=3,
            samples=6,
            steps=3,
            condition={"label": 2},
            quality=quality,
        ),
    )
    assert len(seen) == 2  # at step 3, and at the end
    model.detail_std = None  # measured only after the last samples
    expected = sd.sample(model, (6, 2), steps=3, seed=0, condition={"label": 2}).x
    assert torch.equal(seen[-1], expected)
    assert torch.equal(
        torch.from_numpy(np.load(tmp_path / "run" / "samples-step-00000004.npy")), expected
    )
    rows = table(tmp_path / "run" / "validation.csv")
    assert float(rows[-1]["value"]) == pytest.approx(float(expected.mean()), rel=1e-6)


def test_samples_of_bytes_are_a_picture_and_the_run_knows_their_range(tmp_path: Path) -> None:
    from PIL import Image

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.conv(x)
            return out

    data = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (20, 1, 6, 6), np.uint8)
    sd.fit(
        sd.ScoreModel(initialised(Small, 0), sd.VP()),
        data,
        out=tmp_path / "run",
        steps=2,
        batch_size=8,
        device="cpu",
        watch=Watch(samples=4, steps=2),
    )
    with Image.open(tmp_path / "run" / "samples-step-00000002.png") as picture:
        assert picture.mode == "L"
    said = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert (said["image"], said["low"], said["high"], said["count"]) == (True, 0.0, 255.0, 20)


def test_what_cannot_be_watched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"held_out must be samples of shape \(2,\)"):
        train(tmp_path / "run", watch=Watch(held_out=HELD_OUT[:, :1]))
    with pytest.raises(ValueError, match="quality is of samples: say how many"):
        Watch(quality=lambda x: 0.0)
    assert not (tmp_path / "run").exists()


def test_trackers_get_losses_and_what_is_found(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(
        tmp_path / "run",
        steps=20,
        watch=Watch(held_out=HELD_OUT, every=10, trackers="tensorboard"),
    )
    events = EventAccumulator(str(tmp_path / "run" / "trackers")).Reload()
    assert [each.step for each in events.Scalars("loss")] == [10, 20]
    assert [each.step for each in events.Scalars("validation_loss")] == [10, 20]
    rows = table(tmp_path / "run" / "validation.csv")
    assert events.Scalars("validation_loss")[0].value == pytest.approx(float(rows[0]["value"]))


# -- a loss that is not finite ---------------------------------------------------------------------


def test_a_loss_that_is_not_finite_says_which_step_samples_and_times(tmp_path: Path) -> None:
    model = make()
    calls: list[Tensor] = []

    def spoil(module: nn.Module, args: tuple[Tensor, Tensor], out: Tensor) -> Tensor:
        calls.append(args[1])
        late = (args[1] > 0.9)[:, None] & (len(calls) > 12)
        return torch.where(late, torch.nan, out)

    model.net.register_forward_hook(spoil)  # type: ignore[union-attr]
    with pytest.raises(FloatingPointError) as caught:
        sd.fit(
            model,
            DATA,
            out=tmp_path / "run",
            steps=40,
            batch_size=16,
            device="cpu",
            checkpoint_every=5,
        )
    late = calls[12] > 0.9
    rows = batch(50, 16, 0, 12)[late].tolist()
    said = str(caught.value)
    assert said.startswith(
        f"the loss is nan at step 13, of {len(rows)} of the 16 samples of its batch: rows "
        f"{', '.join(map(str, rows))} of the data, at t = "
    )
    assert "(bin 8 of 8 from t_min to t_max)" in said
    assert "(the last checkpoint, of step 10, stands)" in said
    assert read_tensors(tmp_path / "run" / "training.safetensors")[1]["step"] == "10"
    assert table(tmp_path / "run" / "losses.csv")[12]["loss"] == "nan"


def test_a_gradient_that_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    """The loss is finite, and a checkpoint is due at the same step."""

    def loss(model: Any, x_0: Tensor, condition: Any = None) -> Tensor:
        # sqrt(|w - w|) is 0, and its derivative is infinity times 0
        weight = model.net.enter.weight
        off = (weight - weight.detach()).abs().sum().sqrt()
        return off.expand(len(x_0))

    with pytest.raises(FloatingPointError, match=r"the gradient's norm is nan at step 1 \(rows"):
        train(tmp_path / "run", steps=4, checkpoint_every=1, loss=loss)
    assert not (tmp_path / "run" / "training.safetensors").exists()


# -- disks -----------------------------------------------------------------------------------------


@pytest.mark.thin(2)
@pytest.mark.parametrize("kept", [3, 4], ids=["before", "between"])
@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")],
)
def test_a_disk_that_takes_no_more_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str, kept: int
) -> None:
    """The second checkpoint fails at its first file, or at its second."""
    train(tmp_path / "whole", steps=8)
    calls = iter(range(100))
    real = os.fsync

    def full(handle: int) -> None:
        if next(calls) >= kept:  # of the configuration and of two files at step 4
            raise OSError(number, os.strerror(number))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        message = f"{said} at step 8 of the run in .*run; the checkpoint of step 4 is whole"
        with pytest.raises(OSError, match=message):
            train(tmp_path / "run", steps=8, checkpoint_every=4)
    step = read_tensors(tmp_path / "run" / "training.safetensors")[1]["step"]
    assert step == ("4" if kept == 3 else "8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is unfinished
        assert sd.load(tmp_path / "run").predicts == "edm"
    train(tmp_path / "run", steps=8, checkpoint_every=4, resume=True)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "run" / path.name).read_bytes(), path.name


# -- kills -----------------------------------------------------------------------------------------

_TRAIN = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from small_runs import train
pause = float(sys.argv[3])
train(Path(sys.argv[1]), steps=2000, checkpoint_every=7, resume=True,
      callback=lambda step, loss: time.sleep(pause))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_at_twenty_random_moments_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    """SIGKILL: every fifth time at any moment from the start of the process on, else after a
    further checkpoint.
    """

    def start(name: str, pause: float) -> subprocess.Popen[bytes]:
        tables = str(Path(__file__).parent / "tables")
        words = [sys.executable, "-c", _TRAIN, str(tmp_path / name), tables, str(pause)]
        return subprocess.Popen(words, stderr=subprocess.DEVNULL)

    rng = np.random.Generator(np.random.PCG64(7))
    state = tmp_path / "run" / "training.safetensors"
    made = []
    for kill in range(20):
        process = start("run", 0.05)
        before = state.stat().st_mtime_ns if state.exists() else 0
        while kill % 5 and process.poll() is None:
            if state.exists() and state.stat().st_mtime_ns > before:
                break
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.5 if kill % 5 else 4)))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        made.append(int(read_tensors(state)[1]["step"]) if state.exists() else 0)
    assert made == sorted(made)
    assert 0 < made[-1] < 2000
    for name in ("run", "whole"):
        assert start(name, 0.0).wait(timeout=500) == 0
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "run" / path.name).read_bytes(), path.name


def test_info_says_what_a_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "points.npy", POINTS)
    command(
        *("train", "--data", tmp_path / "points.npy", "--out", tmp_path / "run", "--steps", 6),
        *("--batch-size", 8, "--device", "cpu", "--held-out", 10, "--watch-every", 3, "--quiet"),
        *("--ema", "0.99,0.9", "--accumulate", 2, "--watch-samples", 3),
    )
    capsys.readouterr()
    command("info", tmp_path / "run")
    said = capsys.readouterr().out
    for words in (
        "VP(beta_min=0.1, beta_max=20.0",
        "MLP(",
        "M weights, predicts edm",
        "points: 50 samples of shape [2]",
        "6 of 6, by the checkpoint of ",
        "ema=[0.99, 0.9]",
        "DenoisingScoreMatching(",
        "over the last 6 steps, to step 6",
        "details",
        " of the data's",
        "validation loss ",
        "losses.csv",
        "samples-step-00000006.npy",
    ):
        assert words in said, words
    assert "is writing" not in said

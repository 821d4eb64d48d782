"""``sdediff restore`` of a run of a degradation is the call of the library, and bad input is
refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import command, refuse
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import sdediff as sd
from sdediff.degradation import Blur, Masking, NaiveSampling, RestorationLoss, Snow, TACoS
from sdediff.networks import UNet, initialised

RNG = np.random.default_rng(0)
PIXELS: NDArray[np.uint8] = RNG.integers(0, 256, (40, 8, 8)).astype(np.uint8)
PICTURE = torch.from_numpy(PIXELS[:1, None].astype(np.float32)) / 127.5 - 1
PROCESSES = {"masking": Masking(6, 0.5), "blur": Blur(5, 0.6, 3), "snow": Snow(5)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each degradation, and pictures."""
    place = tmp_path_factory.mktemp("degraded")
    x = torch.from_numpy(PIXELS[:, None]).float() / 127.5 - 1
    small: dict[str, Any] = {"batch_size": 4, "steps": 2, "device": "cpu"}
    for name, process in PROCESSES.items():
        net = initialised(lambda: UNet(1, (8, 8), 1, (False, False)), 0)
        model = sd.ScoreModel(net, process, "data")
        about = {"image": True}
        sd.fit(model, x, out=place / name, loss=RestorationLoss(), about=about, **small)
    Image.fromarray(PIXELS[0]).save(place / "image.png")
    field = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    np.save(place / "field.npy", field.numpy())
    np.save(place / "short.npy", field.numpy()[1:])
    return place


def restored(folder: Path, run: str, *words: object) -> dict[str, Tensor]:
    """What ``sdediff restore`` writes of the picture."""
    command(
        "restore", folder / run, "--image", folder / "image.png", "--out", folder / "x.npz",
        "--device", "cpu", *words,
    )  # fmt: skip
    with np.load(folder / "x.npz") as file:
        return {name: torch.from_numpy(value) for name, value in file.items() if name != "seeds"}


@pytest.mark.thin(0)
def test_a_degraded_picture_is_restored_from_its_level(folder: Path) -> None:
    """As given, with its centre, from level 4 of 6 by a step a level."""
    model = sd.load(folder / "masking")
    centre = torch.tensor([[3, 5]])
    for words, solver, steps in (
        ([], TACoS(), 4),
        (["--method", "naive", "--steps", 2], NaiveSampling(), 2),
        (["--method", "direct"], NaiveSampling(), 1),
    ):
        found = restored(folder, "masking", "--level", 4, "--condition", "centre=3,5", *words)
        out = sd.sample(
            model, (1, 1, 8, 8), solver=solver, steps=steps, x_init=PICTURE, t_start=4 / 6,
            condition={"centre": centre}, seed=0,
        )  # fmt: skip
        assert torch.equal(found["centre"], centre)
        assert found["nfe"].tolist() == [steps]
        assert float((found["x"] - out.x).abs().max()) <= 1e-5
    with torch.no_grad():  # the last is R(x, t) itself
        assert float((found["x"] - model(PICTURE, 4 / 6)).abs().max()) <= 1e-5
    assert not (folder / "x.degraded.npz").exists()


def test_a_clean_picture_is_degraded_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By conditions that the seed draws, which are written and said; with those it repeats."""
    found = restored(folder, "masking", "--degrade", "--count", 3, "--seed", 7)
    generator = torch.Generator().manual_seed(7)
    process = PROCESSES["masking"]
    own = process.draw(PICTURE.expand(3, -1, -1, -1), generator)
    assert torch.equal(found["centre"], own["centre"])
    with np.load(folder / "x.degraded.npz") as file:
        degraded = torch.from_numpy(file["x"])
    assert torch.equal(degraded, process(PICTURE.expand(3, -1, -1, -1), 1.0, **own))
    row, column = own["centre"][0].tolist()
    assert f"degraded with --condition centre={row},{column}: wrote" in capsys.readouterr().err
    Image.fromarray(PIXELS[0]).save(folder / "image.png")
    again = restored(folder, "masking", "--degrade", "--condition", f"centre={row},{column}")
    assert float((again["x"] - found["x"][:1]).abs().max()) <= 1e-5
    command(
        "restore", folder / "blur", "--image", folder / "image.png", "--degrade", "--count", 2,
        "--out", folder / "two.png", "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert {"two.png", "two.degraded.png"} <= {path.name for path in folder.iterdir()}


def test_a_condition_may_be_a_file(folder: Path) -> None:
    words = ["--condition", f"snow={folder / 'field.npy'}", "--condition", "upright=1", "--degrade"]
    found = restored(folder, "snow", *words)
    assert np.array_equal(found["snow"][0], np.load(folder / "field.npy"))
    assert found["upright"].tolist() == [True]


CENTRE = ["--condition", "centre=3,5"]
WRONG: dict[str, tuple[str, list[object], str]] = {
    "no centre": ("masking", [], "needs the centre that the picture was degraded with: pass"),
    "one number": ("masking", ["--condition", "centre=3"], "centre of a picture are 2 whole"),
    "halves": ("masking", ["--condition", "centre=3.5,1"], "2 whole numbers"),
    "word": ("masking", ["--condition", "centre=a,b"], "centre=a,b: expected numbers"),
    "twice": ("masking", [*CENTRE, *CENTRE], "--condition centre is given twice"),
    "outside": ("masking", ["--degrade", "--condition", "centre=3,8"], "must be pixels (B, 2)"),
    "outside, degraded": ("masking", ["--condition", "centre=3,8"], "must be pixels (B, 2)"),
    "no field": ("snow", ["--condition", "snow=none.npy"], "none.npy: there is no such file"),
    "short": ("snow", ["--condition", "snow=short.npy"], "are 64 numbers, with commas"),
    "unknown": ("masking", [*CENTRE, "--condition", "label=3"], "was trained without conditions"),
    "level": ("masking", [*CENTRE, "--level", 7], "--level must be a level of 1 to 6, got 7"),
    "method": ("masking", [*CENTRE, "--method", "mmps"], "no method is called 'mmps'"),
    "steps": ("masking", [*CENTRE, "--method", "direct", "--steps", 2], "takes one step: drop"),
    "mask": ("blur", ["--grey"], "that is what happened to the picture: drop --grey"),
    "noise": ("blur", ["--noise-std", 0.1], "drop --noise-std"),
}


@pytest.mark.thin(5)
@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, words, match = WRONG[name]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sdediff.networks.unet.UNet.forward", None)  # no network is called
    given = ["--image", "image.png", "--out", "y.png", "--device", "cpu"]
    assert match in refuse(capsys, "restore", run, *given, *words)
    assert not (folder / "y.png").exists()


def test_samples_need_a_law_to_start_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refuse(capsys, "sample", folder / "masking", "--out", folder / "y.png")
    assert "no law of fully degraded data to draw from: restore a picture, sdediff restore" in said

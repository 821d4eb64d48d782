"""``sdediff restore``: it is the call of the library, and bad pictures are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
import torch
from command_line import command, refuse
from numpy.typing import NDArray
from PIL import Image

import sdediff as sd
from sdediff import posterior
from sdediff.cli.restore import METHODS, Damage, run
from sdediff.networks import UNet

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (40, 3, 8, 8)).astype(np.uint8)
PIXELS = PICTURES[0].transpose(1, 2, 0)
SEEN = np.ones((8, 8), bool)
SEEN[2:6, 2:6] = False
SMALL = PIXELS.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pictures in colour, and pictures to restore."""
    place = tmp_path_factory.mktemp("restore")
    x = torch.from_numpy(PICTURES).float() / 127.5 - 1
    small: dict[str, Any] = {"batch_size": 4, "steps": 2, "device": "cpu"}
    with torch.random.fork_rng():
        net = UNet(3, (8, 8), layers=1, attention=(False, False))
        model = sd.ScoreModel(net, sd.VP(), "edm", sigma_data=0.58)
    sd.fit(model, x, out=place / "run", about={"image": True}, **small)
    pictures: dict[str, NDArray[np.uint8]] = {
        "image": PIXELS,
        "small": SMALL,
        "grey": PIXELS[..., 0],
        "mask": (255 * SEEN).astype(np.uint8),
        "soft": np.arange(64, dtype=np.uint8).reshape(8, 8),
        "white": np.full((8, 8), 255, np.uint8),
        "wide": PIXELS[:, :4],
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(place / f"{name}.png")
    return place


K = torch.exp(-0.5 * (torch.arange(-2, 3) / 0.4).square())
KINDS: dict[str, tuple[list[object], Any, NDArray[np.uint8]]] = {
    "mask": (["--mask", "mask.png"], posterior.Mask(torch.from_numpy(SEEN), noise_std=0.1), PIXELS),
    "downsample": (["--downsample", 2], posterior.Downsample(2, noise_std=0.1), SMALL),
    "grey": (["--grey"], posterior.Grey(noise_std=0.1), PIXELS[..., :1]),
    "blur": (
        ["--blur", 0.4], posterior.Blur(torch.outer(K, K) / K.sum() ** 2, noise_std=0.1), PIXELS,
    ),
}  # fmt: skip
IMAGES = {"downsample": "small.png", "grey": "grey.png"}


@pytest.mark.thin(1)
@pytest.mark.parametrize("kind", KINDS)
def test_restorations_are_those_of_the_library(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the measurement that the options say, and the picture in [-1, 1]."""
    words, measurement, pixels = KINDS[kind]
    monkeypatch.chdir(folder)
    command(
        "restore", "run", "--image", IMAGES.get(kind, "image.png"), *words, "--noise-std", 0.1,
        "--count", 2, "--steps", 4, "--method", "diffpir", "--out", tmp_path / "x.npz", "--seed", 5,
        "--device", "cpu", "--quiet",
    )  # fmt: skip
    with np.load(tmp_path / "x.npz") as file:
        x, seeds = torch.from_numpy(file["x"]), file["seeds"].tolist()
    y = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    y = measurement.forward(y) if kind == "mask" else y
    expected = sd.sample(
        sd.load(folder / "run"), (2, 3, 8, 8), solver=posterior.DiffPIR(measurement, y), steps=4,
        seed=5,
    )  # fmt: skip
    assert seeds == list(sd.seeds(5, 2))
    assert float((x - expected.x).abs().max()) <= 1e-6 * float(expected.x.abs().max())


@pytest.mark.thin(3)
@pytest.mark.filterwarnings("ignore:the 8 particles")
@pytest.mark.parametrize("method", [*METHODS, "particles"])
def test_every_method_writes_a_picture_as_large_as_the_runs(
    method: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", method, "--steps", 3, "--particles", 8, "--noise-std", 0.5]
    command(
        "restore", folder / "run", "--image", folder / "image.png", "--mask", folder / "mask.png",
        "--out", tmp_path / "x.png", "--device", "cpu", *words,
    )  # fmt: skip
    with Image.open(tmp_path / "x.png") as found:
        assert found.size == (8, 8)
        assert found.mode == "RGB"
    said = capsys.readouterr().err
    assert f"wrote {tmp_path / 'x.png'}" in said
    assert ("log evidence" in said) == (method == "particles")


def test_particles_that_are_not_the_posterior_say_what_to_change(
    folder: Path, tmp_path: Path
) -> None:
    words = r"the 8 particles are not yet the posterior.*--particles \(now 8\) or --steps \(now 2\)"
    with pytest.warns(UserWarning, match=words + r", or --noise-std \(now 0.5\)") as said:
        command(
            "restore", folder / "run", "--image", folder / "image.png", "--blur", 0.4, "--out",
            tmp_path / "x.png", "--device", "cpu", "--method", "particles", "--steps", 2,
            "--particles", 8, "--noise-std", 0.5,
        )  # fmt: skip
    assert len(said) == 1


WRONG: dict[str, tuple[list[object], str]] = {
    "nothing": ([], "got none of them: say what happened"),
    "two": (["--grey", "--blur", 1], "got --blur and --grey"),
    "no image": (["--image", "none.png", "--grey"], "--image none.png: there is no such file"),
    "size": (["--image", "wide.png", "--blur", 0.4], "is 4 x 8 pixels (width x height): expected"),
    "small": (["--downsample", 2], "expected 4 x 4, 8 / 2; resize or crop it"),
    "factor": (["--downsample", 3], "must be multiples of the factor 3"),
    "channels": (
        ["--image", "grey.png", "--blur", 0.4], "is grey: expected a picture that is in colour",
    ),
    "colour": (["--grey"], "is in colour: expected a picture that is grey"),
    "soft mask": (["--mask", "soft.png"], "holds greys, 1 say: a mask is white (255)"),
    "white mask": (["--mask", "white.png"], "is white everywhere"),
    "mask size": (["--mask", "wide.png"], "--mask wide.png is 4 x 8"),
    "mask colour": (["--mask", "image.png"], "--mask image.png is in colour"),
    "blur": (["--blur", 9], "kernel of 55 pixels, more than the picture's 8: take 1 or less"),
    "method": (["--grey", "--method", "mmsp"], "did you mean 'mmps'"),
    "level": (["--grey", "--level", 3], "--level is for the run of a degradation"),
    "degrade": (["--grey", "--degrade"], "--degrade is for the run of a degradation"),
    "noise": (["--blur", 0.4, "--noise-std", -1], "must be finite and >= 0, got -1"),
    "no noise": (
        ["--blur", 0.4, "--noise-std", 0, "--method", "particles"], "divides by",
    ),
    "islands": (["--blur", 0.4, "--method", "particles", "--particles", 9], "multiple of the 8"),
    "count": (
        ["--blur", 0.4, "--method", "particles", "--particles", 8, "--count", 9],
        "--count 9 of --particles 8",
    ),
    "out": (["--grey", "--out", "x.txt"], "must end in .png or .npy or .npz"),
}  # fmt: skip


@pytest.mark.thin(5)
@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, match = WRONG[name]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sdediff.sampling.Solving.run", None)  # nothing is solved
    given = ["--image", "image.png"] if "--image" not in words else []
    place = ["--out", "x.png"] if "--out" not in words else []
    assert match in refuse(capsys, "restore", "run", *given, *place, "--device", "cpu", *words)
    assert not (folder / "x.png").exists()


def test_runs_of_points_and_of_grey_pictures_are_refused(tmp_path: Path) -> None:
    small_runs.train(tmp_path / "points", steps=1)
    with pytest.raises(ValueError, match="no images, and restore is for pictures"):
        run(
            folder=tmp_path / "points", image=tmp_path / "x.png", out=tmp_path / "y.png",
            damage=Damage(None, 0.4, None, False, 0.1), method="mmps", particles=8, count=1,
            steps=2, condition=(), seed=0, device="cpu", quiet=True,
        )  # fmt: skip
    with pytest.raises(ValueError, match="have 1 channel, not 3"):
        Damage(None, None, None, True, 0.1).measurement((1, 8, 8))

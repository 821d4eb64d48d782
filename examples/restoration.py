"""Restore digits: a hole, a blur, and four times fewer pixels, by one network and no more training.

    python examples/restoration.py --run runs/mnist_guided/run      # after mnist_guided.py
    python examples/restoration.py --out runs/restoration           # trains its own

Each digit is measured in three ways, with noise, and the posterior of what it could have been is
drawn eight times by `MMPS`. Draws ``restored.png``, three blocks of rows: the digit, what was seen
of it, the mean of eight restorations, and two of the eight. Prints the error of a restoration in
decibels (PSNR), and of the mean.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from mnist_guided import NO_LABEL, trained
from torch import Tensor
from torch.nn.functional import interpolate

import sdediff as sd
from sdediff import posterior
from sdediff.data import load_data, split
from sdediff.plots import image_grid, save_png

NOISE, DRAWS = 0.05, 8


def psnr(x: Tensor, truth: Tensor) -> float:
    """10 log10 of the squared range, 4, over the mean squared error."""
    return 10 * math.log10(4 / float((x - truth).square().mean()))


def main() -> None:
    """Train or load, measure, restore, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--run", type=Path, help="folder of a run of mnist_guided.py")
    parser.add_argument("--out", type=Path, default=Path("runs/restoration"), help="folder")
    arguments = parser.parse_args()
    model = trained(arguments.run or arguments.out / "run", arguments.steps)
    arguments.out.mkdir(parents=True, exist_ok=True)

    _, held_out = split(load_data("mnist"), 500)  # which the network has not seen
    digits = torch.stack([held_out.x[held_out.labels == k][0] for k in range(10)])
    hole = torch.ones(28, 28, dtype=torch.bool)
    hole[8:20, 8:20] = False
    bump = torch.exp(-0.5 * (torch.arange(7.0) - 3) ** 2 / 2**2)
    kernel = bump[:, None] * bump / (bump[:, None] * bump).sum()
    measurements = {
        "hole": posterior.Mask(hole, noise_std=NOISE),
        "blur": posterior.Blur(kernel, noise_std=NOISE),
        "4x": posterior.Downsample(4, noise_std=NOISE),
    }
    shape, label = (10 * DRAWS, 1, 28, 28), torch.full((10 * DRAWS,), NO_LABEL)
    rows = []
    for name, measurement in measurements.items():
        y = measurement.forward(digits)
        y = y + NOISE * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        asked = posterior.MMPS(model, measurement, y.repeat_interleave(DRAWS, dim=0))
        x = sd.sample(asked, shape, steps=20, seed=0, condition={"label": label}).x
        x = x.unflatten(0, (10, DRAWS))
        mean = x.mean(dim=1)
        print(
            f"{name}: one restoration {psnr(x, digits[:, None]):.1f} dB, mean of {DRAWS} "
            f"{psnr(mean, digits):.1f} dB"
        )
        back = measurement.adjoint(y) if name == "hole" else interpolate(y, size=(28, 28))
        rows += [digits, back, mean, x[:, 0], x[:, 1]]
    picture = torch.cat([row.clamp(-1, 1) for row in rows])
    save_png(image_grid(picture, columns=10, scale=2), arguments.out / "restored.png")


if __name__ == "__main__":
    main()

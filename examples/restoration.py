"""Restore digits: a hole, a blur, and sixteen times fewer pixels, by one network.

    python examples/restoration.py --run runs/mnist_guided/run      # after mnist_guided.py
    python examples/restoration.py --out runs/restoration           # trains its own, a minute

Each digit, of which the network has seen none, is measured in three ways, with noise, and the
posterior of what it could have been is drawn eight times by `MMPS`. The network is not trained for
this. Draws ``restored.png``, three blocks of five rows: the digit, what was seen of it, the mean of
eight restorations, and two of the eight. Prints the error of one restoration and of the mean in
decibels (PSNR).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from mnist_guided import NO_LABEL, SIZE, trained
from torch import Tensor
from torch.nn.functional import interpolate

import sdediff as sd
from sdediff import posterior
from sdediff.data import load_data, split
from sdediff.plots import image_grid, save_png

NOISE, DRAWS = 0.1, 8


def psnr(x: Tensor, truth: Tensor) -> float:
    """10 log10 of the squared range, 4, over the mean squared error."""
    return 10 * math.log10(4 / float((x - truth).square().mean()))


def main() -> None:
    """Train or load, measure, restore, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="training steps")
    parser.add_argument("--run", type=Path, help="folder of a run of mnist_guided.py")
    parser.add_argument("--out", type=Path, default=Path("runs/restoration"), help="folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    digits, held_out = split(load_data("mnist"), 500)
    latent = trained(arguments.run or arguments.out / "run", arguments.steps, digits)

    real = torch.stack([held_out.x[held_out.labels == k][0] for k in range(10)])
    hole = torch.ones(28, 28, dtype=torch.bool)
    hole[9:19, 9:19] = False
    bump = torch.exp(-0.5 * (torch.arange(9.0) - 4) ** 2 / 2.5**2)
    measurements = {
        "hole": posterior.Mask(hole, noise_std=NOISE),
        "blur": posterior.Blur(bump[:, None] * bump / bump.sum() ** 2, noise_std=NOISE),
        "4 x 4 pixels in one": posterior.Downsample(4, noise_std=NOISE),
    }
    label, rows = torch.full((10 * DRAWS,), NO_LABEL), []
    for name, measurement in measurements.items():
        y = measurement.forward(real)
        y = y + NOISE * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        # What is seen is linear in the components, and what these leave of a digit is noise too.
        middle = latent.decode(torch.zeros(1, SIZE))
        left = measurement.forward(digits.x[:500] - latent.decode(latent.encode(digits.x[:500])))
        linear = posterior.Linear(
            lambda z, m=measurement, middle=middle: m.forward(latent.decode(z) - middle),
            noise_std=math.hypot(NOISE, float(left.std())),
        )
        outcome = (y - measurement.forward(middle)).repeat_interleave(DRAWS, dim=0)
        asked = posterior.MMPS(latent, linear, outcome)
        z = sd.sample(asked, (len(label), SIZE), steps=20, seed=0, condition={"label": label}).x
        x = latent.decode(z).unflatten(0, (10, DRAWS))
        mean = x.mean(dim=1)
        errors = psnr(x, real[:, None]), psnr(mean, real)
        print(f"{name}: one restoration {errors[0]:.1f} dB, mean of {DRAWS} {errors[1]:.1f} dB")
        seen = (
            measurement.adjoint(y, real.shape[1:])
            if name == "hole"
            else interpolate(y, size=(28, 28))
        )
        rows += [real, seen, mean, x[:, 0], x[:, 1]]
    picture = torch.cat([row.clamp(-1, 1) for row in rows])
    save_png(image_grid(picture, columns=10, scale=2), arguments.out / "restored.png")


if __name__ == "__main__":
    main()

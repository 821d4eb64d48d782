"""Why digits drawn without noise have speckled grounds: a DDPM of MNIST at half its size, trained
by L_simple for a short time, and `sd.compare` with real digits.

    python benchmarks/grounds.py --out runs/grounds --steps 3000

Prints the comparison, and for some samplers the *ground*: the root mean square distance from black
of the pixels that are black in every third or more of the training digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import sdediff as sd
from sdediff.data import load_data, split
from sdediff.networks import UNet, initialised
from sdediff.objectives import Bins

BINS = Bins(256)


def halved(x: torch.Tensor) -> torch.Tensor:
    """(N, 1, 28, 28) to (N, 1, 14, 14), the mean of each two by two pixels."""
    return torch.nn.functional.avg_pool2d(x, 2)


def trained(x: torch.Tensor, out: Path, steps: int) -> sd.ScoreModel:
    """A network by L_simple on the linear schedule, as `examples/mnist_ddpm.py` has it."""
    chain = sd.DDPM.from_schedule("linear", 1000, variance="beta")
    net = initialised(lambda: UNet(1, (16, 32), attention=(False, True)), seed=0)
    model = sd.ScoreModel(net, chain.to_sde(), "noise")
    loss = sd.discrete.DDPMLoss(chain, "simple", stratified=True)
    resume = (out / "training.safetensors").exists()
    return sd.fit(
        model, x, out=out, steps=steps, batch_size=32, lr=1e-3, loss=loss, resume=resume,
        device="cpu", progress=True,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("runs/grounds"))
    arguments = parser.parse_args()
    data, _ = split(load_data("mnist"), 500)
    trained(halved(data.x), arguments.out, arguments.steps)


if __name__ == "__main__":
    main()

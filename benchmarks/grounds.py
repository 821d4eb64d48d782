"""Why digits drawn without noise have speckled grounds: a DDPM of MNIST at half its size, trained
by L_simple for a short time, and `sd.compare` with held-out digits.

    python benchmarks/grounds.py --out runs/grounds    # about an hour on two cores
    python benchmarks/grounds.py --quick    # a look

The feature by which quality is judged is the *ground* of a picture: the root mean square distance
from black of the pixels that are black in 99 of 100 training digits. Prints the comparison; with
``--out`` it is written as JSON, Markdown and PNG beside the model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import sdediff as sd
from sdediff.data import load_data, split
from sdediff.networks import UNet, initialised


def halved(x: Tensor) -> Tensor:
    """(N, 1, 28, 28) to (N, 1, 14, 14), the mean of each two by two pixels."""
    return torch.nn.functional.avg_pool2d(x, 2)


def trained(x: Tensor, out: Path, steps: int) -> sd.ScoreModel:
    """A network by L_simple on the linear schedule, as `examples/mnist_ddpm.py` has it."""
    chain = sd.DDPM.from_schedule("linear", 1000, variance="beta")
    net = initialised(lambda: UNet(1, (16, 32), attention=(False, True)), seed=0)
    return sd.fit(
        sd.ScoreModel(net, chain.to_sde(), "noise"),
        x,
        out=out,
        steps=steps,
        batch_size=32,
        lr=1e-3,
        loss=sd.discrete.DDPMLoss(chain, "simple", stratified=True),
        resume=(out / "training.safetensors").exists(),
        device="cpu",
        progress=steps > 2,
    )


def chain(levels: int) -> sd.Solver:
    """DDPM of so many of its 1,000 levels."""
    return sd.DDPM.from_schedule("linear", 1000, variance="beta").respaced(levels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--count", type=int, default=32, help="samples")
    parser.add_argument("--levels", type=int, default=1000, help="of the chain that is run whole")
    parser.add_argument("--out", type=Path, help="folder for the model and what is found")
    parser.add_argument("--json", type=Path, help="file for the comparison")
    parser.add_argument("--quick", action="store_true", help="measures nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(arguments, arguments.out or Path(scratch) / "run")


def measure(arguments: argparse.Namespace, out: Path) -> None:
    """Train, compare, print."""
    steps, count, levels = arguments.steps, arguments.count, arguments.levels
    if arguments.quick:
        steps, count, levels = 2, 8, 10
    data, held_out = split(load_data("mnist"), 500)
    x, unseen = halved(data.x), halved(held_out.x)
    model = trained(x, out, steps)
    black = (x <= -1 + 1e-6).flatten(1).double().mean(dim=0) >= 0.99

    def ground(x: Tensor) -> Tensor:
        """(N, 1): the root mean square distance from -1 of the pixels that are black by rule."""
        return (x.flatten(1)[:, black] + 1).square().mean(dim=1, keepdim=True).sqrt()

    print(f"{int(black.sum())} of {black.numel()} pixels are black by rule")
    told("held-out digits", ground(unseen))
    shape = (count, 1, 14, 14)
    for n in (n for n in (20, 100) if n < levels):
        told(f"default, {n}", ground(sd.sample(model, shape, steps=n - 1, seed=0).x))
        told(f"DDPM, {n}", ground(sd.sample(model, shape, solver=chain(n), seed=0).x))
    told(f"DDPM, {levels}", ground(sd.sample(model, shape, solver=chain(levels), seed=0).x))
    found = sd.compare(
        model,
        shape,
        solvers={"default": None, "DDPM": chain, "RK45": sd.RK45()},
        nfe=[n for n in (10, 50, 200) if n <= levels],
        tolerances=[1e-3],
        data=unseen,
        features=ground,
        progress=not arguments.quick,
    )
    print(found)
    (arguments.json or out / "compare.json").write_text(found.to_json())
    (out / "compare.md").write_text(found.markdown())
    found.plot(out / "compare.png")
    still, noisy = (
        min(row.quality.frechet for row in found.measured if row.quality and row.solver == name)
        for name in ("default", "DDPM")
    )
    print(f"Frechet distance of grounds, without noise over with: ratio {still / noisy:.3g}")


def told(name: str, found: Tensor) -> None:
    """Print a ground with its standard error."""
    error = float(found.std()) / len(found) ** 0.5
    print(f"ground of {name}: {float(found.mean()):.4f} +- {error:.4f}", flush=True)


if __name__ == "__main__":
    main()

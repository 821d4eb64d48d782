"""Chains of Gaussian, Gamma and mixture noise, learned and sampled: two moons and digits.

    python benchmarks/chains.py --png pictures

One network for each kernel on the levels of one DDPM, trained by `ChainLoss` and sampled by
ancestral steps (Nachmani, San Roman and Wolf 2021, arXiv 2106.07582). On the moons *energy* is the
energy distance squared to fresh data, *floor* the 95 % quantile between two samples of the data,
and *ratio* the distance over that of the Gaussian of the same mean and covariance. On scikit-
learn's digits, 8 x 8, *recognised* and *Frechet* are the judge's of ``make demo``, and *ratio* is
the Frechet distance over that of Gaussian noise.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from one_step import energy, two_moons
from timing import arguments, report
from torch import Tensor, nn

import sdediff as sd
from sdediff.cli.quality import Judge
from sdediff.data import load_data, split
from sdediff.discrete import ChainLoss, GammaChain, KernelChain, MixtureChain
from sdediff.networks import MLP, initialised
from sdediff.plots import image_grid, save_png


class Flat(nn.Module):
    """A perceptron for images of a shape."""

    def __init__(self, event: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = MLP(math.prod(event), width=384, depth=5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner(x.flatten(1), t).reshape(x.shape)


def chains(args) -> dict[str, KernelChain]:
    """The kernels that are compared; a `KernelChain` itself is DDPM."""
    base = sd.DDPM.from_schedule("linear", 4 if args.quick else args.levels)
    known = {
        "Gaussian": KernelChain(base),
        "Gamma, theta 0.02": GammaChain(base, theta=0.02),
        "Gamma, theta 0.2": GammaChain(base, theta=0.2),
        "mixture, jump 0.05": MixtureChain(base, jump=0.05, most=4),
        "mixture, jump 0.4": MixtureChain(base, jump=0.4, most=4),
    }
    return {name: chain for name, chain in known.items() if name.split(",")[0] in args.noises}


def trained(chain: KernelChain, make: Callable[[], nn.Module], x: Tensor, steps: int):
    """A model of data x under the chain."""
    net = initialised(make, 0)
    model = sd.ScoreModel(net, chain.to_sde(), "edm", sigma_data=float(x.std()))
    options = {"steps": steps, "batch_size": 128, "lr": 2e-3, "ema": 0.99}
    with tempfile.TemporaryDirectory() as out:
        return sd.fit(model, x, out=out, loss=ChainLoss(chain), **options)


def dense(x: Tensor, side: int = 64) -> Tensor:
    """An image (1, side, side) in [-1, 1] of how many points x (n, 2) fall into a pixel."""
    counts = torch.histogramdd(x.flip(1), side, range=[-1.5, 1.5, -2.0, 2.0]).hist
    return (2 * (counts / counts.max()).sqrt() - 1)[None]


def moons(args) -> list[dict[str, object]]:
    count, steps = (64, 3) if args.quick else (args.points, args.moons)
    data, fresh = two_moons(20_000, 1), two_moons(count, 2)
    root = torch.linalg.cholesky(fresh.T.cov())
    normal = torch.randn(fresh.shape, generator=torch.Generator().manual_seed(3))
    whole = energy(fresh.mean(dim=0) + normal @ root.T, fresh)
    between = [energy(two_moons(count, 100 + k), fresh) for k in range(2 if args.quick else 20)]
    floor = float(torch.tensor(between).quantile(0.95))
    rows, pictures = [], [dense(fresh)]
    for name, chain in chains(args).items():
        began = time.perf_counter()
        model = trained(chain, lambda: MLP(2, 128, 3), data, steps)
        x = sd.sample(model, (count, 2), solver=chain, seed=7).x
        found = energy(x, fresh)
        rows.append(
            {
                "task": "moons", "noise": name, "energy": found, "floor": floor,
                "ratio": found / whole,
            }
        )  # fmt: skip
        pictures.append(dense(x))
        print(f"{rows[-1]}, {time.perf_counter() - began:.0f} s", flush=True)
    if args.png is not None:
        save_png(image_grid(torch.stack(pictures), len(pictures), scale=2), args.png / "moons.png")
    return rows


def digits(args) -> list[dict[str, object]]:
    train, held_out = split(load_data("digits"), 360)
    judge = Judge.fit(train, held_out)
    count, steps = (32, 3) if args.quick else (args.count, args.digits)
    rows, pictures, gaussian = [], [], math.nan
    for name, chain in chains(args).items():
        began = time.perf_counter()
        model = trained(chain, lambda: Flat(judge.event), train.x, steps)
        out = sd.sample(model, (count, *judge.event), solver=chain, seed=7, trajectory=True)
        found = judge.score(out.x)
        gaussian = found.frechet if not rows else gaussian
        rows.append(
            {
                "task": "digits", "noise": name, "recognised": found.recognised,
                "Frechet": found.frechet, "ratio": found.frechet / gaussian,
            }
        )  # fmt: skip
        shown = torch.linspace(0, chain.N, 16).round().long()
        one = train.x[:1]
        z = torch.randn(one.shape, generator=torch.Generator().manual_seed(0))
        forward = [chain.perturb(one, int(i), z) if i else one for i in shown]
        pictures += [torch.cat(forward), out.trajectory[shown, 0], out.x[1:33]]
        print(f"{rows[-1]}, {time.perf_counter() - began:.0f} s", flush=True)
    floor = judge.floor(min(count, len(train.x)))
    real = {"recognised": judge.reference.recognised, "Frechet": floor}
    rows.append({"task": "digits", "noise": "none: real digits", **real, "ratio": floor / gaussian})
    if args.png is not None:
        save_png(image_grid(torch.cat(pictures), 16), args.png / "digits.png")
    return rows


def main() -> None:
    more = {
        "--tasks": {"nargs": "+", "default": ["moons", "digits"], "help": "moons, digits"},
        "--noises": {"nargs": "+", "default": ["Gaussian", "Gamma", "mixture"]},
        "--moons": {"type": int, "default": 5000, "help": "training steps"},
        "--digits": {"type": int, "default": 2500, "help": "training steps"},
        "--levels": {"type": int, "default": 200, "help": "levels of the chains"},
        "--points": {"type": int, "default": 16_384, "help": "samples of the moons"},
        "--count": {"type": int, "default": 512, "help": "samples of the digits"},
        "--png": {"type": Path, "metavar": "FOLDER", "help": "save pictures there"},
    }
    args = arguments(__doc__ or "", 1, more)
    if args.png is not None:
        args.png.mkdir(parents=True, exist_ok=True)
    tables = [task(args) for name, task in TASKS.items() if name in args.tasks]
    path = args.json
    for rows in tables:
        args.json = path if len(tables) == 1 else None
        report(f"chains, {rows[0]['task']}", rows, args)
    if len(tables) > 1:
        args.json = path
        both = [{k: row[k] for k in ("task", "noise", "ratio")} for rows in tables for row in rows]
        report("chains, both", both, args)


TASKS = {"moons": moons, "digits": digits}

if __name__ == "__main__":
    main()

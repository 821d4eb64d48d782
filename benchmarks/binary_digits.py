"""Binary digits by a binomial chain: learned by the variational bound, sampled, judged and drawn.

    python benchmarks/binary_digits.py --png binary_digits.png

scikit-learn's digits, 8 x 8, 1 where a pixel is at least half as dark as can be. *bits* is the
variational bound of held-out digits in bits per pixel, *ratio* the same over the entropy that
independent pixels of the same frequencies have; *recognised* and *Frechet* are the judge's of
``make demo``, fitted to the binary digits, and the rows *real* and *independent pixels* say what
held-out digits and such pixels have.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from timing import arguments, report
from torch import Tensor, nn

import sdediff as sd
from sdediff.cli.quality import Judge
from sdediff.data import load_data, split
from sdediff.networks import UNet
from sdediff.plots import image_grid, save_png


class Mean(nn.Module):
    """E[x_0 | x_i] in (-1, 1)."""

    def __init__(self, **shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = UNet(**shape)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner(x, t).tanh()


def independent(p: Tensor, x: Tensor) -> float:
    """Bits per pixel of binary x under independent pixels of probability p."""
    p = p.clamp(1e-3, 1 - 1e-3)
    return -float((x * p.log2() + (1 - x) * (1 - p).log2()).mean())


def main() -> None:
    more = {
        "--steps": {"type": int, "default": 3000, "help": "training steps"},
        "--levels": {"type": int, "default": 50, "help": "levels of the chain"},
        "--count": {"type": int, "default": 1024, "help": "samples"},
        "--png": {"type": Path, "help": "write a picture: levels of the reverse chain, samples"},
    }
    args = arguments(__doc__ or "", 1, more)
    if args.quick:
        args.steps, args.levels, args.count = 3, 4, 32
    digits = load_data("digits")
    train, held_out = split(replace(digits, x=(digits.x >= 0).float()), 360)
    judge = Judge.fit(train, held_out)
    chain = sd.discrete.BinomialChain.linear(args.levels)
    torch.manual_seed(0)
    net = Mean(widths=(8, 16) if args.quick else (32, 64))
    model = sd.ScoreModel(net, chain.to_sde(), "data", normalizer=sd.Normalizer(0.5, 0.5))
    loss = sd.discrete.ChainLoss(chain, "vlb")
    with tempfile.TemporaryDirectory() as folder:
        sd.fit(model, train.x, out=folder, steps=args.steps, lr=2e-3, ema=0.995, loss=loss)
    bound = sd.discrete.variational_bound(chain, model, held_out.x, bins=None, seed=0)
    frequency = train.x.mean(dim=0)
    alone = independent(frequency, held_out.x)
    shape = (args.count, *judge.event)
    out = sd.sample(model, shape, solver=chain, seed=0, trajectory=True)
    coins = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    pixels = (coins < frequency).float()
    bits = float(bound.bits_per_dim.mean())
    floor = judge.floor(min(args.count, len(train.x)))
    rows: list[dict[str, object]] = []
    for name, found, cost in (
        ("binomial chain", judge.score(out.x), bits),
        ("independent pixels", judge.score(pixels), alone),
        ("real", replace(judge.reference, frechet=floor), float("nan")),
    ):
        rows.append(
            {
                "samples": name,
                "bits": cost,
                "ratio": cost / alone,
                "recognised": found.recognised,
                "Frechet": found.frechet,
            }
        )
    if args.png is not None and out.trajectory is not None:
        shown = [round(k * chain.N / 7) for k in range(8)]
        levels = out.trajectory[shown, :8].transpose(0, 1).flatten(0, 1)
        picture = torch.cat([levels, out.x[:64], held_out.x[:32]])
        save_png(image_grid(2 * picture - 1, columns=8), args.png)
    report("binary_digits", rows, args)


if __name__ == "__main__":
    main()

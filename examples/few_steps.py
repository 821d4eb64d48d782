"""Ten evaluations against two hundred: the digits of ``make demo`` by the default solver, judged and drawn.

    python examples/few_steps.py --run runs/demo

prints a table and writes ``few_steps.png`` into the run's folder: a row for each number of evaluations, a column for each seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import sdediff as sd
from sdediff.cli.quality import Judge
from sdediff.data import load_data, split
from sdediff.plots import image_grid, save_png

BUDGETS = (5, 10, 20, 200)
SHOWN = 12


def main() -> None:
    """Sample at each budget with the same seeds; judge; draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder of a run on the digits")
    parser.add_argument("--count", type=int, default=1024, help="samples at each budget")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), metavar="NFE", help="evaluations of the network")
    arguments = parser.parse_args()

    model = sd.load(arguments.run)
    train, held_out = split(load_data("digits"), 360)
    judge = Judge.fit(train, held_out)
    samples = {}
    print(f"{'NFE':>5}{'recognised':>12}{'entropy':>9}{'Frechet':>9}{'from the last':>15}")
    for budget in sorted(arguments.budgets, reverse=True):
        # One evaluation is the last step's, E[x_0 | x].
        out = sd.sample(model, (arguments.count, *judge.event), steps=budget - 1, seed=0, progress=True)
        samples[budget] = out.x
        quality = judge.score(out.x)
        most = samples[max(samples)]
        apart = (out.x - most).square().flatten(1).mean(dim=1).sqrt().median()
        print(f"{int(out.nfe.max()):>5}{quality.recognised:>12.3f}{quality.entropy:>9.3f}{quality.frechet:>9.2f}{apart:>15.4f}")
    rows = torch.cat([samples[budget][:SHOWN] for budget in sorted(samples)])
    save_png(image_grid(rows, columns=min(SHOWN, arguments.count)), arguments.run / "few_steps.png")


if __name__ == "__main__":
    main()

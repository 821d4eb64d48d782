"""Sunspots: a diffusion model of a real signal, and forecasts that say how sure they are.

    python examples/sunspots.py --out runs/sunspots     # a minute or two on one core

The signal comes with statsmodels (``pip install statsmodels``): sunspots a year, 1700 to 2008. The
cycle takes about 11 years, and its height varies. A one-dimensional U-Net learns all windows of
32 years before 1931, of the root of the number, so that high and low years count alike. In later
windows the first 21 years are seen, and the last 11 are drawn 50 times from the posterior by
`MMPS`. Prints how far the mean of the draws is from what happened, beside the cycle before
repeated, and how often the truth lies in the central 80 % of the draws. Two centuries are few data,
and the sun was more active after 1950 than ever in training: the truth is outside more often than
it should be, and the cycle before is a better guess than the mean. Draws ``sunspots.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from statsmodels.datasets import sunspots

import sdediff as sd
from sdediff import posterior
from sdediff.networks import UNet1D, initialised
from sdediff.plots import save_png

WINDOW, SEEN, DRAWS = 32, 21, 50
STARTS = (1931, 1946, 1961, 1976)  # of the windows that are forecast


def main() -> None:
    """Train, forecast, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500, help="training steps")
    parser.add_argument("--out", type=Path, default=Path("runs/sunspots"), help="folder to write")
    arguments = parser.parse_args()

    table = sunspots.load_pandas().data
    years, counts = (torch.tensor(table[name].to_numpy()) for name in ("YEAR", "SUNACTIVITY"))
    signal = counts.float().sqrt()
    windows = signal.unfold(0, WINDOW, 1)[:, None]  # every window, (278, 1, 32)
    last = int(years[0]) + torch.arange(len(windows)) + WINDOW - 1  # the last year of each
    train = windows[last < STARTS[0]]

    model = sd.ScoreModel(
        initialised(lambda: UNet1D(1, (24, 48)), 0),
        sd.VP(),
        predicts="v",
        normalizer=sd.Normalizer.of(train),  # samples are in the units of the signal
    )
    given = {"batch_size": 64, "lr": 3e-3, "ema": 0.99, "resume": True, "progress": True}
    model = sd.fit(model, train, out=arguments.out, steps=arguments.steps, **given)

    mask = torch.zeros(1, WINDOW, dtype=torch.bool)
    mask[:, :SEEN] = True
    seen = posterior.Mask(mask, noise_std=0.3)  # of the root of a number of sunspots
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    axes = figure.subplots(1, len(STARTS), sharey=True)
    errors, naive, inside = [], [], []
    for panel, start in zip(axes, STARTS, strict=True):
        truth = windows[start - int(years[0])][None]
        asked = posterior.MMPS(model, seen, seen.forward(truth), iterations=2)
        x = sd.sample(asked, (DRAWS, 1, WINDOW), steps=20, seed=0).x[:, 0, SEEN:]
        future = truth[0, 0, SEEN:]
        low, high = x.quantile(torch.tensor([0.1, 0.9]), dim=0)
        errors.append(x.mean(dim=0) - future)
        naive.append(truth[0, 0, SEEN - 11 : WINDOW - 11] - future)
        inside.append((low <= future) & (future <= high))

        when = start + torch.arange(WINDOW)
        panel.fill_between(when[SEEN:], low**2, high**2, color="tab:blue", alpha=0.25)
        panel.plot(when[SEEN:], x[:8].T ** 2, color="tab:blue", alpha=0.4, linewidth=0.8)
        panel.plot(when, truth[0, 0] ** 2, color="black", linewidth=1.5)
        panel.axvline(start + SEEN - 0.5, color="0.6", linewidth=0.8)
    rms = [float(torch.cat(each).square().mean().sqrt()) for each in (errors, naive)]
    covered = float(torch.cat(inside).double().mean())
    print(f"error of the root: mean of the draws {rms[0]:.2f}, the cycle before {rms[1]:.2f}")
    print(f"the truth lies in the central 80 % of the draws in {covered:.0%} of the years")
    axes[0].set_ylabel("sunspots a year")
    figure.suptitle(
        "Black: what happened. Right of the line, blue: 8 of 50 draws, and their central 80 %",
        fontsize=10,
    )
    save_png(figure, arguments.out / "sunspots.png")


if __name__ == "__main__":
    main()

"""Where was the rod heated? A posterior in 16 dimensions that is known, and six ways to draw it.

    python examples/heated_rod.py --out runs/heated_rod       # a quarter of a minute on one core

The simulator: a rod of 16 pieces is heated at one of 7 places, and later four sensors read the
temperature, with noise. The question: how warm was each piece at first? The prior is a mixture of
Gaussians, whose score is known, in place of a trained network. Its posterior is a mixture that is
known too, so that every deviation is that of the method. Methods that guide samples by the
measurement put the heat in wrong places; particles find the posterior, and the evidence log p(y).
Prints a table and draws ``rod.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import sdediff as sd
from sdediff import posterior
from sdediff.plots import save_png

PIECES = torch.arange(16, dtype=torch.float64)
PLACES = torch.arange(2.0, 15.0, 2.0, dtype=torch.float64)  # the 7 places that may be heated
PRIOR = sd.exact.GaussianMixture(
    2 * torch.exp(-0.5 * (PIECES - PLACES[:, None]).square()), 0.3
)  # a bump around one of the places, and 0.3 everywhere
SENSORS, TIME, NOISE, COUNT = [1, 5, 9, 13], 3.0, 0.1, 1000


def simulator() -> Tensor:
    """What the sensors read of each piece, (4, 16): heat flows for TIME between neighbours."""
    flow = torch.diag(torch.ones(15, dtype=torch.float64), 1)
    flow = flow + flow.T
    flow -= torch.diag(flow.sum(dim=0))  # no heat leaves at the ends
    return torch.linalg.matrix_exp(TIME * flow)[SENSORS]


def places(x: Tensor) -> Tensor:
    """How likely each place was heated: the share of the draws whose nearest bump is there."""
    nearest = torch.cdist(x.double(), PRIOR.means).argmin(dim=1)
    return torch.bincount(nearest, minlength=len(PLACES)) / len(x)


def main() -> None:
    """Draw by each method, print and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="steps of each method")
    parser.add_argument("--out", type=Path, default=Path("runs/heated_rod"), help="folder to write")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    H, generator = simulator(), torch.Generator().manual_seed(3)
    rod = PRIOR.sample(1, seed=4)
    y = (H @ rod[0] + NOISE * torch.randn(4, generator=generator, dtype=torch.float64))[None]
    truth = PRIOR.posterior(H, y[0], NOISE)
    mean, covariance = truth.data_moments()
    spread = covariance.diagonal().sqrt()

    model = PRIOR.model(sd.VP())  # a network that is trained on runs of a simulator goes here
    seen = posterior.Linear(lambda x: x @ H.T.to(x), noise_std=NOISE)
    found = {"exact draws": truth.sample(COUNT, seed=0)}
    methods = {
        "MMPS": (posterior.MMPS(model, seen, y), sd.solvers.Ancestral()),
        "PiGDM": (posterior.PiGDM(model, seen, y), sd.solvers.Ancestral()),
        "DPS": (posterior.DPS(model, seen, y), sd.solvers.Ancestral()),
        "DPS as published": (model, posterior.PublishedDPS(seen, y, zeta=0.3)),
        "DiffPIR": (model, posterior.DiffPIR(seen, y)),
    }
    given = {"steps": arguments.steps, "seed": 0}
    for name, (asked, solver) in methods.items():
        found[name] = sd.sample(asked, (COUNT, 16), solver=solver, grid="log_snr", **given).x
    count = posterior.Particles(COUNT)
    particles = posterior.sample_posterior(model, seen, y, (1, 16), particles=count, **given)
    found["Particles"] = particles.draws[0]

    print(f"{'':18} mean off by  spread is  places off by   (in spreads; ratio; total variation)")
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True, sharey=True).flatten()
    for panel, (name, x) in zip(axes, found.items(), strict=False):
        off = float(((x.mean(dim=0) - mean) / spread).square().mean().sqrt())
        ratio = float((x.std(dim=0) / spread).mean())
        wrong = float((places(x) - truth.log_weights.exp()).abs().sum() / 2)
        print(f"{name:18} {off:11.2f} {ratio:10.2f} {wrong:14.2f}")
        panel.plot(PIECES, x[:60].T, color="tab:blue", alpha=0.12, linewidth=1)
        panel.plot(PIECES, mean, color="black", linewidth=1.5)
        panel.set_title(f"{name}: {wrong:.0%} in wrong places", fontsize=9)
    print(f"log p(y) {float(particles.log_evidence):.2f} +- {particles.log_evidence_error[0]:.2f}")
    axes[7].axis("off")
    figure.supxlabel("piece of the rod (blue: draws, black: the mean of the posterior)")
    figure.supylabel("temperature at first")
    save_png(figure, arguments.out / "rod.png")


if __name__ == "__main__":
    main()

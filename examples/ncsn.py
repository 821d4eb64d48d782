"""Why noise has many levels: score matching at one level, at twenty, and at all of them.

    python examples/ncsn.py --out runs/ncsn            # a minute or two on one core

The data are two clouds of points in the plane, 80 % of them in one and 20 % in the other, and
nothing between them (Song and Ermon 2019, arXiv 1907.05600, section 3.2). A network that learns
the score at one small level of noise sees no data between the clouds and is wrong there, and
Langevin steps cannot cross: each cloud holds the share of the chains that started near it. With
twenty levels, the large ones fill the gap, and annealed Langevin dynamics find the shares. The
variance-exploding SDE is the limit of ever more levels; predictor-corrector and RK45 solve it.
Prints the shares and draws them in ``ncsn.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import sdediff as sd
from sdediff import mcmc
from sdediff.networks import MLP, initialised
from sdediff.plots import save_png

LAW = sd.exact.GaussianMixture([[2.0, 2.0], [-8.0, -8.0]], 0.7, [0.8, 0.2])
SDE = sd.VE(sigma_min=0.1, sigma_max=30.0)  # x_t = x_0 + sigma(t) noise, sigma from 0.1 to 30
COUNT = 2000


def shares(x: Tensor) -> tuple[float, float, float]:
    """Of points (N, 2): the shares in the first cloud, in the second, and in neither."""
    first, second = ((x - mean).norm(dim=1) < 3.5 for mean in x.new_tensor([[2, 2], [-8, -8]]))
    parts = (first, second, ~(first | second))
    return tuple(float(part.double().mean()) for part in parts)


def score_error(model: sd.ScoreModel, x: Tensor) -> float:
    """How far the score at points (N, 2) and at t = 0 is from the exact one, over its size."""
    exact = LAW.model(SDE).score(x, torch.tensor(0.0))
    return float((model.score(x, torch.tensor(0.0)) - exact).detach().norm() / exact.norm())


def main() -> None:
    """Train three networks, sample each, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each network")
    parser.add_argument("--out", type=Path, default=Path("runs/ncsn"), help="folder to write")
    arguments = parser.parse_args()
    data = LAW.sample(20_000, seed=0).float()
    levels = sd.NCSN.from_sde(SDE, 20, n_steps=20)  # sigma_1 = 30 > ... > sigma_20 = 0.1

    def trained(name: str, predicts: str, loss: object) -> sd.ScoreModel:
        model = sd.ScoreModel(initialised(MLP, 0), SDE, predicts, sigma_data=5.0)
        given = {"steps": arguments.steps, "batch_size": 256, "lr": 2e-3, "overwrite": True}
        return sd.fit(model, data, out=arguments.out / name, loss=loss, **given)

    one_level = sd.objectives.SlicedScoreMatching("sigma2", times=lambda u: 0 * u)  # t = 0: 0.1
    one = trained("one", "score", one_level)
    many = trained("many", "edm", sd.discrete.NCSNLoss(levels, stratified=True))
    limit = trained("limit", "edm", sd.DenoisingScoreMatching("edm", stratified=True))

    generator = torch.Generator().manual_seed(1)
    gap = torch.randn(COUNT, 2, generator=generator) - 3  # around the middle between the clouds
    near, between = (score_error(one, x) for x in (data[:COUNT], gap))
    print(f"one level: the score is off by {near:.0%} at the data, {between:.0%} between them")
    start = 16 * torch.rand(COUNT, 2, generator=generator) - 11  # anywhere in the square
    plain = mcmc.run(mcmc.ULA(0.01), mcmc.at(one, 0.0), start, burn_in=999, steps=1, seed=0)

    found = {"the data": data[:COUNT], "one level, Langevin": plain.samples[-1]}
    corrector = sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin(snr=0.1))
    solvers: dict[str, tuple[sd.ScoreModel, sd.Solver, int | None]] = {
        "20 levels, annealed Langevin": (many, levels, None),
        "VE, predictor-corrector": (limit, corrector, 200),
    }
    solvers |= {
        f"VE, RK45 at {tol:g}": (limit, sd.RK45(tol, tol), None) for tol in (1e-2, 1e-3, 1e-5)
    }
    for name, (model, solver, steps) in solvers.items():
        drawn = sd.sample(model, (COUNT, 2), solver=solver, steps=steps, seed=0)
        found[name] = drawn.x
        print(f"{name}: {float(drawn.nfe.double().mean()):.0f} evaluations a sample")
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, 4, sharex=True, sharey=True), found, strict=False):
        axes.scatter(*found[name].T, s=2, alpha=0.4)
        axes.set(xlim=(-12, 6), ylim=(-12, 6), aspect="equal")
        axes.set_title("{}\n{:.0%} and {:.0%}".format(name, *shares(found[name])), fontsize=9)
    for name, x in found.items():
        print("{:30} {:6.1%} {:6.1%}, in neither {:6.1%}".format(name, *shares(x)))
    save_png(figure, arguments.out / "ncsn.png")


if __name__ == "__main__":
    main()

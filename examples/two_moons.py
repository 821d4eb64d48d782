"""Two moons: train a small network in under a minute and draw how samples flow from noise to data.

    python examples/two_moons.py --out runs/two_moons

writes ``ode.png`` (the probability flow) and ``sde.png`` (the reverse SDE) beside the checkpoint.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

import sdediff as sd
from sdediff.networks import MLP
from sdediff.plots import save_png, scatter_flow

TIMES = [1.0, 0.3, 0.15, 0.05, 1e-3]


def two_moons(count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 2) on two half circles with noise of standard deviation 0.06."""
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    side = torch.where(torch.rand(count, 1, generator=generator) < 0.5, 1.0, -1.0)
    return side * upper + 0.06 * torch.randn(count, 2, generator=generator)


def main() -> None:
    """Train, sample by ODE and SDE, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2500, help="training steps")
    parser.add_argument("--out", type=Path, default=Path("runs/two_moons"), help="folder to write")
    arguments = parser.parse_args()

    data = two_moons(20_000, torch.Generator().manual_seed(0))
    model = sd.ScoreModel(MLP(2), sd.VP(), predicts="edm", sigma_data=round(float(data.std()), 2))
    loss = sd.DenoisingScoreMatching("edm", "logit-normal", stratified=True)
    sd.fit(
        model,
        data,
        out=arguments.out,
        steps=arguments.steps,
        batch_size=512,
        lr=3e-3,
        loss=loss,
        overwrite=True,
        device="cpu",
        progress=True,
    )

    ode = sd.sample(
        model, (1500, 2), solver=sd.RK45(rtol=1e-4, atol=1e-4), grid=TIMES, seed=0, trajectory=True
    )
    sde = sd.sample(model, (1500, 2), solver=sd.EulerMaruyama(), steps=200, seed=0, trajectory=True)
    for name, out, frames in (("ode", ode, ode.trajectory), ("sde", sde, at(sde, TIMES))):
        if frames is None:
            raise RuntimeError("a trajectory was asked for")
        save_png(scatter_flow(frames, TIMES), arguments.out / f"{name}.png")
        far = (torch.cdist(out.x, data).min(dim=1).values > 0.15).float().mean()
        print(
            f"{name}: {float(out.nfe.double().mean()):.0f} evaluations a sample, "
            f"{100 * float(far):.1f} % of them off the moons"
        )


def at(solution: sd.Solution, times: list[float]) -> Tensor | None:
    """The frames of a trajectory that are nearest to ``times``."""
    if solution.trajectory is None:
        return None
    index = [int((solution.times - t).abs().argmin()) for t in times]
    return solution.trajectory[index]


if __name__ == "__main__":
    main()

"""A small model and a run that trains it."""

from __future__ import annotations

from pathlib import Path

import torch

import sdediff as sd
from sdediff.networks import MLP

DATA = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.5


def make() -> sd.ScoreModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(2, 16, 1, 4)
    return sd.ScoreModel(net, sd.VP(), "edm", sigma_data=0.3)


def train(out: Path, steps: int = 40, **kw: object) -> sd.ScoreModel:
    return sd.fit(make(), DATA, out=out, steps=steps, batch_size=16, device="cpu", **kw)  # type: ignore[arg-type]

"""A run whose gradients are kept, in this process or under ``accelerate launch``, by losses that
draw and learn in different ways.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.data import TensorDataset

import sdediff as sd
from sdediff.discrete import DDPMLoss, LossAware
from sdediff.networks import MLP, Autoencoder, initialised
from sdediff.objectives import Encoded
from sdediff.training import Optimization, Watch

DATA = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.5
LABELS = torch.arange(50) % 5
KINDS = ("plain", "learned", "aware", "encoded")
"""A loss; one with a learned schedule; levels by the losses that they had; drawn latents."""


class Labelled(nn.Module):
    """An MLP with an embedding, `null` being label 5."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.embedding = MLP(2, 8, 1, 2), nn.Embedding(6, 2)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.net(x + self.embedding(label), t)
        return out


class Kept(torch.optim.SGD):
    """Plain gradient steps; the gradient of each is kept."""

    def __init__(self, parameters: Sequence[Tensor], lr: float) -> None:
        super().__init__(parameters, lr=lr)  # type: ignore[arg-type]
        self.gradients: list[Tensor] = []

    def step(self, closure: Any = None) -> Any:
        values = [p for group in self.param_groups for p in group["params"]]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in values]
        self.gradients.append(torch.cat([grad.flatten() for grad in grads]))
        return super().step(closure)


def loss_of(kind: str, sde: Any) -> Any:
    if kind == "aware":  # after the second step every level has been seen twice
        return DDPMLoss(sd.DDPM.from_sde(sde, 4), sampler=LossAware(4, history=2))
    loss = sd.DenoisingScoreMatching("sigma2", stratified=True)
    wide = Autoencoder(lambda x: Normal(x, torch.full_like(x, 0.3)), lambda z: z)
    return Encoded(wide, loss) if kind == "encoded" else loss


def gradients(
    out: Path,
    *,
    steps: int = 4,
    accumulate: int = 1,
    kind: str = "plain",
    resume: bool = False,
    data: Any = DATA,
) -> Tensor:
    """The gradients (steps, parameters) of a run, before they were clipped: of batches of 15, that
    two processes or four parts do not divide evenly.
    """
    learned = kind == "learned"
    kept: list[Kept] = []

    def optimizer(parameters: Sequence[Tensor]) -> Kept:
        # the gradient of the learned schedule is large
        kept.append(Kept(parameters, 1e-5 if learned else 0.01))
        return kept[0]

    schedule = sd.sde.MonotoneSchedule(-6.0, 1.0, width=5)
    sde = sd.sde.LearnedVP(schedule) if learned else sd.VP()
    model = sd.ScoreModel(initialised(Labelled, 0), sde, "data", time="log_snr", null={"label": 5})
    sd.fit(
        model,
        data,
        out=out,
        steps=steps,
        batch_size=15,
        clip=1e9,
        loss=loss_of(kind, sde),
        condition={"label": LABELS},
        drop=0.3,
        device="cpu",
        resume=resume,
        optimization=Optimization(optimizer, schedule=lambda step: 1.0, accumulate=accumulate),
        watch=Watch(
            held_out=TensorDataset(DATA[:34], LABELS[:34]),  # three batches
            every=4,
            samples=5,
            steps=3,
            condition={"label": 1},
            quality=lambda x: float(x.mean()),
        ),
    )
    return torch.stack(kept[0].gradients) if kept[0].gradients else torch.empty(0)


if __name__ == "__main__":
    folder, name, many = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    found = gradients(folder / name, steps=many, kind=sys.argv[4])
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.save(found, folder / f"{name}-{rank}.pt")

"""Sequences of different lengths in one batch: what is padding counts nowhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.masks import check_mask

VP = sd.VP()
CHAIN = sd.DDPM.from_sde(VP, 20)
LENGTHS = (4, 2, 3, 1)
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
DATA = torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(4, 4, 2)
NOISE = torch.randn(4, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.tensor([0.9, 0.1, 0.5, 0.3], dtype=torch.float64)


def net(x: Tensor, t: Tensor) -> Tensor:
    """Each coordinate by itself, and something for the padding, where x is 0."""
    return torch.where(x == 0, 1e3, torch.tanh(1.7 * x) + t.to(x)[:, None, None])


def learned(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([net(x, t), 0.3 * net(x, t)], dim=1)


LOSSES = {
    "denoising": (sd.DenoisingScoreMatching("likelihood"), {"t": T}),
    "flow": (sd.FlowMatching(), {"t": T}),
    "implicit": (sd.ImplicitScoreMatching(), {"t": T}),
    "implicit at the data": (sd.ImplicitScoreMatching(perturbed=False), {}),
    "sliced": (sd.SlicedScoreMatching(), {"t": T}),
    "sliced, differences": (sd.SlicedScoreMatching(finite_difference=1e-3), {"t": T}),
    "variational": (sd.VariationalDiffusion(), {"t": T}),
    "variational, bins": (sd.VariationalDiffusion(sd.Bins(32, -1, 1)), {"t": T}),
    "simple": (sd.DDPMLoss(CHAIN), {"i": torch.tensor([20, 1, 7, 3])}),
    "vlb": (sd.DDPMLoss(CHAIN, "vlb"), {"i": torch.tensor([20, 1, 7, 1])}),
    "vlb, bins": (sd.DDPMLoss(CHAIN, "vlb", bins=sd.Bins(32, -1, 1)), {"i": torch.tensor([20, 1, 7, 1])}),
    "hybrid": (sd.DDPMLoss(sd.DDPM.from_sde(VP, 20, variance="learned"), "hybrid"), {"i": torch.tensor([20, 1, 7, 1])}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_what_exists(name: str) -> None:
    """Each padded sequence has the loss, and its network the gradient, of the sequence alone."""
    loss, given = LOSSES[name]
    hybrid = name == "hybrid"
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    model = sd.ScoreModel(lambda x, t: scale * (learned if hybrid else net)(x, t), VP, learned_variance=hybrid)
    noise = {} if name == "implicit at the data" else {"noise": NOISE}
    padded = torch.where(MASK[..., None], DATA, 77.0)
    whole = loss(model, padded, mask=MASK, generator=torch.Generator().manual_seed(1), **noise, **given)
    (slope,) = torch.autograd.grad(whole.sum(), scale)
    alone, slopes = [], 0.0
    for i, n in enumerate(LENGTHS):
        own = {key: value[i : i + 1] for key, value in given.items()} | {key: z[i : i + 1, :n] for key, z in noise.items()}
        value = loss(model, DATA[i : i + 1, :n], generator=torch.Generator().manual_seed(1), **own)
        alone.append(value.detach())
        slopes += float(torch.autograd.grad(value.sum(), scale)[0])
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-9, atol=1e-9)
    assert float(slope) == pytest.approx(slopes, rel=1e-8)
    everything = torch.ones(4, 1, 2)
    arguments: dict[str, Any] = {**noise, **given}
    one, two = (loss(model, DATA, **arguments, generator=torch.Generator().manual_seed(1), **m) for m in ({}, {"mask": everything}))
    torch.testing.assert_close(one, two, rtol=1e-14, atol=0)


def test_losses_around_losses_hand_it_on() -> None:
    model = sd.ScoreModel(lambda x, t, label: net(x, t), VP)
    pairs = torch.stack([DATA, NOISE], dim=1)
    loss = sd.ConditionDropout(sd.Coupled(), {"label": 0.0})
    values = [
        loss(model, pairs[:, :, :n], {"label": T}, mask=mask, generator=torch.Generator().manual_seed(2))
        for n, mask in ((4, torch.arange(4).expand(4, 4) < 2), (2, None))
    ]
    torch.testing.assert_close(values[0], values[1])
    chain = sd.NCSN.geometric(10.0, 0.01, 8)
    ncsn, i = sd.ScoreModel(net, chain.to_sde()), torch.tensor([1, 2, 3, 4])
    one = sd.NCSNLoss(chain)(ncsn, DATA, i=i, noise=NOISE, mask=torch.arange(4).expand(4, 4) < 2)
    two = sd.NCSNLoss(chain)(ncsn, DATA[:, :2], i=i, noise=NOISE[:, :2])
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(3, 4), r"the shape of the states, \(4, 4, 2\).*got \(3, 4\)"),
        (torch.ones(4, 3), r"got \(4, 3\)"),
        (torch.ones(1, 4), r"got \(1, 4\)"),
        (torch.ones(4, 4, 2, 1), r"got \(4, 4, 2, 1\)"),
        (torch.full((4, 4), 0.5), "hold 0 and 1 alone"),
        (MASK & (torch.arange(4) > 0)[:, None], "leaves a sample without any coordinate"),
    ],
)
def test_bad_masks(mask: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_mask(mask, DATA)

"""Sequences of different lengths in one batch: what is padding counts nowhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.masks import check_mask
from sdediff.reverse import Reverse
from solvers import Options
from solvers.masked import kept, masked

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


# -- the solve --------------------------------------------------------------------------------------------------------------


class Cut:
    """The first ``n`` places of a noise: what a sequence alone sees of it."""

    def __init__(self, noise: Any, n: int) -> None:
        self.noise, self.n = noise, n

    def at(self, step: int) -> Cut:
        return Cut(self.noise.at(step), self.n)

    def take(self, rows: Tensor) -> Cut:
        return Cut(self.noise.take(rows), self.n)

    def tree(self) -> Cut | None:
        found = self.noise.tree()
        return None if found is None else Cut(found, self.n)

    def normal(self, *key: Any) -> Tensor:
        found = self.noise.normal(*key)
        return found.narrow(found.ndim - 2, 0, self.n)

    def over(self, *key: Any) -> Tensor:
        return self.noise.over(*key)[:, : self.n]

    def increment(self, *key: Any) -> Tensor:
        return self.noise.increment(*key)[:, : self.n]

    def pair(self, *key: Any) -> tuple[Tensor, Tensor]:
        a, b = self.noise.pair(*key)
        return a[:, : self.n], b[:, : self.n]


SOLVERS: list[tuple[Any, int | None]] = [
    (sd.EulerMaruyama(), 8),
    (sd.SRA1(), 8),
    (sd.Ancestral(), 8),
    (sd.ReverseDiffusion(), 8),
    (sd.DDIM(eta=1.0), 8),
    (sd.SDEDPMSolverPP(2), 8),
    (sd.SEEDS(2), 8),
    (sd.UniPC(), 8),
    (sd.Heun(), 8),
    (sd.Churn(sd.Heun()), 8),
    (sd.StochasticHeun(), 8),
    (sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin()), 8),
    (sd.PredictorCorrector(sd.Ancestral(), sd.MetropolisLangevin()), 8),
    (sd.RK45(1e-4, 1e-4), None),
    (sd.ExponentialPair(2, "data", rtol=1e-3, atol=1e-3), None),
    (sd.AdaptiveSDE(0.05, 0.05), None),
]


def gentle(x: Tensor, t: Tensor) -> Tensor:
    """A noise prediction of each coordinate by itself, and NaN for the padding."""
    return torch.where(x == 0, torch.nan, x / (1 + 0.1 * torch.tanh(x)))


@pytest.mark.parametrize(("solver", "steps"), SOLVERS, ids=lambda value: repr(value))
@pytest.mark.parametrize("path", [False, True], ids=["white", "path"])
def test_a_padded_sequence_is_solved_as_it_is_alone(solver: Any, steps: int | None, path: bool) -> None:
    """The same states, and as many accepted and rejected steps; padding stays at 0, whatever the network says there."""
    if path and not solver.stochastic:
        pytest.skip("draws no noise")
    seeds = sd.seeds(3, 4)
    noise: Any = sd.White(seeds, (4, 2), dtype=torch.float64)
    if path:
        noise = sd.BrownianPath(seeds, (4, 2), VP.t_min, VP.t_max, dtype=torch.float64)
    model = sd.ScoreModel(gentle, VP, time_dtype=torch.float64)
    times = torch.linspace(VP.t_max, VP.t_min, (steps or 1) + 1, dtype=torch.float64)
    whole = solver.solve(
        Reverse(model, 4, float(solver.diffuses), mask=MASK[..., None].expand(4, 4, 2)),
        kept(NOISE, MASK[..., None]),
        times,
        masked(noise, MASK[..., None].expand(4, 4, 2)),
        Options(),
    )
    assert not bool(whole.x[~MASK].any())
    for i, n in enumerate(LENGTHS):
        own = Cut(noise.take(torch.tensor([i])), n)
        alone = solver.solve(Reverse(model, 1, float(solver.diffuses)), NOISE[i : i + 1, :n], times, own, Options())
        torch.testing.assert_close(whole.x[i, :n], alone.x[0], rtol=1e-8, atol=1e-8)
        assert whole.accepted[i] == alone.accepted[0]
        assert whole.rejected[i] == alone.rejected[0]

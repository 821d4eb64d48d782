"""Sequences of different lengths in one batch: what is padding counts nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.masks import mask_of
from sdediff.protocols import Rows
from sdediff.reverse import Reverse
from sdediff.solvers import Options
from sdediff.solvers.masked import kept, masked

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
    "flow": (sd.objectives.FlowMatching(), {"t": T}),
    "implicit": (sd.objectives.ImplicitScoreMatching(), {"t": T}),
    "implicit at the data": (sd.objectives.ImplicitScoreMatching(perturbed=False), {}),
    "sliced": (sd.objectives.SlicedScoreMatching(), {"t": T}),
    "sliced, differences": (sd.objectives.SlicedScoreMatching(finite_difference=1e-3), {"t": T}),
    "variational": (sd.objectives.VariationalDiffusion(), {"t": T}),
    "variational, bins": (
        sd.objectives.VariationalDiffusion(sd.objectives.Bins(32, -1, 1)),
        {"t": T},
    ),
    "simple": (sd.discrete.DDPMLoss(CHAIN), {"i": torch.tensor([20, 1, 7, 3])}),
    "vlb": (sd.discrete.DDPMLoss(CHAIN, "vlb"), {"i": torch.tensor([20, 1, 7, 1])}),
    "vlb, bins": (
        sd.discrete.DDPMLoss(CHAIN, "vlb", bins=sd.objectives.Bins(32, -1, 1)),
        {"i": torch.tensor([20, 1, 7, 1])},
    ),
    "hybrid": (
        sd.discrete.DDPMLoss(sd.DDPM.from_sde(VP, 20, variance="learned"), "hybrid"),
        {"i": torch.tensor([20, 1, 7, 1])},
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_what_exists(name: str) -> None:
    """Each padded sequence has the loss, and its network the gradient, of the sequence alone."""
    loss, given = LOSSES[name]
    hybrid = name == "hybrid"
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    model = sd.ScoreModel(
        lambda x, t: scale * (learned if hybrid else net)(x, t), VP, learned_variance=hybrid
    )
    noise = {} if name == "implicit at the data" else {"noise": NOISE}
    padded = torch.where(MASK[..., None], DATA, 77.0)
    whole = loss(
        model, padded, mask=MASK, generator=torch.Generator().manual_seed(1), **noise, **given
    )
    (slope,) = torch.autograd.grad(whole.sum(), scale)
    alone, slopes = [], 0.0
    for i, n in enumerate(LENGTHS):
        own = {key: value[i : i + 1] for key, value in given.items()} | {
            key: z[i : i + 1, :n] for key, z in noise.items()
        }
        value = loss(model, DATA[i : i + 1, :n], generator=torch.Generator().manual_seed(1), **own)
        alone.append(value.detach())
        slopes += float(torch.autograd.grad(value.sum(), scale)[0])
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-9, atol=1e-9)
    assert float(slope) == pytest.approx(slopes, rel=1e-8)
    everything = torch.ones(4, 1, 2)
    arguments: dict[str, Any] = {**noise, **given}
    one, two = (
        loss(model, DATA, **arguments, generator=torch.Generator().manual_seed(1), **m)
        for m in ({}, {"mask": everything})
    )
    torch.testing.assert_close(one, two, rtol=1e-14, atol=0)


def test_losses_around_losses_hand_it_on() -> None:
    model = sd.ScoreModel(lambda x, t, label: net(x, t), VP)
    pairs = torch.stack([DATA, NOISE], dim=1)
    loss = sd.objectives.ConditionDropout(sd.objectives.Coupled(), {"label": 0.0})
    values = [
        loss(
            model,
            pairs[:, :, :n],
            {"label": T},
            mask=mask,
            generator=torch.Generator().manual_seed(2),
        )
        for n, mask in ((4, torch.arange(4).expand(4, 4) < 2), (2, None))
    ]
    torch.testing.assert_close(values[0], values[1])
    chain = sd.NCSN.geometric(10.0, 0.01, 8)
    ncsn, i = sd.ScoreModel(net, chain.to_sde()), torch.tensor([1, 2, 3, 4])
    one = sd.discrete.NCSNLoss(chain)(
        ncsn, DATA, i=i, noise=NOISE, mask=torch.arange(4).expand(4, 4) < 2
    )
    two = sd.discrete.NCSNLoss(chain)(ncsn, DATA[:, :2], i=i, noise=NOISE[:, :2])
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
        mask_of(mask, DATA)


# -- the solve -------------------------------------------------------------------------------------


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
    (sd.solvers.SRA1(), 8),
    (sd.solvers.Ancestral(), 8),
    (sd.ReverseDiffusion(), 8),
    (sd.DDIM(eta=1.0), 8),
    (sd.solvers.SDEDPMSolverPP(2), 8),
    (sd.solvers.SEEDS(2), 8),
    (sd.solvers.UniPC(), 8),
    (sd.Heun(), 8),
    (sd.solvers.Churn(sd.Heun()), 8),
    (sd.solvers.StochasticHeun(), 8),
    (sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin()), 8),
    (sd.PredictorCorrector(sd.solvers.Ancestral(), sd.solvers.MetropolisLangevin()), 8),
    (sd.RK45(1e-4, 1e-4), None),
    (sd.solvers.ExponentialPair(2, "data", rtol=1e-3, atol=1e-3), None),
    (sd.AdaptiveSDE(0.05, 0.05), None),
]


def gentle(x: Tensor, t: Tensor) -> Tensor:
    """A noise prediction of each coordinate by itself, and NaN for the padding."""
    return torch.where(x == 0, torch.nan, x / (1 + 0.1 * torch.tanh(x)))


@pytest.mark.thin(3)
@pytest.mark.parametrize(("solver", "steps"), SOLVERS, ids=lambda value: repr(value))
@pytest.mark.parametrize("path", [False, True], ids=["white", "path"])
def test_a_padded_sequence_is_solved_as_it_is_alone(
    solver: Any, steps: int | None, path: bool
) -> None:
    """The same states, and as many accepted and rejected steps; padding stays at 0, whatever the
    network says there.
    """
    if path and not solver.stochastic:
        pytest.skip("draws no noise")
    seeds = sd.seeds(3, 4)
    noise: Any = sd.White(seeds, (4, 2), dtype=torch.float64)
    if path:
        noise = sd.solvers.BrownianPath(seeds, (4, 2), VP.t_min, VP.t_max, dtype=torch.float64)
    model = sd.ScoreModel(gentle, VP, time_dtype=torch.float64)
    times = torch.linspace(VP.t_max, VP.t_min, (steps or 1) + 1, dtype=torch.float64)
    whole = solver.solve(
        Reverse(model, Rows.of(4, mask=MASK[..., None].expand(4, 4, 2)), float(solver.solves_sde)),
        kept(NOISE, MASK[..., None]),
        times,
        masked(noise, MASK[..., None].expand(4, 4, 2)),
        Options(),
    )
    assert not bool(whole.x[~MASK].any())
    for i, n in enumerate(LENGTHS):
        own = Cut(noise.take(torch.tensor([i])), n)
        alone = solver.solve(
            Reverse(model, 1, float(solver.solves_sde)), NOISE[i : i + 1, :n], times, own, Options()
        )
        torch.testing.assert_close(whole.x[i, :n], alone.x[0], rtol=1e-8, atol=1e-8)
        assert whole.accepted[i] == alone.accepted[0]
        assert whole.rejected[i] == alone.rejected[0]


SMOOTH = sd.ScoreModel(gentle, VP, time_dtype=torch.float64)
TAME = sd.ScoreModel(
    lambda x, t: gentle(torch.where(x == 0, 1.0, x), t), VP, time_dtype=torch.float64
)
FAR = sd.ScoreModel(gentle, VP, time_dtype=torch.float64, normalizer=sd.Normalizer(300.0, 40.0))


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    "arguments",
    [
        {"steps": 6},
        {"solver": sd.RK45(1e-4, 1e-4), "batch_size": 3},
        {"solver": sd.AdaptiveSDE(0.1, 0.1)},
        {"solver": sd.DDPM.from_sde(VP, 10)},
    ],
    ids=repr,
)
@pytest.mark.parametrize("model", [SMOOTH, FAR], ids=["plain", "normalised"])
def test_samples_of_different_sizes_in_one_batch(
    arguments: dict[str, Any], model: sd.ScoreModel
) -> None:
    """Each is what it is alone, from the same noise; callbacks and trajectories have 0 in the
    padding.
    """
    noise, seen = sd.White(sd.seeds(5, 4), (4, 2), dtype=torch.float64), []

    def look(snapshot: Any) -> None:
        if "batch_size" not in arguments:
            seen.append(snapshot.x[~(MASK if snapshot.rows is None else MASK[snapshot.rows])])

    whole = sd.sample(
        model,
        (4, 4, 2),
        noise=noise,
        mask=MASK,
        trajectory=True,
        callback=look,
        dtype=torch.float64,
        **arguments,
    )
    assert whole.trajectory is not None
    assert not bool(whole.trajectory[:, ~MASK].any())
    assert not any(bool(x.any()) for x in seen)
    alone = {key: value for key, value in arguments.items() if key != "batch_size"}
    for i, n in enumerate(LENGTHS):
        own: Any = Cut(noise.take(torch.tensor([i])), n)
        one = sd.sample(model, (1, n, 2), noise=own, dtype=torch.float64, **alone)
        torch.testing.assert_close(whole.x[i, :n], one.x[0], rtol=1e-8, atol=1e-7)
        assert whole.nfe[i] == one.nfe[0]


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "solver",
    [sd.solvers.SciPy("RK45"), sd.solvers.SciPy("DOP853"), sd.solvers.TorchDiffEq("dopri5")],
    ids=repr,
)
def test_padding_does_not_loosen_another_librarys_tolerance(solver: Any) -> None:
    """Its norm is over what exists: a padded sequence by itself takes the steps of the sequence
    alone.
    """
    model = sd.ScoreModel(
        lambda x, t: VP.sigma(t).view(-1, 1) * (torch.sin(3 * x) + x), VP, time_dtype=torch.float64
    )
    for count in (1, 3):
        mask = (torch.arange(16) < count)[None]
        one = sd.sample(
            model,
            (1, count),
            solver=solver,
            seed=0,
            x_init=NOISE[:1, :count, 0],
            dtype=torch.float64,
        )
        x_init = torch.zeros(1, 16, dtype=torch.float64)
        x_init[:, :count] = NOISE[:1, :count, 0]
        padded = sd.sample(
            model, (1, 16), solver=solver, seed=0, x_init=x_init, mask=mask, dtype=torch.float64
        )
        assert torch.equal(padded.nfe, one.nfe)
        torch.testing.assert_close(padded.x[:, :count], one.x, rtol=1e-11, atol=1e-11)
        here, there = (
            sd.log_prob(model, x, solver=solver, mask=m)
            for x, m in ((one.x, None), (padded.x, mask))
        )
        assert torch.equal(there.nfe, here.nfe)
        torch.testing.assert_close(there.value, here.value, rtol=1e-10, atol=1e-10)


def test_another_library_leaves_the_padding_alone() -> None:
    """torchsde makes a path of the seeds itself; noise and drift are those of what exists."""
    start = torch.where(MASK[..., None], NOISE, 5.0)
    arguments: dict[str, Any] = {
        "solver": sd.solvers.TorchSDE("euler"),
        "steps": 6,
        "x_init": start,
        "seed": 0,
        "dtype": torch.float64,
    }
    masked_, plain = (
        sd.sample(m, (4, 4, 2), **arguments, **k) for m, k in ((SMOOTH, {"mask": MASK}), (TAME, {}))
    )
    assert not bool(masked_.x[~MASK].any())
    torch.testing.assert_close(masked_.x[MASK], plain.x[MASK], rtol=1e-9, atol=1e-9)


@pytest.mark.thin(1)
@pytest.mark.parametrize("model", [SMOOTH, FAR], ids=["plain", "normalised"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_densities_of_different_sizes_in_one_batch(model: sd.ScoreModel, divergence: Any) -> None:
    """The log-density of what exists, by as many steps; latents and round trips leave the padding
    at 0.
    """
    y = NOISE if model is SMOOTH else 300 + 40 * NOISE
    padded = torch.where(MASK[..., None], y, 5.0)
    solver = sd.RK45(1e-5, 1e-5)
    # With as many signs as there are coordinates the trace of a whole Jacobian is exact, padding or
    # not.
    given: dict[str, Any] = {"divergence": divergence}
    given |= {"seed": 0, "probes": 8} if divergence == "hutchinson" else {}
    whole = sd.log_prob(model, padded, solver=solver, mask=MASK, batch_size=3, **given)
    up = sd.encode(model, padded, solver=solver, mask=MASK)
    down = sd.decode(model, up.x, solver=solver, mask=MASK)
    for states in (whole.z, up.x, down.x):
        assert not bool(states[~MASK].any())
    for i, n in enumerate(LENGTHS):
        alone = sd.log_prob(model, y[i : i + 1, :n], solver=solver)
        torch.testing.assert_close(
            whole.value[i], alone.value[0], rtol=0, atol=1e-7 if divergence == "exact" else 1e-4
        )
        torch.testing.assert_close(
            up.x[i, :n],
            sd.encode(model, y[i : i + 1, :n], solver=solver).x[0],
            rtol=1e-8,
            atol=1e-7,
        )
        if divergence == "exact":
            assert whole.nfe[i] == alone.nfe[0]
        torch.testing.assert_close(
            down.x[i, :n], y[i, :n], rtol=0, atol=1e-3 * float(y.abs().max())
        )


def test_a_mask_of_another_shape_is_refused_before_the_network_is_called() -> None:
    model = sd.ScoreModel(lambda x, t: 1 / 0, VP)
    for call in (
        lambda: sd.sample(model, (4, 4, 2), steps=2, seed=0, mask=MASK[:3]),
        lambda: sd.log_prob(model, DATA, mask=MASK[:3]),
        lambda: sd.encode(model, DATA, mask=MASK[:3]),
    ):
        with pytest.raises(ValueError, match="mask must have the shape of the states"):
            call()


def test_fit_takes_a_mask(tmp_path: Path) -> None:
    """What is in the padding changes no weight, and is not counted in the scale of the data."""
    weights = []
    for padding in (0.0, 1e6):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = torch.nn.Sequential(
                torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
            )
        model = sd.ScoreModel(_Timeless(module), VP)
        data = torch.where(MASK[..., None], DATA.float(), padding)
        model = sd.fit(
            model,
            data,
            mask=MASK,
            out=tmp_path / f"{padding:g}",
            steps=3,
            batch_size=4,
            device="cpu",
        )
        weights.append([p.detach().clone() for p in model.parameters()])
        there = torch.where(MASK[..., None], DATA, torch.nan)
        # of each channel
        spread = (there - there.nanmean(dim=(0, 2), keepdim=True)).square().nanmean(dim=(0, 2))
        assert model.data_std == pytest.approx(float(spread.mean().sqrt()), rel=1e-6)
        assert sd.load(tmp_path / f"{padding:g}", net=_Timeless(module)).data_std == model.data_std
    for a, b in zip(*weights, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(TypeError, match="takes no mask: a loss for padded data"):
        sd.fit(
            model,
            data,
            mask=MASK,
            out=tmp_path / "c",
            steps=1,
            device="cpu",
            loss=lambda model, x_0, condition: x_0,
        )


class _Timeless(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.module(x)
        return found


class Reading(sd.Operator):
    """Notes the masks that a model is asked with."""

    masks: list[torch.Tensor | None]

    def evaluate(self, x: torch.Tensor, at: Any, rows: sd.Rows) -> Any:
        self.masks.append(rows.mask)
        return self.ask(x, at, rows)


@pytest.mark.parametrize(
    "loss",
    [
        sd.DenoisingScoreMatching(),
        sd.objectives.VariationalDiffusion(bins=None),
        sd.objectives.ImplicitScoreMatching(),
        sd.discrete.DDPMLoss(sd.DDPM.from_sde(VP, 20)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_model_is_told_of_the_mask_of_a_loss(loss: Any) -> None:
    model = Reading(sd.ScoreModel(gentle, VP, time_dtype=torch.float64))
    model.masks = []
    whole = MASK[..., None].expand(4, 4, 2)
    _ = loss(model, NOISE, mask=whole, generator=torch.Generator().manual_seed(0))
    assert model.masks
    assert all(mask is not None and torch.equal(mask, whole) for mask in model.masks)

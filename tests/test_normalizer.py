"""Data in the user's units: the affine map, its place in the run folder, and data that do not suit
the SDE.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdediff as sd
from sdediff.networks import MLP, initialised
from sdediff.normalizer import Moments, coordinate_moments
from sdediff.suitability import unsuited

POINTS = torch.tensor([300.0, -200.0]) + 40 * torch.randn(
    400, 2, generator=torch.Generator().manual_seed(0)
)


def net() -> MLP:
    return initialised(lambda: MLP(2, 32, 2, 8), 0)


@pytest.mark.parametrize("shape", [(50, 3), (50, 3, 4, 5), (50,)])
def test_each_channel_has_mean_0_and_variance_1(shape: tuple[int, ...]) -> None:
    data = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale = (
        torch.tensor([1.0, 1e-3, 1e4], dtype=torch.float64).reshape(3, *(1,) * (len(shape) - 2))
        if len(shape) > 1
        else 7.0
    )
    data = scale * (data + 5)
    normalizer = sd.Normalizer.of(data)
    x = normalizer.normalize(data)
    others = tuple(i for i in range(len(shape)) if i != 1)
    variance, mean = torch.var_mean(x, dim=others, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-11)
    torch.testing.assert_close(variance, torch.ones_like(variance))
    torch.testing.assert_close(normalizer.denormalize(x), data)
    assert normalizer.mean.shape == shape[1:2]


def test_the_log_determinant_is_that_of_the_map() -> None:
    normalizer = sd.Normalizer([1.0, 2.0], [3.0, 0.5])
    for event in ((2,), (2, 3)):
        y = torch.linspace(-1, 1, math.prod(event), dtype=torch.float64).reshape(1, *event)
        jacobian = torch.autograd.functional.jacobian(normalizer.denormalize, y).reshape(
            y.numel(), -1
        )
        assert normalizer.log_det(event) == pytest.approx(
            float(torch.linalg.slogdet(jacobian)[1]), abs=1e-12
        )
    assert sd.Normalizer(0.0, 10.0).log_det((4, 5)) == pytest.approx(20 * math.log(10))


def test_it_is_a_value() -> None:
    one, two = (
        sd.Normalizer([300, -200], 40.0),
        sd.Normalizer(torch.tensor([300, -200]), np.array([40.0, 40.0])),
    )
    assert one == two
    assert hash(one) == hash(two)
    assert one != sd.Normalizer([300, -200], 41.0)
    assert one != 1
    assert repr(one) == "Normalizer(mean=[300, -200], std=[40, 40])"
    assert (
        repr(sd.Normalizer(torch.zeros(3, 8, 8))) == "Normalizer(mean and std of shape (3, 8, 8))"
    )
    for again in (
        pickle.loads(pickle.dumps(one)),
        copy.deepcopy(one),
        sd.Normalizer(**json.loads(json.dumps(one.to_dict()))),
    ):
        assert again == one
    given = torch.tensor([1.0, 2.0], dtype=torch.float64)
    mine = sd.Normalizer(given)
    given += 1
    assert mine.mean.tolist() == [1, 2]


def test_a_constant_channel_keeps_its_units() -> None:
    data = torch.cat(
        [torch.full((99, 1), 0.1), torch.randn(99, 1, generator=torch.Generator().manual_seed(2))],
        dim=1,
    )
    normalizer = sd.Normalizer.of(data)
    assert float(normalizer.std[0]) == 1
    assert float(normalizer.normalize(data)[:, 0].abs().max()) < 1e-7
    with pytest.raises(ValueError, match="every channel of the data is constant"):
        sd.Normalizer.of(data[:, :1])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sd.Normalizer(0.0, 0.0), ValueError, "std must be positive, got 0"),
        (lambda: sd.Normalizer([1, 2], [1, 2, 3]), ValueError, r"one shape, got \(2,\) and \(3,\)"),
        (lambda: sd.Normalizer("wide"), TypeError, "must be a number, a sequence or a tensor"),
        (lambda: sd.Normalizer(math.nan), ValueError, "finite"),
        (
            lambda: sd.Normalizer.of(torch.zeros(3, 2, dtype=torch.int64)),
            TypeError,
            "floating-point",
        ),
        (lambda: sd.Normalizer.of(torch.tensor([[1.0], [math.inf]])), ValueError, "not finite"),
        (
            lambda: sd.Normalizer([1, 2, 3]).normalize(torch.zeros(4, 2)),
            ValueError,
            r"shape \(3,\), and an event has shape \(2,\)",
        ),
        (
            lambda: sd.ScoreModel(net(), sd.VP(), normalizer=2.0),
            TypeError,
            r"Normalizer.of\(data\) say; got 2",
        ),
    ],
)
def test_bad_input(call, error: type[Exception], words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=words):
        call()


def test_moments_are_those_of_the_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdediff.normalizer._CHUNK", 12)  # several parts, the last one shorter
    data = 1e4 + torch.randn(31, 2, 3, generator=torch.Generator().manual_seed(3))
    variance, mean = torch.var_mean(data.double(), dim=0, correction=0)
    for found, expected in zip(coordinate_moments(data)[:2], (mean, variance), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    normalizer = sd.Normalizer([9e3, 1e4], [10.0, 20.0])
    again = coordinate_moments(normalizer.normalize(data.double()))
    for found, expected in zip(normalizer.moments(coordinate_moments(data)), again, strict=True):
        torch.testing.assert_close(found, expected)
    mask = torch.rand(31, 2, 3, generator=torch.Generator().manual_seed(4)) < 0.5
    mask[:, 0, 2] = False
    mask[:, 0, 0] = True
    there = torch.where(mask, data.double(), torch.nan)
    found = coordinate_moments(torch.where(mask, data, 1e9), mask)
    torch.testing.assert_close(
        found.mean[mask.any(dim=0)], there.nanmean(dim=0)[mask.any(dim=0)], rtol=1e-12, atol=0
    )
    spread = (there - there.nanmean(dim=0)).square().nanmean(dim=0)
    torch.testing.assert_close(
        found.variance[mask.any(dim=0)], spread[mask.any(dim=0)], rtol=1e-9, atol=0
    )
    assert found.existing[0].shape == (5,)
    of = sd.Normalizer.of(torch.where(mask, data, 1e9), mask)
    torch.testing.assert_close(of.mean, torch.stack([there[:, c].nanmean() for c in (0, 1)]))
    torch.testing.assert_close(
        of.std, torch.stack([there[:, c][mask[:, c]].std(correction=0) for c in (0, 1)])
    )


# -- data that do not suit the SDE -----------------------------------------------------------------


PUBLISHED = [
    sd.VP(),
    sd.SubVP(),
    sd.VE(),
    sd.Cosine(),
    sd.EDM(),
    sd.RectifiedFlow(),
    sd.DDPM.from_schedule("scaled-linear").to_sde(),
]


@pytest.mark.parametrize("sde", PUBLISHED, ids=lambda sde: type(sde).__name__)
def test_images_suit_every_published_sde(sde: sd.LinearSDE) -> None:
    """In [-1, 1] whatever their mean and contrast: two levels, all but white, dim."""
    for mean, std in ((0.0, 1.0), (0.95, 0.1), (-0.9, 0.3), (0.0, 0.06)):
        assert unsuited(sde, torch.full((3, 64, 64), mean), torch.full((3, 64, 64), std**2)) is None


@pytest.mark.parametrize(
    ("sde", "mean", "std", "words"),
    [
        (sd.VP(), (300.0, -200.0), 40.0, "for data of the scale of its prior"),
        (sd.VP(), (300.0, -200.0), 1.0, r"1\.[0-9]* nats a coordinate off the prior"),
        (sd.VP(), (127.5, 127.5), 74.0, "standard deviation of the data is 74 and their mean 128"),
        (sd.RectifiedFlow(), (0.0, 0.0), 1e-4, "scale"),
        (sd.VE(), (0.0, 0.0), 1e-4, "hides"),
        (sd.EDM(), (0.0, 0.0), 1e-4, "hides"),
        (sd.VE(), (300.0, -200.0), 40.0, r"nats a coordinate off the prior.*sigma_max of VE"),
        (
            sd.DDPM((1e-3,) * 10).to_sde(),
            (0.0, 0.0),
            1.0,
            "ends before noise has taken over: at t_max = 1 .* have 0.995 left beside noise of "
            "0.0998, 2.3 nats",
        ),
    ],
)
def test_data_that_do_not_suit(
    sde: sd.LinearSDE, mean: tuple[float, float], std: float, words: str
) -> None:
    found = Moments(
        torch.tensor(mean, dtype=torch.float64),
        torch.full((2,), std**2, dtype=torch.float64),
        torch.ones(2),
    )
    with pytest.raises(ValueError, match=words):
        raise ValueError(unsuited(sde, *found.existing))
    # the chain is at fault there, not the data
    if "DDPM" not in repr(sde) and "Interpolated" not in repr(sde):
        normalizer = sd.Normalizer(found.mean, found.variance.sqrt())
        assert unsuited(sde, *normalizer.moments(found).existing) is None


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "data",
    [
        255 * torch.rand(64, 2, generator=torch.Generator().manual_seed(4)),
        2.5e-6 * (POINTS - POINTS.mean(dim=0)),
        POINTS,
    ],
    ids=["0 to 255", "tiny", "far"],
)
def test_fit_and_diagnose_say_so_unless_data_are_normalised(
    data: torch.Tensor, tmp_path: Path
) -> None:
    arguments = {"steps": 1, "batch_size": 4, "device": "cpu"}
    with pytest.warns(
        UserWarning, match=r"standard deviation of the data.*normalizer=Normalizer.of\(data\)"
    ):
        model = sd.fit(sd.ScoreModel(net(), sd.VP()), data, out=tmp_path / "a", **arguments)  # type: ignore[arg-type]
    assert "do not suit the SDE: the standard deviation" in str(sd.diagnose(model, data))
    model = sd.ScoreModel(net(), sd.VP(), normalizer=sd.Normalizer.of(data))
    model = sd.fit(model, data, out=tmp_path / "b", **arguments)  # type: ignore[arg-type]
    assert "suit" not in str(sd.diagnose(model, data))


def test_fit_shows_the_loss_normalised_data(tmp_path: Path) -> None:
    """The weights are those of a fit to the normalised data themselves, to the bit."""
    normalizer = sd.Normalizer.of(POINTS)
    mine, plain = (
        sd.ScoreModel(net(), sd.VP(), normalizer=normalizer),
        sd.ScoreModel(net(), sd.VP()),
    )
    one, two = (
        sd.fit(model, data, out=tmp_path / name, steps=3, batch_size=8, device="cpu")
        for model, data, name in ((mine, POINTS, "a"), (plain, normalizer.normalize(POINTS), "b"))
    )
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sd.diagnose(one, POINTS).errors == sd.diagnose(two, normalizer.normalize(POINTS)).errors
    assert sd.load(tmp_path / "a").normalizer == normalizer
    assert sd.load(tmp_path / "b").normalizer is None


# -- likelihoods -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bins", [None, sd.objectives.Bins(32, 180.0, 420.0)], ids=["density", "bins"]
)
def test_the_variational_bound_is_that_of_the_users_data(bins: sd.objectives.Bins | None) -> None:
    """That of the normalised data, less the log-determinant; of bins the same probability."""
    chain, law = (
        sd.DDPM.from_sde(sd.VP(), 30),
        sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.4),
    )
    y = 180.0 + 240 / 31 * torch.arange(6, 26).reshape(10, 2).double()
    plain = law.model(chain.to_sde())
    mine = copy.copy(plain)
    mine.normalizer = sd.Normalizer(300.0, 40.0)
    small = None if bins is None else sd.objectives.Bins(32, -3.0, 3.0)
    one = sd.discrete.variational_bound(chain, mine, y, bins=bins, seed=0)
    two = sd.discrete.variational_bound(chain, plain, (y - 300) / 40, bins=small, seed=0)
    shift = 0.0 if bins is not None else 2 * math.log(40.0)
    torch.testing.assert_close(one.total, two.total + shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.decoder, two.decoder + shift, rtol=1e-9, atol=1e-9)


# -- states, constraints and densities in the user's units -----------------------------------------

LAW = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.4)
FAR = sd.Normalizer([300.0, -200.0], [40.0, 7.0])


def normalised(model: sd.ScoreModel) -> sd.ScoreModel:
    """The same model for data in the units of FAR."""
    mine = copy.copy(model)
    mine.normalizer = FAR
    return mine


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    "arguments",
    [
        {"steps": 6},
        {"solver": sd.RK45(1e-6, 1e-6)},
        {"solver": sd.AdaptiveSDE(0.1, 0.1), "batch_size": 2},
        {
            "solver": sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin()),
            "steps": 6,
            "last": "mean",
        },
        {"solver": sd.DDPM.from_sde(sd.VP(), 20)},
        {"steps": 5, "t_end": 0.1},
        {"grid": [1.0, 0.5, 1e-3], "x_init": 1.0},
    ],
    ids=repr,
)
@pytest.mark.parametrize("sde", [sd.VP(), sd.EDM()], ids=["VP", "EDM"])
def test_states_are_in_the_users_units_at_every_time(
    sde: sd.LinearSDE, arguments: dict[str, Any]
) -> None:
    """Samples, trajectories, what a callback sees and where a solve starts: mean + std x of those
    of the plain model.
    """
    if isinstance(arguments.get("solver"), sd.DDPM) and isinstance(sde, sd.EDM):
        pytest.skip("a chain of VP")
    plain, found, seen = LAW.model(sde), [], []
    start = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for model in (plain, normalised(plain)):
        states: list[torch.Tensor] = []
        given = dict(arguments)
        if "grid" in given:
            given["grid"] = [t * sde.t_max for t in given["grid"][:2]] + [sde.t_min]
            given["x_init"] = start if model is plain else FAR.denormalize(start)
        out = sd.sample(
            model,
            (5, 2),
            seed=0,
            dtype=torch.float64,
            trajectory=True,
            callback=lambda s, to=states: to.append(s.x),
            **given,
        )
        found.append(out)
        seen.append(states)
    one, two = found
    torch.testing.assert_close(two.x, FAR.denormalize(one.x), rtol=1e-9, atol=1e-7)
    assert one.trajectory is not None
    assert two.trajectory is not None
    frames = FAR.denormalize(one.trajectory.flatten(0, 1)).reshape(one.trajectory.shape)
    torch.testing.assert_close(two.trajectory, frames, rtol=1e-9, atol=1e-7)
    assert torch.equal(one.nfe, two.nfe)
    assert len(seen[0]) == len(seen[1]) > 0
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(b, FAR.denormalize(a), rtol=1e-9, atol=1e-7)


def test_densities_are_those_of_the_users_data() -> None:
    """log p_y(y) = log p_x((y - m) / s) - sum log s, by the exact law; latents and round trips in
    the user's units.
    """
    sde = sd.VP()
    plain, model = LAW.model(sde), normalised(LAW.model(sde))
    y = FAR.denormalize(LAW.sample(6, seed=1))
    out = sd.log_prob(model, y, solver=sd.solvers.DOP853(1e-8, 1e-8))
    exact = LAW.log_prob(sde, FAR.normalize(y), sde.t_min) - math.log(40.0 * 7.0)
    assert out.prior_gap is not None
    torch.testing.assert_close(out.value + out.prior_gap, exact, rtol=0, atol=1e-6)
    up = sd.encode(model, y, solver=sd.RK45(1e-8, 1e-8))
    torch.testing.assert_close(
        up.x, FAR.denormalize(sd.encode(plain, FAR.normalize(y), solver=sd.RK45(1e-8, 1e-8)).x)
    )
    torch.testing.assert_close(out.z, up.x, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(
        sd.decode(model, up.x, solver=sd.RK45(1e-8, 1e-8)).x, y, rtol=1e-6, atol=1e-4
    )


@pytest.mark.parametrize("dequantization", ["uniform", "truncated-normal"])
def test_bits_are_those_of_the_users_bins(dequantization: Any) -> None:
    """Bins of the user's data and of the normalised data are the same sets: so are their bits, draw
    by draw.
    """
    plain, model = LAW.model(sd.VP()), copy.copy(LAW.model(sd.VP()))
    model.normalizer = sd.Normalizer([300.0, 300.0], 40.0)
    numbers = torch.tensor([[10.0, 15.0], [20.0, 18.0], [9.0, 22.0]], dtype=torch.float64)
    arguments = {"dequantization": dequantization, "seed": 0, "solver": sd.RK45(1e-7, 1e-7)}
    one = sd.bits_per_dim(
        plain, -3.0 + 6 / 31 * numbers, bins=sd.objectives.Bins(32, -3.0, 3.0), **arguments
    )
    two = sd.bits_per_dim(
        model, 180.0 + 240 / 31 * numbers, bins=sd.objectives.Bins(32, 180.0, 420.0), **arguments
    )
    torch.testing.assert_close(two.value, one.value, rtol=1e-9, atol=1e-8)


def test_constraints_act_in_the_users_units() -> None:
    plain, model = LAW.model(sd.VP()), normalised(LAW.model(sd.VP()))
    least, most = torch.tensor([[-0.5, -0.3]]), torch.tensor([[0.5, 0.3]])
    low, high = FAR.denormalize(least), FAR.denormalize(most)
    arguments: dict[str, Any] = {"seed": 0, "solver": sd.RK45(1e-5, 1e-5), "dtype": torch.float64}
    inside = sd.sample(plain.constrained(lambda x_0: x_0.clamp(least, most)), (6, 2), **arguments)
    users = sd.sample(model.constrained(lambda y_0: y_0.clamp(low, high)), (6, 2), **arguments)
    torch.testing.assert_close(users.x, FAR.denormalize(inside.x), rtol=1e-5, atol=1e-3)
    assert float(users.x[:, 0].min()) >= 280
    y, x = FAR.denormalize(torch.ones(2, 2).double()), torch.ones(2, 2).double()
    # in the model's space
    clipped = model.constrained(lambda y_0: torch.full_like(y_0, 300.0)).data(x, 0.5)
    torch.testing.assert_close(clipped, FAR.normalize(torch.full_like(y, 300.0)))


def test_a_normalizer_that_does_not_fit_is_refused_before_the_network_is_called() -> None:
    model = sd.ScoreModel(lambda x, t: 1 / 0, sd.VP(), normalizer=FAR)
    for call in (
        lambda: sd.sample(model, (4, 3), steps=2, seed=0),
        lambda: sd.log_prob(model, torch.zeros(4, 3)),
    ):
        with pytest.raises(
            ValueError, match=r"mean and std of shape \(2,\), and an event has shape \(3,\)"
        ):
            call()


def test_a_chain_that_never_reaches_noise_warns() -> None:
    chain = sd.DDPM((1e-3,) * 10)
    net_model = sd.ScoreModel(net(), chain.to_sde())
    with pytest.warns(UserWarning, match="ends before noise has taken over"):
        sd.sample(net_model, (4, 2), solver=chain, seed=0)
    with pytest.warns(UserWarning, match="ends before noise has taken over"):
        sd.sample(LAW.model(sd.VP(beta_max=1.0)), (4, 2), steps=4, seed=0)
    x_init = torch.zeros(4, 2)
    # a start of the user's own is not the prior
    sd.sample(net_model, (4, 2), solver=chain, seed=0, x_init=x_init)
    sd.sample(net_model, (4, 2), steps=3, seed=0)  # nothing is known of the data


@pytest.mark.thin(0)
def test_points_in_any_units_are_learned(tmp_path: Path) -> None:
    """Mean (300, -200) and std 40 under VP, through fit and a run folder."""
    model = sd.ScoreModel(
        net(), sd.VP(), "edm", sigma_data=1.0, normalizer=sd.Normalizer.of(POINTS)
    )
    sd.fit(
        model,
        POINTS,
        out=tmp_path / "run",
        steps=300,
        batch_size=128,
        lr=5e-3,
        ema=0.99,
        device="cpu",
    )
    x = sd.sample(sd.load(tmp_path / "run"), (1000, 2), steps=20, seed=0).x
    torch.testing.assert_close(x.mean(dim=0), POINTS.mean(dim=0), rtol=0, atol=8)
    torch.testing.assert_close(x.std(dim=0), POINTS.std(dim=0), rtol=0.15, atol=0)


def test_pairs_of_reflow_are_in_the_users_units(tmp_path: Path) -> None:
    """Data in the user's units and their standard normal noise: the weights are those of the plain
    pairs.
    """
    weights = []
    for model in (LAW.model(sd.VP()), normalised(LAW.model(sd.VP()))):
        pairs = sd.objectives.reflow(model, (8, 2), steps=8, seed=0)
        student = sd.ScoreModel(net(), sd.VP(), normalizer=model.normalizer)
        student = sd.fit(
            student,
            pairs,
            loss=sd.objectives.Coupled(),
            out=tmp_path / f"{id(model)}",
            steps=2,
            batch_size=8,
            device="cpu",
        )
        assert student.data_std == pytest.approx(0.9, abs=0.4)
        weights.append([p.detach().clone() for p in student.parameters()])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_chains_at_one_time_are_in_the_users_units() -> None:
    """Under y = mean + std x they are those of x at steps in units of std."""
    normalizer = sd.Normalizer(mean=[300.0, -20.0], std=40.0 + torch.zeros(2))
    plain = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.4).model(sd.VP())
    ours = sd.ScoreModel(plain.net, plain.sde, plain.predicts, normalizer=normalizer)
    x = torch.tensor([[0.3, 0.1], [-0.8, 0.4], [1.1, -0.2]], dtype=torch.float64)
    here = sd.mcmc.run(sd.mcmc.MALA(0.1), sd.mcmc.at(plain, 0.1), x, steps=20, seed=1)
    there = sd.mcmc.run(
        sd.mcmc.MALA(0.1 * 40.0**2),
        sd.mcmc.at(ours, 0.1),
        normalizer.denormalize(x),
        steps=20,
        seed=1,
    )
    expected = normalizer.denormalize(here.samples.flatten(0, 1)).reshape(here.samples.shape)
    torch.testing.assert_close(there.samples, expected, rtol=1e-10, atol=0)
    assert torch.equal(there.acceptance, here.acceptance)

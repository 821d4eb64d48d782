"""The size of details: measured right, kept with model and run, and used by the default solver."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from all_sdes import SDES
from small_runs import DATA, make, train
from torch import Tensor

import sdediff as sd
from sdediff.options import default_solver
from sdediff.run_folder import WEIGHTS
from sdediff.solvers import GRIDS, LogSNR, Straight
from sdediff.states import read_tensors, serialise
from sdediff.tuning import measure


def mixture(details: float, d: int = 2, scale: float = 1.0) -> sd.exact.GaussianMixture:
    """Eight components on a circle of the first two coordinates, of variance ``scale``^2."""
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    means = torch.zeros(8, d, dtype=torch.float64)
    means[:, 0], means[:, 1] = angle.cos(), angle.sin()
    means = means * (d * (1 - details**2)) ** 0.5
    return sd.exact.GaussianMixture(scale * means, stds=scale * details)


def test_details_are_measured_where_the_parts_of_the_data_are_near_in_two_dimensions() -> None:
    """Eight parts at a distance of 0.77: some noise always lets a sample waver between two of them,
    so that the share hardly falls below a half.
    """
    for details in (0.05, 0.1, 0.15):
        law = mixture(details)
        assert measure(law.model(sd.VP()), draws(law)) == pytest.approx(details, rel=0.35)


def hidden(model: sd.ScoreModel) -> float:
    """The size of details that the noise at t_min hides."""
    return float((-0.5 * model.sde.log_snr(model.sde.t_min)).exp()) / 3**0.5  # a share of 1/4


def draws(law: sd.exact.GaussianMixture, count: int = 64) -> Tensor:
    return law.sample(count, seed=4)


@pytest.mark.thin(5)
@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("d", [2, 64])
def test_a_known_size_is_measured_within_a_fifth(name: str, d: int) -> None:
    """By 64 samples; where the noise at t_min hides the details, the most that they can be."""
    for details in (0.003, 0.03):
        law = mixture(details, d)
        model = law.model(SDES[name])
        found = measure(model, draws(law)) / model.data_std
        due = max(details, hidden(model))
        assert due / 1.2 < found < due * 1.2, (details, found)


@pytest.mark.parametrize("details", [0.001, 0.01])
def test_samples_that_the_model_draws_do_as_well(details: float) -> None:
    law = mixture(details)
    model = law.model(sd.RectifiedFlow())
    assert measure(model, (32, 2)) == pytest.approx(measure(model, draws(law)), rel=0.25)


def test_what_differs_between_most_samples_counts() -> None:
    """Not one coarse coordinate of 64, in the basis of a rotation, and no few parts of the data."""
    g = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=g, dtype=torch.float64)).Q
    sizes = torch.full((64,), 0.01, dtype=torch.float64)
    sizes[5] = 0.2
    covariance = turn @ torch.diag(sizes**2) @ turn.T
    centres = mixture(0.01, 64).sample(8, seed=1)
    rotated = sd.exact.GaussianMixture(centres, covariances=covariance.expand(8, 64, 64))
    assert measure(rotated.model(sd.VP()), draws(rotated)) == pytest.approx(0.01, rel=0.25)
    for few, most in ((0.2, 0.01), (0.01, 0.2)):
        stds = torch.tensor([most] * 5 + [few] * 3, dtype=torch.float64)
        parts = sd.exact.GaussianMixture(centres, stds=stds)
        assert measure(parts.model(sd.VP()), draws(parts)) == pytest.approx(most, rel=0.25)


def test_data_that_differ_in_few_directions_have_larger_details_than_themselves() -> None:
    """One direction of standard deviation 8 in 64 dimensions, so that `data_std` is near 1."""
    covariance = torch.diag(torch.tensor([64.0] + [0.01] * 63, dtype=torch.float64))
    law = sd.exact.GaussianMixture(torch.zeros(1, 64), covariances=covariance[None])
    model = law.model(sd.VE())
    assert model.data_std < 1.01
    assert measure(model, draws(law)) == pytest.approx(8.0, rel=0.05)


def test_samples_that_are_all_the_same_are_looked_at_in_any_direction() -> None:
    law = mixture(0.03)
    model = law.model(sd.VP())
    one = draws(law, 1)
    alike = measure(model, one.expand(64, 2))
    assert alike == pytest.approx(0.03, rel=0.25)
    assert measure(model, one) == pytest.approx(0.03, rel=0.25)


def test_data_without_details_are_as_large_as_themselves() -> None:
    law = sd.exact.GaussianMixture([[0.0, 0.0]], stds=2.0)
    model = law.model(sd.VP().scaled(2.0))
    assert model.data_std == pytest.approx(2.0)
    assert measure(model, draws(law)) == pytest.approx(2.0, rel=0.02)


def test_a_point_is_hidden_by_the_least_noise() -> None:
    law = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], stds=0.0)
    model = law.model(sd.VE())
    assert measure(model, draws(law)) == pytest.approx(hidden(model), rel=1e-6)


def test_sizes_go_with_the_units() -> None:
    one, other = mixture(0.02), mixture(0.02, scale=1e-3)
    inside = measure(one.model(sd.VE()), draws(one))
    scaled = measure(other.model(sd.VE().scaled(1e-3)), draws(other))
    assert scaled == pytest.approx(1e-3 * inside, rel=1e-4)
    user = sd.Normalizer(mean=torch.tensor([5.0, 5.0]), std=torch.tensor(40.0))
    plain = one.model(sd.VP())
    own = {"normalizer": user, "data_std": plain.data_std}
    model = sd.ScoreModel(plain.net, sd.VP(), plain.predicts, **own)  # type: ignore[arg-type]
    given = user.denormalize(draws(one))
    assert measure(model, given) == pytest.approx(measure(plain, draws(one)), rel=1e-3)


def test_what_does_not_exist_does_not_count() -> None:
    """Whatever the padding holds, and whatever the network answers there, beside two coordinates
    that exist; with masks that differ by row.
    """
    law = mixture(0.02)
    inner = law.model(sd.VP())
    net = inner.net

    def padded(x: Tensor, t: Tensor) -> Tensor:
        there = x[:, 2:].abs().amax(dim=1) == 0  # states are 0 in padding
        answer = torch.where(there[:, None], net(x[:, :2], t), torch.nan)
        return torch.cat([answer, 1 + 3 * answer.repeat(1, 3)], dim=1)

    model = sd.ScoreModel(padded, sd.VP(), inner.predicts, data_std=1.0)
    given = draws(law)
    x = torch.cat([given, 50 + torch.arange(64.0)[:, None].expand(64, 6)], dim=1)
    mask = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0]).expand(64, 8)
    assert measure(model, x, mask=mask) == pytest.approx(measure(inner, given), rel=0.1)

    means = [[0.0, 40.0, 40.0], [0.0, 80.0, 80.0]]
    wide = sd.exact.GaussianMixture(means, stds=[[0.5, 0.1, 0.1], [0.5, 0.1, 0.1]])
    model = wide.model(sd.VP().scaled(20))
    given, mask = wide.sample(64, seed=2), torch.ones(64, 3)
    mask[:32, 1] = mask[32:, 2] = 0  # each has the first coordinate alone in common with its other
    assert measure(model, given, mask=mask) == pytest.approx(0.5, rel=0.1)


def test_the_batch_does_not_matter_and_the_seed_hardly() -> None:
    law = mixture(0.01)
    model, x = law.model(sd.VP()), draws(law)
    whole = measure(model, x)
    assert measure(model, x, batch_size=24) == pytest.approx(whole, rel=1e-6)
    assert measure(model, x, seed=5) == pytest.approx(whole, rel=0.1)


def test_answers_that_are_not_finite_are_an_error() -> None:
    def lost(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None] < 0.1, torch.nan, x)

    model = sd.ScoreModel(lost, sd.VP(), "data")
    with pytest.raises(ValueError, match=r"at the noise level .* are not finite"):
        measure(model, torch.ones(8, 2))


def test_arguments_are_refused_before_the_network_is_called() -> None:
    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError

    model = sd.ScoreModel(never, sd.VP())
    with pytest.raises(ValueError, match="samples contains values"):
        measure(model, torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="batch_size"):
        measure(model, torch.zeros(2, 2), batch_size=0)
    chain = sd.ScoreModel(never, sd.degradation.Unchanged(), "data")
    with pytest.raises(ValueError, match="measure needs a Gaussian kernel"):
        measure(chain, torch.zeros(2, 2))


# -- what the default solver makes of it -----------------------------------------------------------


def sampled(model: object, **options: object) -> sd.Solution:
    return sd.sample(model, (8, 2), seed=0, **options)  # type: ignore[arg-type]


def rule(order: int, scale: float, corrector: int | None = None) -> sd.Solver:
    return sd.ExponentialMultistep(
        order,
        form=Straight(scale),
        variable="angle",
        corrector=corrector or order,
        startup="published",
    )


@pytest.mark.parametrize(
    ("steps", "order", "corrector"), [(3, 2, 2), (7, 2, 2), (14, 3, 3), (15, 4, 3), (20, 4, 4)]
)
def test_coarse_details_are_the_scale_of_the_form(steps: int, order: int, corrector: int) -> None:
    """Half of it with many steps; the grid is what it is without them."""
    model = mixture(0.1).model(sd.VP())
    for size in (0.16, 0.3, 3.0):
        model.detail_std = None
        without = sampled(model, steps=steps)
        model.detail_std = size * model.data_std
        found = sampled(model, steps=steps)
        assert torch.equal(found.times, without.times)
        scale = size if steps < 15 else size / 2
        own = rule(order, scale, corrector)
        assert default_solver(model.sde, steps, stochastic=False, details=size) == own
        explicit = sampled(model, solver=own, grid=without.times, last="denoise")
        torch.testing.assert_close(found.x, explicit.x)
        assert not torch.allclose(found.x, without.x)


def test_details_below_the_usual_size_are_the_scale() -> None:
    solver = default_solver(sd.VP(), 10, stochastic=False, details=0.069)
    assert solver == rule(3, 0.069)


@pytest.mark.parametrize("size", [0.07, 0.15])
@pytest.mark.parametrize("steps", [3, 5, 12])
def test_details_of_the_usual_size_change_no_bit(size: float, steps: int) -> None:
    model = mixture(0.1).model(sd.VP())
    without = sampled(model, steps=steps)
    model.detail_std = size * model.data_std
    found = sampled(model, steps=steps)
    assert torch.equal(found.x, without.x)
    assert torch.equal(found.nfe, without.nfe)


def test_adaptive_solvers_and_operators_take_no_scale_from_coarse_details() -> None:
    """What a model is made of may have finer details, as a posterior has; it has none coarser."""
    model = mixture(0.1).model(sd.VP())
    made = sd.Operator(model)
    without, few = sampled(model), sampled(made, steps=5)
    model.detail_std = 0.3 * model.data_std
    assert torch.equal(sampled(model).x, without.x)
    assert torch.equal(sampled(made, steps=5).x, few.x)
    assert not torch.equal(sampled(model, steps=5).x, few.x)
    assert made.detail_std is None
    latent = sd.Latent(model, lambda x: x / 2, lambda z: 2 * z)
    assert latent.detail_std == model.detail_std
    model.detail_std = 0.15 * model.data_std
    assert made.detail_std == model.detail_std


def errors_without_and_with(
    law: sd.exact.GaussianMixture, model: sd.ScoreModel, steps: int
) -> list[float]:
    """The median errors of the default solver, without the size of the details and with what is
    measured.
    """
    d = law.means.shape[1]
    tight = sd.RK45(rtol=1e-7, atol=1e-7)
    options: dict[str, object] = {"seed": 1, "dtype": torch.float64, "last": "noisy"}
    exact = sd.sample(model, (64, d), solver=tight, **options).x  # type: ignore[arg-type]
    errors = []
    for found in (None, measure(model, draws(law))):
        model.detail_std = found
        x = sd.sample(model, (64, d), steps=steps, **options).x  # type: ignore[arg-type]
        errors.append(float((x - exact).square().mean(dim=1).sqrt().median()))
    return errors


@pytest.mark.parametrize(("steps", "share"), [(5, 0.4), (8, 0.3)])
def test_coarse_details_are_met_with_few_steps(steps: int, share: float) -> None:
    """The median error over that without the measurement: 0.21 and 0.15."""
    law = mixture(0.5, 16)
    model = law.model(sd.VP())
    before, after = errors_without_and_with(law, model, steps)
    assert after < share * before


@pytest.mark.parametrize(
    ("steps", "order", "scale"),
    [
        (3, 2, None),
        (4, 2, 0.5),
        (5, 2, 0.5),
        (7, 2, 0.5),
        (8, 2, 1),
        (10, 3, 1),
        (24, 3, 1),
        (25, 4, 1),
    ],
)
def test_the_rule_for_fine_details(steps: int, order: int, scale: float | None) -> None:
    model = mixture(0.01).model(sd.SubVP())
    without = sampled(model, steps=steps)
    model.detail_std = 0.01 * model.data_std
    found = sampled(model, steps=steps)
    if scale is None:  # too few to get to the details: the form alone
        assert torch.equal(found.times, without.times)
        explicit = sampled(model, solver=rule(order, 0.005), grid=without.times, last="denoise")
        torch.testing.assert_close(found.x, explicit.x)
        return
    sde = model.sde.scaled(1 / model.data_std)
    far = 4.605170185988092  # log(100)
    times = GRIDS["logistic"](steps, sde.t_max, sde.t_min, LogSNR(sde.log_snr, sde.time_of))
    centre, width = (0.6, 2.4 + 0.75 * far) if steps == 4 else (0.65, 1.6 + 0.55 * far)
    place = 1 / (1 + (-(sde.log_snr(found.times) - centre * far) / width).exp())
    assert times.shape == found.times.shape
    torch.testing.assert_close(place.diff(), place.diff().mean().expand(steps))
    own = rule(order, 0.01 * scale)
    explicit = sampled(model, solver=own, grid=found.times, last="denoise")
    torch.testing.assert_close(found.x, explicit.x)
    assert not torch.allclose(found.x, without.x)


def test_named_grids_and_solvers_are_what_they_are_called() -> None:
    model = mixture(0.01).model(sd.VP())
    named = sampled(model, solver=sd.ExponentialMultistep(2, variable="angle"), steps=6)
    central = sampled(model, steps=6, grid="central").times
    model.detail_std = 0.01
    again = sampled(model, solver=sd.ExponentialMultistep(2, variable="angle"), steps=6)
    assert torch.equal(named.x, again.x)
    assert torch.equal(sampled(model, steps=6, grid="central").times, central)


class Mine:
    """A model of a user's own, without a base class."""

    predicts = "data"
    data_std = 1.0

    def __init__(self, inner: sd.ScoreModel, detail_std: float | None = None) -> None:
        self.inner, self.sde = inner, inner.sde
        if detail_std is not None:
            self.detail_std = detail_std

    def at(self, times, like, piece):
        return times.unbind()

    def evaluate(self, x, at, rows):
        return self.inner.data(x, float(at.reshape(-1)[0]))


def test_a_model_of_a_users_own_and_one_made_of_it_are_served_alike() -> None:
    inner = mixture(0.01).model(sd.VP())
    inner.detail_std = 0.01 * inner.data_std
    assert sd.Operator(inner).detail_std == inner.detail_std
    plain, own = Mine(inner), Mine(inner, detail_std=0.01)
    assert not torch.allclose(sampled(plain, steps=6).x, sampled(own, steps=6).x)
    assert torch.equal(sampled(own, steps=6).x, sampled(sd.Operator(own), steps=6).x)
    assert measure(plain, (16, 2)) == pytest.approx(0.01, rel=0.4)


@pytest.mark.parametrize(
    ("details", "share", "steps"),
    [
        (0.003, 0.1, 8),
        pytest.param(0.003, 0.1, 5, marks=pytest.mark.slow),
        pytest.param(0.01, 0.2, 5, marks=pytest.mark.slow),
        pytest.param(0.01, 0.5, 12, marks=pytest.mark.slow),
        pytest.param(0.03, 0.6, 5, marks=pytest.mark.slow),
        pytest.param(0.03, 0.6, 8, marks=pytest.mark.slow),
    ],
)
def test_fine_details_are_reached_with_few_steps(details: float, share: float, steps: int) -> None:
    """The median error over that without the measurement."""
    law = mixture(details, 16)
    before, after = errors_without_and_with(law, law.model(sd.VP()), steps)
    assert after < share * before


# -- kept with the model and the run ---------------------------------------------------------------


def test_fit_measures_and_the_run_keeps_it(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", 20)
    assert trained.detail_std is not None
    assert sd.load(tmp_path / "run").detail_std == trained.detail_std
    some = torch.linspace(0, 49, 50).long()
    assert trained.detail_std == measure(trained, DATA[some], batch_size=16)
    assert train(tmp_path / "run", 22, resume=True).detail_std is not None
    assert "detail_std" not in json.loads((tmp_path / "run" / "config.json").read_text())["model"]


def rewritten(run: Path, detail_std: str | None) -> None:
    """The weights of a run with another size of details beside them."""
    tensors, meta = read_tensors(run / WEIGHTS, sealed=True)
    meta = {key: value for key, value in meta.items() if key != "detail_std"}
    meta |= {} if detail_std is None else {"detail_std": detail_std}
    (run / WEIGHTS).write_bytes(serialise(tensors, meta))


def test_old_runs_load_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    _ = train(tmp_path / "run", 5)
    rewritten(tmp_path / "run", None)
    assert sd.load(tmp_path / "run").detail_std is None
    for wrong in ("-1.0", "nan", "small"):
        rewritten(tmp_path / "run", wrong)
        with pytest.raises(ValueError, match=r"damaged: detail_std must be a positive number"):
            sd.load(tmp_path / "run")


def test_an_impossible_size_is_refused() -> None:
    model = make()
    for wrong in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="detail_std must be positive and finite"):
            model.detail_std = wrong

"""Cold diffusion: its samplers exactly, its degradations against the published recursions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

import sdediff as sd
from sdediff.solvers import expand

D = sd.degradation
F64 = torch.float64
SOLVERS = (D.NaiveSampling(), D.TACoS())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def wrong(x, t, **condition):
    """A restoration that is not one."""
    return torch.sin(3 * x) + expand(t, x) - 0.5


X_0, E = normal(5, 3, seed=1), normal(5, 3, seed=2)


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_along_a_fixed_direction_the_second_sampler_is_right_whatever_the_restoration(scale):
    process = D.Function(lambda x_0, t, e: x_0 + expand(t, x_0) * e, levels=7, own=("e",))
    model = sd.ScoreModel(wrong, process, "data", data_std=scale)
    start = process(X_0, 1.0, e=E)
    found = [
        sd.sample(
            model, (5, 3), solver=solver, steps=7, x_init=start, condition={"e": E}, dtype=F64
        )
        for solver in SOLVERS
    ]
    assert float((found[1].x - X_0).abs().max()) < 1e-12
    assert float((found[0].x - X_0).abs().max()) > 0.5
    assert found[1].nfe.tolist() == [7] * 5


def test_a_blur_is_linear_in_x_and_has_no_such_property():
    process = D.Blur(5, 1.0, 3)
    x_0 = normal(2, 1, 8, 8)
    model = sd.ScoreModel(wrong, process, "data")
    found = sd.sample(
        model, x_0.shape, solver=D.TACoS(), steps=5, x_init=process(x_0, 1.0), dtype=F64
    )
    assert float((found.x - x_0).abs().max()) > 0.1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("sde", [sd.VP(), sd.VE(), sd.RectifiedFlow()], ids=repr)
def test_hot_diffusion_with_estimated_noise_is_ddim(sde, solver):
    grid = torch.linspace(sde.t_max, 0.05, 9, dtype=F64)
    start = sde.prior.from_noise(normal(4, 3))
    options = {"grid": grid, "x_init": start, "dtype": F64, "last": "noisy"}
    other = sd.ScoreModel(wrong, sde, "data", data_std=0.6)
    expected = sd.sample(other, (4, 3), solver=sd.DDIM(), **options)
    model = sd.ScoreModel(wrong, D.Hot(sde), "data", data_std=0.6)
    found = sd.sample(model, (4, 3), solver=solver, **options)
    assert torch.allclose(found.x, expected.x, rtol=1e-12, atol=1e-12 * float(start.abs().max()))


def test_hot_diffusion_starts_from_noise_and_trains_as_it_is_sampled():
    model = sd.ScoreModel(wrong, D.Hot(sd.VP()), "data")
    out = sd.sample(model, (2, 3), steps=4, seed=0, dtype=F64)
    assert torch.equal(
        out.x, sd.sample(model, (2, 3), steps=4, solver=D.TACoS(), seed=0, dtype=F64).x
    )
    t, noise = torch.tensor([0.1, 0.7], dtype=F64), normal(2, 3)
    loss = D.RestorationLoss()(model, X_0[:2], {"noise": noise}, t=t)
    x_t = sd.VP().perturb(X_0[:2], t, noise)
    assert torch.allclose(loss, (wrong(x_t, t) - X_0[:2]).abs().mean(dim=1), rtol=1e-12)


@pytest.mark.parametrize("padding", ["circular", "reflect"])
@pytest.mark.parametrize("schedule", list(D.BLURS))
def test_blur_is_the_published_recursion(schedule, padding):
    process = D.Blur(4, 0.4, 5, schedule, padding)
    stds = {
        "constant": [0.4] * 4,
        "incremental": [0.4, 0.8, 1.2, 1.6],
        "exponential": [math.exp(0.4 * i) for i in range(4)],
        "shifted": [0.35 + 0.4 * i for i in range(4)],
    }[schedule]
    x = expected = normal(2, 3, 6, 9)
    for level, std in enumerate(stds, 1):
        kernel = torch.exp(-0.5 * (torch.arange(-2, 3).double() / std) ** 2)
        kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
        wide = functional.pad(expected, (2, 2, 2, 2), mode=padding)
        expected = functional.conv2d(wide, kernel.expand(3, 1, 5, 5), groups=3)
        assert torch.allclose(process(x, level / 4), expected, atol=1e-13)


def test_a_complete_blur_ends_in_the_mean_of_each_channel():
    x = normal(2, 3, 6, 9)
    process = D.Blur(3, 0.5, 3, complete=True)
    means = x.mean(dim=(2, 3), keepdim=True)
    assert torch.allclose(process(x, 1.0), means.expand_as(x), atol=1e-14)
    assert torch.equal(process(x, 2 / 3), D.Blur(3, 0.5, 3)(x, 2 / 3))


def test_masks_are_the_published_product_about_their_centres():
    x = normal(2, 3, 5, 7)
    process = D.Masking(6, 0.8, 0.3)
    centre = torch.tensor([[0, 6], [3, 2]])
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    expected = x.clone()
    for j in range(4):
        for k, (row, column) in enumerate(centre.tolist()):
            square = (rows - row) ** 2 + (columns - column) ** 2
            expected[k] *= 1 - torch.exp(-square / (2 * (0.8 + 0.3 * j) ** 2))
    assert torch.allclose(process(x, 4 / 6, centre=centre), expected, atol=1e-14)
    middle = process(x, 0.5, centre=torch.tensor([[2, 3], [2, 3]]))
    assert torch.equal(D.Masking(6, 0.8, 0.3, centred=True)(x, 0.5), middle)


def test_downsampling_is_a_mean_down_and_nearest_up():
    x = normal(2, 1, 8, 12)
    process = D.Downsampling(3)
    for i in (1, 2):
        small = functional.interpolate(x, scale_factor=0.5**i, mode="area")
        large = functional.interpolate(small, scale_factor=2**i, mode="nearest")
        assert torch.allclose(process(x, i / 3), large, atol=1e-14)
    assert torch.allclose(process(x, 1.0)[..., 8:], x[..., 8:].mean((2, 3), keepdim=True))


def test_snow_is_the_published_formula():
    process = D.Snow(3, severity=2)
    x = normal(2, 3, 10, 15).tanh()
    own = process.draw(x, torch.Generator().manual_seed(0))
    own["upright"] = torch.tensor([True, False])
    # ceil(10 / 2.5) = 4 rows from the fourth, ceil(15 / 2.5) = 6 columns from the fifth
    field = 0.55 + 0.3 * own["snow"][:, None, 3:7, 4:10]
    field = functional.interpolate(field, size=(10, 15), mode="bilinear", align_corners=True)
    snow = torch.where(field < 0.925, 0.0, field).clamp(0, 1)
    kernel = torch.exp(-0.5 * (torch.arange(-5, 6).double() / 6.025) ** 2)
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, 11)
    snow = torch.stack(
        [
            functional.conv2d(snow[:1].mT, kernel, padding="same")[0].mT,
            functional.conv2d(snow[1:], kernel, padding="same")[0],
        ]
    )
    v = (x + 1) / 2
    luminance = 0.299 * v[:, :1] + 0.587 * v[:, 1:2] + 0.114 * v[:, 2:]
    pale = torch.maximum(v, 1.5 * luminance + 0.5)
    bright = 0.75
    expected = bright * v + (1 - bright) * pale + snow + torch.rot90(snow, 2, (2, 3))
    assert torch.allclose(process(x, 2 / 3, **own), 2 * expected.clamp(0, 1) - 1, atol=1e-13)


PROCESSES = (D.Blur(4, 0.5, 3), D.Masking(4), D.Downsampling(2), D.Snow(4))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_every_degradation_starts_at_the_data_and_is_continuous_and_its_own_for_each_sample(
    process,
):
    x = normal(4, 1, 8, 8).tanh()
    own = process.draw(x, torch.Generator().manual_seed(0))
    assert set(own) == process.conditions
    assert torch.equal(process(x, 0.0, **own), x)
    t = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=F64)
    together = process(x, t, **own)
    for k in range(4):
        one = {name: value[k : k + 1] for name, value in own.items()}
        assert torch.allclose(process(x[k : k + 1], float(t[k]), **one)[0], together[k], atol=1e-14)
    near = process(x, 0.5 - 1e-5, **own) - process(x, 0.5, **own)
    assert 0 < float(near.abs().max()) < 1e-3

    # exactly restored, both samplers return to the data
    def known(z, time, data):
        return data

    model = sd.ScoreModel(known, process, "data")
    for solver in SOLVERS:
        out = sd.sample(
            model,
            x.shape,
            solver=solver,
            steps=4,
            x_init=process(x, 1.0, **own),
            condition={**own, "data": x},
            dtype=F64,
        )
        assert torch.allclose(out.x, x, atol=1e-13)

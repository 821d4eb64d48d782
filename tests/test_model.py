"""One function, seen in every parametrisation."""

from __future__ import annotations

import itertools

import pytest
import torch
from reparametrised import reparametrised
from torch import Tensor, nn

import sdediff as sd
from sdediff.predict import predict
from sdediff.predictions import PREDICTIONS


@pytest.mark.thin(17)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_every_parametrisation_is_the_same_function(
    sde: sd.LinearSDE, gaussian: sd.exact.Gaussian, predicts: str
) -> None:
    model = reparametrised(gaussian.model(sde), predicts)
    t = torch.linspace(max(sde.t_min, 0.01), sde.t_max, 9, dtype=torch.float64)
    x = torch.linspace(-3, 3, 18, dtype=torch.float64).reshape(9, 2)
    score = gaussian.score(sde, x, t)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    data = (x + sigma**2 * score) / alpha
    torch.testing.assert_close(model.score(x, t), score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.noise(x, t), -sigma * score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.data(x, t), data, rtol=1e-8, atol=1e-7)
    torch.testing.assert_close(
        model.v(x, t), -alpha * sigma * score - sigma * data, rtol=1e-8, atol=1e-7
    )
    flow = sde.f(t)[:, None] * x - 0.5 * (sde.g(t)[:, None]) ** 2 * score
    torch.testing.assert_close(model.flow(x, t), flow, rtol=1e-8, atol=1e-7)


def test_conversions_of_a_pair_undo_each_other(sde: sd.LinearSDE) -> None:
    t = torch.linspace(max(sde.t_min, 0.01), sde.t_max, 7, dtype=torch.float64)
    for one, two in itertools.permutations(PREDICTIONS, 2):
        there = sd.ScoreModel(lambda x, t: x, sde, one).conversion(two, t)
        back = sd.ScoreModel(lambda x, t: x, sde, two).conversion(one, t)
        torch.testing.assert_close(there[1] * back[1], torch.ones_like(t), rtol=1e-9, atol=0)
        torch.testing.assert_close(
            back[0] + back[1] * there[0],
            torch.zeros_like(t),
            rtol=0,
            atol=1e-7 * float(back[0].abs().max() + 1),
        )


def test_exact_score_is_the_gradient_of_the_density(
    sde: sd.LinearSDE, gaussian: sd.exact.Gaussian
) -> None:
    x = torch.tensor([[0.1, 0.2], [-1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(gaussian.log_prob(sde, x, t).sum(), x)
    torch.testing.assert_close(
        gaussian.model(sde).score(x, t).detach(), gradient, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("time_dtype", [None, torch.float32])
def test_network_sees_x_and_time_in_its_own_dtype(time_dtype: torch.dtype | None) -> None:
    seen: list[Tensor] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.extend((x, t))
            return x * self.w

    model = sd.ScoreModel(Net(), sd.VP(), time_dtype=time_dtype)
    out = model.noise(torch.ones(3, 2), 0.99839)
    assert seen[0].dtype == torch.bfloat16
    assert seen[1].dtype == (time_dtype or torch.bfloat16)
    assert seen[1].shape == (3,)
    torch.testing.assert_close(
        seen[1], torch.full((3,), 0.99839, dtype=seen[1].dtype), rtol=0, atol=0
    )
    assert out.dtype == torch.float32


def test_output_with_sample_attribute_and_condition() -> None:
    class Output:
        def __init__(self, sample: Tensor) -> None:
            self.sample = sample

    model = sd.ScoreModel(lambda x, t, shift: Output(x + shift), sd.VP())
    x = torch.zeros(2, 3)
    torch.testing.assert_close(model.noise(x, 0.5, shift=torch.ones(2, 1)), torch.ones(2, 3))


@pytest.mark.uses_global_rng
def test_a_network_that_refuses_its_input_keeps_its_error_and_gets_a_note() -> None:
    layer = torch.nn.Linear(2, 2)
    model = sd.ScoreModel(lambda x, t: layer(x), sd.VP())
    with pytest.raises(RuntimeError) as caught:
        sd.sample(model, (4, 3), steps=2, seed=0)
    assert caught.value.__notes__ == [
        "the network was called as net(x, t) with x of shape (4, 3), torch.float32: does it take "
        "that?"
    ]


def test_a_network_that_looks_for_a_dimension_that_is_not_there_gets_a_note_too() -> None:
    model = sd.ScoreModel(lambda x, t: x.flip(2), sd.VP())
    with pytest.raises(IndexError) as caught:
        sd.sample(model, (4, 3), steps=2, seed=0)
    assert "x of shape (4, 3)" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sd.ScoreModel(3, sd.VP()), TypeError, "net must be callable"),
        (lambda: sd.ScoreModel(lambda x, t: x, sd.VP), TypeError, r"pass an instance, VP\(\)"),
        (
            lambda: sd.ScoreModel(lambda x, t: x, sd.VP(), "nois"),
            ValueError,
            "did you mean 'noise'",
        ),
        (
            lambda: sd.ScoreModel(lambda x, t: x, sd.VP(), "edm", sigma_data=0),
            ValueError,
            "sigma_data must be positive",
        ),
        (
            lambda: sd.ScoreModel(lambda x, t: x[:, :1], sd.VP()).score(torch.zeros(2, 3), 0.5),
            ValueError,
            r"\(2, 3\), got shape \(2, 1\)",
        ),
        (
            lambda: sd.ScoreModel(lambda x, t: None, sd.VP()).score(torch.zeros(2, 3), 0.5),
            ValueError,
            "got NoneType",
        ),
        (
            lambda: sd.ScoreModel(lambda x, t: x, sd.VP()).score(
                torch.zeros(2, 3), torch.rand(3, generator=torch.Generator())
            ),
            ValueError,
            "B = 2",
        ),
        (
            lambda: predict(
                sd.ScoreModel(lambda x, t: x, sd.VP()), "velocity", torch.zeros(2, 3), 0.5
            ),
            ValueError,
            "a prediction must be one of",
        ),
        (
            lambda: sd.exact.Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]),
            ValueError,
            "no negative eigenvalue",
        ),
        (lambda: sd.exact.Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), ValueError, "symmetric"),
    ],
)
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]

"""Clipping and thresholding of the data prediction, for every solver alike."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from reparametrised import reparametrised
from torch import Tensor

import sdediff as sd

VP = sd.VP()
LAW = sd.exact.GaussianMixture([[-0.9, 0.3], [0.8, 0.0]], 0.5)
X = torch.tensor([[2.0, -1.5], [0.1, 0.2], [-3.0, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize("predicts", ["noise", "data", "score", "v", "flow", "edm"])
def test_every_prediction_follows_from_the_clipped_data(predicts: str) -> None:
    plain = reparametrised(LAW.model(VP), predicts)
    model = plain.constrained(sd.Clip(-0.5, 0.5))
    clean = plain.data(X, 0.4).clamp(-0.5, 0.5)
    assert bool((clean.abs() == 0.5).any())
    alpha, sigma = VP.alpha(0.4), VP.sigma(0.4)
    noise = (X - alpha * clean) / sigma
    torch.testing.assert_close(model.data(X, 0.4), clean)
    torch.testing.assert_close(model.noise(X, 0.4), noise)
    torch.testing.assert_close(model.score(X, 0.4), -noise / sigma)
    torch.testing.assert_close(model.v(X, 0.4), alpha * noise - sigma * clean)
    torch.testing.assert_close(plain.data(X, 0.4).abs().max() > 0.5, torch.tensor(True))


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        (sd.EulerMaruyama(), 30),
        (sd.solvers.UniPC(), 8),
        (sd.RK45(1e-6, 1e-6), None),
        (sd.DDPM.from_sde(VP, 30), None),
        (sd.Heun(), 10),
    ],
    ids=repr,
)
def test_solvers_see_the_clipped_model(solver: sd.DDPM, steps: int | None) -> None:
    """The same samples as from a network that clips its own data prediction."""
    plain = LAW.model(VP)
    clip = sd.Clip(-0.4, 0.4)
    within = sd.ScoreModel(
        lambda x, t: clip(plain.data(x, t)),
        VP,
        "data",
        time_dtype=torch.float64,
        data_std=plain.data_std,
    )
    one, two = (
        sd.sample(m, (5, 2), solver=solver, steps=steps, seed=0, dtype=torch.float64)
        for m in (plain.constrained(clip), within)
    )
    torch.testing.assert_close(one.x, two.x, rtol=0, atol=1e-8)
    assert float(one.x.abs().max()) <= 0.4
    assert torch.equal(one.nfe, two.nfe)
    free = sd.sample(plain, (5, 2), solver=solver, steps=steps, seed=0, dtype=torch.float64).x
    assert float(free.abs().max()) > 0.5


def test_a_learned_variance_is_clipped_too() -> None:
    plain = LAW.model(VP)
    net = sd.ScoreModel(
        lambda x, t: torch.cat([plain.net(x, t), torch.full_like(x, -1.0)], dim=1),
        VP,
        "v",
        time_dtype=torch.float64,
        learned_variance=True,
    )
    clip = sd.Clip(-0.4, 0.4)
    one = sd.sample(
        net.constrained(clip),
        (4, 2),
        solver=sd.DDPM.from_sde(VP, 20, variance="learned"),
        seed=1,
        dtype=torch.float64,
    )
    two = sd.sample(
        plain.constrained(clip),
        (4, 2),
        solver=sd.DDPM.from_sde(VP, 20),
        seed=1,
        dtype=torch.float64,
    )
    torch.testing.assert_close(one.x, two.x, rtol=0, atol=1e-10)


KNOWN = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]


def paste(x_0: Tensor) -> Tensor:
    """The first coordinate of every sample is known."""
    return torch.cat([KNOWN.to(x_0.dtype), x_0[:, 1:]], dim=1)


def paste_rows(x_0: Tensor, rows: Tensor) -> Tensor:
    return torch.cat([KNOWN[rows].to(x_0.dtype), x_0[:, 1:]], dim=1)


class Pasting(torch.nn.Module):
    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known = known

    def forward(self, x_0: Tensor, rows: Tensor) -> Tensor:
        return paste_of(self.known, x_0, rows)


def paste_of(known: Tensor, x_0: Tensor, rows: Tensor) -> Tensor:
    return torch.cat([known[rows].to(x_0.dtype), x_0[:, 1:]], dim=1)


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "arguments",
    [
        {"steps": 6},
        {"solver": sd.RK45(1e-4, 1e-4)},
        {"solver": sd.AdaptiveSDE(0.1, 0.1)},
        {"solver": sd.solvers.ExponentialPair(2, "data", rtol=1e-2, atol=1e-2)},
        {"solver": sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin()), "steps": 6},
        {"solver": sd.DDPM.from_sde(VP, 20)},
        {"solver": sd.solvers.SciPy("RK23", rtol=1e-3, atol=1e-3)},
    ],
    ids=lambda arguments: repr(arguments.get("solver")),
)
def test_what_belongs_to_a_sample_stays_with_it(arguments: dict[str, Any]) -> None:
    """In batches of any size, as rows leave and at the end; whichever way the constraint is told
    its rows.
    """
    constraints = [paste, paste_rows, Pasting(KNOWN), functools.partial(paste_of, KNOWN)]
    whole = sd.solvers.SciPy is type(arguments.get("solver"))  # its steps depend on the batch
    found = [
        sd.sample(
            LAW.model(VP).constrained(constraint),
            (5, 2),
            seed=0,
            dtype=torch.float64,
            batch_size=size,
            **arguments,
        ).x
        for constraint, size in zip([constraints[0], *constraints], [None, 3, 2, 3, 1], strict=True)
    ]
    for x in found:
        torch.testing.assert_close(x[:, :1], KNOWN, rtol=0, atol=1e-12)
        torch.testing.assert_close(x, found[0], rtol=0, atol=0.1 if whole else 1e-9)


@pytest.mark.thin(0)
def test_a_constraint_sees_its_samples_in_densities_and_gradients() -> None:
    """Samples of one call leave an adaptive solve at different times; alone they give the same."""
    x = X[:, :].clone().requires_grad_()
    shift = torch.tensor([[0.1], [-0.2], [0.3]], dtype=torch.float64)

    def pull(x_0: Tensor) -> Tensor:
        return 0.9 * x_0 + shift

    def density(rows: list[int], constraint: Any) -> Tensor:
        model = LAW.model(VP).constrained(constraint)
        return sd.log_prob(model, x[rows], solver=sd.RK45(1e-5, 1e-5), grad="full").value

    together = density([0, 1, 2], pull)
    (slope,) = torch.autograd.grad(together.sum(), x)
    for i in range(3):
        alone = density([i], lambda x_0, rows, i=i: 0.9 * x_0 + shift[[i]][rows])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-9)
        torch.testing.assert_close(
            torch.autograd.grad(alone.sum(), x)[0][i], slope[i], rtol=0, atol=1e-7
        )


def test_only_what_may_hold_samples_is_handed_absent_ones() -> None:
    seen: dict[str, list[int]] = {"alone": [], "marked": [], "rows": []}

    def alone(x_0: Tensor, low: float = -1.0) -> Tensor:
        seen["alone"].append(len(x_0))
        return x_0.clamp(min=low)

    def marked(x_0: Tensor) -> Tensor:
        seen["marked"].append(len(x_0))
        return x_0.clamp(min=-1.0)

    marked.samplewise = True  # type: ignore[attr-defined]

    def rows(x_0: Tensor, rows: Tensor | None = None) -> Tensor:
        seen["rows"].append(len(x_0) if rows is not None else 0)
        return x_0.clamp(min=-1.0)

    found = [
        sd.sample(LAW.model(VP).constrained(c), (5, 2), steps=3, batch_size=3, seed=0).x
        for c in (alone, marked, rows)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert set(seen["alone"]) == {5}
    assert seen["marked"] == seen["rows"] == [3] * 4 + [2] * 4
    with pytest.raises(
        ValueError, match=r"a tensor of the shape of x_0, \(5, 2\), got .*shape \(5, 1\)"
    ):
        sd.sample(LAW.model(VP).constrained(lambda x_0: x_0[:, :1]), (5, 2), steps=3, seed=0)


def test_losses_do_not_see_it() -> None:
    plain = LAW.model(VP)
    loss, t = sd.DenoisingScoreMatching(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    values = [
        loss(m, X, t=t, noise=X.flip(0)) for m in (plain, plain.constrained(sd.Clip(-0.1, 0.1)))
    ]
    assert torch.equal(values[0], values[1])


def test_dynamic_threshold() -> None:
    """Saharia et al. 2022: s the 75 % quantile where that exceeds 1: 3 of 4 entries within; then
    all divided by it.
    """
    x = torch.tensor([[0.5, -0.2, 0.9, 0.3], [4.0, -2.0, 1.0, 0.5]])
    out = sd.constraints.DynamicThreshold(0.75)(x)
    torch.testing.assert_close(out, torch.tensor([[0.5, -0.2, 0.9, 0.3], [1.0, -1.0, 0.5, 0.25]]))
    images = x.reshape(2, 1, 2, 2)
    assert torch.equal(sd.constraints.DynamicThreshold(0.75)(images).reshape(2, 4), out)
    torch.testing.assert_close(sd.constraints.DynamicThreshold(1.0, 2.0)(x)[1], x[1] / 2)


def test_a_module_as_constraint_is_not_entered_into_the_model() -> None:
    plain = sd.ScoreModel(_Same(), VP)
    model = plain.constrained(torch.nn.Tanh())
    assert [name for name, _ in model.named_modules()] == ["", "model", "model.net"]
    assert float(model.data(100 * X, 0.4).abs().max()) <= 1
    assert float(plain.data(100 * X, 0.4).abs().max()) > 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LAW.model(VP).constrained((-1, 1)), TypeError, r"Clip\(-1, 1\) say"),
        (lambda: sd.Clip(1, 1), ValueError, "low must be below high"),
        (
            lambda: sd.constraints.DynamicThreshold(0.0),
            ValueError,
            r"quantile must be a number in \(0, 1\]",
        ),
        (
            lambda: sd.constraints.DynamicThreshold(bound=0.0),
            ValueError,
            "bound must be a pos",
        ),
        (
            lambda: sd.ScoreModel(lambda x, t: x, _General(), "score").constrained(sd.Clip()),
            ValueError,
            "no data prediction",
        ),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


class _Same(torch.nn.Module):
    def forward(self, x, t):
        return x


class _General(sd.SDE):
    def drift(self, x, t):
        return -x

    def diffusion(self, t):
        return t

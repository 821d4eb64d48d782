"""Score estimators of sbi: a stand-in with its methods, with the score of a known posterior."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.interop import from_sbi

F64 = torch.float64
PRIOR = sd.exact.Gaussian([3.0, -1.0], [[4.0, 0.0], [0.0, 0.25]])
H, NOISE = torch.tensor([[1.0, 0.5]], dtype=F64), 0.3
Y = torch.tensor([[2.5]], dtype=F64)
"""The posterior's mean is the prior's, so that the law at t_max is the prior of the SDE nearly."""


class Estimator(torch.nn.Module):
    """As sbi 0.27 has it: times get a dimension for each of a parameter's, and the score takes
    (input, condition, t).
    """

    input_shape, condition_shape = torch.Size([2]), torch.Size([1])
    t_min, t_max = 1e-3, 1.0

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("mean_0", torch.tensor([3.0, -1.0], dtype=F64))
        self.register_buffer("std_0", torch.tensor([2.0, 0.5], dtype=F64))

    def mean_t_fn(self, times: Tensor) -> Tensor:
        if self.kind == "ve":
            return torch.ones_like(times)[:, None]
        return torch.exp(-0.25 * times**2 * 9.99 - 0.5 * times * 0.01)[:, None]

    def std_fn(self, times: Tensor) -> Tensor:
        if self.kind == "ve":
            return (1e-3 * 1e4**times)[:, None]
        rest = 1 - self.mean_t_fn(times) ** 2
        return rest if self.kind == "subvp" else rest.sqrt()

    def score(self, input: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        law = PRIOR.posterior(H, condition[0], NOISE)
        mean, cov = law.data_moments()
        alpha, sigma = self.mean_t_fn(t), self.std_fn(t)
        wide = alpha[..., None] ** 2 * cov + sigma[..., None] ** 2 * torch.eye(2, dtype=F64)
        return torch.linalg.solve(wide, alpha * mean - input)


@pytest.mark.parametrize("kind", ["vp", "ve", "subvp"])
def test_scores_are_the_estimators_and_the_sde_is_that_of_its_kernel(kind: str) -> None:
    estimator = Estimator(kind)
    model = from_sbi(estimator)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.linspace(0.01, 1.0, 6, dtype=F64)
    moved = x - estimator.mean_t_fn(t) * estimator.mean_0
    y = Y.expand(6, -1)
    assert (model.score(moved, t, y=y) - estimator.score(x, y, t)).abs().max() < 1e-9
    sde: Any = model.sde
    assert (sde.sigma(t) - estimator.std_fn(t)[:, 0]).abs().max() < 1e-14
    assert (sde.t_min, sde.t_max) == (1e-3, 1.0)
    beta = 0.01 + 9.99 * t
    f = torch.zeros_like(t) if kind == "ve" else -0.5 * beta
    assert (sde.f(t) - f).abs().max() < 1e-10
    sd.testing.check_sde(sde)


def test_samples_and_densities_are_those_of_the_posterior() -> None:
    model = from_sbi(Estimator("vp"))
    truth = PRIOR.posterior(H, Y[0], NOISE)
    mean, cov = truth.data_moments()
    out = sd.sample(
        model, (1000, 2), solver=sd.RK45(1e-5, 1e-5), seed=0, dtype=F64,
        condition={"y": Y.expand(1000, -1)},
    )  # fmt: skip
    spread = cov.diagonal().sqrt()
    assert ((out.x.mean(dim=0) - mean) / spread).abs().max() < 5 / 1000**0.5
    assert (out.x.std(dim=0) / spread - 1).abs().max() < 5 / 2000**0.5 + 0.01
    few = out.x[:5]
    found = sd.log_prob(model, few, condition={"y": Y.expand(5, -1)}, seed=0)
    exact = torch.distributions.MultivariateNormal(mean, cov).log_prob(few)
    assert (found.value - exact).abs().max() < 0.02


def test_what_is_no_score_estimator_is_refused() -> None:
    with pytest.raises(TypeError, match=r"has no score,.*pass its vector_field_estimator"):
        from_sbi(SimpleNamespace(vector_field_estimator=Estimator("vp")))
    with pytest.raises(TypeError, match="pass what NPSE"):
        from_sbi(torch.nn.Identity())
    flow = Estimator("vp")
    flow.score = lambda input, condition, t: input * t  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="those of FMPE are not"):
        from_sbi(flow)


def test_a_condition_of_another_shape_is_refused() -> None:
    model = from_sbi(Estimator("vp"))
    with pytest.raises(ValueError, match=r"y must be \(B, 1\).*got shape \(4, 2\)"):
        sd.sample(model, (4, 2), steps=2, condition={"y": torch.zeros(4, 2)})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vp", "ve", "subvp"])
def test_estimators_of_the_library_itself(kind: str) -> None:
    nets = pytest.importorskip("sbi.neural_nets")
    torch.manual_seed(0)
    theta, x = torch.randn(50, 2) + 2, torch.randn(50, 3)
    estimator = nets.posterior_score_nn(sde_type=kind)(theta, x)
    model = from_sbi(estimator)
    t, y = torch.linspace(0.02, 1.0, 50), x.float()
    moved = theta - estimator.mean_t_fn(t) * estimator.mean_0
    off = model.score(moved, t.double(), y=y) - estimator.score(theta, y, t)
    assert off.abs().max() < 1e-5 * estimator.score(theta, y, t).abs().max()

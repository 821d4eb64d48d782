"""One solve of a mixture, by a solver of the library and by a formula as it was published."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from published_formulas import Walk
from torch import Tensor

import sdediff as sd
from sdediff.solvers import Solver

MIXTURE = sd.exact.GaussianMixture([[-0.5, 0.3], [0.5, 0.0], [0.2, -0.5]], 0.3)


SHARES = [0.95, 0.9, 0.72, 0.66, 0.33, 0.3, 0.05]
"""Of the SDE's T: a grid whose steps differ by a factor 11."""


def families(*fast: str) -> pytest.MarkDecorator:
    """VP, VE, cosine and rectified flow, those that are not named in the slow run only."""
    names = ["VP", "VE", "Cosine", "RectifiedFlow"]
    return pytest.mark.parametrize(
        "sde",
        [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in names],
        indirect=True,
    )


def grid(sde: sd.LinearSDE, count: int = len(SHARES)) -> Tensor:
    return torch.tensor(SHARES[:count], dtype=torch.float64) * sde.T


def start(sde: sd.LinearSDE, t: Tensor, rows: int = 3) -> Tensor:
    z = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return sde.perturb(MIXTURE.sample(rows, seed=0), t, z)


def white(rows: int = 3) -> sd.White:
    return sd.White(sd.seeds(3, rows), (2,), dtype=torch.float64)


Lam = float | Callable[[Tensor], Tensor] | list[float]


def ours(sde: sd.LinearSDE, solver: Solver, times: Tensor, lam: Lam | None = None) -> Tensor:
    x = start(sde, times[0])
    return sd.sample(
        MIXTURE.model(sde),
        x.shape,
        solver=solver,
        grid=times,
        x_init=x,
        last="noisy",
        stochasticity=lam,
        dtype=torch.float64,
        noise=white(),
    ).x


def theirs(sde: sd.LinearSDE, formula: Callable[[Walk, Tensor], Tensor], times: Tensor) -> Tensor:
    return formula(Walk(MIXTURE.model(sde), times, white()), start(sde, times[0]))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)

"""The solvers against torchdiffeq and torchsde on the same problems, grids and noise."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
import torchsde
from torch import Tensor

import sdediff as sd
from sdediff.reverse import Reverse
from solvers import Solver, integrate

MIXTURE = sd.exact.GaussianMixture([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.0]], 0.3)
X = torch.tensor([[0.3, -1.2], [1.4, 0.2], [-0.6, 0.9]], dtype=torch.float64)


def number(t: Tensor) -> Tensor:
    return t.detach().reshape(()).double()


@pytest.mark.parametrize(
    ("solver", "method"),
    [(sd.Euler(variable="t"), "euler"), (sd.Midpoint(variable="t"), "midpoint"), (sd.Heun(variable="t"), "heun2")],
    ids=["euler", "midpoint", "heun"],
)
def test_fixed_steps_are_those_of_torchdiffeq(sde: sd.LinearSDE, solver: Solver, method: str) -> None:
    problem = Reverse(MIXTURE.model(sde), 3)
    grid = torch.linspace(0.8 * sde.T, 0.1 * sde.T, 21, dtype=torch.float64)
    x = X * sde.prior.std
    reference = torchdiffeq.odeint(lambda t, y: problem.drift(y, number(t)), x, grid, method=method)[-1]
    torch.testing.assert_close(integrate(Reverse(MIXTURE.model(sde), 3), solver, x, grid).x, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("solver", "method"), [(sd.RK45(1e-9, 1e-9), "dopri5"), (sd.DOP853(1e-9, 1e-9), "dopri8")], ids=["5", "8"])
def test_adaptive_solutions_agree_with_torchdiffeq(solver: Solver, method: str) -> None:
    problem = Reverse(MIXTURE.model(sd.VP()), 3)
    grid = torch.tensor([1.0, 0.01], dtype=torch.float64)
    reference = torchdiffeq.odeint(lambda t, y: problem.drift(y, number(t)), X, grid, method=method, rtol=1e-11, atol=1e-11)[-1]
    out = integrate(Reverse(MIXTURE.model(sd.VP()), 3), solver, X, grid)
    torch.testing.assert_close(out.x, reference, rtol=0, atol=2e-7)


class _Backward(torch.nn.Module):
    """The reverse SDE in the time u = -t, as torchsde wants it."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, problem: Reverse) -> None:
        super().__init__()
        self.problem = problem

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        return -self.problem.drift(y, -number(u))

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        return self.problem.diffuse(torch.ones_like(y), -number(u))


class _Path(torchsde.BrownianInterval):
    """The increments of our noise on the grid, for torchsde."""

    def __init__(self, white: sd.White, grid: Tensor) -> None:
        super().__init__(t0=float(-grid[0]), t1=float(-grid[-1]), size=(3, 2), dtype=torch.float64, entropy=0)
        self.white, self.grid = white, grid

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Tensor:
        step = int((self.grid + float(ta)).abs().argmin())
        return self.white.at(step).increment(-number(torch.as_tensor(ta)), -number(torch.as_tensor(tb)))


@pytest.mark.parametrize("stochasticity", [1.0, 0.5])
def test_euler_maruyama_is_that_of_torchsde_on_one_path(sde: sd.LinearSDE, stochasticity: float) -> None:
    grid = torch.linspace(0.8 * sde.T, 0.1 * sde.T, 21, dtype=torch.float64)
    white = sd.White(sd.seeds(7, 3), (2,), dtype=torch.float64)
    x = X * sde.prior.std
    problem = Reverse(MIXTURE.model(sde), 3, stochasticity)
    step = float(grid[0] - grid[1])
    reference = torchsde.sdeint(_Backward(problem), x, -grid, bm=_Path(white, grid), dt=step * (1 + 1e-12), method="euler")[-1]
    ours = integrate(Reverse(MIXTURE.model(sde), 3, stochasticity), sd.EulerMaruyama(), x, grid, white).x
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)

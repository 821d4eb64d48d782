"""The linear systems inside of posteriors: of any matrix by minimal residuals."""

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff import posterior
from sdediff.posterior.observation import conjugate_gradients, minimal_residual


def systems(rows: int = 5, size: int = 6) -> tuple[Tensor, Tensor]:
    """Matrices that are neither symmetric nor definite, and right-hand sides."""
    generator = torch.Generator().manual_seed(0)
    kind = {"generator": generator, "dtype": torch.float64}
    return torch.randn(rows, size, size, **kind), torch.randn(rows, size, **kind)


def image(M: Tensor, v: Tensor) -> Tensor:
    return (M @ v[..., None])[..., 0]


@pytest.mark.parametrize("iterations", [1, 2, 4, 6, 9])
def test_the_residual_is_the_least_of_the_krylov_space(iterations: int) -> None:
    M, b = systems()
    x = minimal_residual(lambda v: image(M, v), b, iterations)
    powers = [b]
    for _ in range(min(iterations, 6) - 1):
        powers.append(image(M, powers[-1]))
    basis = torch.linalg.qr(torch.stack(powers, dim=2)).Q
    best = basis @ torch.linalg.lstsq(M @ basis, b[..., None]).solution
    assert (x - best[..., 0]).abs().max() < 1e-9


def test_rows_with_nothing_to_solve_and_singular_matrices_stop() -> None:
    M, b = systems(3)
    sizes = torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    M[1], b[0], b[1] = torch.diag(sizes), 0.0, 1.0
    x = minimal_residual(lambda v: image(M, v), b, 20)
    assert (x[0] == 0).all()
    assert (x[1, :3] - 1 / sizes[:3]).abs().max() < 1e-10
    assert (image(M, x) - b)[2].abs().max() < 1e-9


def test_the_residual_never_grows_where_conjugate_gradients_diverge() -> None:
    M, b = torch.diag(torch.tensor([1.0, -0.99]))[None].double(), torch.ones(1, 2).double()
    off = [(image(M, minimal_residual(lambda v: image(M, v), b, k)) - b).norm() for k in (1, 2)]
    assert off[0] <= b.norm()
    assert off[1] < 1e-12
    assert (image(M, conjugate_gradients(lambda v: image(M, v), b, 1)) - b).norm() > 100


def test_the_solution_can_be_differentiated() -> None:
    M, b = systems(2, 4)
    b.requires_grad_()
    M.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda A, c: minimal_residual(lambda v: image(A, v), c, 3), (M, b)
    )


def test_mmps_stays_near_the_data_where_the_derivative_is_no_covariance() -> None:
    sde, width = sd.VP(), 16
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    wrong = torch.eye(width) + 0.5 * noise  # neither symmetric nor positive
    law = sd.exact.Gaussian(torch.zeros(width), torch.eye(width))

    def net(x: Tensor, t: Tensor) -> Tensor:
        return law.data(sde, x, t).to(x) @ wrong.T

    model = sd.ScoreModel(net, sde, predicts="data", data_std=1.0)
    seen = posterior.Mask(torch.arange(width) < 12, noise_std=0.05)
    y = seen.forward(torch.ones(1, width))
    matched = posterior.MMPS(model, seen, y)
    x = torch.randn(200, width, generator=torch.Generator().manual_seed(1))
    for t in (0.2, 0.5, 0.9):
        before, after = model.data(x, t), matched.data(x, t)
        assert (seen.forward(after) - y).norm(dim=1).max() < 2 * (seen.forward(before) - y).norm(
            dim=1
        ).max()
        assert after.abs().max() < 20

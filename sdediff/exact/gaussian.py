"""Gaussian laws: full covariances, and those that live on a subspace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from sdediff.exact.chain import affine_moments
from sdediff.exact.law import Law, Measurement, Values, condition, eigen, numbers
from sdediff.reverse import Reverse
from sdediff.sde import LinearSDE
from sdediff.solvers import Solver, check_grid
from sdediff.solvers.given import Numbers
from sdediff.stochasticity import check_stochasticity
from sdediff.units import Units

__all__ = ["Gaussian", "LowRank", "Normal"]


@dataclass(frozen=True, eq=False, repr=False)
class Normal(Law):
    """x_0 = mean + basis z with independent z_i ~ N(0, variances_i): what `Gaussian` and `LowRank`
    share.

    Along basis vector i x_t has variance V_i = alpha^2 variances_i + sigma^2, and sigma^2 in all
    directions beyond the basis.
    """

    mean: Tensor
    """(*event)."""
    basis: Tensor | None
    """Orthonormal columns, (d, k); None: the coordinates themselves."""
    variances: Tensor
    """(k,)."""

    @property
    def event(self) -> torch.Size:
        return self.mean.shape

    @property
    def least_variance(self) -> float:
        return float(self.variances.min()) if self._full else 0.0

    @property
    def data_std(self) -> float:
        own = self.variances if self.basis is None else self.basis.square() @ self.variances
        return self._spread(self.mean, own)

    @property
    def _full(self) -> bool:
        return len(self.variances) == self.mean.numel()

    @property
    def _factor(self) -> Tensor:
        """Columns sqrt(variance_i) basis_i, (d, k)."""
        stds = self.variances.sqrt()
        return torch.diag(stds) if self.basis is None else self.basis * stds

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates in the basis (..., k), and what is beyond it (..., d); 0 where the basis is
        full.
        """
        if self.basis is None:
            return x, torch.zeros((), dtype=x.dtype, device=x.device)
        inside = x @ self.basis.to(x)
        return inside, x - self._join(inside) if not self._full else torch.zeros(
            (), dtype=x.dtype, device=x.device
        )

    def _join(self, inside: Tensor) -> Tensor:
        """From coordinates in the basis (..., k) to (..., d)."""
        return inside if self.basis is None else inside @ self.basis.to(inside).T

    def _made(self, mean: Tensor, basis: Tensor | None, variances: Tensor) -> Self:
        """Another law of this kind, from what it consists of."""
        law = object.__new__(type(self))
        Normal.__init__(law, mean, basis, variances)
        return law

    def evaluate(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Values:
        """log N(x; alpha mean, V), -V^{-1} (x - alpha mean) and mean + alpha variances V^{-1} (x -
        alpha mean).
        """
        mean, variances = self.mean.flatten().to(x), self.variances.to(x)
        inside, beyond = self._split(x - alpha * mean)
        spread = alpha**2 * variances + sigma**2
        scaled = inside / spread
        log_prob = -0.5 * (inside * scaled + spread.log() + math.log(2 * math.pi)).sum(dim=-1)
        score = -self._join(scaled)
        if rest := x.shape[-1] - len(variances):
            outside = (beyond / sigma).square().sum(dim=-1) + rest * (
                2 * sigma.log() + math.log(2 * math.pi)
            ).flatten()
            log_prob, score = log_prob - 0.5 * outside, score - beyond / sigma**2
        return Values(log_prob, score, mean + self._join(alpha * variances * scaled))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(count, len(self.variances), generator=generator, dtype=torch.float64)
        return self.mean.flatten() + self._join(z * self.variances.sqrt())

    def data_moments(self) -> tuple[Tensor, Tensor]:
        if self.basis is None:
            return self.mean.flatten(), torch.diag(self.variances)
        half = (self.basis * self.variances) @ self.basis.T
        return self.mean.flatten(), 0.5 * (half + half.T)

    def posterior(self, H: Numbers, y: Numbers, noise_std: Numbers) -> Self:
        """The law of x_0 given y = H x_0 + noise_std n, n ~ N(0, I); a law of the same kind.

        N(mean + G (y - H mean), C - G H C) with G = C H^T (H C H^T + noise_std^2)^{-1}. ``H`` (m,
        d) acts on flat x_0, ``y`` is (m,), ``noise_std`` a positive number or (m,). A singular
        value decomposition takes the place of the inverse, so that a small ``noise_std`` costs no
        accuracy.
        """
        measurement = Measurement.of(H, y, noise_std, self.mean.numel())
        given = condition(self.mean.flatten(), self._factor, measurement)
        return self._made(given.mean.reshape(self.event), given.basis, given.stds.square())

    def flow(self, sde: LinearSDE, x: Tensor, t: Tensor | float, s: Tensor | float) -> Tensor:
        """Where the probability flow carries x (B, *event) from time t to s.

        Along each eigenvector the distance from the mean scales with the standard deviation of x_t.
        """
        flat = self._flat(x)
        alpha, sigma = self._schedule(sde, x, t)
        alpha_s, sigma_s = self._schedule(sde, x, s, density=False)
        mean, variances = self.mean.flatten().to(flat), self.variances.to(flat)
        inside, beyond = self._split(flat - alpha * mean)
        ratio = ((alpha_s**2 * variances + sigma_s**2) / (alpha**2 * variances + sigma**2)).sqrt()
        moved = alpha_s * mean + self._join(inside * ratio)
        return self._like(moved if self._full else moved + beyond * (sigma_s / sigma), x)


class Gaussian(Normal):
    """x_0 ~ N(mean, covariance), so that x_t ~ N(alpha mean, alpha^2 covariance + sigma^2 I).

    ``mean`` is a number or (*event); ``covariance`` one variance for all, one for each entry of the
    event ((*event) or (d,)), or a symmetric (d, d) matrix on the flattened event. It may be
    singular: x_t has a density where sigma(t) > 0.
    """

    def __init__(self, mean: Numbers, covariance: Numbers) -> None:
        m, c = numbers("mean", mean), numbers("covariance", covariance)
        if m.numel() == 1 and m.ndim <= 1:
            m = m.expand(c.shape[0] if c.ndim else 1)
        d = m.numel()
        if not d:
            raise ValueError("mean must not be empty")
        if c.shape in ((), (1,), (d,), m.shape):
            c = c.flatten().expand(d)
        elif c.shape != (d, d):
            raise ValueError(
                f"covariance must be a symmetric ({d}, {d}) matrix for a mean of {d} entries, or "
                "a variance for each of them; "
                f"got shape {tuple(c.shape)}"
            )
        super().__init__(m, *_diagonalised(c))

    @property
    def covariance(self) -> Tensor:
        """(d, d), of the flattened event."""
        return self.data_moments()[1]

    def chain(
        self,
        sde: LinearSDE,
        solver: Solver,
        times: Numbers,
        *,
        stochasticity: float | Callable[[Tensor], Tensor] | None = None,
        start: Literal["prior"] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of what a solver's chain with the exact score is at
        ``times[-1]``, without Monte Carlo.

        The chain starts at ``times[0]`` (N + 1 falling times) from the exact law there, or with
        ``start="prior"`` from the SDE's prior. ``stochasticity`` is lambda as in `sample`: 1 by
        default where the solver integrates the reverse SDE, else 0. The score being affine, so is
        the chain: in the eigenbasis, where coordinates are independent, one run of the solver on
        unit impulses (one row for each draw of noise) tells all. The solver has to take fixed steps
        and be affine itself: a ValueError says if it is not.
        """
        if start not in (None, "prior"):
            raise ValueError(
                f"start must be None, for the exact law at times[0], or 'prior', got {start!r}"
            )
        if not isinstance(solver, Solver):
            raise TypeError(
                f"solver must be a solver value such as EulerMaruyama(), got {solver!r}"
            )
        grid = check_grid(numbers("times", times))
        if len(grid) > 1 and grid[1] > grid[0]:
            raise ValueError(
                f"the chain goes from noise to data: times must fall, they go from {grid[0]:g} "
                f"to {grid[-1]:g}"
            )
        if solver.times is not None and not (
            len(grid) == len(solver.times) and torch.allclose(grid, solver.times)
        ):
            raise ValueError(
                f"{solver!r} is a discrete model with a grid of its own: pass times=solver.times"
            )
        lam = check_stochasticity(solver, stochasticity, grid)
        unit = self.data_std or sde.data_std
        rotated = Gaussian(self._split(self.mean.flatten())[0], self.variances)
        if start is None:
            alpha, sigma = sde.alpha(grid[0]), sde.sigma(grid[0])
            mean = alpha * rotated.mean
            std = (alpha**2 * self.variances + sigma**2).sqrt()
        else:
            mean = torch.zeros_like(rotated.mean)
            std = torch.full_like(rotated.mean, sde.prior.std)
        model = rotated.model(sde)

        def problem(rows: int) -> Reverse:
            return Reverse(model, rows, lam, units=Units(unit))

        mean, variances = affine_moments(problem, solver, grid, mean / unit, std / unit)
        return self._made(self._join(unit * mean), self.basis, unit**2 * variances).data_moments()


class LowRank(Normal):
    """x_0 = mean + basis z, z ~ N(0, diag(stds^2)): a Gaussian on a k-dimensional subspace, at the
    cost of (d, k) matrices.

    ``mean`` is (*event) of d numbers, ``basis`` (d, k) or (*event, k), ``stds`` a number or (k,).
    Columns that are not orthonormal are made so without a change of the law. x_t has a density
    where sigma(t) > 0; elsewhere score and density are refused with a ValueError (unless k = d and
    no std is 0).
    """

    def __init__(self, mean: Numbers, basis: Numbers, stds: Numbers) -> None:
        m = numbers("mean", mean)
        u = numbers("basis", basis)
        s = numbers("stds", stds, at_least=0)
        m = m.reshape(1) if m.ndim == 0 else m
        d = m.numel()
        if not d or u.ndim < 2 or u.shape[:-1] not in ((d,), m.shape) or not u.shape[-1]:
            raise ValueError(
                f"basis must be (d, k) or (*event, k) with k >= 1, d = {d} and event "
                f"{tuple(m.shape)} as in the mean, "
                f"got shape {tuple(u.shape)}"
            )
        u = u.reshape(d, -1)
        k = u.shape[1]
        if s.shape not in ((), (k,)):
            raise ValueError(
                f"stds must be a number or ({k},), one for each column of the basis, got shape "
                f"{tuple(s.shape)}"
            )
        s = s.expand(k)
        if k > d or float((u.T @ u - torch.eye(k, dtype=torch.float64)).abs().max()) > 1e-13:
            u, s, _ = torch.linalg.svd(u * s, full_matrices=False)
        super().__init__(m, u, s.square())

    @property
    def stds(self) -> Tensor:
        """Standard deviations along the orthonormal basis, (k,)."""
        return self.variances.sqrt()


def _diagonalised(c: Tensor) -> tuple[Tensor | None, Tensor]:
    """Basis and variances of a covariance (d, d) or a vector of variances (d,)."""
    if c.ndim == 1 or torch.equal(c, torch.diag(c.diagonal())):
        variances = c if c.ndim == 1 else c.diagonal()
        if float(variances.min()) < 0:
            raise ValueError(
                f"covariance must have no negative eigenvalue, got {float(variances.min()):.3g}"
            )
        return None, variances
    return eigen("covariance", c)

"""What a law of the data is: score, predictions, density and samples of x_t = alpha x_0 + sigma
noise; its covariances, diagonalised; and Gaussians conditioned on a linear measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

from sdediff.model import ScoreModel
from sdediff.normalizer import Moments
from sdediff.sde import LinearSDE
from sdediff.sde.base import as_time, check_linear
from sdediff.solvers.given import Numbers, described, fact, integer, reals

__all__ = [
    "Conditioned",
    "Law",
    "LawNet",
    "Measurement",
    "Values",
    "condition",
    "eigen",
    "numbers",
]

_LARGEST: Final = 2**13


class Values(NamedTuple):
    """What is known of x_t at states (B, d)."""

    log_prob: Tensor
    """log p_t(x) in nats, (B,)."""
    score: Tensor
    """grad log p_t(x), (B, d)."""
    data: Tensor
    """E[x_0 | x_t = x], (B, d)."""


class Law:
    """A law of x_0 that stays known under noise: x_t = alpha x_0 + sigma noise for the alpha(t) and
    sigma(t) of any linear SDE.

    A subclass gives ``event`` and ``evaluate``; ``draw`` for samples, ``data_moments`` for moments,
    ``posterior`` for measurements, and ``least_variance`` if x_0 itself has a density. Events have
    any rank, states are (B, *event) (or (B,) for one number), t is a number or one number a sample,
    (B,). Results have the dtype and the device of x; what is between is float64 (float32 on a
    device without it).
    """

    @fact
    def least_variance(self) -> float:
        """The smallest variance of x_0 along any direction. Where it is 0, x_t has a density for
        sigma(t) > 0 only.
        """
        return 0.0

    @property
    def event(self) -> torch.Size:
        """Shape of x_0."""
        raise NotImplementedError

    def evaluate(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Values:
        """Density, score and data prediction at flat states x (B, d), for alpha and sigma () or (B,
        1) in the dtype of x.

        Neither score nor data should come from the other by x = alpha data - sigma^2 score: one of
        them would cancel.
        """
        raise NotImplementedError

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples of x_0, float64 (count, d), from a generator on the host."""
        raise NotImplementedError

    def data_moments(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of x_0, float64."""
        raise NotImplementedError

    def posterior(self, H: Numbers, y: Numbers, noise_std: Numbers) -> Self:
        """The law of x_0 given y = H x_0 + noise_std n with n ~ N(0, I).

        ``H`` (m, d) acts on flat x_0, ``y`` is (m,), ``noise_std`` a positive number or (m,).
        """
        raise NotImplementedError(
            f"the posterior of {self!r} under a linear measurement is not known in closed form"
        )

    @property
    def data_std(self) -> float:
        """The standard deviation of x_0 about the means of its channels; 0 for a point, or where
        moments are not known.
        """
        try:
            mean, covariance = self.data_moments()
        except NotImplementedError:
            return 0.0
        return self._spread(mean, covariance.diagonal())

    def _spread(self, mean: Tensor, variance: Tensor) -> float:
        """`data_std` from the mean and the variance of each coordinate, flat."""
        if not bool(variance.any()):
            return 0.0
        mean, variance = mean.reshape(self.event), variance.reshape(self.event)
        return Moments(mean, variance, torch.ones_like(mean)).data_std

    def score(self, sde: LinearSDE, x: Tensor, t: Tensor | float) -> Tensor:
        """grad log p_t(x), shaped as x."""
        return self._like(self._at(sde, x, t)[0].score, x)

    def data(self, sde: LinearSDE, x: Tensor, t: Tensor | float) -> Tensor:
        """E[x_0 | x_t = x], shaped as x."""
        return self._like(self._at(sde, x, t)[0].data, x)

    def noise(self, sde: LinearSDE, x: Tensor, t: Tensor | float) -> Tensor:
        """E[noise | x_t = x] = -sigma score, shaped as x."""
        values, _, sigma = self._at(sde, x, t)
        return self._like(-sigma * values.score, x)

    def v(self, sde: LinearSDE, x: Tensor, t: Tensor | float) -> Tensor:
        """alpha E[noise | x] - sigma E[x_0 | x], shaped as x; lengths are in the units of the SDE's
        declaration.
        """
        values, alpha, sigma = self._at(sde, x, t)
        return self._like(-sigma * (alpha * values.score + values.data / sde.unit**2), x)

    def log_prob(self, sde: LinearSDE, x: Tensor, t: Tensor | float) -> Tensor:
        """log p_t(x) in nats, (B,)."""
        return self._at(sde, x, t)[0].log_prob.to(x.dtype)

    def sample(self, count: int, *, seed: int) -> Tensor:
        """``count`` samples of x_0, float64 (count, *event), from the seed alone."""
        count, seed = (
            integer(name, value, kind="a non-negative int")
            for name, value in (("count", count), ("seed", seed))
        )
        return self.draw(count, torch.Generator().manual_seed(seed)).reshape(count, *self.event)

    def moments(self, sde: LinearSDE, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of flat x_t at one time, float64; a ValueError for d >
        8192, for the matrix's size.
        """
        time, d = as_time(t), self.event.numel()
        if time.ndim:
            raise ValueError(
                f"moments are those at one time: t must be a number, got shape {tuple(time.shape)}"
            )
        if d > _LARGEST:
            raise ValueError(
                f"the covariance would be a ({d}, {d}) matrix, {_LARGEST} is the most; take "
                "moments of samples"
            )
        mean, covariance = self.data_moments()
        alpha, sigma = sde.alpha(time), sde.sigma(time)
        return alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(d, dtype=torch.float64)

    def model(self, sde: LinearSDE) -> ScoreModel:
        """The exact model of this law, without a network: its noise, data, score and v are those of
        the law.

        It predicts v, from which all others follow by division by alpha^2 + sigma^2 alone.
        """
        return ScoreModel(
            LawNet(self, sde),
            sde,
            predicts="v",
            time_dtype=torch.float64,
            data_std=self.data_std or None,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(event={tuple(self.event)})"

    def _at(self, sde: LinearSDE, x: Tensor, t: Tensor | float) -> tuple[Values, Tensor, Tensor]:
        """`evaluate`, with alpha and sigma, at states (B, *event)."""
        flat = self._flat(x)
        alpha, sigma = self._schedule(sde, x, t)
        return self.evaluate(flat, alpha, sigma), alpha, sigma

    def _flat(self, x: Tensor) -> Tensor:
        """States (B, d) in the dtype of the arithmetic."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                f"x must be a floating-point tensor, got {described(x)}; write x.double(), say"
            )
        number = x.ndim == 1 and self.event.numel() == 1
        if not number and (x.ndim == 0 or x.shape[1:] != self.event):
            raise ValueError(
                f"x must be (B, *event) with event {tuple(self.event)}, got shape {tuple(x.shape)}"
            )
        return x.reshape(x.shape[0], self.event.numel()).to(
            torch.float32 if x.device.type == "mps" else torch.float64
        )

    def _like(self, flat: Tensor, x: Tensor) -> Tensor:
        return flat.reshape(x.shape).to(x.dtype)

    def _schedule(
        self, sde: LinearSDE, x: Tensor, t: Tensor | float, *, density: bool = True
    ) -> tuple[Tensor, Tensor]:
        """alpha and sigma, () or (B, 1); a ValueError where x_t has no density, unless none is
        needed.
        """
        check_linear(sde)
        time = as_time(t)
        if time.ndim and time.shape != x.shape[:1]:
            raise ValueError(
                f"t must be a number or (B,) with B = {x.shape[0]} as in x, got shape "
                f"{tuple(time.shape)}"
            )
        if time.numel() and not time.requires_grad and bool((time == time.flatten()[0]).all()):
            time = time.flatten()[0]
        alpha, sigma = sde.alpha(time), sde.sigma(time)
        lowest = alpha**2 * self.least_variance + sigma**2
        if density and not bool((lowest > 0).all()):
            worst = float(
                time.detach().expand(lowest.shape).flatten()[int(lowest.flatten().argmin())]
            )
            raise ValueError(
                f"{self!r} has no density at t = {worst:.6g}: sigma(t) is 0 there, and the law "
                "lies on points or a subspace; "
                "take a later t, or a covariance with positive eigenvalues"
            )
        dtype = torch.float32 if x.device.type == "mps" else torch.float64
        shape = (-1, 1) if alpha.ndim else ()
        return alpha.to(dtype).to(x.device).reshape(shape), sigma.to(dtype).to(x.device).reshape(
            shape
        )


@dataclass(frozen=True)
class LawNet:
    """net(x, t) of an exact model: the v prediction of ``law`` under ``sde``, at times of any
    floating-point dtype, () or (B,).
    """

    law: Law
    sde: LinearSDE

    @property
    def event(self) -> torch.Size:
        """Shape of a sample."""
        return self.law.event

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        return self.law.v(self.sde, x, t)


def numbers(name: str, value: Numbers, *, at_least: float | None = None) -> Tensor:
    """``value`` as a float64 tensor of its own on the host; an error names ``name`` unless it is
    finite and large enough.
    """
    try:
        out = reals(name, value).detach().to("cpu", copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be numbers (a number, nested lists, an array or a tensor), got {value!r}"
        ) from error
    if not bool(torch.isfinite(out).all()):
        raise ValueError(
            f"{name} must be finite, got {float(out[~torch.isfinite(out)].flatten()[0])}"
        )
    if at_least is not None and out.numel() and float(out.min()) < at_least:
        raise ValueError(f"{name} must be >= {at_least:g}, got {float(out.min()):.6g}")
    return out


def eigen(name: str, c: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal eigenvectors (..., d, d) and eigenvalues (..., d) of covariances (..., d, d);
    what rounding made of 0 is 0.

    A ValueError that calls them ``name`` unless they are symmetric (to 1e-6) and no eigenvalue is
    negative.
    """
    size = c.abs().amax(dim=(-2, -1), keepdim=True)
    if bool(((c - c.mT).abs() > 1e-6 * size).any()):
        raise ValueError(
            f"{name} must be symmetric, off by {float((c - c.mT).abs().max()):.3g}; pass 0.5 * "
            "(c + c.T), say"
        )
    values, vectors = torch.linalg.eigh(0.5 * (c + c.mT))
    rounding = (
        c.shape[-1] * torch.finfo(torch.float64).eps * values.abs().amax(dim=-1, keepdim=True)
    )
    values = torch.where(values.abs() <= rounding, 0.0, values)
    if float(values.min()) < 0:
        where = "" if c.ndim == 2 else f" in component {int(values.amin(dim=-1).argmin())}"
        raise ValueError(
            f"{name} must have no negative eigenvalue, got {float(values.min()):.3g}{where}"
        )
    return vectors, values


class Measurement(NamedTuple):
    """y = H x_0 + std n, n ~ N(0, I)."""

    H: Tensor
    """(m, d), on flat x_0."""
    y: Tensor
    """(m,)."""
    std: Tensor
    """(m,)."""

    @classmethod
    def of(cls, H: Numbers, y: Numbers, noise_std: Numbers, d: int) -> Measurement:
        """The checked arguments of `Law.posterior`, for events of ``d`` numbers."""
        matrix = numbers("H", H)
        value = numbers("y", y)
        std = numbers("noise_std", noise_std)
        if matrix.ndim != 2 or matrix.shape[1] != d or not len(matrix):
            raise ValueError(
                f"H must be an (m, {d}) matrix that acts on the flattened x_0, got shape "
                f"{tuple(matrix.shape)}"
            )
        m = len(matrix)
        if value.shape != (m,):
            raise ValueError(
                f"y must be ({m},), one number for each row of H, got shape {tuple(value.shape)}"
            )
        if std.shape not in ((), (m,)):
            raise ValueError(
                f"noise_std must be a number or ({m},), one for each row of H, got shape "
                f"{tuple(std.shape)}"
            )
        if not float(std.min()) > 0:
            raise ValueError(
                f"noise_std must be positive, got {float(std.min()):.6g}; a small number stands "
                "for an exact measurement"
            )
        return cls(matrix, value, std.expand(m))


class Conditioned(NamedTuple):
    """N(mean, basis diag(stds^2) basis^T), and how likely the measurement was."""

    mean: Tensor
    basis: Tensor
    stds: Tensor
    log_evidence: Tensor


def condition(mean: Tensor, root: Tensor, measurement: Measurement) -> Conditioned:
    """x_0 = mean + root w, w ~ N(0, I), given the measurement; for mean (..., d) and root (..., d,
    k) with k <= d.

    With the singular value decomposition H root / std = P diag(c) Q^T and the residual r = (y - H
    mean) / std, w given y is normal with mean Q diag(c / (1 + c^2)) P^T r and covariance Q diag(1 /
    (1 + c^2)) Q^T, and the evidence N(y; H mean, H root root^T H^T + std^2) has -2 log = |(I - P
    P^T) r|^2 + sum (P^T r)^2 / (1 + c^2) + sum log(1 + c^2) + sum log(2 pi std^2).
    """
    H, y, std = measurement
    m, k = len(H), root.shape[-1]
    left, c, right = torch.linalg.svd((H @ root) / std[:, None], full_matrices=m < k)
    residual = (y - mean @ H.T) / std
    seen = torch.einsum("...mj,...m->...j", left, residual)
    unseen = residual - torch.einsum("...mj,...j->...m", left, seen)  # 0 for m <= k
    spread = 1 + c**2
    log_evidence = -0.5 * (
        unseen.square().sum(dim=-1)
        + (seen**2 / spread + spread.log()).sum(dim=-1)
        + 2 * std.log().sum()
        + m * math.log(2 * math.pi)
    )
    n = c.shape[-1]  # beyond these, w is as it was
    axes = torch.einsum("...dk,...jk->...dj", root, right)
    moved = mean + torch.einsum("...dj,...j->...d", axes[..., :n], c / spread * seen)
    shrink = torch.ones_like(axes[..., 0, :])
    shrink[..., :n] = spread.rsqrt()
    basis, stds, _ = torch.linalg.svd(axes * shrink[..., None, :], full_matrices=False)
    return Conditioned(moved, basis, stds, log_evidence)

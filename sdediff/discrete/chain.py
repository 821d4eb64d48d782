"""Markov chains from data to noise: what DDPM, NCSN and the chains of other kernels share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.discrete.laws import Gaussian, Law
from sdediff.normalizer import Normalizer
from sdediff.objectives.objective import Batch
from sdediff.objectives.times import uniform
from sdediff.objectives.variational import Bins
from sdediff.predict import affine
from sdediff.protocols import Model, check_model
from sdediff.sde import LinearSDE
from sdediff.solvers import expand
from sdediff.solvers.exponential.euler import posterior_weights
from sdediff.solvers.given import integer, reals

__all__ = ["Chain", "Levels", "evenly"]


class Levels(NamedTuple):
    """x_i = ratios_i x_{i-1} + sqrt(variances_i) noise, so that x_i given x_0 is N(alphas_i x_0,
    sigmas_i^2 I).

    Alphas and sigmas have N + 1 entries, i = 0 (clean data: 1 and 0) to N; ratios and variances N,
    i = 1 to N. Float64, host.
    """

    alphas: Tensor
    """(N + 1,), what x_0 is multiplied by in x_i."""
    sigmas: Tensor
    """(N + 1,), the standard deviation of the noise in x_i."""
    ratios: Tensor
    """(N,), what x_{i-1} is multiplied by in x_i."""
    variances: Tensor
    """(N,), the variance of the noise that step i adds."""


class Chain:
    """x_0, x_1, ..., x_N: a discrete model, whose level i = 1..N is the time t_i of an SDE with the
    same marginals, or with marginals of the same mean and variance.

    A subclass gives ``levels``, and ``grid``, the times t_1 < ... < t_N. Indices i are ints or
    int64 tensors (B,). The kernel is Gaussian unless the subclass gives the three laws
    `step_law`, `marginal_law` and `posterior_law` too; everything else follows from them.
    """

    grid: tuple[float, ...]

    @property
    def levels(self) -> Levels:
        """The chain's coefficients."""
        raise NotImplementedError

    def to_sde(self) -> LinearSDE:
        """An SDE with the chain's marginals at the times ``grid``, smooth between them."""
        raise NotImplementedError

    @property
    def N(self) -> int:
        """How many levels there are."""
        return len(self.grid)

    @cached_property
    def level_times(self) -> Tensor:
        """t_1, ..., t_N, float64."""
        return torch.tensor(self.grid, dtype=torch.float64)

    def index(self, i: int | Tensor, x: Tensor | None = None) -> Tensor:
        """i as an int64 host tensor, () or (B,) with B as in x; a ValueError unless all of it lies
        in 1..N.
        """
        index = torch.as_tensor(i).cpu()
        if (
            index.is_floating_point()
            or index.dtype == torch.bool
            or bool(((index < 1) | (index > self.N)).any())
        ):
            raise ValueError(f"i must lie in 1..{self.N}, ints, got {i!r}")
        if index.ndim > 1 or (index.ndim and x is not None and len(index) != len(x)):
            raise ValueError(
                f"i must be an int or (B,), one for each sample, got shape {tuple(index.shape)}"
            )
        return index.long()

    def draw(
        self, count: int, generator: torch.Generator | None = None, *, stratified: bool = False
    ) -> Tensor:
        """``count`` indices of 1..N, each equally likely; ``stratified``: spread evenly, in random
        order.
        """
        return self.level_of(uniform(count, generator, stratified=stratified))

    def level_of(self, u: Tensor) -> Tensor:
        """The index at the share u of 1..N."""
        return (u * self.N).long().clamp(max=self.N - 1) + 1

    def kernel(self, i: int | Tensor) -> tuple[Tensor, Tensor]:
        """(ratio, std) of q(x_i | x_{i-1}) = N(ratio x_{i-1}, std^2 I), shaped as i."""
        at = self.index(i) - 1
        return self.levels.ratios[at], self.levels.variances[at].sqrt()

    def step_law(self, x: Tensor, i: int | Tensor) -> Law:
        """q(x_i | x_{i-1} = x), of mean ratio_i x and variance variance_i where x is data or noise
        of any kernel: here Gaussian.
        """
        ratio, std = self.kernel(self.index(i, x))
        return Gaussian(expand(ratio, x) * x, expand(std, x))

    def marginal_law(self, x_0: Tensor, i: int | Tensor) -> Law:
        """q(x_i | x_0), of mean alpha_i x_0 and variance sigma_i^2 (that of a `BinomialChain` at
        binary data): here Gaussian.
        """
        at = self.index(i, x_0)
        alpha, sigma = self.levels.alphas[at], self.levels.sigmas[at]
        return Gaussian(expand(alpha, x_0) * x_0, expand(sigma, x_0))

    def posterior_law(self, x: Tensor, x_0: Tensor, i: int | Tensor) -> Law:
        """q(x_{i-1} | x_i = x, x_0): here Gaussian, with the moments of `posterior`."""
        mean, variance = self.posterior(x, x_0, i)
        return Gaussian(mean, expand(variance.sqrt(), x))

    def check_data(self, x_0: Tensor) -> None:
        """A ValueError unless x_0 are data that the kernel is for."""

    def forward(self, x: Tensor, i: int | Tensor, noise: Tensor) -> Tensor:
        """x_i from x = x_{i-1} (B, *event) and standard normals of the same shape: a draw from
        `step_law`, ratio x_{i-1} + std noise where it is Gaussian.
        """
        return self.step_law(x, i).from_noise(noise)

    def perturb(self, x_0: Tensor, i: int | Tensor, noise: Tensor) -> Tensor:
        """x_i from x_0 (B, *event) and standard normals of the same shape, at once: a draw from
        `marginal_law`, alpha_i x_0 + sigma_i noise where it is Gaussian.
        """
        self.check_data(x_0)
        return self.marginal_law(x_0, i).from_noise(noise)

    def noise_in(self, x: Tensor, x_0: Tensor, i: int | Tensor, noise: Tensor) -> Tensor:
        """(x_i - alpha_i x_0) / sigma_i, what a network that predicts noise is to find in x_i = x
        that `perturb` made of ``noise``: here that itself.
        """
        return noise

    def prior_term(self, x_0: Tensor) -> Tensor:
        """KL(q(x_N | x_0) || p(x_N)) of x_0 (B, *event), nats (B,)."""
        raise self._boundless()

    def bound_term(
        self,
        batch: Batch,
        i: Tensor,
        noise: Tensor,
        bins: Bins | None = None,
        normalizer: Normalizer | None = None,
    ) -> Tensor:
        """The variational bound's term of the batch's samples at the levels i (B,), by one draw of
        x_i from normals ``noise``: nats (B,).
        """
        raise self._boundless()

    def _boundless(self) -> TypeError:
        return TypeError(
            "chain must be a DDPM, DDPM.from_schedule('linear', 1000) say, a BinomialChain or a "
            f"MixtureChain; got {self!r}, which has no variational bound"
        )

    def posterior(
        self, x: Tensor, x_0: Tensor, i: int | Tensor, *, std: float | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean (B, *event) and variance, shaped as i, of q(x_{i-1} | x_i = x, x_0).

        With ``std`` in [0, sigma_{i-1}], a number or (B,), it is DDIM's posterior q_sigma of that
        standard deviation: mean alpha_{i-1} x_0 + sqrt(sigma_{i-1}^2 - std^2) (x - alpha_i x_0) /
        sigma_i (Song et al. 2021, arXiv 2010.02502, eq. 7). It has the chain's marginals but is
        not Markov; eta times the root of the variance without ``std`` is DDIM's ``eta``.
        """
        at = self.index(i, x) - 1
        if std is not None:
            std = reals("std", std, "cpu")
            if std.ndim > 1 or (std.ndim and len(std) != len(x)):
                raise ValueError(
                    "std must be a number or (B,), one for each sample, got shape "
                    f"{tuple(std.shape)}"
                )
            alphas, sigmas = self.levels[:2]
            here, before = ((alphas[j], sigmas[j]) for j in (at + 1, at))
            keep, data = posterior_weights(std, here, before)
            mean = expand(keep, x) * x + expand(data, x) * x_0
            return mean, std.square().expand(keep.shape)
        data, keep, variance = (column[at] for column in self.posterior_columns)
        return expand(data, x) * x_0 + expand(keep, x) * x, variance

    def posterior_from_noise(
        self, x: Tensor, noise: Tensor, i: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """`posterior` where x_i = alpha_i x_0 + sigma_i noise is known by its noise: mean (x - v /
        sigma_i noise) / ratio.

        For DDPM (x_i - beta_i / sqrt(1 - alpha_bar_i) noise) / sqrt(1 - beta_i) (Ho et al. 2020,
        arXiv 2006.11239, eq. 11).
        """
        at = self.index(i, x)
        ratio, variance = self.levels.ratios[at - 1], self.levels.variances[at - 1]
        keep, push = 1 / ratio, -variance / (ratio * self.levels.sigmas[at])
        return expand(keep, x) * x + expand(push, x) * noise, self.posterior_columns[2][at - 1]

    @cached_property
    def posterior_columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """(data, keep, variance), each (N,): q(x_{i-1} | x_i, x_0) = N(data x_0 + keep x_i,
        variance I).

        The product of the Gaussians q(x_i | x_{i-1}) and q(x_{i-1} | x_0): data = alpha_{i-1} v /
        sigma_i^2, keep = ratio sigma_{i-1}^2 / sigma_i^2, variance = v sigma_{i-1}^2 / sigma_i^2
        with v the kernel's variance.
        """
        alphas, sigmas, ratios, variances = self.levels
        before, here = sigmas[:-1].square(), sigmas[1:].square()
        return alphas[:-1] * variances / here, ratios * before / here, variances * before / here

    def check_model(self, model: Model) -> None:
        """A ValueError unless the model's SDE has the chain's marginals at the times ``grid``."""
        check_model(model)
        if vars(self).get("_matched") is model.sde:
            return
        gap = self._gap(model.sde)
        if not gap <= 1e-6:
            raise ValueError(
                f"{model.sde!r} does not have the marginals of {self!r} at its times (they "
                f"differ by {gap:.2g}); "
                "give the model the chain's own SDE, ScoreModel(net, chain.to_sde())"
            )
        _ = affine(model, "data", self.level_times)  # a ValueError where it does not follow
        vars(self)["_matched"] = model.sde

    def _gap(self, sde: LinearSDE) -> float:
        """The largest difference of alpha and sigma at the chain's times: of alpha absolute, of
        sigma relative.
        """
        times = self.level_times
        if "kernel" not in sde.offers or float(times[-1]) > sde.T * (1 + 1e-6):
            return float("inf")
        times = times.clamp(max=sde.T)
        off = (
            (sde.alpha(times) - self.levels.alphas[1:]).abs(),
            (sde.sigma(times) / self.levels.sigmas[1:] - 1).abs(),
        )
        return float(torch.maximum(*off).max())


def evenly(N: int, count: int, power: float = 1.0) -> Sequence[int]:
    """``count`` of 1..N that rise from 1 to N (N alone for one): at shares (k / (count - 1))^power,
    rounded, no two alike.
    """
    count = integer("the number of steps", count, 1, N, kind=f"an int in 1..{N}")
    if count == 1:
        return [N]
    chosen: list[int] = []
    for k in range(count):
        wanted = round(1 + (N - 1) * (k / (count - 1)) ** power)
        chosen.append(max(wanted, chosen[-1] + 1 if chosen else 1))
    return chosen

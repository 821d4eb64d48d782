"""The law of fully degraded data: a Gaussian mixture of their colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdediff._extras import require
from sdediff.calls import check_states
from sdediff.solvers.given import NotNegative, Record, integer

__all__ = ["MixtureStart"]

_UNEVEN = 0.05
"""What may be left of the data beside their channels' means, over the means' standard deviation."""


@dataclass(frozen=True)
class MixtureStart(Record):
    """Images of one colour, drawn from a Gaussian mixture, and small noise: x = y + noise z.

    y (B, C) is the same at all places of a channel, and is drawn from N(means_k, covariances_k)
    with probability weights_k; z is standard normal, one number a coordinate. The noise breaks the
    symmetry of images of one colour, without which what is restored has little variety (Bansal et
    al. 2022, arXiv 2208.09392, section 5.2, with 0.002 and one component); 0: none.
    """

    weights: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    covariances: tuple[tuple[tuple[float, ...], ...], ...]
    noise: NotNegative = 0.002

    def __post_init__(self) -> None:
        weights, means, covariances = (
            np.asarray(each, dtype=np.float64)
            for each in (self.weights, self.means, self.covariances)
        )
        K, C = means.shape if means.ndim == 2 else (0, 0)
        if not K or weights.shape != (K,) or covariances.shape != (K, C, C):
            raise ValueError(
                "MixtureStart: K components of C channels have weights (K,), means (K, C) and "
                f"covariances (K, C, C); got {weights.shape}, {means.shape}, {covariances.shape}"
            )
        if not (weights > 0).all() or not math.isclose(weights.sum(), 1, rel_tol=1e-6):
            raise ValueError(f"MixtureStart: weights are positive and sum to 1, got {self.weights}")
        vars(self).update(
            weights=tuple(weights.tolist()),
            means=tuple(map(tuple, means.tolist())),
            covariances=tuple(tuple(map(tuple, each)) for each in covariances.tolist()),
        )

    @classmethod
    def fit(
        cls, x: Tensor, *, components: int = 1, noise: float = 0.002, seed: int = 0
    ) -> MixtureStart:
        """The law of fully degraded data x (N, C, *space) by scikit-learn's `GaussianMixture` of
        their channels' means (the extra ``data``); a ValueError where x is not of one colour.
        """
        check_states("x", x)
        if x.ndim < 3 or len(x) < 2:
            raise ValueError(f"x are images, (N, C, *space) with N > 1; got {tuple(x.shape)}")
        components = integer("components", components, 1, len(x))
        flat = x.detach().cpu().double().flatten(2)
        colours = flat.mean(dim=2)
        rest = float((flat - colours[..., None]).square().mean().sqrt())
        spread = float(colours.var(dim=0).mean().sqrt())
        if not rest <= _UNEVEN * spread:
            raise ValueError(
                "fully degraded data have to be of one colour, or nearly: beside the means of "
                f"their channels, of standard deviation {spread:.3g}, there is {rest:.3g} left; "
                "degrade them further: more levels, or Blur(complete=True)"
            )
        mixture = require("sklearn.mixture", "data").GaussianMixture(components, random_state=seed)
        found = mixture.fit(colours.numpy())
        return cls(found.weights_, found.means_, found.covariances_, noise)

    def from_noise(self, z: Tensor) -> Tensor:
        """The draw that a standard normal z (B, C, *space) becomes.

        The normal z has means of its channels, which are independent of the rest: they make y, and
        the rest the noise. The mean of the first channel chooses the component, by its place
        between the quantiles of the weights, and is normal again by its place there.
        """
        self._check(z)
        wide = z.double() if z.device.type != "mps" else z
        flat = wide.flatten(2)
        count = flat.shape[2]
        u = flat.mean(dim=2) * math.sqrt(count)  # standard normal (B, C)
        weights, means, roots = self._tensors(wide, count)
        edges = torch.cat([weights.new_zeros(1), weights.cumsum(0)[:-1]])
        place = torch.special.ndtr(u[:, 0])
        k = (torch.bucketize(place, edges, right=True) - 1).clamp(min=0)
        small = torch.finfo(wide.dtype).eps
        inside = ((place - edges[k]) / weights[k]).clamp(small, 1 - small)
        first = u[:, 0] if len(weights) == 1 else torch.special.ndtri(inside)
        u = torch.cat([first[:, None], u[:, 1:]], dim=1)
        colours = means[k] + (roots[k] @ u[..., None])[..., 0]
        rest = flat - flat.mean(dim=2, keepdim=True)
        return (colours[..., None] + self.noise * rest).reshape(z.shape).to(z.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x (B, C, *space) in nats, (B,); a ValueError without noise, where there is
        none.
        """
        self._check(x)
        if self.noise == 0:
            raise ValueError("images of one colour have no density: give MixtureStart a noise")
        flat = x.double().flatten(2)
        channels, count = flat.shape[1:]
        colours = flat.mean(dim=2)
        weights, means, roots = self._tensors(flat, count)
        normals = torch.distributions.MultivariateNormal(means, scale_tril=roots)
        mixed = (normals.log_prob(colours[:, None]) + weights.log()).logsumexp(dim=1)
        rest = (flat - colours[..., None]).square().sum(dim=(1, 2)) / self.noise**2
        scale = (count - 1) * math.log(2 * math.pi * self.noise**2) + math.log(count)
        found: Tensor = mixed - 0.5 * rest - 0.5 * channels * scale
        return found

    def _tensors(self, x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and roots of the covariances of the channels' means of ``count`` places,
        the noise among them.
        """
        weights, means, covariances = (
            torch.tensor(each, dtype=x.dtype, device=x.device)
            for each in (self.weights, self.means, self.covariances)
        )
        more = torch.eye(means.shape[1], dtype=x.dtype, device=x.device) * self.noise**2 / count
        return weights, means, torch.linalg.cholesky(covariances + more)

    def _check(self, x: Tensor) -> None:
        """A ValueError unless it has the channels."""
        if x.ndim < 3 or x.shape[1] != len(self.means[0]):
            raise ValueError(
                f"the start was fitted to images of {len(self.means[0])} channels, (B, C, *space); "
                f"got shape {tuple(x.shape)}"
            )

"""Score matching without a target: implicit (by the trace) and sliced (by projections)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sdediff.drawing import drawn
from sdediff.masks import counts, kept
from sdediff.objectives.objective import Batch, Timed, factor
from sdediff.predict import predict
from sdediff.protocols import sigma_data
from sdediff.simulation import simulate
from sdediff.solvers import expand, rowwise
from sdediff.solvers.given import Count, Positive

__all__ = ["ImplicitScoreMatching", "SlicedScoreMatching"]

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Matching(Timed):
    """What the two share: where the score is looked at.

    ``perturbed``: at x_t, as denoising score matching does: drawn by the Gaussian kernel, and under
    an SDE that has none by `simulate` in ``simulated`` steps from 0 to t_max, times being multiples
    of those. If not: at the data themselves and t_min.
    """

    perturbed: bool = field(default=True, kw_only=True)
    simulated: Count = field(default=100, kw_only=True)

    def losses(self, batch: Batch) -> Tensor:
        """They are differentiable twice where gradients are on; directions are always drawn."""
        model = batch.model
        batch = batch.prepared()
        if not self.perturbed:
            batch = batch._replace(
                at=torch.full(batch.x_0.shape[:1], model.sde.t_min, dtype=torch.float64)
            )
        time, weights = self.given(batch)
        graph = torch.is_grad_enabled()
        x, time = self._states(batch, time)
        mask = batch.mask
        weights = weights * factor(self.weighting, model.sde, "score", time, sigma_data(model))

        def score(at: Tensor) -> Tensor:
            # Through `kept` on both sides no gradient goes to or comes from what does not exist.
            return kept(predict(model, "score", kept(at, mask), time, batch.condition, mask), mask)

        with torch.enable_grad():
            losses = self._objective(score, x, batch.generator) / counts(x, mask)
        losses = losses if graph else losses.detach()
        return torch.as_tensor(expand(weights, losses)) * losses

    def _states(self, batch: Batch, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, t), the states requiring gradients."""
        sde, x = batch.model.sde, batch.x_0
        if self.perturbed and "kernel" in sde.offers:
            x = sde.perturb(x, t, batch.drawn())
        elif self.perturbed:
            if batch.noise is not None:
                raise ValueError(
                    f"{sde!r} has no Gaussian kernel: x_t is simulated, and no one noise makes "
                    "it; drop noise="
                )
            seeds = drawn(
                len(x), batch.generator, lambda n, g: torch.randint(2**62, (n,), generator=g)
            ).tolist()
            with torch.no_grad():
                path = simulate(sde, x, steps=self.simulated, seed=seeds, trajectory=True)
            frames = path.trajectory if path.trajectory is not None else x[None]
            first = math.ceil(sde.t_min / sde.t_max * self.simulated)
            index = (t / sde.t_max * self.simulated).round().long().clamp(first)
            x = frames[index.to(x.device), torch.arange(len(x), device=x.device)]
            t = path.times[index]
        return kept(x.detach(), batch.mask).requires_grad_(), t

    def _objective(self, score: Score, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """||s||^2 + 2 tr(grad s), or what has that mean; (B,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImplicitScoreMatching(_Matching):
    """w(t) / d (||s||^2 + 2 tr(grad s)) at (x_t, t), s the model's score (Hyvaerinen 2005, Theorem
    1, in twice its units).

    On average denoising score matching in the same weighting, less w(t) / sigma^2: it has no
    target, so that an SDE without a Gaussian kernel will do, and data at no noise. The trace is
    exact and costs one backward pass a coordinate.
    """

    def _objective(self, score: Score, x: Tensor, generator: torch.Generator | None) -> Tensor:
        s = rowwise(score(x))
        trace = torch.zeros_like(s[:, 0])
        for k in range(s.shape[1]):
            (row,) = torch.autograd.grad(
                s[:, k].sum(), x, create_graph=True, allow_unused=True, materialize_grads=True
            )
            trace = trace + rowwise(row)[:, k]
        return s.square().sum(dim=1) + 2 * trace


@dataclass(frozen=True)
class SlicedScoreMatching(_Matching):
    """w(t) / d (||s||^2 + 2 v^T grad(s) v), the mean over ``slices`` random directions v with E[v
    v^T] = I.

    Song et al. 2019 (arXiv 1905.07088, eq. 8), in twice its units. ``variance_reduction=False`` has
    (v^T s)^2 for ||s||^2 (eq. 7). ``directions`` are ``"rademacher"`` or ``"gaussian"``.
    ``finite_difference`` eps: (s(x + eps v) - s(x - eps v)) / (2 eps) for grad(s) v (Pang et al.
    2020, arXiv 2007.03317): two more evaluations in place of a second derivative, off by O(eps^2).
    """

    slices: Count = field(default=1, kw_only=True)
    directions: Literal["rademacher", "gaussian"] = field(default="rademacher", kw_only=True)
    variance_reduction: bool = field(default=True, kw_only=True)
    finite_difference: Positive | None = field(default=None, kw_only=True)

    def _objective(self, score: Score, x: Tensor, generator: torch.Generator | None) -> Tensor:
        s = score(x)
        total = torch.zeros_like(rowwise(s)[:, 0])
        for _ in range(self.slices):
            v = drawn(
                len(x),
                generator,
                lambda n, g: torch.randn((n, *x.shape[1:]), generator=g, dtype=x.dtype),
            ).to(x.device)
            v = torch.where(v < 0, -1.0, 1.0).to(x.dtype) if self.directions == "rademacher" else v
            if self.finite_difference is None:
                (pulled,) = torch.autograd.grad(
                    (s * v).sum(), x, create_graph=True, allow_unused=True, materialize_grads=True
                )
            else:
                step = self.finite_difference * v
                pulled = (score(x + step) - score(x - step)) / (2 * self.finite_difference)
            size = s.square() if self.variance_reduction else 0 * s
            total = total + rowwise(size + 2 * pulled * v).sum(dim=1)
            if not self.variance_reduction:
                total = total + rowwise(s * v).sum(dim=1).square()
        return total / self.slices

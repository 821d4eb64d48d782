"""What all particles share: weights, resampling by islands, the evidence and the families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sdediff.solvers.given import Count, NotNegative
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver, Step

__all__ = ["Resampling", "systematic"]


def systematic(weights: Tensor, u: Tensor) -> Tensor:
    """Which of n are drawn, int64 (sets, n) on their device: each floor or ceil of n w_i times.

    ``weights`` (sets, n) sum to 1 in each set, and ``u`` (sets,) are uniform on [0, 1]: the places
    (u + j) / n are looked up in the sums of the weights.
    """
    n = weights.shape[1]
    places = (u[:, None] + torch.arange(n, device=weights.device)) / n
    return torch.searchsorted(weights.cumsum(dim=1), places).clamp(max=n - 1)


class Resampling(Solver):
    """Base of solvers whose rows are ``n`` weighted particles of each sample, in ``islands`` sets.

    A subclass is a frozen dataclass with the fields below. Its state is a tuple that begins with
    the log weights, the log evidence of the islands and the number of each particle's ancestor at
    the start, as `begun` returns them. Its ``step`` calls `resampled` first: an island whose
    effective sample size is below half of its particles is resampled systematically. It ends with
    `weighted`, which hands the three numbers on to `sample_weighted`.
    """

    n: Count
    islands: Count
    stop: NotNegative

    stochastic = True
    spacing = "log_snr"
    asks: ClassVar[frozenset[str]] = frozenset()
    """The extras of the model that the weights are made of."""
    ends: ClassVar[str | None] = None
    """What `sdediff.sample` does at the end, its ``last``; None: its default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n % self.islands:
            raise ValueError(
                f"{type(self).__name__}: n must be a multiple of the {self.islands} islands, got "
                f"{self.n}; take {-(-self.n // self.islands) * self.islands}"
            )

    @property
    def group(self) -> int:
        """All particles of a sample."""
        return self.n

    def check(self, problem: Problem, times: Tensor) -> None:
        """A ValueError unless the model has what the weights are made of, at times of one grid."""
        name = type(self).__name__
        if not self.asks <= problem.offers:
            raise ValueError(
                f"{name} needs a model with weights: the twist of a measurement, "
                "posterior.sample_posterior(model, measurement, y, shape, particles="
                "Particles(n)), or a Reward for Particles; a Product or Anneal for FeynmanKac"
            )
        if problem.breaks or times.ndim > 1:
            raise ValueError(
                f"{name}: weights go through the whole solve of a sample: take a model without "
                "breaks, and one grid for all samples"
            )

    def begun(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, the log evidence of islands, and which particle each comes from."""
        zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        return zero, zero, torch.arange(len(x), device=x.device) % self.n

    def resampled(
        self, problem: Problem, noise: StepNoise, x: Tensor, state: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, *tuple[Tensor, ...]]:
        """x and the state of the particles that go on. Nothing changes in islands whose weights
        are even.
        """
        log_weight, evidence, *carried = state
        place = torch.special.ndtr(problem.first(noise.normal("resampling")).double())
        size = self.n // self.islands
        logs = log_weight.reshape(-1, size)
        weights = logs.softmax(dim=1)
        uneven = (weights.square().sum(dim=1) > 2 / size)[:, None]
        total = (logs.logsumexp(dim=1, keepdim=True) - logs.new_tensor(size).log()).expand_as(logs)
        first = size * torch.arange(len(logs), device=logs.device)[:, None]
        own = torch.arange(size, device=logs.device)
        rows = (first + torch.where(uneven, systematic(weights, place[::size]), own)).flatten()
        kept = torch.where(uneven, 0.0, logs).flatten()
        gain = torch.where(uneven, total, 0.0).flatten()
        ancestor, *rest = (each[rows] for each in carried)
        return x[rows], kept, evidence + gain, ancestor, *rest

    @staticmethod
    def weighted(x: Tensor, state: tuple[Tensor, ...]) -> Step:
        """The step to x with the state after it."""
        names = ("log_weight", "log_evidence", "ancestor")
        return Step(x, None, state, extras=dict(zip(names, state, strict=False)))

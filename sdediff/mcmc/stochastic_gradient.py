"""Stochastic-gradient Langevin dynamics: minibatches of a posterior's data, and steps that
decay.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdediff.mcmc.kernels import Kernel, Noise, langevin
from sdediff.mcmc.target import LogDensity, Point, Target
from sdediff.modules import evaluating
from sdediff.solvers import White
from sdediff.solvers.given import Count, Natural, Positive, Record, described, within

__all__ = ["SGLD", "Decay", "Posterior"]


@dataclass(frozen=True)
class Decay(Record):
    """Step sizes step_n = a (b + n)^{-gamma} of the steps n = 0, 1, ...

    With 1/2 < gamma <= 1 their sum is infinite, so that the chain gets everywhere, and that of
    their squares finite, so that the noise of minibatches dies out (Welling and Teh 2011, eq. 2).
    gamma = 1/3 has the least error at a given cost (Teh, Thiery and Vollmer 2016, arXiv 1409.0578),
    but not the second of these: a function of n does for it.
    """

    a: Positive
    b: Positive = 1.0
    gamma: float = 0.55

    def __post_init__(self) -> None:
        if not 0.5 < self.gamma <= 1:
            raise ValueError(
                "Decay: gamma must lie in (1/2, 1], for step sizes of infinite sum and finite "
                "sum of squares; got "
                f"{self.gamma!r}; pass SGLD a function of n for others"
            )

    def __call__(self, n: int) -> float:
        return float(self.a * (self.b + n) ** -self.gamma)


@dataclass(frozen=True)
class SGLD(Kernel):
    """x <- x + step_n g_n(x) + sqrt(2 step_n) z, g_n an unbiased estimate of the score (Welling and
    Teh 2011, eq. 4).

    Their epsilon is twice ``step``, a number or a function of n = 0, 1, ..., `Decay` say. The
    target is a `Posterior`, whose minibatches give g_n; on any other it is `ULA` with steps that
    may decay. With a constant step the stationary law is off by O(step), through the discretization
    and through the variance of g_n. With decaying ones the draws have the weights step_n:
    ``Chains.mean`` and ``std`` use them. One evaluation a step, of ``batch_size`` data.
    """

    step: float | Callable[[int], float]

    minibatches = True

    def __post_init__(self) -> None:
        if not callable(self.step):
            within("SGLD: step", self.step, "Positive")

    def start(self, target: Target, x: Tensor, momentum: Tensor | None, noise: Noise) -> Point:
        """Nothing is known before the step's minibatch."""
        return Point(x)

    def move(self, target: Target, here: Point, noise: Noise, number: int) -> tuple[Point, None]:
        look = target.draw(noise.events, number).look(here.x, score=True)
        size = self.step(number) if callable(self.step) else self.step
        within(f"SGLD: step({number})", size, "Positive")
        return Point(langevin(look, size, noise.normal(number))), None

    def size(self, number: int) -> float | None:
        return self.step(number) if callable(self.step) else None


@dataclass(frozen=True, eq=False)
class Posterior(Target):
    """p(x | y) of N data: log p = log_prior(x) + sum over j of log_likelihood(x, y_j).

    ``log_prior(x)`` is (chains,). ``log_likelihood(x, y)`` is (chains, n) for data y (chains, n,
    *datum), a batch for each chain; ``data`` is (N, *datum) or a tuple of such tensors, which come
    as ``log_likelihood(x, y, z)``. With ``batch_size`` n a step of `SGLD` sees log_prior + N / n
    times the sum over n data, drawn uniformly and with replacement: unbiased. Each chain draws its
    own, by its seed, or, with ``shared_seed``, all of them the same. With ``batch_size`` None the
    target is full-batch, and for any kernel.
    """

    log_prior: Callable[[Tensor], Tensor]
    log_likelihood: Callable[..., Tensor]
    data: Tensor | tuple[Tensor, ...]
    batch_size: Count | None = None
    shared_seed: Natural | None = None

    def __post_init__(self) -> None:
        tensors = self.columns
        if not tensors or not all(isinstance(y, Tensor) and y.ndim for y in tensors):
            raise TypeError(
                "Posterior: data must be a tensor (N, *datum) or a tuple of them, got "
                f"{type(self.data).__name__}"
            )
        counts = {len(y) for y in tensors}
        if len(counts) > 1 or not self.count:
            raise ValueError(
                f"Posterior: data must have one first dimension N >= 1, got {sorted(counts)}"
            )
        if any(y.is_floating_point() and not bool(torch.isfinite(y).all()) for y in tensors):
            raise ValueError("Posterior: data contain values that are not finite")
        if self.batch_size is not None and self.batch_size > self.count:
            raise ValueError(
                f"Posterior: batch_size = {self.batch_size} of {self.count} data; pass None for "
                "all of them"
            )

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The data's tensors."""
        return self.data if isinstance(self.data, tuple) else (self.data,)

    @property
    def count(self) -> int:
        """N."""
        return len(self.columns[0])

    @property
    def full_batch(self) -> bool:
        return self.batch_size is None

    @cached_property
    def _shared(self) -> White | None:
        return None if self.shared_seed is None else White((self.shared_seed,), ())

    def evaluating(self) -> AbstractContextManager[None]:
        return evaluating(self.log_prior, self.log_likelihood)

    def draw(self, noise: White, step: int) -> Target:
        """The posterior as the step's minibatches have it."""
        if self.batch_size is None:
            return self
        index = (self._shared or noise).integers(step, "minibatch", self.batch_size, self.count)
        return self._of(
            tuple(y[index.to(y.device)] for y in self.columns), self.count / self.batch_size
        )

    def look(self, x: Tensor, *, score: bool) -> Point:
        return self._of(tuple(y[None] for y in self.columns), 1.0).look(x, score=score)

    def rise(self, here: Point, there: Point) -> Tensor:
        return LogDensity(self.log_prior).rise(here, there)

    def _of(self, batch: tuple[Tensor, ...], scale: float) -> LogDensity:
        """The log-density with data (chains or 1, n, *datum) that stand for ``scale`` times as
        many.
        """
        n = batch[0].shape[1]

        def log_prob(x: Tensor) -> Tensor:
            each = self.log_likelihood(x, *(y.expand(len(x), *y.shape[1:]) for y in batch))
            if not isinstance(each, Tensor) or each.shape != (len(x), n):
                raise ValueError(
                    f"log_likelihood(x, y) must return a tensor (chains, n) = {(len(x), n)}, got "
                    f"{described(each)}"
                )
            return self.log_prior(x) + scale * each.sum(dim=1)

        return LogDensity(log_prob)

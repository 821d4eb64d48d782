"""The inception score of samples that come batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdediff.metrics.features import class_probabilities
from sdediff.metrics.measured import GROUPS, Jackknife, Measured, group_of
from sdediff.metrics.samples import accumulator

__all__ = ["ClassShares"]


@dataclass(eq=False)
class ClassShares:
    """Sums over samples of p(y | x) (g, K) and of its negative entropy (g,) by group, in float64:
    row i is in group i mod ``groups``.
    """

    groups: int = GROUPS
    sizes: Tensor = field(default_factory=lambda: torch.zeros(0))
    shares: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    negentropy: Tensor = field(default_factory=lambda: torch.zeros(0))

    def update(self, logits: Tensor) -> None:
        """Add logits (B, K)."""
        if logits.ndim != 2:
            raise ValueError(f"logits have shape {tuple(logits.shape)}: expected (B, K)")
        p = class_probabilities(logits.to(accumulator(logits.device)), logits=True)
        if not len(self.sizes):
            self.sizes, self.negentropy = p.new_zeros(2, self.groups)
            self.shares = p.new_zeros(self.groups, p.shape[1])
        first = int(self.sizes.sum())
        own = group_of(first + len(p), self.groups, p.device)[first:]
        self.sizes = self.sizes.index_add(0, own, torch.ones_like(p[:, 0]))
        self.shares = self.shares.index_add(0, own, p)
        self.negentropy = self.negentropy.index_add(0, own, torch.xlogy(p, p).sum(dim=1))

    def measured(self) -> Measured:
        """The inception score of all samples, in one, with standard error and bias by leaving out
        groups: it is too small, or too large, by an amount of order K / n.
        """
        count = int(self.sizes.sum())
        if count < 1:
            raise ValueError("there are no logits: add samples first")
        value = self._scores(self.sizes.sum(), self.shares.sum(0), self.negentropy.sum())
        used = self.sizes > 0
        found = []
        if int(used.sum()) > 1:
            left = (self.sizes.sum() - self.sizes)[used]
            shares = (self.shares.sum(0) - self.shares)[used]
            without = self._scores(left, shares, (self.negentropy.sum() - self.negentropy)[used])
            found.append(Jackknife.of(value, without, left))
        stderr, bias = Jackknife.total(found)
        return Measured(float(value), stderr=stderr, bias=bias, n=count)

    @staticmethod
    def _scores(sizes: Tensor, shares: Tensor, negentropy: Tensor) -> Tensor:
        """exp(H(E p) - E H(p))."""
        mean = shares / sizes[..., None]
        divergence = negentropy / sizes - torch.xlogy(mean, mean).sum(dim=-1)
        return divergence.clamp(min=0).exp()

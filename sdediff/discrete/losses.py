"""Losses of chains: of any chain, and of DDPM simple, variational and both, with times drawn by how
large the losses are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sdediff.discrete.bound import data_error, transition
from sdediff.discrete.chain import Chain
from sdediff.discrete.ddpm import DDPM
from sdediff.drawing import learned
from sdediff.masks import counts, mean_over
from sdediff.objectives.objective import Batch, Loss
from sdediff.objectives.times import uniform
from sdediff.objectives.variational import Bins
from sdediff.solvers import expand
from sdediff.solvers.given import Positive, integer, real

__all__ = ["ChainLoss", "DDPMLoss", "LossAware"]


class LossAware(nn.Module):
    """Levels drawn with p_i in proportion to sqrt(E[L_i^2]) over the last ``history`` losses of
    each (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 18), and weights 1 / (N p_i) that keep the
    mean what it was.

    Until every level has been seen ``history`` times, and afterwards with probability ``uniform``,
    all are alike. It learns as the loss is evaluated with gradients, in `fit` of the whole batch of
    a step, whatever the number of processes; its state is kept in the run folder.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, N: int, history: int = 10, uniform: float = 1e-3) -> None:
        super().__init__()
        N = integer("LossAware: N", N, 1)
        history = integer("LossAware: history", history, 1)
        uniform = real("LossAware: uniform", uniform)
        if not 0 < uniform <= 1:
            raise ValueError(
                f"LossAware: uniform must lie in (0, 1], or weights have no bound; got {uniform!r}"
            )
        self.uniform = uniform
        self.register_buffer("losses", torch.zeros(N, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(N, dtype=torch.int64))

    @property
    def probabilities(self) -> Tensor:
        """p_i, (N,)."""
        N, history = self.losses.shape
        if bool((self.counts < history).any()):
            return torch.full((N,), 1 / N, dtype=torch.float64)
        size = self.losses.square().mean(dim=1).sqrt()
        total = float(size.sum())
        share = size / total if 0 < total < math.inf else torch.full_like(size, 1 / N)
        return (1 - self.uniform) * share + self.uniform / N

    def levels(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(i, weights) for uniform u (B,)."""
        p = self.probabilities
        i = torch.searchsorted(p.cumsum(0) / p.sum(), u).clamp(max=len(p) - 1)
        return i + 1, 1 / (len(p) * p[i])

    @torch.no_grad()
    def record(self, i: Tensor, losses: Tensor) -> None:
        """Remember losses (B,), before they are weighted, of the levels i (B,)."""
        for level, value in zip(
            (i - 1).tolist(), losses.detach().double().cpu().tolist(), strict=True
        ):
            self.losses[level, int(self.counts[level]) % self.losses.shape[1]] = value
            self.counts[level] += 1


@dataclass(frozen=True)
class ChainLoss(Loss):
    """A loss of any chain at one random level i in 1..N a sample.

    - ``"simple"``: the mean over the event of |noise - predicted noise|^norm, where noise is (x_i -
      alpha_i x_0) / sigma_i whatever the kernel: with ``norm`` 2 L_simple of DDPM and the loss of
      NCSN, with 1 the loss of Nachmani et al. 2021 (arXiv 2106.07582) for Gamma noise;
    - ``"vlb"``: N times the variational bound's term at i, in bits per dimension, of a chain that
      has a bound: a `DDPM`, a `MixtureChain`, or a `BinomialChain` (Sohl-Dickstein et al. 2015,
      arXiv 1503.03585, eq. 14).

    ``stratified`` spreads the levels of a batch evenly. The model's SDE has the chain's marginals,
    or their mean and variance: `Chain.to_sde`.
    """

    takes: ClassVar[tuple[str, ...]] = ("i", "noise")
    chain: Chain
    kind: Literal["simple", "vlb"] = "simple"
    norm: int = 2
    stratified: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.chain, Chain):
            raise TypeError(
                "ChainLoss: chain takes a chain, DDPM.from_schedule('linear', 1000) say; got "
                f"{self.chain!r}"
            )
        _ = integer("ChainLoss: norm", self.norm, 1, 2, kind="1 or 2")
        if self.kind == "vlb":
            _ = self.chain.prior_term(torch.ones(1, 1))  # a TypeError where there is no bound

    def losses(self, batch: Batch) -> Tensor:
        model, chain = batch.model, self.chain
        chain.check_model(model)
        batch = batch.prepared()
        x_0, mask = batch.x_0, batch.mask
        chain.check_data(x_0 if mask is None else x_0[mask])
        i = batch.at
        if i is None:
            i = chain.draw(len(x_0), batch.generator, stratified=self.stratified)
        i = chain.index(i, x_0).expand(len(x_0))
        noise = batch.drawn()
        if self.kind == "vlb":
            nats = chain.bound_term(batch, i, noise)
            return (chain.N / (counts(x_0, mask) * math.log(2)) * nats).to(x_0.dtype)
        error = data_error(chain, batch, i, noise)[0]
        return mean_over(error.abs() if self.norm == 1 else error.square(), mask)


@dataclass(frozen=True)
class DDPMLoss(Loss):
    """A loss of DDPM at one random level i in 1..N a sample (or `LossAware` ones).

    - ``"simple"``: L_simple = ||noise - predicted noise||^2 / d (Ho et al. 2020, arXiv 2006.11239,
      eq. 14): denoising score matching with the weighting sigma^2, at the chain's times;
    - ``"vlb"``: N times the bound's term at i, in bits per dimension: on average the bound less
      L_N, which nothing learns from;
    - ``"hybrid"``: L_simple + vlb_weight L_vlb, the latter with no gradient through the predicted
      mean (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 16), so that it trains the variance
      alone; takes ``DDPM(variance="learned")``.

    ``bins`` are the values on which the data lie; None: a Gaussian decoder. ``stratified`` spreads
    the levels of a batch evenly. The model's SDE has the chain's marginals: the SDE of
    `DDPM.from_sde`, or `DDPM.to_sde`.
    """

    takes: ClassVar[tuple[str, ...]] = ("i", "noise")
    chain: DDPM
    kind: Literal["simple", "vlb", "hybrid"] = "simple"
    vlb_weight: Positive = 1e-3
    bins: Bins | None = None
    stratified: bool = False
    sampler: LossAware | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.chain, DDPM):
            raise TypeError(
                "DDPMLoss: chain takes a DDPM, DDPM.from_schedule('linear', 1000) say; got "
                f"{self.chain!r}"
            )
        if self.kind == "hybrid" and self.chain.variance != "learned":
            raise ValueError(
                f"DDPMLoss: the hybrid loss trains a variance, and {self.chain!r} has none to "
                "learn: take variance='learned'"
            )
        for name, kind in (("bins", Bins), ("sampler", LossAware)):
            value = getattr(self, name)
            if not isinstance(value, kind | None):
                raise TypeError(
                    f"DDPMLoss: {name} must be a {kind.__name__} or None, got {value!r}"
                )
        if self.sampler is not None and len(self.sampler.counts) != self.chain.N:
            raise ValueError(
                f"DDPMLoss: the sampler is for {len(self.sampler.counts)} levels, the chain has "
                f"{self.chain.N}"
            )

    def losses(self, batch: Batch) -> Tensor:
        model, chain = batch.model, self.chain
        chain.check_model(model)
        batch = batch.prepared()
        x_0, mask = batch.x_0, batch.mask
        if self.kind != "simple" and self.bins is not None:
            self.bins.check(x_0 if mask is None else x_0[mask])
        weights = torch.ones(len(x_0), dtype=torch.float64)
        i = batch.at
        if i is None:
            i, weights = self.draw_levels(len(x_0), batch.generator)
        i = chain.index(i, x_0).expand(len(x_0))
        losses = self._losses(batch, i, batch.drawn())
        if self.sampler is not None and batch.at is None and torch.is_grad_enabled():
            learned(self.sampler.record, i, losses)
        return losses * torch.as_tensor(expand(weights, losses))

    def _losses(self, batch: Batch, i: Tensor, noise: Tensor) -> Tensor:
        chain, x_0, mask = self.chain, batch.x_0, batch.mask
        in_noise, in_data, learned = data_error(chain, batch, i, noise)
        simple = mean_over(in_noise.square(), mask)
        if self.kind == "simple":
            return simple
        learned = learned if chain.variance == "learned" else None
        error = in_data.detach() if self.kind == "hybrid" else in_data
        nats = transition(chain, batch, i, error, learned, self.bins)
        bits = (chain.N / (counts(x_0, mask) * math.log(2)) * nats).to(simple.dtype)
        return bits if self.kind == "vlb" else simple + self.vlb_weight * bits

    def draw_levels(
        self, count: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(i, weights), each (count,) on the host."""
        u = uniform(count, generator, stratified=self.stratified)
        if self.sampler is not None:
            return self.sampler.levels(u)
        return self.chain.level_of(u), torch.ones(count, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """What the sampler has seen."""
        return {} if self.sampler is None else dict(self.sampler.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        if self.sampler is not None:
            self.sampler.load_state_dict(dict(state))

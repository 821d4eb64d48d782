"""The variational bound of a chain: every term of it, in nats and in bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdediff.arguments import check_condition, check_device, check_seed, check_states
from sdediff.calls import Condition
from sdediff.discrete.chain import Chain
from sdediff.masks import kept, sum_over
from sdediff.modules import evaluating
from sdediff.normalizer import Normalizer
from sdediff.objectives.objective import Batch
from sdediff.objectives.variational import Bins
from sdediff.predict import conversion_of, outputs, target
from sdediff.progress import progress_bar
from sdediff.protocols import Model, facts
from sdediff.solvers import White, expand, rowwise
from sdediff.solvers.arithmetic import at_least_float32
from sdediff.solvers.given import integer

if TYPE_CHECKING:
    from sdediff.discrete.ddpm import DDPM

__all__ = [
    "VariationalBound",
    "data_error",
    "decoder_term",
    "prior_term",
    "transition",
    "variational_bound",
]


def prior_term(chain: DDPM, x_0: Tensor) -> Tensor:
    """L_N = KL(q(x_N | x_0) || N(0, I)) of x_0 (B, *event), nats (B,)."""
    alpha, sigma = float(chain.levels.alphas[-1]), float(chain.levels.sigmas[-1])
    flat = rowwise(x_0).double() if x_0.device.type != "mps" else rowwise(x_0)
    spread = sigma**2 - 1 - 2 * math.log(sigma)
    return 0.5 * (alpha**2 * flat.square().sum(dim=1) + spread * flat.shape[1])


def transition(
    chain: DDPM,
    batch: Batch,
    i: Tensor,
    error: Tensor,
    learned: Tensor | None,
    bins: Bins | None,
    normalizer: Normalizer | None = None,
) -> Tensor:
    """The bound's term of each sample, nats (B,): -log p(x_0 | x_1) where i = 1, else the
    divergence of the model's reverse step.

    KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i)), Gaussians both. ``error`` is E[x_0 | x_i] - x_0,
    ``learned`` the network's second output. With q's mean data x_0 + keep x_i and variance v_q, and
    p's at the predicted x_0 with variance v, the divergence of a coordinate is (log(v / v_q) - 1 +
    v_q / v + data^2 error^2 / v) / 2. Coordinates outside the mask have none. ``bins``, and the
    density without them, are in the units of ``normalizer``.
    """
    mask = batch.mask
    dtype = torch.float64 if batch.x_0.device.type != "mps" else torch.float32
    x_0 = batch.x_0.to(dtype)
    error = error.to(dtype)
    learned = None if learned is None else learned.to(dtype)
    data = chain.posterior_columns[0][i - 1]
    own = chain.log_variances[0][i - 1]  # of q; at i = 1, where it has none, what is not used
    log_v = chain.log_variance(i, learned)
    if learned is None:
        log_v = torch.as_tensor(expand(log_v, x_0)).expand_as(x_0)
    ratio = torch.exp(torch.as_tensor(expand(own, x_0)) - log_v)
    pull = torch.as_tensor(expand(data.square(), x_0)) * error.square() * torch.exp(-log_v)
    terms = sum_over(0.5 * (ratio - 1 - ratio.log() + pull), mask)
    first = torch.nonzero(i == 1).flatten().to(x_0.device)
    if not len(first):
        return terms
    seen = None if mask is None else mask[first]
    coded = decoder_term(x_0[first], error[first], log_v[first], bins, seen, normalizer)
    return terms.index_copy(0, first, coded)


def decoder_term(
    x_0: Tensor,
    error: Tensor,
    log_v: Tensor,
    bins: Bins | None,
    mask: Tensor | None,
    normalizer: Normalizer | None,
) -> Tensor:
    """L_0 = -log p(x_0 | x_1) of a Gaussian with the mean x_0 + error and the variance exp(log_v),
    nats (B,): a density, or the probability of a bin, in the units of ``normalizer``.
    """
    if normalizer is not None:
        scale = normalizer.scale(x_0)
        x_0 = normalizer.denormalize(x_0)
        error = scale * error
        log_v = log_v + 2 * scale.log()
    if bins is None:
        log_prob = -0.5 * (error.square() * torch.exp(-log_v) + log_v + math.log(2 * math.pi))
    else:
        log_prob = bins.log_prob(x_0, x_0 + error, log_v)
    return -sum_over(log_prob, mask)


@dataclass(frozen=True)
class VariationalBound:
    """-log p(x_0) <= L_N + sum over i = 2..N of L_{i-1} + L_0, nats of each sample (Ho et al. 2020,
    eq. 5).
    """

    prior: Tensor
    """L_N, (B,)."""
    transitions: Tensor
    """L_{i-1} for i = 2..N, (B, N - 1)."""
    decoder: Tensor
    """L_0 = -log p(x_0 | x_1), (B,)."""
    dimensions: int
    """Coordinates of an event."""

    @property
    def total(self) -> Tensor:
        """Nats, (B,)."""
        return self.prior + self.transitions.sum(dim=1) + self.decoder

    @property
    def bits_per_dim(self) -> Tensor:
        """Bits per dimension, (B,)."""
        return self.total / (self.dimensions * math.log(2))


def variational_bound(
    chain: Chain,
    model: Model,
    x_0: Tensor,
    *,
    bins: Bins | None,
    condition: Condition | None = None,
    seed: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    device: torch.device | str | None = None,
) -> VariationalBound:
    """Every term of the variational bound of samples x_0 (B, *event), each by one draw of x_i: N
    evaluations of the network.

    ``bins``: what values the data lie on, for the discretized decoder of a `DDPM` or a
    `MixtureChain`; None for data with a density, whose decoder is Gaussian, and for the binary data
    of a `BinomialChain`. Both
    ``bins`` and x_0 are in the user's units if the model has a `Normalizer`.
    ``seed``: as in `sample`: the draws of sample i depend on its seed alone. ``batch_size``: so
    many samples at a time. ``device``: the model's by default; samples and conditions go there.

    The bound is that of the chain's own ancestral sampling, and so of the SDE; the probability flow
    has another likelihood.
    """
    if not isinstance(chain, Chain):
        raise TypeError(
            f"chain must be a DDPM, DDPM.from_schedule('linear', 1000) say; got {chain!r}"
        )
    chain.check_model(model)
    x_0 = at_least_float32(check_states("x_0", x_0)).to(
        place := check_device(model, known := facts(model), device)
    )
    if bins is not None:
        Bins.checked(bins).check(x_0)
    if known.normalizer is not None:
        x_0 = known.normalizer.normalize(x_0)
    chain.check_data(x_0)
    prior = chain.prior_term(x_0)
    if batch_size is not None:
        batch_size = integer("batch_size", batch_size, 1)
    keys = check_seed(seed, None, tuple(x_0.shape))
    given = check_condition(condition, len(x_0), known.net, place, event=x_0.shape[1:])
    chunk = batch_size or len(x_0)
    parts = []
    with (
        torch.no_grad(),
        evaluating(model),
        progress_bar("variational bound", total=len(x_0), show=progress) as bar,
    ):
        for first in range(0, len(x_0), chunk):
            rows = slice(first, first + chunk)
            noise = White((keys or ())[rows], x_0.shape[1:], dtype=x_0.dtype, device=x_0.device)
            conditions = {name: value[rows] for name, value in given.items()}
            batch = Batch(model, x_0[rows], conditions)
            terms = []
            for i in range(1, chain.N + 1):
                index = torch.full((len(x_0[rows]),), i)
                z = noise.at(i).normal("churn")
                terms.append(chain.bound_term(batch, index, z, bins, known.normalizer))
                bar.update(first + len(x_0[rows]) * i / chain.N)
            parts.append(torch.stack(terms, dim=1))
    terms_of = torch.cat(parts)
    return VariationalBound(prior, terms_of[:, 1:], terms_of[:, 0], rowwise(x_0).shape[1])


def data_error(
    chain: Chain, batch: Batch, i: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(error of the predicted noise, error of the predicted data, what the network says of the
    variance) at x_i, (B, *event).

    Both errors are the network's own, rescaled: they do not cancel, whatever it predicts.
    """
    model, x_0, mask = batch.model, batch.x_0, batch.mask
    t = chain.level_times[i - 1]
    x = kept(chain.marginal_law(x_0, i).from_noise(noise), mask)
    noise = kept(chain.noise_in(x, x_0, i, noise), mask)
    found = outputs(model, x, t, batch.condition, mask)
    error = found.value - target(model, x_0, noise, t)
    scales = (conversion_of(model, name, t)[1] for name in ("noise", "data"))
    in_noise, in_data = (expand(scale, error) * error for scale in scales)
    return in_noise, in_data, found.extras.get("variance")

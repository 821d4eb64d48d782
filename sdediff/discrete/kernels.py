"""Chains of other kernels than the Gaussian one, on the levels of any chain: Gamma noise and
mixtures of Gaussians (Nachmani, San Roman and Wolf 2021, arXiv 2106.07582), and flips of binary
data (Sohl-Dickstein et al. 2015, arXiv 1503.03585).

Each has the mean and the variance of the Gaussian chain at every level, so that it goes with
models of the same SDE, and their data prediction E[x_0 | x_i] is all that its sampler needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.discrete.bound import decoder_term
from sdediff.discrete.chain import Chain, Levels
from sdediff.discrete.ddpm import DDPM
from sdediff.discrete.laws import Beta, Binary, Gamma, Law, Mixture
from sdediff.masks import kept, sum_over
from sdediff.normalizer import Normalizer
from sdediff.objectives.objective import Batch
from sdediff.objectives.variational import Bins
from sdediff.predict import conversion_of, outputs
from sdediff.sde import LinearSDE
from sdediff.solvers import Problem, Solver, Step, StepNoise, expand
from sdediff.solvers.given import Count, Part, Positive, integer

__all__ = ["BinomialChain", "GammaChain", "KernelChain", "MixtureChain"]


class _Plan(NamedTuple):
    at: Any  # of the data prediction
    i: int
    t: Tensor
    s: Tensor


@dataclass(frozen=True, repr=False)
class KernelChain(Chain, Solver):
    """A chain of the levels of ``base``, a `DDPM` or `NCSN` say, with the kernel that a subclass
    gives by `step_law`, `marginal_law` and `posterior_law`.

    As a solver it takes ancestral steps: x_{i-1} is drawn from q(x_{i-1} | x_i, x_0) at the model's
    E[x_0 | x_i], for i = N to 1, from x_N of the law `prior`: N evaluations. The last step ends at
    the data. Under the Gaussian kernel, which a `KernelChain` itself has, it is DDPM with the
    variance ``"beta_tilde"``.
    """

    base: Chain

    needs = frozenset({"data", "marginal"})
    stochastic = True
    ends_clean = True

    def __post_init__(self) -> None:
        if not isinstance(self.base, Chain):
            raise TypeError(
                f"{type(self).__name__}: base must be a chain whose levels it takes, "
                f"DDPM.from_schedule('linear', 100) say; got {self.base!r}"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    @property
    def grid(self) -> tuple[float, ...]:  # type: ignore[override]
        """The times of i = 1..N, those of the Gaussian chain."""
        return self.base.grid

    @property
    def levels(self) -> Levels:
        return self.base.levels

    def to_sde(self) -> LinearSDE:
        """The base's, whose marginals have the same mean and variance."""
        return self.base.to_sde()

    @property
    def times(self) -> Tensor:
        """t_N, ..., t_1 and 0, the data."""
        return torch.cat([self.level_times.flip(0), torch.zeros(1, dtype=torch.float64)])

    @property
    def prior(self) -> Law:
        """The law of x_N given x_0 = 0, from which sampling starts."""
        return self.marginal_law(torch.zeros(()), self.N)

    def noise_in(self, x: Tensor, x_0: Tensor, i: int | Tensor, noise: Tensor) -> Tensor:
        at = self.index(i, x)
        alpha, sigma = self.levels.alphas[at], self.levels.sigmas[at]
        return (x - expand(alpha, x) * x_0) / expand(sigma, x)

    def plausible(self, x_0: Tensor) -> Tensor:
        """What the reverse steps take for the model's E[x_0 | x_i]."""
        return x_0

    def prior_term(self, x_0: Tensor) -> Tensor:
        """KL(q(x_N | x_0) || `prior`); a TypeError where the law has no ``divergence``."""
        x_0 = _wide(x_0)
        at_end, prior = (self.marginal_law(x, self.N) for x in (x_0, torch.zeros_like(x_0)))
        return sum_over(self._divergence(at_end, prior), None)

    def bound_term(
        self,
        batch: Batch,
        i: Tensor,
        noise: Tensor,
        bins: Bins | None = None,
        normalizer: Normalizer | None = None,
    ) -> Tensor:
        """KL(q(x_{i-1} | x_i, x_0) || q(x_{i-1} | x_i, E[x_0 | x_i])), at i = 1 -log p(x_0 | x_1);
        a TypeError where the posterior has no ``divergence``.
        """
        mask = batch.mask
        x = kept(self.marginal_law(batch.x_0, i).from_noise(noise), mask)
        t = self.level_times[i - 1]
        a, b = (expand(each, x) for each in conversion_of(batch.model, "data", t))
        guess = a * x + b * outputs(batch.model, x, t, batch.condition, mask).value
        x, x_0, guess = (_wide(each) for each in (x, batch.x_0, self.plausible(guess)))
        terms = x_0.new_zeros(len(x_0))
        for place, first in ((i > 1, False), (i == 1, True)):
            rows = torch.nonzero(place).flatten()
            if not len(rows):
                continue
            there = rows.to(x.device)
            seen = None if mask is None else mask[there]
            if first:
                found = self.decoder_term(x_0[there], guess[there], bins, seen, normalizer)
            else:
                laws = [self.posterior_law(x[there], y[there], i[rows]) for y in (x_0, guess)]
                found = sum_over(self._divergence(*laws), seen)
            terms = terms.index_copy(0, there, found)
        return terms

    def decoder_term(
        self,
        x_0: Tensor,
        guess: Tensor,
        bins: Bins | None,
        mask: Tensor | None,
        normalizer: Normalizer | None,
    ) -> Tensor:
        """-log p(x_0 | x_1), nats (B,): a Gaussian around the guess E[x_0 | x_1] with the variance
        of x_1 / alpha_1 given x_0.
        """
        alpha, sigma = self.levels.alphas[1], self.levels.sigmas[1]
        log_v = x_0.new_full(x_0.shape, 2 * math.log(float(sigma / alpha)))
        return decoder_term(x_0, guess - x_0, log_v, bins, mask, normalizer)

    def _divergence(self, law: Any, other: Any) -> Tensor:
        """KL(law || other); a TypeError where there is none."""
        if not hasattr(law, "divergence"):
            raise self._boundless()
        found: Tensor = law.divergence(other)
        return found

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The levels of the steps, from that at times[0] on."""
        alpha, sigma = problem.marginal(times[:-1])
        here = torch.arange(len(times) - 1, 0, -1)
        gap = torch.maximum(
            (alpha - self.levels.alphas[here]).abs(),
            (problem.unit * sigma / self.levels.sigmas[here] - 1).abs(),
        )
        if not float(gap.max()) <= 1e-6:
            raise ValueError(
                f"{self!r} is no chain of the model's SDE: alpha or sigma differs by "
                f"{float(gap.max()):.2g}; take a model of the chain's to_sde()"
            )
        at = problem.at(times[:-1], "data")
        return [_Plan(at[n], i, *times[n : n + 2]) for n, i in enumerate(here.tolist())]

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        x_0 = problem.evaluate(x, plan.at)
        x, x_0 = problem.unit * x, self.plausible(problem.unit * x_0)
        law = self.posterior_law(x, x_0, plan.i)
        drawn = law.from_noise(noise.over(plan.t, plan.s))
        return Step(drawn / problem.unit, law.mean / problem.unit)


@dataclass(frozen=True, repr=False)
class BinomialChain(KernelChain):
    """Binary data, -1 or 1: a step keeps a coordinate with the probability (1 + ratio_i) / 2, and
    else flips it (Sohl-Dickstein et al. 2015, Table App.1, where ratio_i = 1 - beta_i and data are
    0 or 1).

        q(x_i | x_{i-1}) has the mean ratio_i x_{i-1}, and q(x_i | x_0) the mean alpha_i x_0.

    Such a law of -1 and 1 is its mean, and its variance is 1 - mean^2: the base has to have alpha^2
    + sigma^2 = 1. The posterior has the mean of the Gaussian chain's, data x_0 + keep x_i, also
    averaged over an uncertain x_0: with E[x_0 | x_i] the reverse step has the exact conditional law
    of every coordinate by itself. For data in {0, 1} give the model ``Normalizer(0.5, 0.5)``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        gap = float((self.levels.alphas.square() + self.levels.sigmas.square() - 1).abs().max())
        if gap > 1e-9:
            raise ValueError(
                f"BinomialChain: base must have alpha^2 + sigma^2 = 1, and {self.base!r} is off "
                f"by {gap:.2g}; take a DDPM"
            )

    @classmethod
    def linear(cls, N: int) -> BinomialChain:
        """alpha_i = 1 - i / N, the published schedule: beta_i = 1 / (N - i + 1), so that a step
        erases an equal share of the data, and nothing is left at i = N (section 2.4.1).
        """
        N = integer("N", N, 2)
        left = torch.arange(N, 0, -1, dtype=torch.float64)
        return cls(DDPM(tuple((1 - (1 - 1 / left).square()).tolist())))

    def step_law(self, x: Tensor, i: int | Tensor) -> Binary:
        return Binary(expand(self.kernel(self.index(i, x))[0], x) * x)

    def marginal_law(self, x_0: Tensor, i: int | Tensor) -> Binary:
        return Binary(expand(self.levels.alphas[self.index(i, x_0)], x_0) * x_0)

    def posterior_law(self, x: Tensor, x_0: Tensor, i: int | Tensor) -> Binary:
        """``x_0`` may be a mean in [-1, 1]."""
        return Binary(self.posterior(x, x_0, i)[0])

    def plausible(self, x_0: Tensor) -> Tensor:
        """No mean is beyond 1 - 1e-6: nothing has probability 0, and the bound is finite."""
        return x_0.clamp(1e-6 - 1, 1 - 1e-6)

    def check_data(self, x_0: Tensor) -> None:
        other = x_0[(x_0.abs() - 1).abs() > 1e-6]
        if other.numel():
            raise ValueError(
                f"BinomialChain: data must be -1 or 1, as the loss sees them, and {other.numel()} "
                f"numbers are not, {float(other[0]):g} say; for data in {{0, 1}} give the model "
                "normalizer=Normalizer(0.5, 0.5), and threshold others first"
            )

    def bound_term(
        self,
        batch: Batch,
        i: Tensor,
        noise: Tensor,
        bins: Bins | None = None,
        normalizer: Normalizer | None = None,
    ) -> Tensor:
        """`KernelChain.bound_term`, exact for each coordinate."""
        if bins is not None:
            raise ValueError(f"{self!r} has binary data: pass bins=None")
        return super().bound_term(batch, i, noise, None, normalizer)

    def decoder_term(
        self,
        x_0: Tensor,
        guess: Tensor,
        bins: Bins | None,
        mask: Tensor | None,
        normalizer: Normalizer | None,
    ) -> Tensor:
        """The posterior's own probability at i = 1, of which the mean is the guess."""
        return -sum_over(Binary(guess).log_prob(x_0), mask)


@dataclass(frozen=True, repr=False)
class _Additive(KernelChain):
    """x_i = alpha_i (x_0 + L_i), L a process of independent increments with E[L_i] = 0 and
    Var[L_i] = tau_i = sigma_i^2 / alpha_i^2.

    The posterior is the bridge of L: the law of L_{i-1} given L_i = x_i / alpha_i - x_0.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if float(self.levels.alphas.min()) <= 0:
            raise ValueError(
                f"{type(self).__name__}: alpha must be positive at every level, and {self.base!r} "
                "leaves no signal at the last: take one without zero terminal SNR"
            )

    @cached_property
    def taus(self) -> Tensor:
        """tau_0 = 0, ..., tau_N: float64 (N + 1,)."""
        return (self.levels.sigmas / self.levels.alphas).square()

    def step_law(self, x: Tensor, i: int | Tensor) -> Law:
        at = self.index(i, x)
        return self._law(expand(self.levels.ratios[at - 1], x) * x, at, at - 1)

    def marginal_law(self, x_0: Tensor, i: int | Tensor) -> Law:
        at = self.index(i, x_0)
        return self._law(expand(self.levels.alphas[at], x_0) * x_0, at, torch.zeros_like(at))

    def _law(self, mean: Tensor, i: Tensor, since: Tensor) -> Law:
        """The law of mean + alpha_i (L_i - L_since)."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class GammaChain(_Additive):
    """Gamma noise: L_i = theta G_i - tau_i / theta, G_i of the Gamma law of shape tau_i / theta^2,
    so that x_i = ratio_i x_{i-1} + g_i - E[g_i] with g_i of shape k_i = (tau_i - tau_{i-1}) /
    theta^2 and scale alpha_i theta (Nachmani et al. 2021; theta is their theta_0).

    The posterior is exact here, where the paper takes a Gaussian one with Gamma noise of its
    variance: given the sum of two Gamma variables of one scale, the share of the first is Beta, so
    that L_{i-1} + tau_{i-1} / theta is a Beta(tau_{i-1} / theta^2, k_i) share of S = L_i + tau_i /
    theta. Its mean is the Gaussian chain's. What the sampler approximates is that E[x_0 | x_i]
    stands for x_0, as in DDPM; S below 0, which only a wrong x_0 has, counts as 0. There is no
    variational bound: the posterior has no mass below alpha_{i-1} (x_0 - tau_{i-1} / theta), so
    that where E[x_0 | x_i] exceeds x_0 the divergence is infinite. Quantiles are SciPy's, on the
    host.
    """

    theta: Positive = 0.1

    def _law(self, mean: Tensor, i: Tensor, since: Tensor) -> Gamma:
        shape = (self.taus[i] - self.taus[since]) / self.theta**2
        scale = self.levels.alphas[i] * self.theta
        return Gamma(mean - expand(scale * shape, mean), expand(scale, mean), expand(shape, mean))

    def posterior_law(self, x: Tensor, x_0: Tensor, i: int | Tensor) -> Beta:
        at = self.index(i, x)
        first, total = self.taus[at - 1] / self.theta**2, self.taus[at] / self.theta**2
        here, before = self.levels.alphas[at], self.levels.alphas[at - 1]
        whole = x / expand(here, x) - x_0 + expand(self.theta * total, x)
        start = expand(before, x) * x_0 - expand(before * self.theta * first, x)
        width = expand(before, x) * whole.clamp(min=0)
        return Beta(start, width, expand(first, x), expand(total - first, x))


@dataclass(frozen=True, repr=False)
class MixtureChain(_Additive):
    """Mixtures of Gaussians as noise: L_i = jumps + W_i, at most ``most`` jumps by ``jump`` or
    -``jump`` and Brownian motion.

    A jump is jump sqrt((1 - p) / p) with the probability ``p``, else -jump sqrt(p / (1 - p)), of
    mean 0 and variance jump^2. A step has as many as fit into ``share`` of its variance, tau_i -
    tau_{i-1}, and its noise is a mixture of one Gaussian more than it has jumps. Because all jumps
    are alike, and grow with alpha_i as the scale of `GammaChain` does, the noise of i steps is a
    mixture of no more than ``most`` + 1 Gaussians, with binomial weights, in one shot: two
    components at every step whose sums do not coincide would be 2^i. These parameters are our own
    choice of a mixture (Nachmani et al. 2021 have others). The posterior is a mixture
    too, exact by Bayes' rule for each number of jumps before and in the step, and the terms of the
    variational bound are integrals by quadrature.
    """

    jump: Positive = 0.5
    p: Part = 0.5
    share: Part = 0.8
    most: Count = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if int(self.jumps[-1]) == 0:
            room = math.sqrt(self.share * float(self.taus.diff().max()))
            raise ValueError(
                f"MixtureChain: no step has room for a jump of {self.jump:g}, and the noise would "
                f"be Gaussian: take jump <= {room:.3g}, or fewer levels"
            )

    @cached_property
    def jumps(self) -> Tensor:
        """How many jumps there are up to i = 0, ..., N: int64 (N + 1,)."""
        fitting = torch.floor(self.share * self.taus.diff() / self.jump**2)
        counts = torch.cat([torch.zeros(1, dtype=torch.float64), fitting.cumsum(0)])
        return counts.clamp(max=self.most).long()

    def _counted(self, since: Tensor, i: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log-probabilities, sizes) of 0 to ``most`` upward jumps among those after the level
        ``since`` up to i, each (..., most + 1), and the variance of W_i - W_since, (..., 1).
        """
        n = (self.jumps[i] - self.jumps[since])[..., None].double()
        k = torch.arange(self.most + 1, dtype=torch.float64)
        ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(0) + 1)
        log_p = ways + k * math.log(self.p) + (n - k) * math.log1p(-self.p)
        up, down = math.sqrt((1 - self.p) / self.p), math.sqrt(self.p / (1 - self.p))
        rest = (self.taus[i] - self.taus[since])[..., None] - self.jump**2 * n
        return log_p.masked_fill(k > n, -math.inf), self.jump * (k * up - (n - k) * down), rest

    def _law(self, mean: Tensor, i: Tensor, since: Tensor) -> Mixture:
        log_p, sizes, rest = self._counted(since, i)
        alpha = self.levels.alphas[i][..., None]
        log_p, sizes, stds = (
            _beside(each, mean) for each in (log_p, alpha * sizes, alpha * rest.sqrt())
        )
        return Mixture(mean[..., None] + sizes, stds, log_p)

    def posterior_law(self, x: Tensor, x_0: Tensor, i: int | Tensor) -> Mixture:
        at = self.index(i, x)
        here, before = self.levels.alphas[at], self.levels.alphas[at - 1]
        counted = (self._counted(torch.zeros_like(at), at - 1), self._counted(at - 1, at))
        (log_a, size_a, rest_a), (log_b, size_b, rest_b) = counted
        pairs = (
            (log_a[..., :, None] + log_b[..., None, :]).flatten(-2),
            (size_a[..., :, None] + size_b[..., None, :]).flatten(-2),
            size_a[..., :, None].expand(*size_a.shape, self.most + 1).flatten(-2),
            rest_a,
            rest_b,
        )
        log_p, size, size_a, rest_a, rest_b = (_beside(each, x) for each in pairs)
        off = (x / expand(here, x) - x_0)[..., None] - size
        total = rest_a + rest_b
        log_p = torch.log_softmax(log_p - 0.5 * off.square() / total, dim=-1)
        scale = _beside(before[..., None], x)
        means = scale * (x_0[..., None] + size_a + rest_a / total * off)
        return Mixture(means, scale * (rest_a * rest_b / total).sqrt(), log_p)


def _wide(x: Tensor) -> Tensor:
    """States in float64 where the device has it."""
    return x.double() if x.device.type != "mps" else x


def _beside(each: Tensor, x: Tensor) -> Tensor:
    """Numbers (K,) or (B, K), to stand beside states x (B, *event) in a further dimension."""
    shape = each.shape if each.ndim == 1 else (len(each), *(1,) * (x.ndim - 1), each.shape[-1])
    return each.to(x.dtype).to(x.device).reshape(shape)

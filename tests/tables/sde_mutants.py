"""SDEs with one slip each, and what `check_sde` has to say of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

import sdediff as sd

MEAN, VARIANCE = "mean of the forward SDE", "variance of the forward SDE"
F, G, LOG_SNR = (
    "f = d log alpha / dt",
    "g^2 = d sigma^2 / dt - 2 f sigma^2",
    "log_snr = 2 log(alpha / sigma)",
)
START, FINITE, REAL, FALLS, INVERSE = (
    "start at t = 0",
    "finite coefficients",
    "g^2 >= 0",
    "log_snr falls",
    "time_of inverts log_snr",
)
RATES, DRIFT, DIFFUSION = "velocity rates", "drift is f x", "diffusion is g"
KERNEL, COMPOSE, MARGINAL = (
    "kernel solves the moment equations",
    "kernels compose",
    "kernel from 0 is the marginal",
)
PERTURB, POSTERIOR, PRIOR, GAP = "perturb", "posterior is Bayes", "prior", "prior_gap"
FLOW, REVERSE = "probability flow keeps the marginals", "reverse SDE keeps the marginals"
ENDS, RANK, TIMES, RANGE = (
    "ends of the usable range",
    "any rank and dtype",
    "scalar and batch times",
    "usable range",
)

# What is derived from each, and cannot hold if it is wrong.
FROM_F = {MEAN, VARIANCE, F, G, RATES, KERNEL, FLOW, REVERSE}
FROM_G = {VARIANCE, G, RATES, KERNEL, FLOW, REVERSE}
FROM_LOG_SNR = {LOG_SNR, FALLS, KERNEL, COMPOSE, MARGINAL, POSTERIOR, ENDS, GAP}
FROM_SIGMA = {START, VARIANCE, G, RATES, PRIOR, FLOW, REVERSE} | FROM_LOG_SNR
FROM_ALPHA = {START, MEAN, F, RATES, FLOW, REVERSE} | FROM_LOG_SNR


class Mutant(NamedTuple):
    """``broken`` must be among the failures, with ``hint`` in what is said of it, and all failures
    within ``sensible``.
    """

    make: Callable[[], sd.SDE]
    broken: str
    sensible: set[str]
    hint: str


MUTANTS: dict[str, Mutant] = {}


def mutant(
    broken: str, sensible: set[str] | None = None, hint: str = ""
) -> Callable[[type[sd.SDE]], type[sd.SDE]]:
    def enter(cls: type[sd.SDE]) -> type[sd.SDE]:
        MUTANTS[cls.__name__] = Mutant(cls, broken, {broken} | (sensible or set()), hint)
        return cls

    return enter


# -- coefficients ----------------------------------------------------------------------------------


@mutant(F, FROM_F, "a factor 2")
class FWithoutHalf(sd.VP):
    def f(self, t):
        return -self.beta(t)


@mutant(F, FROM_F, "a sign")
class FWithWrongSign(sd.VP):
    def f(self, t):
        return 0.5 * self.beta(t)


@mutant(G, FROM_G, "a missing square root")
class GWithoutRoot(sd.VP):
    def g(self, t):
        return self.beta(t)


@mutant(G, FROM_G, "a factor sqrt(2)")
class GWithTwoInTheRoot(sd.VP):
    def g(self, t):
        return (2 * self.beta(t)).sqrt()


@mutant(VARIANCE, FROM_G)
class SubVPWithTheWrongExponent(sd.SubVP):
    def g(self, t):
        return (self.beta(t) * -torch.expm1(-self.integral(t))).sqrt()


@mutant(G, FROM_G, "a factor sqrt(2)")
class EDMWithoutTwo(sd.EDM):
    def g(self, t):
        return t.sqrt()


@mutant(VARIANCE, FROM_G, "")
class VEWithoutRate(sd.VE):
    def g(self, t):
        return self.sigma(t)


@mutant(G, FROM_G, "a factor sqrt(2)")
class FlowWithoutTwo(sd.RectifiedFlow):
    def g(self, t):
        return (t / (1 - t)).sqrt()


@mutant(G, FROM_G, "a factor sqrt(2)")
class FlowToTheEndWithoutTwo(sd.RectifiedFlow):
    def __init__(self):
        super().__init__(t_max=1.0)

    def g(self, t):
        return (t / (1 - t)).sqrt()


@mutant(MEAN, FROM_ALPHA, "a missing square root")
class AlphaWithoutHalf(sd.VP):
    def alpha(self, t):
        return torch.exp(-self.integral(t))


@mutant(MEAN, FROM_ALPHA)
class AlphaWithBetaTimesT(sd.VP):
    def alpha(self, t):
        return torch.exp(-0.5 * self.beta(t) * t)


@mutant(MEAN, FROM_ALPHA, "a sign")
class AlphaWithWrongSign(sd.VP):
    def alpha(self, t):
        return -torch.exp(-0.5 * self.integral(t))


@mutant(VARIANCE, FROM_SIGMA, "a missing square root")
class SigmaWithoutRoot(sd.VP):
    def sigma(self, t):
        return -torch.expm1(-self.integral(t))


@mutant(VARIANCE, FROM_SIGMA, "a factor 2")
class SigmaTwice(sd.VE):
    def sigma(self, t):
        return 2 * self.sigma_min * torch.exp(self._rate * t)

    def g(self, t):
        return 0.5 * super().g(t)


@mutant(
    VARIANCE,
    FROM_ALPHA | FROM_SIGMA,
    "alpha and sigma swapped",
)
class Swapped(sd.VP):
    def alpha(self, t):
        return super().sigma(t)

    def sigma(self, t):
        return super().alpha(t)


@mutant(START, FROM_ALPHA | FROM_SIGMA, "divide alpha by alpha(0)")
class CosineThatStartsBelowOne(sd.Cosine):
    def alpha(self, t):
        return torch.sin(self._angles(t)[1])


@mutant(START, {VARIANCE, MARGINAL}, "declare sigma_0 = sigma(0)")
class VEWithoutNoiseAtZero(sd.VE):
    sigma_0 = 0.0


@mutant(LOG_SNR, FROM_LOG_SNR, "a sign")
class LogSnrWithWrongSign(sd.VP):
    def log_snr(self, t):
        return -super().log_snr(t)


@mutant(LOG_SNR, FROM_LOG_SNR, "a factor 2")
class LogSnrWithoutSquare(sd.VP):
    def log_snr(self, t):
        return 0.5 * super().log_snr(t)


@mutant(INVERSE)
class InverseOfHalf(sd.VP):
    def time_of(self, log_snr):
        return super().time_of(0.5 * torch.as_tensor(log_snr))


@mutant(INVERSE)
class InverseThatRaises(sd.EDM):
    def time_of(self, log_snr):
        raise RuntimeError("no inverse was written")


# -- f and g alone, alpha and sigma alone ----------------------------------------------------------


@mutant(REAL, set(), "a sign")
class NegativeG(sd.LinearSDE):
    def f(self, t):
        return -0.5 * (0.1 + 19.9 * t)

    def g(self, t):
        return -((0.1 + 19.9 * t).sqrt())


@mutant(REAL, {START, FINITE, FALLS, COMPOSE, MARGINAL, ENDS, TIMES}, "log_snr rises")
class TimeReversed(sd.LinearSDE):
    t_max = 0.99

    def alpha(self, t):
        return t

    def sigma(self, t):
        return 1.01 - t


@mutant(ENDS, {GAP}, "lower t_max")
class NothingLeft(sd.LinearSDE):
    t_max = 1.0

    def f(self, t):
        return -20.0

    def g(self, t):
        return 40.0**0.5


@mutant(RANGE)
class EmptyRange(sd.VP):
    @property
    def t_max(self):
        return 1e-4


# -- one method overridden -------------------------------------------------------------------------


@mutant(RATES, {ENDS}, "a factor 2")
class RatesWithTwo(sd.VP):
    def rates(self, t):
        d_alpha, d_sigma = super().rates(t)
        return 2 * d_alpha, d_sigma


@mutant(RATES, {ENDS}, "the rates of alpha and sigma swapped")
class RatesSwapped(sd.Cosine):
    def rates(self, t):
        return super().rates(t)[::-1]


@mutant(DRIFT, set(), "a sign")
class DriftWithWrongSign(sd.VP):
    def drift(self, x, t):
        return -super().drift(x, t)


@mutant(DIFFUSION, {FLOW, REVERSE}, "a missing square root")
class DiffusionSquared(sd.VP):
    def diffusion(self, t):
        return self.g(t) ** 2


@mutant(KERNEL, {COMPOSE, MARGINAL, POSTERIOR, ENDS}, "v for sqrt(v)")
class KernelWithVariance(sd.VP):
    def kernel(self, t, s):
        ratio, std = super().kernel(t, s)
        return ratio, std**2


@mutant(KERNEL, {COMPOSE, MARGINAL, POSTERIOR, ENDS}, "upside down")
class KernelUpsideDown(sd.VP):
    def kernel(self, t, s):
        ratio, std = super().kernel(t, s)
        return 1 / ratio, std


@mutant(COMPOSE, {KERNEL, POSTERIOR, MARGINAL, ENDS})
class KernelThatForgetsTheStart(sd.VP):
    def kernel(self, t, s):
        t, s = torch.as_tensor(t, dtype=torch.float64), torch.as_tensor(s, dtype=torch.float64)
        return self.alpha(t) / self.alpha(s), (self.sigma(t) ** 2 - self.sigma(s) ** 2).clamp(
            min=0
        ).sqrt()


@mutant(MARGINAL, {KERNEL, COMPOSE, POSTERIOR, ENDS})
class KernelWrongAtZero(sd.VE):
    def kernel(self, t, s):
        ratio, std = super().kernel(t, s)
        return ratio, torch.where(torch.as_tensor(s) == 0, self.sigma(t), std) if torch.as_tensor(
            s
        ).ndim else std


@mutant(PERTURB, {RANK, ENDS}, "a square root too many")
class PerturbWithRoot(sd.VP):
    def perturb(self, x_0, t, noise):
        alpha, sigma = self.alpha(t).sqrt(), self.sigma(t)
        shape = (-1, *(1,) * (x_0.ndim - 1)) if alpha.ndim else ()
        return alpha.reshape(shape).to(x_0.dtype) * x_0 + sigma.reshape(shape).to(x_0.dtype) * noise


@mutant(PERTURB, {ENDS}, "alpha and sigma swapped")
class PerturbSwapped(sd.RectifiedFlow):
    def perturb(self, x_0, t, noise):
        return super().perturb(noise, t, x_0)


@mutant(POSTERIOR, {ENDS}, "the std of the kernel")
class PosteriorWithTheStdOfTheKernel(sd.VP):
    def posterior(self, x_t, x_0, t, s):
        mean, _ = super().posterior(x_t, x_0, t, s)
        return mean, self.kernel(t, s)[1]


@mutant(POSTERIOR, set(), "x_t and x_0 swapped")
class PosteriorSwapped(sd.SubVP):
    def posterior(self, x_t, x_0, t, s):
        return super().posterior(x_0, x_t, t, s)


@mutant(POSTERIOR, {ENDS}, "a missing square root")
class PosteriorWithVariance(sd.EDM):
    def posterior(self, x_t, x_0, t, s):
        mean, std = super().posterior(x_t, x_0, t, s)
        return mean, std**2


@mutant(PRIOR, set(), "sigma^2 for sigma")
class PriorWithVariance(sd.EDM):
    @property
    def prior(self):
        return sd.Prior(self.sigma_max**2)


@mutant(PRIOR, set(), "a factor 2")
class PriorTwice(sd.VP):
    prior = sd.Prior(2.0)


class _WrongDensity(sd.Prior):
    def log_prob(self, x):
        return super().log_prob(x) * 2


@mutant(PRIOR, set(), "a factor 2")
class PriorWithWrongDensity(sd.VP):
    prior = _WrongDensity(1.0)


class _WrongDraw(sd.Prior):
    def from_noise(self, z):
        return self.std**2 * z


@mutant(PRIOR, set(), "a constant factor 80")
class PriorThatDrawsVariance(sd.EDM):
    prior = _WrongDraw(80.0)


@mutant(GAP, set(), "a factor 2")
class GapWithoutHalf(sd.VP):
    def prior_gap(self, mean, variance):
        return 2 * super().prior_gap(mean, variance)


@mutant(GAP, set(), "sum over coordinates")
class GapOfTheMean(sd.VP):
    def prior_gap(self, mean, variance):
        return super().prior_gap(mean, variance) / torch.as_tensor(mean).numel()


# -- shapes ----------------------------------------------------------------------------------------


@mutant(RANK, set(), "solvers.expand")
class DriftInFloat64(sd.VP):
    def drift(self, x, t):
        return super().drift(x.double(), t)


@mutant(RANK)
class PerturbForVectorsOnly(sd.VP):
    def perturb(self, x_0, t, noise):
        if x_0.ndim > 2:
            raise ValueError("vectors only")
        return super().perturb(x_0, t, noise)


@mutant(RANK, {POSTERIOR}, "rows that see each other")
class PosteriorThatMixesRows(sd.VP):
    def posterior(self, x_t, x_0, t, s):
        mean, std = super().posterior(x_t, x_0, t, s)
        return mean - mean.mean(dim=0) if len(mean) == 3 else mean, std


@mutant(TIMES)
class KernelForTensorsOnly(sd.VP):
    def kernel(self, t, s):
        return super().kernel(t.clone(), s)


# -- without a kernel ------------------------------------------------------------------------------


class Well(sd.SDE):
    """dx = (x - x^3) dt + dw, a double well."""

    prior = sd.Prior(1.0)

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, t):
        return torch.ones_like(t)


@mutant("rows are independent", {RANK}, "a mean or sum over the batch")
class WellThatMixesRows(Well):
    def drift(self, x, t):
        return x - x.mean(dim=0)


@mutant("diffusion >= 0", set(), "a sign")
class WellWithNegativeNoise(Well):
    def diffusion(self, t):
        return -torch.ones_like(t)


@mutant("diffusion >= 0", {TIMES})
class WellWithMisshapenNoise(Well):
    def diffusion(self, t):
        return torch.ones(3, 2)


@mutant("finite drift", {RANK, TIMES, "rows are independent"})
class WellOfTheWrongShape(Well):
    def drift(self, x, t):
        return x.sum()


@mutant("finite drift", set())
class WellWithAPole(Well):
    t_min = 0.0

    def drift(self, x, t):
        return -x / (t.reshape(-1, *(1,) * (x.ndim - 1)) if t.ndim else t).to(x)


@mutant(TIMES, {RANK})
class WellForOneTimeOnly(Well):
    def drift(self, x, t):
        return t * (x - math.pi)

"""Drift, diffusion, transition kernel, perturbation and posterior against coefficients, moments and
Bayes' theorem; the prior that sampling starts from against sigma(t_max).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from torch import Tensor

from sdediff.testing.coefficients import FINITE
from sdediff.testing.context import Context, array, identity, pairs, times_tensor
from sdediff.testing.report import ALGEBRAIC, INTEGRATED, Comparison, Skip, compare, require

__all__: list[str] = []

Array = NDArray[np.float64]

_NEAR: Final = 1e-3
_NATS: Final = 0.01
_COLUMNS: Final = torch.tensor([[1.0, 0.0, 0.0, 0.6], [0.0, 1.0, 0.0, -1.3]], dtype=torch.float64)
"""Two states of four coordinates: (1, 0) and (0, 1) read off two factors, (0, 0) what is added."""


def _kernel(context: Context, t: Array, s: Array) -> tuple[Array, Array]:
    ratio, std = (
        array(out, t.shape, f"the {name} of kernel(t, s)")
        for out, name in zip(
            context.sde.kernel(times_tensor(t), times_tensor(s)), ("ratio", "std"), strict=True
        )
    )
    return ratio, std


def _states(rows: int) -> tuple[Tensor, Tensor]:
    return _COLUMNS[0].expand(rows, 4), _COLUMNS[1].expand(rows, 4)


def _affine(
    name: str,
    given: Array,
    factors: tuple[tuple[str, Array], tuple[str, Array]],
    at: dict[str, Array],
    bound: float,
    swapped: str,
) -> Iterator[Comparison]:
    """Whether a method of two `_states` is the sum of each times its factor (rows,)."""
    (_, a), (_, b) = factors
    for i, (what, factor) in enumerate(factors):
        others = {swapped: factors[1 - i][1]}
        yield compare(f"the factor of {what}", given[:, i], factor, at, bound, others=others)
    expected = np.stack([a, b], axis=1) @ _COLUMNS.numpy()
    scale = np.abs(a) + np.abs(b)
    for column, where in ((2, " of zeros"), (3, "")):
        what = f"{name}{where}"
        yield compare(what, given[:, column], expected[:, column], at, bound, scale=scale)


@identity("drift is f x", after=FINITE)
def drift(context: Context) -> Iterator[Comparison]:
    """sde.drift(x, t) = f(t) x."""
    x, _ = _states(len(context.times))
    given = array(context.sde.drift(x, times_tensor(context.times)), (*x.shape,), "drift(x, t)")
    f = context.at_times("f")[:, None]
    at, scale = {"t": context.times[:, None]}, np.maximum(np.abs(f), 1e-3 / context.T)
    yield compare("drift(x, t)", given, f * x.numpy(), at, ALGEBRAIC, scale=scale)


@identity("diffusion is g", after=FINITE)
def diffusion(context: Context) -> Iterator[Comparison]:
    """sde.diffusion(t) = g(t)."""
    g, at = context.at_times("g"), {"t": context.times}
    scale = np.maximum(g, 1e-9 * g.max())
    yield compare("diffusion", context.at_times("diffusion"), g, at, ALGEBRAIC, scale=scale)


@identity("kernel solves the moment equations", after=FINITE)
def kernel_moments(context: Context) -> Iterator[Comparison]:
    """ratio' = f ratio from 1 and v' = 2 f v + g^2 from 0, at s, with (ratio, sqrt(v)) = kernel(t,
    s).
    """
    t, s = pairs(context.times, 10)
    expected, variance = np.empty_like(t), np.empty_like(t)
    for first in np.unique(s):
        of = s == first
        expected[of], variance[of] = context.integrated.kernel(float(first), t[of])
    ratio, std = _kernel(context, t, s)
    at, bound = {"t": t, "s": s}, context.bound
    others = {"the ratio of alphas upside down": 1 / expected}
    yield compare("the ratio of kernel(t, s)", ratio, expected, at, bound, others=others)
    # Where next to no noise comes in between s and t, what there is drowns in the rounding of
    # sigma(t).
    due = np.sqrt(variance)
    scale = np.maximum(due, 1e-3 * np.interp(t, context.times, context.moments[1]))
    others = {"v for sqrt(v)": variance}
    yield compare("the std of kernel(t, s)", std, due, at, bound, scale=scale, others=others)


@identity("kernels compose")
def compose(context: Context) -> Iterator[Comparison]:
    """Chapman-Kolmogorov: kernel(t, r) is kernel(t, s) after kernel(s, r); kernel(t, t) is (1,
    0).
    """
    few = context.times[np.linspace(0, len(context.times) - 1, 8).round().astype(int)]
    places = np.array([(c, b, a) for c in range(8) for b in range(c) for a in range(b)]).T
    t, s, r = few[places]
    (late, late_std), (early, early_std), (whole, whole_std) = (
        _kernel(context, *ends) for ends in ((t, s), (s, r), (t, r))
    )
    at = {"t": t, "s": s, "r": r}
    yield compare("the ratio of kernel(t, r)", whole, late * early, at, ALGEBRAIC)
    expected = np.sqrt(late_std**2 + (late * early_std) ** 2)
    scale = np.maximum(expected, 1e-3 * np.interp(t, context.times, context.at_times("sigma")))
    yield compare("the std of kernel(t, r)", whole_std, expected, at, INTEGRATED, scale=scale)
    ratio, std = _kernel(context, few, few)
    yield compare("the ratio of kernel(t, t)", ratio, 1.0, {"t": few}, ALGEBRAIC)
    scale = np.abs(context.value("sigma", few))
    yield compare("the std of kernel(t, t)", std, 0.0, {"t": few}, INTEGRATED, scale=scale)


@identity("kernel from 0 is the marginal")
def from_zero(context: Context) -> Iterator[Comparison]:
    """kernel(t, 0) = (alpha(t), std) with std^2 + alpha(t)^2 sigma_0^2 = sigma(t)^2."""
    t, zero = context.times, np.zeros_like(context.times)
    if not np.isfinite(sum(context.values("alpha", "sigma", at=zero[:1]))).all():
        raise Skip("alpha or sigma has no value at 0")
    ratio, std = _kernel(context, t, zero)
    alpha, sigma = context.at_times("alpha"), context.at_times("sigma")
    yield compare("the ratio of kernel(t, 0)", ratio, alpha, {"t": t}, ALGEBRAIC)
    whole = np.sqrt(std**2 + (ratio * float(context.sde.sigma_0)) ** 2)
    what, others = "the std of kernel(t, 0), with sigma_0,", {"sigma^2 for sigma": sigma**2}
    yield compare(what, whole, sigma, {"t": t}, ALGEBRAIC, others=others)


@identity("perturb", after=("usable range",))
def perturb(context: Context) -> Iterator[Comparison]:
    """perturb(x_0, t, noise) = alpha x_0 + sigma noise."""
    t = times_tensor(context.times)
    x_0, noise = _states(len(t))
    given = array(context.sde.perturb(x_0, t, noise), (*x_0.shape,), "perturb(x_0, t, noise)")
    alpha, sigma = context.at_times("alpha"), context.at_times("sigma")
    factors = (("x_0 in perturb", alpha), ("the noise in perturb", sigma))
    swapped = "alpha and sigma swapped"
    yield from _affine("perturb", given, factors, {"t": context.times}, ALGEBRAIC, swapped)


@identity("posterior is Bayes")
def posterior(context: Context) -> Iterator[Comparison]:
    """N(x_s; alpha_s x_0, sigma_s^2) N(x_t; ratio x_s, v), normalised in x_s, with ratio and v from
    alpha and sigma.
    """
    t, s = pairs(context.times, 10)
    alpha_t, sigma_t = context.values("alpha", "sigma", at=t)
    alpha_s, sigma_s = context.values("alpha", "sigma", at=s)
    ratio = alpha_t / alpha_s
    v = sigma_t**2 - (ratio * sigma_s) ** 2
    use = (v > 1e-3 * sigma_t**2) & (sigma_s > 0)
    if not use.any():
        raise Skip("sigma^2 - ratio^2 sigma_s^2 is positive nowhere")
    precision = 1 / sigma_s**2 + ratio**2 / v
    keep, data = ratio / v / precision, alpha_s / sigma_s**2 / precision
    t, s, keep, data, v, std = (x[use] for x in (t, s, keep, data, v, np.sqrt(1 / precision)))
    x_t, x_0 = _states(len(t))
    mean, given = context.sde.posterior(x_t, x_0, times_tensor(t), times_tensor(s))
    mean = array(mean, (*x_t.shape,), "the mean of posterior")
    given = array(given, t.shape, "the std of posterior")
    at, factors = {"t": t, "s": s}, (("x_t", keep), ("x_0", data))
    what, swapped = "the mean of posterior", "x_t and x_0 swapped"
    yield from _affine(what, mean, factors, at, INTEGRATED, swapped)
    others = {"the std of the kernel, not of the posterior": np.sqrt(v)}
    yield compare("the std of posterior", given, std, at, INTEGRATED, others=others)


@identity("ends of the usable range", after=("usable range",))
def ends(context: Context) -> Iterator[Comparison]:
    """What sampling and training need at t_min and t_max themselves."""
    sde, at = context.sde, np.array([context.low, context.high])
    alpha, sigma, log_snr = context.values("alpha", "sigma", "log_snr", at=at)
    early, late = (f"t = {t:.6g}" for t in at)
    detail = f"sigma(t_min) is {sigma[0]:.6g}, not positive"
    yield require(bool(sigma[0] > 0), detail, where=early, hint="raise t_min")
    if context.no_signal:
        yield require(True, "", note="alpha(t_max) = 0: the first step is taken in data form")
    else:
        detail = f"log_snr(t_max) is {log_snr[1]:.6g}, below -21: the score is lost to rounding"
        hint = "lower t_max to where log_snr is -20"
        yield require(bool(log_snr[1] >= -21), detail, where=late, hint=hint)
        rates = torch.cat(list(sde.rates(times_tensor(at)))) if at[0] > 0 else torch.zeros(1)
        detail = "rates are not finite at t_min or t_max"
        yield require(bool(torch.isfinite(rates).all()), detail, where=late)
    x_0, noise = _states(2)
    moved = array(sde.perturb(x_0, times_tensor(at), noise), (2, 4), "perturb(x_0, t, noise)")
    expected = np.stack([alpha, sigma], axis=1) @ _COLUMNS.numpy()
    scale = (np.abs(alpha) + np.abs(sigma))[:, None]
    yield compare("perturb", moved, expected, {"t": at[:, None]}, ALGEBRAIC, scale=scale)
    ratio, std = _kernel(context, at[1:], at[:1])
    what, due = "the ratio of kernel(t_max, t_min)", alpha[1:] / alpha[:1]
    yield compare(what, ratio, due, {"t": at[1:]}, ALGEBRAIC, scale=1.0)
    what = "the std of kernel(t_max, t_min)"
    due = np.sqrt(np.maximum(sigma[1:] ** 2 - (ratio * sigma[:1]) ** 2, 0))
    yield compare(what, std, due, {"t": at[1:]}, INTEGRATED, scale=np.abs(sigma[1:]))
    mean, spread = sde.posterior(x_0, noise, *(times_tensor(t) for t in at[::-1]))
    sane = 0 <= float(spread) <= float(sigma[0]) * (1 + ALGEBRAIC)
    yield require(
        sane and bool(torch.isfinite(mean).all()),
        f"posterior(t_max, t_min) has std {float(spread):.6g}, not in [0, sigma(t_min)], or an "
        "infinite mean",
        where=late,
    )


@identity("prior", "any", after=("usable range",))
def prior(context: Context) -> Iterator[Comparison]:
    """N(0, std^2 I) with std = sigma(t_max) to 1e-3, or std^2 = sigma^2 + p^2 alpha^2 at both ends
    of the usable range, as where alpha^2 + sigma^2 = 1, or the std that sub-VP's sigma = std (1 -
    alpha^2) tends to; from_noise and log_prob are of that law.
    """
    try:
        law = context.sde.prior
    except NotImplementedError as error:
        raise Skip("the SDE has no prior") from error
    std = float(law.std)
    yield require(0 < std < math.inf, f"prior.std is {std}, not a positive number")
    if context.linear:
        alpha, sigma = context.values("alpha", "sigma", at=np.array([context.low, context.high]))
        others = {
            "sigma^2 for sigma": sigma[1] ** 2,
            "alpha for sigma": alpha[1],
            "sigma(T) for sigma(t_max)": float(context.sde.sigma(times_tensor(context.T))),
        }
        due = std if _published(alpha, sigma, std) else sigma[1]
        yield compare("prior.std", std, due, {"t": context.high}, _NEAR, others=others)
    z = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4)
    x = std * z.numpy()
    scale = std * np.maximum(np.abs(z.numpy()), 0.1)
    drawn = law.from_noise(z).numpy()
    yield compare("prior.from_noise(z)", drawn, x, {}, ALGEBRAIC, scale=scale)
    given = array(law.log_prob(times_tensor(x)), (3,), "prior.log_prob, one number a sample,")
    density = np.exp(-0.5 * (x / std) ** 2) / (std * math.sqrt(2 * math.pi))
    expected = np.log(density).sum(axis=1)
    scale = np.maximum(np.abs(expected), 1)
    yield compare("prior.log_prob(x)", given, expected, {}, ALGEBRAIC, scale=scale)


def _published(alpha: Array, sigma: Array, std: float) -> bool:
    """Whether data that have this standard deviation at t_min have it at t_max, or sigma = std (1 -
    alpha^2) at both ends, as under sub-VP (Song et al. 2021, eq. 29).
    """
    p = (std**2 - sigma[0] ** 2) / alpha[0] ** 2
    kept = abs(sigma[1] ** 2 + p * alpha[1] ** 2 - std**2) < _NEAR * std**2
    tends = np.abs(sigma - std * (1 - alpha**2)) < 1e-9 * std
    return bool((p >= 0 and kept and alpha[1] < alpha[0]) or tends.all())


def _gap(alpha: float, sigma: float, mean: float, variance: float, prior: float) -> float:
    """KL(N(alpha m, alpha^2 v + sigma^2) || N(0, prior^2)) as the mean of log p - log q under p, by
    Gauss-Hermite quadrature.
    """
    nodes, weights = hermegauss(8)
    std = math.sqrt(alpha**2 * variance + sigma**2)
    x = alpha * mean + std * nodes
    log_ratio = -0.5 * nodes**2 - math.log(std) + 0.5 * (x / prior) ** 2 + math.log(prior)
    return float(weights @ log_ratio / weights.sum())


def _end(context: Context) -> tuple[float, float]:
    alpha, sigma = context.values("alpha", "sigma", at=np.array([context.high]))
    return float(alpha[0]), float(sigma[0])


@identity("prior_gap", after=("usable range",))
def prior_gap(context: Context) -> Iterator[Comparison]:
    """The divergence for Gaussian data, which adds up over coordinates; a large one is a matter of
    the next line.
    """
    alpha, sigma = _end(context)
    if not (sigma > 0 and math.isfinite(alpha)):
        raise Skip("sigma(t_max) is not positive")
    # A mean and a variance that alpha and sigma make neither large nor small.
    size = 1.0 if context.no_signal else sigma / abs(alpha)
    means, variances = np.array([0.0, size, -0.3 * size]), size**2 * np.array([1.0, 0.5, 2.0])
    laws, sde = list(zip(means.tolist(), variances.tolist(), strict=True)), context.sde
    expected = np.array([_gap(alpha, sigma, *law, float(sde.prior.std)) for law in laws])
    given = [float(sde.prior_gap(*law)) for law in laws]
    at, scale = {"mean": means, "variance": variances}, np.maximum(expected, 1e-3)
    yield compare("prior_gap", given, expected, at, INTEGRATED, scale=scale)
    total = float(sde.prior_gap(times_tensor(means), times_tensor(variances)))
    what, due = "prior_gap of three coordinates", float(expected.sum())
    hint = "sum over coordinates"
    yield compare(what, total, due, {}, INTEGRATED, scale=max(due, 1e-3), hint=hint)


@identity("prior_gap is small", after=("usable range", "prior_gap"))
def small_gap(context: Context) -> Iterator[Comparison]:
    """From the noise alone, for data of unit variance; no error, since data may be wider or
    narrower than that.
    """
    alpha, sigma = _end(context)
    gap = _gap(alpha, sigma, 0.0, 1.0, sigma)
    detail = (
        f"data of variance 1 keep {gap:.2g} nats a coordinate at t_max, which samples then lack: "
        "raise sigma or lower alpha there"
    )
    yield Comparison(max(gap, 0.0), _NATS, f"t = {context.high:.6g}", detail, warns=True)

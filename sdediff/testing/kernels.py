"""Drift, diffusion, transition kernel, perturbation and posterior against coefficients, moments and
Bayes' theorem.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.testing.coefficients import FINITE
from sdediff.testing.context import Context, array, pairs, times_tensor
from sdediff.testing.identity import (
    ALGEBRAIC,
    INTEGRATED,
    Comparison,
    Skip,
    compare,
    identity,
    require,
)

__all__: list[str] = []

Array = NDArray[np.float64]


def _state(out: object, like: Tensor, name: str) -> Array:
    if not isinstance(out, Tensor) or out.shape != like.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"{name} must return the shape of its state, {tuple(like.shape)}; got {got}"
        )
    return np.asarray(out.detach().numpy())


def _kernel(context: Context, t: Array, s: Array) -> tuple[Array, Array]:
    ratio, std = context.sde.kernel(times_tensor(t), times_tensor(s))
    return array(ratio, t.shape, "the ratio of kernel(t, s)"), array(
        std, t.shape, "the std of kernel(t, s)"
    )


def _states(rows: int) -> tuple[Tensor, Tensor]:
    """Two states (rows, 4), of which the first two columns are (1, 0) and (0, 1), the third (0,
    0).
    """
    first = torch.tensor([1.0, 0.0, 0.0, 0.6], dtype=torch.float64)
    second = torch.tensor([0.0, 1.0, 0.0, -1.3], dtype=torch.float64)
    return first.expand(rows, 4), second.expand(rows, 4)


@identity("drift is f x", after=FINITE)
def drift(context: Context) -> Iterator[Comparison]:
    """sde.drift(x, t) = f(t) x."""
    x, _ = _states(len(context.times))
    given = _state(context.sde.drift(x, times_tensor(context.times)), x, "drift(x, t)")
    f = context.at_times("f")[:, None]
    scale = np.maximum(np.abs(f), 1e-3 / context.T)
    yield compare(
        "drift(x, t)", given, f * x.numpy(), {"t": context.times[:, None]}, ALGEBRAIC, scale=scale
    )


@identity("diffusion is g", after=FINITE)
def diffusion(context: Context) -> Iterator[Comparison]:
    """sde.diffusion(t) = g(t)."""
    g = context.at_times("g")
    scale = np.maximum(g, 1e-9 * g.max())
    given = array(context.sde.diffusion(times_tensor(context.times)), g.shape, "diffusion(t)")
    yield compare("diffusion", given, g, {"t": context.times}, ALGEBRAIC, scale=scale)


@identity("kernel solves the moment equations", after=FINITE)
def kernel_moments(context: Context) -> Iterator[Comparison]:
    """ratio' = f ratio from 1 and v' = 2 f v + g^2 from 0, at s, with (ratio, sqrt(v)) = kernel(t,
    s).
    """
    t, s = pairs(context.times, 10)
    expected_ratio, variance = np.empty_like(t), np.empty_like(t)
    for first in np.unique(s):
        of = s == first
        expected_ratio[of], variance[of] = context.integrated.kernel(float(first), t[of])
    ratio, std = _kernel(context, t, s)
    at = {"t": t, "s": s}
    others = {"the ratio of alphas upside down": 1 / expected_ratio}
    yield compare(
        "the ratio of kernel(t, s)", ratio, expected_ratio, at, context.bound, others=others
    )
    # Where next to no noise comes in between s and t, what there is drowns in the rounding of
    # sigma(t).
    level = np.interp(t, context.times, context.moments[1])
    scale = np.maximum(np.sqrt(variance), 1e-3 * level)
    yield compare(
        "the std of kernel(t, s)",
        std,
        np.sqrt(variance),
        at,
        context.bound,
        scale=scale,
        others={"v for sqrt(v)": variance},
    )


@identity("kernels compose")
def compose(context: Context) -> Iterator[Comparison]:
    """Chapman-Kolmogorov: kernel(t, r) is kernel(t, s) after kernel(s, r); kernel(t, t) is (1,
    0).
    """
    few = context.times[np.linspace(0, len(context.times) - 1, 8).round().astype(int)]
    k, j, i = np.array([(c, b, a) for c in range(8) for b in range(c) for a in range(b)]).T
    t = few[k]
    s = few[j]
    r = few[i]
    (late, late_std), (early, early_std), (whole, whole_std) = (
        _kernel(context, *ends) for ends in ((t, s), (s, r), (t, r))
    )
    at = {"t": t, "s": s, "r": r}
    yield compare("the ratio of kernel(t, r)", whole, late * early, at, ALGEBRAIC)
    expected = np.sqrt(late_std**2 + (late * early_std) ** 2)
    level = 1e-3 * np.interp(t, context.times, context.at_times("sigma"))
    yield compare(
        "the std of kernel(t, r)",
        whole_std,
        expected,
        at,
        INTEGRATED,
        scale=np.maximum(expected, level),
    )
    ratio, std = _kernel(context, few, few)
    yield compare("the ratio of kernel(t, t)", ratio, np.ones_like(few), {"t": few}, ALGEBRAIC)
    sigma = context.value("sigma", few)
    yield compare(
        "the std of kernel(t, t)",
        std,
        np.zeros_like(few),
        {"t": few},
        INTEGRATED,
        scale=np.abs(sigma),
    )


@identity("kernel from 0 is the marginal")
def from_zero(context: Context) -> Iterator[Comparison]:
    """kernel(t, 0) = (alpha(t), std) with std^2 + alpha(t)^2 sigma_0^2 = sigma(t)^2."""
    sde = context.sde
    t = context.times
    zero = np.zeros_like(context.times)
    if not np.isfinite(context.value("alpha", zero[:1]) + context.value("sigma", zero[:1])).all():
        raise Skip("alpha or sigma has no value at 0")
    ratio, std = _kernel(context, t, zero)
    yield compare(
        "the ratio of kernel(t, 0)", ratio, context.at_times("alpha"), {"t": t}, ALGEBRAIC
    )
    sigma = context.at_times("sigma")
    whole = np.sqrt(std**2 + (ratio * float(sde.sigma_0)) ** 2)
    yield compare(
        "the std of kernel(t, 0), with sigma_0,",
        whole,
        sigma,
        {"t": t},
        ALGEBRAIC,
        others={"sigma^2 for sigma": sigma**2},
    )


@identity("perturb", after=("usable range",))
def perturb(context: Context) -> Iterator[Comparison]:
    """perturb(x_0, t, noise) = alpha x_0 + sigma noise."""
    x_0, noise = _states(len(context.times))
    given = _state(
        context.sde.perturb(x_0, times_tensor(context.times), noise), x_0, "perturb(x_0, t, noise)"
    )
    alpha, sigma = context.at_times("alpha"), context.at_times("sigma")
    expected = alpha[:, None] * x_0.numpy() + sigma[:, None] * noise.numpy()
    at = {"t": context.times}
    yield compare(
        "the factor of x_0 in perturb",
        given[:, 0],
        alpha,
        at,
        ALGEBRAIC,
        others={"alpha and sigma swapped": sigma},
    )
    yield compare(
        "the factor of the noise in perturb",
        given[:, 1],
        sigma,
        at,
        ALGEBRAIC,
        others={"alpha and sigma swapped": alpha},
    )
    scale = np.abs(alpha) + np.abs(sigma)
    for column, name in ((2, "perturb(0, t, 0)"), (3, "perturb")):
        yield compare(name, given[:, column], expected[:, column], at, ALGEBRAIC, scale=scale)


@identity("posterior is Bayes")
def posterior(context: Context) -> Iterator[Comparison]:
    """N(x_s; alpha_s x_0, sigma_s^2) N(x_t; ratio x_s, v), normalised in x_s, with ratio and v from
    alpha and sigma.
    """
    t, s = pairs(context.times, 10)
    alpha_t, alpha_s, sigma_t, sigma_s = (
        context.value(name, u) for name in ("alpha", "sigma") for u in (t, s)
    )
    ratio = alpha_t / alpha_s
    v = sigma_t**2 - (ratio * sigma_s) ** 2
    use = (v > 1e-3 * sigma_t**2) & (sigma_s > 0)
    precision = 1 / sigma_s**2 + ratio**2 / v
    keep = ratio / v / precision
    data = alpha_s / sigma_s**2 / precision
    std = np.sqrt(1 / precision)
    if not use.any():
        raise Skip("sigma^2 - ratio^2 sigma_s^2 is positive nowhere")
    t, s, keep, data, std = (item[use] for item in (t, s, keep, data, std))
    x_t, x_0 = _states(len(t))
    mean, given_std = context.sde.posterior(x_t, x_0, times_tensor(t), times_tensor(s))
    mean = _state(mean, x_t, "the mean of posterior")
    given_std = array(given_std, t.shape, "the std of posterior")
    at = {"t": t, "s": s}
    yield compare(
        "the factor of x_t", mean[:, 0], keep, at, INTEGRATED, others={"x_t and x_0 swapped": data}
    )
    yield compare(
        "the factor of x_0", mean[:, 1], data, at, INTEGRATED, others={"x_t and x_0 swapped": keep}
    )
    known = {"the std of the kernel, not of the posterior": np.sqrt(v[use])}
    yield compare("the std of posterior", given_std, std, at, INTEGRATED, others=known)
    expected = keep[:, None] * x_t.numpy() + data[:, None] * x_0.numpy()
    scale = np.abs(keep) + np.abs(data)
    yield compare("the mean of posterior", mean[:, 3], expected[:, 3], at, INTEGRATED, scale=scale)
    yield compare(
        "the mean of posterior at x_t = x_0 = 0", mean[:, 2], 0 * keep, at, INTEGRATED, scale=scale
    )


@identity("ends of the usable range", after=("usable range",))
def ends(context: Context) -> Iterator[Comparison]:
    """What sampling and training need at t_min and t_max themselves."""
    sde = context.sde
    low = context.low
    high = context.high
    at = np.array([low, high])
    alpha, sigma, log_snr = (context.value(name, at) for name in ("alpha", "sigma", "log_snr"))
    yield require(
        bool(sigma[0] > 0),
        f"sigma(t_min) is {sigma[0]:.6g}, not positive",
        where=f"t = {low:.6g}",
        hint="raise t_min",
    )
    where = f"t = {high:.6g}"
    if context.no_signal:
        yield require(True, "", note="alpha(t_max) = 0: the first step is taken in data form")
    else:
        detail = f"log_snr(t_max) is {log_snr[1]:.6g}, below -21: the score is lost to rounding"
        yield require(
            bool(log_snr[1] >= -21), detail, where=where, hint="lower t_max to where log_snr is -20"
        )
        velocity = torch.cat(list(sde.rates(times_tensor(at)))) if low > 0 else torch.zeros(1)
        yield require(
            bool(torch.isfinite(velocity).all()),
            "rates are not finite at t_min or t_max",
            where=where,
        )
    x_0, noise = _states(2)
    moved = sde.perturb(x_0, times_tensor(at), noise)
    expected = times_tensor(alpha)[:, None] * x_0 + times_tensor(sigma)[:, None] * noise
    scale = (np.abs(alpha) + np.abs(sigma))[:, None]
    yield compare(
        "perturb", moved.numpy(), expected.numpy(), {"t": at[:, None]}, ALGEBRAIC, scale=scale
    )
    ratio, std = _kernel(context, at[1:], at[:1])
    yield compare(
        "the ratio of kernel(t_max, t_min)",
        ratio,
        alpha[1:] / alpha[:1],
        {"t": at[1:]},
        ALGEBRAIC,
        scale=1.0,
    )
    expected_std = np.sqrt(np.maximum(sigma[1:] ** 2 - (ratio * sigma[:1]) ** 2, 0))
    yield compare(
        "the std of kernel(t_max, t_min)",
        std,
        expected_std,
        {"t": at[1:]},
        INTEGRATED,
        scale=np.abs(sigma[1:]),
    )
    mean, spread = sde.posterior(x_0, noise, times_tensor(high), times_tensor(low))
    sane = bool(torch.isfinite(mean).all()) and bool(
        0 <= float(spread) <= float(sigma[0]) * (1 + ALGEBRAIC)
    )
    detail = (
        f"posterior(t_max, t_min) has std {float(spread):.6g}, not in [0, sigma(t_min)], or an "
        "infinite mean"
    )
    yield require(sane, detail, where=where)

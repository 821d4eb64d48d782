"""f, g, alpha, sigma and log_snr against each other, and against the moments of the processes that
they define: forward, probability flow and reverse SDE.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from sdediff import exact
from sdediff.reverse import Reverse
from sdediff.testing.context import (
    Context,
    Rates,
    array,
    derivatives,
    identity,
    integrate,
    times_tensor,
)
from sdediff.testing.report import ALGEBRAIC, INTEGRATED, Comparison, Skip, compare, require

__all__ = ["FINITE", "nowhere"]

Array = NDArray[np.float64]

FINITE: Final = ("finite coefficients", "g^2 >= 0")
_POLE: Final = "a root of a negative number or a division by 0: set t_min and t_max past it"
_LOOSE: Final = (1e-3, 1e-3)
_MEANS: Final = np.array([0.7, -1.5])
_VARIANCES: Final = np.array([0.3, 2.0])


def nowhere(bad: NDArray[np.bool_], times: Array, detail: str, hint: str) -> Comparison:
    """Holds where ``bad`` is true at none of the times; else names the first."""
    first = int(bad.argmax())
    where = f"t = {times[first]:.6g}" if bad.any() else ""
    return require(not bad.any(), f"{detail} at {where}", where=where, hint=hint)


@identity("usable range", "any")
def usable_range(context: Context) -> Iterator[Comparison]:
    """0 <= t_min < t_max <= T."""
    if context.range_error is not None:
        raise context.range_error
    sde = context.sde
    text = f"t_min = {float(sde.t_min):g}, t_max = {float(sde.t_max):g}, T = {float(sde.T):g}"
    yield require(context.range_holds, f"{text}; expected 0 <= t_min < t_max <= T, all finite")


@identity("finite coefficients")
def finite(context: Context) -> Iterator[Comparison]:
    """f, g, alpha, sigma are finite in the usable range; f and g need not be at t_max if alpha is 0
    there.
    """
    for name in ("f", "g", "alpha", "sigma"):
        values = context.value(name, context.fine)
        # g^2 < 0 gives NaN, which has a line of its own
        bad = np.isinf(values) if name == "g" else ~np.isfinite(values)
        yield nowhere(bad, context.fine, f"{name} is {values[bad.argmax()]}", _POLE)


@identity("g^2 >= 0")
def real_noise(context: Context) -> Iterator[Comparison]:
    """g is the root of g^2 = -sigma^2 d log_snr / dt, taken positive."""
    g, f = context.values("g", "f", at=context.fine)
    rises = "log_snr rises there: swap alpha and sigma, or the ends of time"
    yield nowhere(np.isnan(g) & np.isfinite(f), context.fine, "g^2 is negative", rises)
    yield nowhere(g < 0, context.fine, "g is negative", "a sign")


@identity("start at t = 0")
def start(context: Context) -> Iterator[Comparison]:
    """alpha(0) = 1 and sigma(0) = sigma_0, the noise that data are declared to carry."""
    declared = float(context.sde.sigma_0)
    holds = 0 <= declared < np.inf
    detail = f"sigma_0 is {declared}, not a finite number >= 0"
    yield require(holds, detail, hint="declare sigma_0 = 0.0")
    scale = float(np.abs(context.at_times("sigma")[-1]))
    at, note = np.zeros(1), ""
    # The root of a rounded 0 is 1e-8.
    bounds = (ALGEBRAIC, max(ALGEBRAIC * declared / scale, 1e-7))
    alpha, sigma = context.values("alpha", "sigma", at=at)
    if not np.isfinite(alpha + sigma).all():
        at, note, bounds = np.array([1e-12 * context.T]), "alpha or sigma has no value at 0", _LOOSE
        alpha, sigma = context.values("alpha", "sigma", at=at)
    hint = "alpha(0) must be 1: divide alpha by alpha(0)"
    yield compare("alpha", alpha, 1.0, {"t": at}, bounds[0], hint=hint)
    hint = "declare sigma_0 = sigma(0)"
    found = compare("sigma", sigma, declared, {"t": at}, bounds[1], scale=scale, hint=hint)
    yield found._replace(note=note)


@identity("mean of the forward SDE", after=FINITE)
def forward_mean(context: Context) -> Iterator[Comparison]:
    """alpha solves m' = f m, m(0) = 1."""
    mean, std = context.moments
    others = {
        "alpha and sigma swapped": std,
        "alpha where alpha^2 is meant, or sqrt(1 - alpha^2)": np.sqrt(np.maximum(1 - mean**2, 0)),
    }
    yield _at_times(context, "alpha", mean, context.bound, others=others)
    yield from _early_start(context, "alpha", abs(context.start[1] - 1), 1e-2)


@identity("variance of the forward SDE", after=FINITE)
def forward_variance(context: Context) -> Iterator[Comparison]:
    """sigma^2 solves V' = 2 f V + g^2, V(0) = sigma_0^2."""
    mean, std = context.moments
    yield _at_times(context, "sigma", std, context.bound, others={"alpha and sigma swapped": mean})
    come_in = abs(context.start[2] - float(context.sde.sigma_0) ** 2)
    yield from _early_start(context, "sigma", come_in, 0.1 * context.at_times("sigma")[0] ** 2)


def _at_times(
    context: Context, name: str, expected: Array, bound: float, **options: Any
) -> Comparison:
    """A coefficient at all times, against what it should be."""
    return compare(name, context.at_times(name), expected, {"t": context.times}, bound, **options)


def _early_start(context: Context, name: str, distance: float, room: float) -> Iterator[Comparison]:
    """Where the moments start after 0, from alpha and sigma there, these must be near what they are
    at 0.
    """
    if (t := context.start[0]) > 0:
        value = context.value(name, np.array([t]))[0]
        detail = f"{name} at t = {t:.3g} is {value:.6g}, not near its value at 0"
        note = f"f or g is unbounded near 0: integrated from t = {t:.1g}"
        yield require(distance < room, detail, where=f"t = {t:.3g}", note=note)


@identity("f = d log alpha / dt", after=FINITE)
def drift_coefficient(context: Context) -> Iterator[Comparison]:
    """By autograd, or else by differences."""
    alpha, f = context.values("alpha", "f", at=context.inner)
    slopes = derivatives(context.sde.alpha, context.inner, context.T)
    expected = _derivative(f, [slope / alpha for slope in slopes])
    scale = np.maximum(np.abs(expected), 1e-3 / context.T)
    yield _compare_known("f", f, expected, scale, context.inner)


@identity("g^2 = d sigma^2 / dt - 2 f sigma^2", after=FINITE)
def diffusion_coefficient(context: Context) -> Iterator[Comparison]:
    """By autograd, or else by differences; relative to the sum of both terms."""
    f, g, sigma = context.values("f", "g", "sigma", at=context.inner)
    slopes = derivatives(context.sde.sigma, context.inner, context.T)
    taken = 2 * f * sigma**2
    square = _derivative(g**2, [2 * sigma * slope - taken for slope in slopes])
    scale = np.abs(square + taken) + np.abs(taken) + 1e-6 * sigma**2 / context.T
    found = _compare_known("g^2", g**2, square, scale, context.inner)
    if found.broken:
        found = found._replace(hint=compare("g", g, np.sqrt(np.maximum(square, 0)), {}, 0.0).hint)
    yield found


@identity("log_snr = 2 log(alpha / sigma)")
def log_snr(context: Context) -> Iterator[Comparison]:
    """Absolute, since the logarithm goes through 0; relative where it is large."""
    expected = 2 * (np.log(context.at_times("alpha")) - np.log(context.at_times("sigma")))
    if not np.isfinite(expected).all():
        raise Skip("alpha or sigma is not positive")
    yield _at_times(context, "log_snr", expected, ALGEBRAIC, scale=np.maximum(np.abs(expected), 1))


@identity("log_snr falls")
def monotone(context: Context) -> Iterator[Comparison]:
    """log_snr rises nowhere (it may be flat, where g = 0), and falls over all."""
    values = context.value("log_snr", context.fine)
    rise = np.maximum(np.diff(values) / np.maximum(np.abs(values[:-1]), 1), 0)
    at = {"t": context.fine[1:]}
    yield compare("the rise of log_snr", rise, 0 * rise, at, ALGEBRAIC, scale=1.0, hint="a sign")
    slip = "a sign, or alpha and sigma swapped" if values[-1] > values[0] else "g is 0 everywhere"
    detail = f"log_snr goes from {values[0]:.6g} at t_min to {values[-1]:.6g}"
    yield require(bool(values[-1] < values[0]), detail, hint=slip)


@identity("time_of inverts log_snr", after=("log_snr falls",))
def inverse(context: Context) -> Iterator[Comparison]:
    """log_snr(time_of(l)) = l for every l that is reached."""
    targets, at = context.at_times("log_snr"), {"t": context.times}
    times = array(context.sde.time_of(times_tensor(targets)), targets.shape, "time_of(log_snr)")
    outside = ~((times >= 0) & (times <= context.T * (1 + 1e-9)))
    # What is found may itself say what was taken for what.
    own = compare("time_of", times, context.times, at, 0.0)
    if outside.any():
        worst = int(outside.argmax())
        detail = f"time_of({targets[worst]:.6g}) is {times[worst]:.6g}, outside [0, T]"
        yield own._replace(deviation=np.inf, bound=INTEGRATED, detail=detail)
        return
    back, scale = context.value("log_snr", times), np.maximum(np.abs(targets), 1)
    found = compare("log_snr(time_of(l))", back, targets, at, INTEGRATED, scale=scale)
    yield found._replace(hint=own.hint) if found.broken else found
    single = array(context.sde.time_of(float(targets[0])), (), "time_of of a number")
    what = "time_of of a number"
    yield compare(what, single, times[0], {"l": targets[0]}, ALGEBRAIC, scale=context.T)


@identity("velocity rates", after=FINITE)
def rates(context: Context) -> Iterator[Comparison]:
    """sde.rates(t) = (d alpha / dt, d sigma / dt)."""
    t, names = context.inner, ("alpha", "sigma")
    given = zip(names, context.sde.rates(times_tensor(t)), strict=True)
    found = {name: array(out, t.shape, f"rates(t) for {name}") for name, out in given}
    expected = {
        name: _derivative(out, derivatives(getattr(context.sde, name), t, context.T))
        for name, out in found.items()
    }
    for name, other in zip(names, reversed(names), strict=True):
        f, value = context.values("f", name, at=t)
        # The noise that comes in may nearly cancel against what f takes away.
        size = np.abs(expected[name]) + np.abs(f * value)
        scale = np.maximum(size, 1e-3 * np.abs(value) / context.T)
        others = {"the rates of alpha and sigma swapped": expected[other]}
        yield _compare_known(f"d {name} / dt", found[name], expected[name], scale, t, others)


def _compare_known(
    what: str,
    given: Array,
    expected: Array,
    scale: Array,
    t: Array,
    others: Mapping[str, Array] | None = None,
) -> Comparison:
    """`compare` at the times where there is an expected value: differences have none at the ends of
    [0, T].
    """
    known = ~np.isnan(expected)
    if not known.any():
        raise ValueError(
            f"{what} has nothing to be compared with: alpha or sigma has no derivative"
        )
    given, expected, scale, t = (item[known] for item in (given, expected, scale, t))
    part = {name: other[known] for name, other in (others or {}).items()}
    return compare(what, given, expected, {"t": t}, INTEGRATED, scale=scale, others=part)


def _derivative(given: Array, candidates: list[Array]) -> Array:
    """The first candidate that is a number, entry by entry, unless another is very much nearer to
    what was given.
    """
    chosen = np.full_like(given, np.nan)
    for candidate in candidates:
        farther = np.abs(candidate - given) > 0.03 * np.abs(chosen - given)
        chosen = np.where(np.isfinite(candidate) & ~farther, candidate, chosen)
    return chosen


@identity("probability flow keeps the marginals", after=FINITE)
def probability_flow(context: Context) -> Iterator[Comparison]:
    """dx = [f x - g^2 score / 2] dt."""
    yield from _backward(context, 0.0)


@identity("reverse SDE keeps the marginals", after=FINITE)
def reverse_sde(context: Context) -> Iterator[Comparison]:
    """dx = [f x - (1 + lambda^2) / 2 g^2 score] dt + lambda g dw, at lambda = 1 and 1/2."""
    yield from _backward(context, 1.0)
    yield from _backward(context, 0.5)


def _backward(context: Context, lam: float) -> Iterator[Comparison]:
    """Mean and variance from the last of the times to the first, against alpha m and alpha^2 v +
    sigma^2, under dx = [f x - (1 + lambda^2) / 2 g^2 score] dt + lambda g dw.
    """
    alpha, sigma = (context.at_times(name)[:, None] for name in ("alpha", "sigma"))
    means, variances = alpha * _MEANS, alpha**2 * _VARIANCES + sigma**2
    if not np.isfinite(variances).all() or not (sigma > 0).all():
        raise Skip("sigma is not positive in the usable range")
    model = exact.Gaussian([*_MEANS, *_MEANS], [*_VARIANCES, *_VARIANCES]).model(context.sde)

    def rates(t: Array) -> Rates:
        """Slope and intercept of the drift, read off x = 0 and x = 1, and the square of the
        diffusion.
        """
        time, x = times_tensor(t), torch.zeros(len(t), 4, dtype=torch.float64)
        x[:, 2:] = 1.0
        problem = Reverse(model, len(t), lam)
        drift = problem.drift(x, time).numpy()
        noise = problem.diffuse(torch.ones_like(x), time).numpy()
        return Rates(drift[:, 2:] - drift[:, :2], drift[:, :2], noise[:, :2] ** 2)

    first, last = means[-1], variances[-1]
    flow = integrate(rates, context.times[::-1].copy(), first, last, variances[-2::-1], most=800)
    mean, variance = flow.at(context.times, first, last)
    std, expected = np.sqrt(variance), np.sqrt(variances)
    at = {"t": context.times[:, None]}
    yield compare(f"the mean at lambda = {lam:g}", mean, means, at, flow.bound, scale=expected)
    yield compare(f"the standard deviation at lambda = {lam:g}", std, expected, at, flow.bound)

"""f, g, alpha, sigma and log_snr against each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sdediff.testing.context import Context, array, derivatives, times_tensor
from sdediff.testing.identity import (
    ALGEBRAIC,
    INTEGRATED,
    Comparison,
    Skip,
    compare,
    identity,
    place,
    require,
)

__all__: list[str] = []

Array = NDArray[np.float64]

FINITE: Final = ("finite coefficients", "g^2 >= 0")


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
    times = _fine(context)
    for name in ("f", "g", "alpha", "sigma"):
        values = context.value(name, times)
        # g^2 < 0 gives NaN, which has a line of its own
        bad = np.flatnonzero(np.isinf(values) if name == "g" else ~np.isfinite(values))
        where = place({"t": times}, int(bad[0]), times.shape) if len(bad) else ""
        detail = f"{name} is {values[bad[0]]} at {where}" if len(bad) else ""
        yield require(
            not len(bad),
            detail,
            where=where,
            hint="a root of a negative number or a division by 0: set t_min and t_max past it",
        )


@identity("g^2 >= 0")
def real_noise(context: Context) -> Iterator[Comparison]:
    """g is the root of g^2 = -sigma^2 d log_snr / dt, taken positive."""
    times = _fine(context)
    g, f = context.value("g", times), context.value("f", times)
    for bad, detail, hint in (
        (
            np.isnan(g) & np.isfinite(f),
            "g^2 is negative",
            "log_snr rises there: swap alpha and sigma, or the ends of time",
        ),
        (g < 0, "g is negative", "a sign"),
    ):
        which = np.flatnonzero(bad)
        where = place({"t": times}, int(which[0]), times.shape) if len(which) else ""
        yield require(not len(which), f"{detail} at {where}", where=where, hint=hint)


@identity("start at t = 0")
def start(context: Context) -> Iterator[Comparison]:
    """alpha(0) = 1 and sigma(0) = sigma_0, the noise that data are declared to carry."""
    zero, declared = np.zeros(1), float(context.sde.sigma_0)
    yield require(
        0 <= declared < np.inf,
        f"sigma_0 is {declared}, not a finite number >= 0",
        hint="declare sigma_0 = 0.0",
    )
    alpha, sigma = context.value("alpha", zero), context.value("sigma", zero)
    scale, at = np.abs(context.at_times("sigma")[-1:]), {"t": zero}
    if not (np.isfinite(alpha) & np.isfinite(sigma)).all():
        near = np.array([1e-12 * context.T])
        alpha, sigma = context.value("alpha", near), context.value("sigma", near)
        at = {"t": near}
        yield compare("alpha", alpha, np.ones(1), at, 1e-3)
        yield compare("sigma", sigma, np.array([declared]), at, 1e-3, scale=scale)._replace(
            note="alpha or sigma has no value at 0"
        )
        return
    yield compare(
        "alpha",
        alpha,
        np.ones(1),
        at,
        ALGEBRAIC,
        hint="alpha(0) must be 1: divide alpha by alpha(0)",
    )
    # The root of a rounded 0 is 1e-8.
    room = max(ALGEBRAIC * declared, 1e-7 * float(scale[0])) / float(scale[0])
    yield compare(
        "sigma",
        sigma,
        np.array([declared]),
        at,
        room,
        scale=scale,
        hint="declare sigma_0 = sigma(0)",
    )


@identity("mean of the forward SDE", after=FINITE)
def forward_mean(context: Context) -> Iterator[Comparison]:
    """alpha solves m' = f m, m(0) = 1."""
    mean, std = context.moments
    alpha = context.at_times("alpha")
    others = {
        "alpha and sigma swapped": std,
        "alpha where alpha^2 is meant, or sqrt(1 - alpha^2)": np.sqrt(np.maximum(1 - mean**2, 0)),
    }
    yield compare("alpha", alpha, mean, {"t": context.times}, context.bound, others=others)
    yield from _early_start(context, "alpha", abs(context.start[1] - 1), 1e-2)


@identity("variance of the forward SDE", after=FINITE)
def forward_variance(context: Context) -> Iterator[Comparison]:
    """sigma^2 solves V' = 2 f V + g^2, V(0) = sigma_0^2."""
    mean, std = context.moments
    others = {"alpha and sigma swapped": mean}
    yield compare(
        "sigma", context.at_times("sigma"), std, {"t": context.times}, context.bound, others=others
    )
    come_in = abs(context.start[2] - float(context.sde.sigma_0) ** 2)
    yield from _early_start(context, "sigma", come_in, 0.1 * context.at_times("sigma")[0] ** 2)


def _early_start(context: Context, name: str, distance: float, room: float) -> Iterator[Comparison]:
    """Where the moments start after 0, from alpha and sigma there, these must be near what they are
    at 0.
    """
    if (t := context.start[0]) > 0:
        detail = (
            f"{name} at t = {t:.3g} is {context.value(name, np.array([t]))[0]:.6g}, not near its "
            "value at 0"
        )
        yield require(
            distance < room,
            detail,
            where=f"t = {t:.3g}",
            note=f"f or g is unbounded near 0: integrated from t = {t:.1g}",
        )


@identity("f = d log alpha / dt", after=FINITE)
def drift_coefficient(context: Context) -> Iterator[Comparison]:
    """By autograd, or else by differences."""
    alpha, f = context.value("alpha", context.inner), context.value("f", context.inner)
    expected = _derivative(
        f, [slope / alpha for slope in derivatives(context.sde.alpha, context.inner, context.T)]
    )
    scale = np.maximum(np.abs(expected), 1e-3 / context.T)
    yield _compare_known("f", f, expected, scale, context.inner)


@identity("g^2 = d sigma^2 / dt - 2 f sigma^2", after=FINITE)
def diffusion_coefficient(context: Context) -> Iterator[Comparison]:
    """By autograd, or else by differences; relative to the sum of both terms."""
    f, g, sigma = (context.value(name, context.inner) for name in ("f", "g", "sigma"))
    slopes = derivatives(context.sde.sigma, context.inner, context.T)
    square = _derivative(g**2, [2 * sigma * slope - 2 * f * sigma**2 for slope in slopes])
    scale = (
        np.abs(square + 2 * f * sigma**2) + np.abs(2 * f * sigma**2) + 1e-6 * sigma**2 / context.T
    )
    found = _compare_known("g^2", g**2, square, scale, context.inner)
    if found.deviation > found.bound:
        slip = compare("g", g, np.sqrt(np.maximum(square, 0)), {}, 0.0).hint
        found = found._replace(hint=slip)
    yield found


@identity("log_snr = 2 log(alpha / sigma)")
def log_snr(context: Context) -> Iterator[Comparison]:
    """Absolute, since the logarithm goes through 0; relative where it is large."""
    expected = 2 * (np.log(context.at_times("alpha")) - np.log(context.at_times("sigma")))
    if not np.isfinite(expected).all():
        raise Skip("alpha or sigma is not positive")
    scale = np.maximum(np.abs(expected), 1)
    yield compare(
        "log_snr",
        context.at_times("log_snr"),
        expected,
        {"t": context.times},
        ALGEBRAIC,
        scale=scale,
    )


@identity("log_snr falls")
def monotone(context: Context) -> Iterator[Comparison]:
    """log_snr rises nowhere (it may be flat, where g = 0), and falls over all."""
    times = _fine(context)
    values = context.value("log_snr", times)
    high = times[1:]
    rise = np.diff(values) / np.maximum(np.abs(values[:-1]), 1)
    yield compare(
        "the rise of log_snr",
        np.maximum(rise, 0),
        np.zeros_like(rise),
        {"t": high},
        ALGEBRAIC,
        scale=1.0,
        hint="a sign",
    )
    slip = "a sign, or alpha and sigma swapped" if values[-1] > values[0] else "g is 0 everywhere"
    yield require(
        bool(values[-1] < values[0]),
        f"log_snr goes from {values[0]:.6g} at t_min to {values[-1]:.6g}",
        hint=slip,
    )


@identity("time_of inverts log_snr", after=("log_snr falls",))
def inverse(context: Context) -> Iterator[Comparison]:
    """log_snr(time_of(l)) = l for every l that is reached."""
    targets = context.at_times("log_snr")
    times = array(context.sde.time_of(times_tensor(targets)), targets.shape, "time_of(log_snr)")
    inside = (times >= 0) & (times <= context.T * (1 + 1e-9))
    if not inside.all():
        worst = int(np.flatnonzero(~inside)[0])
        detail = f"time_of({targets[worst]:.6g}) is {times[worst]:.6g}, outside [0, T]"
        yield compare("time_of", times, context.times, {"t": context.times}, INTEGRATED)._replace(
            deviation=np.inf, detail=detail
        )
        return
    back, scale = context.value("log_snr", times), np.maximum(np.abs(targets), 1)
    found = compare(
        "log_snr(time_of(l))", back, targets, {"t": context.times}, INTEGRATED, scale=scale
    )
    if found.deviation > found.bound:
        found = found._replace(hint=compare("", times, context.times, {}, 0.0).hint)
    yield found
    single = array(context.sde.time_of(float(targets[0])), (), "time_of of a number")
    yield compare(
        "time_of of a number", single, times[0], {"t": context.times[0]}, ALGEBRAIC, scale=context.T
    )


@identity("velocity rates", after=FINITE)
def rates(context: Context) -> Iterator[Comparison]:
    """sde.rates(t) = (d alpha / dt, d sigma / dt)."""
    given = context.sde.rates(times_tensor(context.inner))
    names = ("alpha", "sigma")
    found = [
        array(out, context.inner.shape, f"rates(t) for {name}")
        for name, out in zip(names, given, strict=True)
    ]
    slopes = [derivatives(getattr(context.sde, name), context.inner, context.T) for name in names]
    expected = [_derivative(out, candidates) for out, candidates in zip(found, slopes, strict=True)]
    for i, name in enumerate(names):
        # The noise that comes in may nearly cancel against what f takes away.
        level = np.abs(context.value("f", context.inner) * context.value(name, context.inner))
        others = {"the rates of alpha and sigma swapped": expected[1 - i]}
        scale = np.maximum(
            np.abs(expected[i]) + level,
            1e-3 * np.abs(context.value(name, context.inner)) / context.T,
        )
        yield _compare_known(f"d {name} / dt", found[i], expected[i], scale, context.inner, others)


def _fine(context: Context) -> Array:
    """The times to check at and a thousand more between them."""
    return np.unique(
        np.concatenate([context.times, np.linspace(context.times[0], context.times[-1], 1000)])
    )


def _compare_known(
    what: str,
    given: Array,
    expected: Array,
    scale: Array,
    t: Array,
    others: dict[str, Array] | None = None,
) -> Comparison:
    """`compare` at the times where there is an expected value: differences have none at the ends of
    [0, T].
    """
    known = ~np.isnan(expected)
    if not known.any():
        raise ValueError(
            f"{what} has nothing to be compared with: alpha or sigma has no derivative"
        )
    part = {name: other[known] for name, other in (others or {}).items()}
    return compare(
        what,
        given[known],
        expected[known],
        {"t": t[known]},
        INTEGRATED,
        scale=scale[known],
        others=part,
    )


def _derivative(given: Array, candidates: list[Array]) -> Array:
    """The first candidate that is a number, entry by entry, unless another is very much nearer to
    what was given.
    """
    chosen = np.full_like(given, np.nan)
    for candidate in candidates:
        better = np.isfinite(candidate) & ~(
            np.abs(candidate - given) > 0.03 * np.abs(chosen - given)
        )
        chosen = np.where(better, candidate, chosen)
    return chosen

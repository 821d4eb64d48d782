"""The law that sampling starts from, and how far it is from that of the noised data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.polynomial.hermite_e import hermegauss

from sdediff.testing.context import Context, times_tensor
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

_NEAR: Final = 1e-3
_NATS: Final = 0.01


def _moments_at_end(context: Context) -> tuple[float, float]:
    end = np.array([context.high])
    return float(context.value("alpha", end)[0]), float(context.value("sigma", end)[0])


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
        alpha, sigma = _moments_at_end(context)
        others = {
            "sigma^2 for sigma": sigma**2,
            "alpha for sigma": alpha,
            "sigma(T) for sigma(t_max)": _sigma_at_T(context),
        }
        published = _kept(context, std) or _tended_to(context, std)
        yield compare(
            "prior.std", std, std if published else sigma, {"t": context.high}, _NEAR, others=others
        )
    z = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4)
    scale = std * np.maximum(np.abs(z.numpy()), 0.1)
    yield compare(
        "prior.from_noise(z)",
        law.from_noise(z).numpy(),
        std * z.numpy(),
        {},
        ALGEBRAIC,
        scale=scale,
    )
    x = std * z
    given = law.log_prob(x)
    if given.shape != (3,):
        raise ValueError(
            f"prior.log_prob must return one number a sample, (3,); got shape {tuple(given.shape)}"
        )
    density = np.exp(-0.5 * (x.numpy() / std) ** 2) / (std * math.sqrt(2 * math.pi))
    expected = np.log(density).sum(axis=1)
    yield compare(
        "prior.log_prob(x)",
        given.numpy(),
        expected,
        {},
        ALGEBRAIC,
        scale=np.maximum(np.abs(expected), 1),
    )


def _kept(context: Context, std: float) -> bool:
    """Whether the process keeps this standard deviation: whether the data that have it at t_min
    have it at t_max.
    """
    alpha, sigma = (
        context.value(name, np.array([context.low, context.high])) for name in ("alpha", "sigma")
    )
    p = (std**2 - sigma[0] ** 2) / alpha[0] ** 2
    return bool(
        p >= 0
        and abs(sigma[1] ** 2 + p * alpha[1] ** 2 - std**2) < _NEAR * std**2
        and alpha[1] < alpha[0]
    )


def _tended_to(context: Context, std: float) -> bool:
    """Whether sigma = std (1 - alpha^2) at both ends, as under sub-VP (Song et al. 2021, eq.
    29).
    """
    alpha, sigma = (
        context.value(name, np.array([context.low, context.high])) for name in ("alpha", "sigma")
    )
    return bool((np.abs(sigma - std * (1 - alpha**2)) < 1e-9 * std).all())


def _sigma_at_T(context: Context) -> float:
    return float(context.sde.sigma(times_tensor(context.T)))


def _gap(alpha: float, sigma: float, mean: float, variance: float, prior: float) -> float:
    """KL(N(alpha m, alpha^2 v + sigma^2) || N(0, prior^2)) as the mean of log p - log q under p, by
    Gauss-Hermite quadrature.
    """
    nodes, weights = hermegauss(8)
    std = math.sqrt(alpha**2 * variance + sigma**2)
    x = alpha * mean + std * nodes
    log_ratio = -0.5 * nodes**2 - math.log(std) + 0.5 * (x / prior) ** 2 + math.log(prior)
    return float(weights @ log_ratio / weights.sum())


@identity("prior_gap", after=("usable range",))
def prior_gap(context: Context) -> Iterator[Comparison]:
    """The divergence for Gaussian data, which adds up over coordinates; a large one is a matter of
    the next line.
    """
    alpha, sigma = _moments_at_end(context)
    if not (sigma > 0 and math.isfinite(alpha)):
        raise Skip("sigma(t_max) is not positive")
    # A mean and a variance that alpha and sigma make neither large nor small.
    size = 1.0 if context.no_signal else sigma / abs(alpha)
    means = np.array([0.0, size, -0.3 * size])
    variances = np.array([size**2, 0.5 * size**2, 2 * size**2])
    std = float(context.sde.prior.std)
    expected = np.array(
        [_gap(alpha, sigma, m, v, std) for m, v in zip(means, variances, strict=True)]
    )
    given = [
        float(context.sde.prior_gap(float(m), float(v)))
        for m, v in zip(means, variances, strict=True)
    ]
    at = {"mean": means, "variance": variances}
    yield compare(
        "prior_gap", np.array(given), expected, at, INTEGRATED, scale=np.maximum(expected, 1e-3)
    )
    total = float(context.sde.prior_gap(times_tensor(means), times_tensor(variances)))
    scale = max(float(expected.sum()), 1e-3)
    yield compare(
        "prior_gap of three coordinates",
        total,
        expected.sum(),
        {},
        INTEGRATED,
        scale=scale,
        hint="sum over coordinates",
    )


@identity("prior_gap is small", after=("usable range", "prior_gap"))
def small_gap(context: Context) -> Iterator[Comparison]:
    """From the noise alone, for data of unit variance; no error, since data may be wider or
    narrower than that.
    """
    alpha, sigma = _moments_at_end(context)
    gap = _gap(alpha, sigma, 0.0, 1.0, sigma)
    detail = (
        f"data of variance 1 keep {gap:.2g} nats a coordinate at t_max, which samples then lack: "
        "raise sigma or lower alpha there"
    )
    yield Comparison(max(gap, 0.0), _NATS, f"t = {context.high:.6g}", detail, warns=True)

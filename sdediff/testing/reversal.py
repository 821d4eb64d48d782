"""The probability flow and the reverse SDE carry the marginals of Gaussian data back: by moment
equations, not by sampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from sdediff.testing.coefficients import FINITE
from sdediff.testing.context import Context, allowance, times_tensor
from sdediff.testing.identity import Comparison, Skip, compare, identity
from sdediff.testing.moments import Rates, integrate

__all__: list[str] = []

Array = NDArray[np.float64]

_MEANS: Final = np.array([0.7, -1.5])
_VARIANCES: Final = np.array([0.3, 2.0])


@identity("probability flow keeps the marginals", after=FINITE)
def probability_flow(context: Context) -> Iterator[Comparison]:
    """dx = [f x - g^2 score / 2] dt."""
    yield from _backward(context, 0.0)


@identity("reverse SDE keeps the marginals", after=FINITE)
def reverse_sde(context: Context) -> Iterator[Comparison]:
    """dx = [f x - (1 + lambda^2) / 2 g^2 score] dt + lambda g dw for lambda = 1 and lambda =
    1/2.
    """
    yield from _backward(context, 1.0)
    yield from _backward(context, 0.5)


def _backward(context: Context, lam: float) -> Iterator[Comparison]:
    """Mean and variance from the last of the times to the first, against alpha m and alpha^2 v +
    sigma^2.
    """
    from sdediff import exact
    from sdediff.reverse import Reverse

    alpha = context.at_times("alpha")[:, None]
    sigma = context.at_times("sigma")[:, None]
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

    flow = integrate(
        rates, context.times[::-1].copy(), means[-1], variances[-1], variances[-2::-1], most=800
    )
    bound = allowance(flow)
    mean, variance = flow.at(context.times, flow.march(means[-1], variances[-1]))
    std, expected = np.sqrt(variance), np.sqrt(variances)
    at = {"t": context.times[:, None]}
    yield compare(f"the mean at lambda = {lam:g}", mean, means, at, bound, scale=expected)
    yield compare(f"the standard deviation at lambda = {lam:g}", std, expected, at, bound)

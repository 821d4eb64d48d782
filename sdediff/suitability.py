"""Whether data, or a standard deviation of data, suit an SDE: the prior gap, and the sizes of noise
and data.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from sdediff.sde import LinearSDE

__all__ = ["off_scale", "short_of_noise", "unsuited"]

_GAP: Final = 2e-2
"""Nats a coordinate: a fifth of the prior's standard deviation is then left of the data. The most
among published configurations is 2.4e-3, of `DDPM.from_schedule("scaled-linear")` for data of
variance 1.
"""
_MOST: Final = 5e-2
"""Nats a coordinate that an SDE may leave of the data for which it is made."""
_WIDEST, _NARROWEST = 5.0, 0.05
"""The standard deviation of the data over that for which an SDE is made."""
_LEAST: Final = 2.0
"""The standard deviation of the data over that of the noise at t_min."""
_FADED: Final = 0.1
_OFF: Final = 3.0
"""The standard deviation of data over that which a model declares, or the inverse of it."""


def off_scale(declared: float, found: float) -> str | None:
    """What is wrong with data of standard deviation ``found`` for a model that declares
    ``declared``; None if nothing is.

    They may differ by 3 times.
    """
    if not found or declared / _OFF <= found <= declared * _OFF:
        return None
    return (
        f"the standard deviation is {found:.3g} in the units of the model, which declares "
        f"data_std={declared:.3g}: these are not the data that it is for, or they lack its scale "
        "(a Normalizer of the data, or the scaling_factor of an autoencoder)"
    )


@torch.no_grad()
def unsuited(sde: LinearSDE, mean: Tensor, variance: Tensor) -> str | None:
    """What is wrong with data of these moments, one mean and variance a coordinate, under ``sde``;
    None if nothing is.

    Three things are looked at: what is left of the data at t_max (`left_at_the_end`), which is much
    where they are far from 0 or wider than the noise, or the noise does not take over; the standard
    deviation of the data against the prior's, where the SDE lets the data fade (alpha falls to a
    tenth or less, as VP's), which it may exceed by 5 times or fall below by 20; and against the
    noise at t_min, which must be half of it at most. Data that are constant are measured by their
    mean alone.
    """
    if "kernel" not in sde.offers:
        return None
    std, size = float(variance.mean().sqrt()), float(mean.square().mean().sqrt())
    left = left_at_the_end(sde, float((mean.square() + variance).mean()))
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    alpha, sigma = sde.alpha(ends).tolist(), sde.sigma(ends).tolist()
    prior, least = sde.prior.std, sigma[0] / alpha[0]
    fades = abs(alpha[1]) < _FADED * abs(alpha[0])
    found = (
        f"the standard deviation of the data is {std:.3g} and their mean {size:.3g} (root mean "
        "squares over coordinates)"
    )
    mend = "normalise them, ScoreModel(net, sde, normalizer=Normalizer.of(data))"
    if fades and std and not prior * _NARROWEST <= std <= prior * _WIDEST:
        return (
            f"{found}, but {sde!r} is for data of the scale of its prior, standard deviation "
            f"{prior:.3g}: {mend}"
        )
    # its ends are still to move
    learned = isinstance(getattr(sde, "schedule", None), torch.nn.Module)
    if left > _GAP and not learned:
        larger = "" if fades else ", or raise sigma at t_max (sigma_max of VE and EDM)"
        return short_of_noise(sde, sde.data_std) or (
            f"{found}, so that at t_max the law of x_t given the data is {left:.2g} nats a "
            f"coordinate off the prior of {sde!r} "
            f"(at most {_GAP:g} is small): {mend}{larger}"
        )
    if std and std < _LEAST * least:
        return (
            f"{found}, which the noise that {sde!r} leaves on them at t_min, of standard "
            f"deviation {least:.3g}, hides: "
            f"{mend}, or lower sigma at t_min (sigma_min of VE and EDM)"
        )
    return None


@torch.no_grad()
def left_at_the_end(sde: LinearSDE, square: float) -> float:
    """E KL(N(alpha x_0, sigma^2) || prior) at t_max, nats a coordinate, for data of this mean
    square: L_N of a chain.

    It bounds the gap between the law at t_max and the prior. That of the first two moments alone
    (`LinearSDE.prior_gap`) is 0 for standardised data under VP, however little noise there is.
    """
    end, prior = torch.tensor(sde.t_max, dtype=torch.float64), sde.prior.std
    spread = float(sde.sigma(end) / prior) ** 2
    kept = float(sde.alpha(end) / prior) ** 2
    return 0.5 * (spread - 1 - math.log(spread) + kept * square)


@torch.no_grad()
def short_of_noise(sde: LinearSDE, data_std: float) -> str | None:
    """What is wrong with sampling from the prior for data of this standard deviation and mean 0;
    None if nothing is.
    """
    left = left_at_the_end(sde, data_std**2)
    if left <= _MOST:
        return None
    end = torch.tensor(sde.t_max, dtype=torch.float64)
    signal, noise = abs(float(sde.alpha(end))) * data_std, float(sde.sigma(end))
    return (
        f"the noising process ends before noise has taken over: at t_max = {sde.t_max:.4g} of "
        f"{sde!r} data of standard deviation "
        f"{data_std:.3g} have {signal:.3g} left beside noise of {noise:.3g}, {left:.3g} nats a "
        "coordinate off the prior from which "
        "sampling starts. Take more levels or larger betas, a larger sigma_max, or pass x_init"
    )

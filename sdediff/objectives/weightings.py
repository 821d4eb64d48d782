"""Weights of the squared error at each time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from torch import Tensor

from sdediff.predictions import PREDICTIONS, conversion, meant
from sdediff.protocols import Prediction
from sdediff.sde import LinearSDE
from sdediff.solvers.given import Record, nearest, reading, reals

__all__ = ["WEIGHTINGS", "MinSNR", "Weighting", "check_weighting", "factor"]

Weighting = Callable[[LinearSDE, Tensor], Tensor]
"""w(sde, t): the weight of the squared score error at float64 host times (B,)."""


def _likelihood(sde: LinearSDE, t: Tensor) -> Tensor:
    return sde.diffusion(t) ** 2


@dataclass(frozen=True)
class MinSNR(Record):
    """The squared error of the data times min(snr, gamma), snr = alpha^2 / sigma^2 (Hang et al.
    2023, arXiv 2303.09556).

    sigma is in the units in which the SDE was declared, so that ``sde.scaled(c)`` has the same
    weights.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"MinSNR: gamma must be a positive number, got {self.gamma!r}")

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """min(snr, gamma) sigma^4 / alpha^2."""
        snr = sde.log_snr(t).exp()
        most = self.gamma / sde.unit**2
        return snr.clamp(max=most) * sde.sigma(t) ** 2 / snr


WEIGHTINGS: Final[dict[str, str | Weighting]] = {
    "sigma2": "noise",
    "snr": "noise",
    "uniform": "score",
    "likelihood": _likelihood,
    "min-snr": MinSNR(),
    **{name: name for name in PREDICTIONS},
}
"""Weights by name. The name of a prediction is the squared error of that: ``noise``, ``data``,
``score``, ``v``, ``flow`` (flow matching), ``edm`` (Karras et al. 2022, arXiv 2206.00364, Table 1:
w = sigma^2 (1 + sigma^2 / (alpha sigma_data)^2) of the score). ``sigma2`` (Song et al. 2021, arXiv
2011.13456) and ``snr`` (that of the data times snr) are the noise's, ``uniform`` the score's;
``likelihood`` is g^2 (Song et al. 2021, arXiv 2101.09258), ``min-snr`` is `MinSNR`.
"""


def check_weighting(weighting: object) -> None:
    """A ValueError unless it is a name or a function."""
    if not callable(weighting) and not (isinstance(weighting, str) and weighting in WEIGHTINGS):
        hint = nearest(str(weighting), WEIGHTINGS) or meant(str(weighting))
        raise ValueError(
            f"weighting must be one of {', '.join(WEIGHTINGS)} or a function, got "
            f"{weighting!r}{hint}"
        )


def factor(
    weighting: str | Weighting,
    sde: LinearSDE,
    source: str | Prediction,
    t: Tensor,
    sigma_data: float,
) -> Tensor:
    """What the squared error of the prediction ``source`` is multiplied by, shaped as t, float64
    host times.
    """
    weight = WEIGHTINGS[weighting] if isinstance(weighting, str) else weighting
    # at once from one to the other: through the score it may be infinity times 0
    if isinstance(weight, str):
        return conversion(sde, source, weight, t, sigma_data)[1] ** 2
    given = reals("weighting(sde, t)", reading("weighting", partial(weight, sde), "t", t))
    if given.shape not in (t.shape, ()):
        raise ValueError(
            f"weighting(sde, t) must be shaped as t, {tuple(t.shape)}, got {tuple(given.shape)}"
        )
    return given * conversion(sde, source, "score", t, sigma_data)[1] ** 2

"""What networks predict, and how one prediction follows from another."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor

from sdediff.protocols import Prediction
from sdediff.sde import SDE, LinearSDE
from sdediff.solvers.given import nearest

__all__ = [
    "PREDICTIONS",
    "Pair",
    "canonical",
    "coefficients_of",
    "conversion",
    "meant",
    "prediction_of",
    "singular",
]

Pair = tuple[Tensor, Tensor]


def _edm(sde: LinearSDE, t: Tensor, sigma_data: float) -> Pair:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    root = (sigma**2 + (sigma_data * alpha) ** 2).sqrt()
    return sigma / (sigma_data * root), -sigma_data * alpha / root


PREDICTIONS: Final[dict[str, Callable[[Any, Tensor, float], Pair]]] = {
    "noise": lambda sde, t, _: (torch.zeros_like(t), torch.ones_like(t)),
    "data": lambda sde, t, _: (torch.ones_like(t), torch.zeros_like(t)),
    "score": lambda sde, t, _: (torch.zeros_like(t), -1 / sde.sigma(t)),
    "v": lambda sde, t, _: (-sde.sigma(t) / sde.unit**2, sde.alpha(t)),
    "flow": lambda sde, t, _: sde.rates(t),
    "edm": _edm,
}
"""What each prediction is, as (p, q) of p x_0 + q noise where x_t = alpha x_0 + sigma noise.

``v`` is alpha noise - sigma x_0 (Salimans and Ho 2022, arXiv 2202.00512), its lengths in the units
in which the SDE was declared, ``flow`` the time derivative of alpha x_0 + sigma noise, ``edm`` the
raw output F of a network preconditioned as by Karras et al. 2022 (arXiv 2206.00364, Table 1), after
division of x by alpha; their denoiser D is ``data``.
"""

_NUMBERS: Final = {"noise": (0.0, 1.0), "data": (1.0, 0.0)}
"""Those of them that are the same at all times."""

_ALIASES: Final = {"eps": "noise", "x0": "data"}


_ELSEWHERE: Final = {
    "noise": "eps eps_t epsilon epsilon_t ε noise gaussian_noise added_noise z",
    "data": (
        "x0 x_0 xstart x_start start_x data clean_data sample clean_sample original_sample "
        "original "
        "denoised denoised_sample denoiser clean image clean_image img x d d_x"
    ),
    "score": "score s score_fn score_function grad_log_p grad_log_prob gradient",
    "v": "v",
    "flow": "velocity velocity_field vector_field flow flow_matching flow_velocity rectified_flow "
    "u u_t "
    "ut drift",
    "edm": "f f_x raw raw_output preconditioned karras edm",
}
"""Words of other libraries and papers for a prediction: EDM's D and F are ``data`` and ``edm``."""

_AROUND: Final = re.compile(
    r"^(pred|predict|predicts|predicted|model|target)_"
    r"|_?(prediction|predictions|predictor|pred)$"
    r"|_(theta|hat|output|target|net|network|model|param|objective)$"
    r"|_(parameterization|parametrization)$"
)


def canonical(name: str, what: str = "predicts") -> str:
    """The table's own name for a prediction; ValueError if there is none."""
    known = _ALIASES.get(name, name) if isinstance(name, str) else ""
    if known not in PREDICTIONS:
        hint = meant(name) if isinstance(name, str) else ""
        raise ValueError(f"{what} must be one of {', '.join(PREDICTIONS)}, got {name!r}{hint}")
    return known


def meant(name: str) -> str:
    """`nearest`, which knows the words of other libraries: ``PredictionType.V_PREDICTION`` is v."""
    bare = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2].strip())
    word = re.sub(r"[-\s]+", "_", bare).lower()
    while (bare := _AROUND.sub("", word)) != word:
        word = bare
    found = next((ours for ours, words in _ELSEWHERE.items() if word in words.split()), None)
    if found is None:
        return nearest(name, PREDICTIONS)
    other = ", or 'v' = alpha noise - sigma x_0" if word.startswith("velocity") else ""
    return f" (did you mean {found!r}{other}?)"


def prediction_of(predicts: str | Prediction) -> str | Prediction:
    """What a model's ``predicts`` means: the table's own name, or a value that has coefficients."""
    return canonical(predicts) if isinstance(predicts, str) else predicts


def coefficients_of(source: str | Prediction, sde: LinearSDE, t: Tensor, sigma_data: float) -> Pair:
    """(p, q) of what a model predicts, p x_0 + q noise, shaped as t."""
    if isinstance(source, str):
        return PREDICTIONS[source](sde, t, sigma_data)
    p, q = source.coefficients(sde, t)
    return torch.as_tensor(p).expand(t.shape), torch.as_tensor(q).expand(t.shape)


def conversion(
    sde: SDE,
    source: str | Prediction,
    target: str | Prediction,
    t: Tensor,
    sigma_data: float,
    marginal: tuple[Tensor, Tensor] | None = None,
    unit: float | None = None,
) -> Pair:
    """(A, B) such that ``target`` = A x + B ``source``, shaped as t; not finite where ``source``
    does not determine it.

    x = alpha x_0 + sigma noise and ``source`` = p x_0 + q noise are solved for x_0 and noise; a
    ``target`` parallel to ``source`` (noise and score) is a multiple of it, also where x is
    parallel to both. ``marginal``: (alpha, sigma) at t where they are known.

    With a ``unit`` of length, x and ``target`` are those of ``sde.scaled(1 / unit)``, declared
    anew: states are x / unit, and v is alpha noise - sigma x_0 in these units. ``source`` is what
    the network predicts under ``sde``.
    """
    if source == target and (unit is None or source == "noise"):
        return torch.zeros_like(t), torch.ones_like(t)
    if source == target == "score":
        return torch.zeros_like(t), torch.full_like(t, 1.0 if unit is None else unit)
    if "kernel" not in sde.offers:
        if source == target == "data":
            return torch.zeros_like(t), torch.full_like(t, 1.0 if unit is None else 1 / unit)
        raise ValueError(
            f"{target} cannot be computed from a network that predicts {source} under {sde!r}, "
            "which has no Gaussian kernel: "
            "use the score, which EulerMaruyama and RK45 need alone"
        )
    linear = cast(LinearSDE, sde)
    alpha, sigma = marginal or (linear.alpha(t), linear.sigma(t))
    given: list[Any] = [alpha, sigma if unit is None else sigma / unit]
    for name, per in ((source, None), (target, unit)):
        if isinstance(name, str) and name in _NUMBERS:
            given += _NUMBERS[name]
        elif per is None:
            known = cast(LinearSDE, _Known(linear, alpha, sigma, unit=linear.unit))
            given += coefficients_of(name, known, t, sigma_data)
        else:
            known = cast(LinearSDE, _Known(linear, alpha, sigma / per, per=per))
            given += coefficients_of(name, known, t, sigma_data)
    if unit is not None and unit != 1:
        given[2] = unit * given[2]  # x_0 is unit times the one of the scaled SDE
    where: Callable[..., Any] = torch.where
    if not any(isinstance(c, Tensor) and c.requires_grad for c in given):
        # Many times at once are the cost of an adaptive step, and numpy's share of it is a quarter.
        where = np.where
        given = [c.numpy() if isinstance(c, Tensor) else c for c in given]
    with np.errstate(all="ignore"):
        alpha, sigma, p, q, p_to, q_to = given
        det, cross = _minor(where, alpha, sigma, p, q), _minor(where, p_to, q_to, p, q)
        multiple = (p_to * p + q_to * q) / (p**2 + q**2)
        if isinstance(cross, float) and cross == 0.0:
            pair = 0.0, multiple
        else:
            pair = cross / det, (q_to * alpha - p_to * sigma) / det
            if not isinstance(cross, float):
                parallel = cross == 0
                pair = where(parallel, 0.0, pair[0]), where(parallel, multiple, pair[1])
    a, b = (torch.full_like(t, c) if isinstance(c, float) else torch.as_tensor(c) for c in pair)
    return a, b


def _minor(where: Callable[..., Any], a: Any, b: Any, p: Any, q: Any) -> Any:
    """a q - b p, and 0 where that is rounding.

    (a, b) and (p, q) are columns or numbers, which save passes: (1, 0) or (0, 1), and p any number
    where q is 0.
    """
    if isinstance(p, float):
        return a if q else 0.0 - b * p
    if isinstance(a, float):
        return q if a else 0.0 - p
    one, other = a * q, b * p
    small = 64 * torch.finfo(torch.float64).eps * (abs(one) + abs(other))
    return where(abs(one - other) <= small, 0.0, one - other)


class _Known:
    """An SDE whose alpha and sigma are computed already, at one t; its lengths are those of ``sde``
    over ``per``.
    """

    def __init__(
        self, sde: LinearSDE, alpha: Tensor, sigma: Tensor, unit: float = 1.0, per: float = 1.0
    ) -> None:
        self._sde = sde
        self._alpha = alpha
        self._sigma = sigma
        self.unit = unit
        self._per = per

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sde, name)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self._sde.rates(t)
        return alpha, sigma / self._per

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha

    def sigma(self, t: Tensor) -> Tensor:
        return self._sigma


def singular(
    sde: LinearSDE, source: str | Prediction, target: str, t: Tensor, sigma_data: float
) -> str:
    """Why ``target`` does not follow from ``source`` at the time t, (), and what to use instead."""

    def finite(name: str) -> bool:
        return all(bool(torch.isfinite(c)) for c in conversion(sde, name, target, t, sigma_data))

    if float(sde.alpha(t)) == 0:
        reason = "alpha = 0: no signal is left"
    elif float(sde.sigma(t)) == 0:
        reason = "sigma = 0: there is no noise"
    else:
        reason = "log_snr is flat"
    able = [name for name in PREDICTIONS if name != target and finite(name)]
    advice = (
        f"let the network predict {' or '.join(able)}"
        if able
        else f"no parametrisation has the {target} there"
    )
    given = source if isinstance(source, str) else repr(source)
    return (
        f"{target} cannot be computed from a network that predicts {given} at t = "
        f"{float(t):.6g}, where {reason}; {advice}"
    )

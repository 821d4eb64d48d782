"""Score estimators of simulation-based inference as models: the posterior p(theta | y) of sbi."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from sdediff.model import ScoreModel
from sdediff.normalizer import Normalizer
from sdediff.sde import LinearSDE

__all__ = ["from_sbi"]

_NEEDED: Final = (
    "score",
    "mean_t_fn",
    "std_fn",
    "t_min",
    "t_max",
    "input_shape",
    "condition_shape",
)


class _Kernel(LinearSDE):
    """N(alpha(t) theta, sigma(t)^2 I) with the estimator's ``mean_t_fn`` and ``std_fn``."""

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        low, high = float(estimator.t_min), float(estimator.t_max)
        gone = float(self.alpha(torch.tensor(high, dtype=torch.float64))) == 0
        super().__init__(T=high, t_min=low, t_max=None if gone else high)

    def alpha(self, t: Tensor) -> Tensor:
        return self._of(self._estimator.mean_t_fn, t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._of(self._estimator.std_fn, t)

    def _of(self, function: Any, t: Tensor) -> Tensor:
        """A function that appends a dimension for each of a parameter's."""
        found: Tensor = function(torch.as_tensor(t, dtype=torch.float64).reshape(-1))
        return found.reshape(torch.as_tensor(t).shape)


class _Score(nn.Module):
    """The score of theta_t - alpha(t) mean, which starts near N(0, sigma(t_max)^2 I)."""

    def __init__(self, estimator: Any, mean: Tensor) -> None:
        super().__init__()
        self.estimator = estimator
        self.register_buffer("mean", mean)
        self.mean: Tensor

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        wanted = tuple(self.estimator.condition_shape)
        if tuple(y.shape[1:]) != wanted:
            raise ValueError(
                f"the condition y must be (B, {', '.join(map(str, wanted))}), the observation of "
                f"each sample; got shape {tuple(y.shape)}"
            )
        moved = self.estimator.mean_t_fn(t) * self.mean.to(x)
        found: Tensor = self.estimator.score(x + moved, y, t)
        return found


def from_sbi(estimator: Any) -> ScoreModel:
    """The model of a score estimator of sbi, trained by its NPSE, with the observation as condition
    ``y``.

    ``estimator`` is what ``NPSE(prior).append_simulations(theta, x).train()`` returns; any object
    with ``score(input, condition, t)``, ``mean_t_fn``, ``std_fn``, ``t_min``, ``t_max``,
    ``input_shape`` and ``condition_shape`` is taken. States are theta (B, *input_shape) and the
    condition is ``y`` (B, *condition_shape), in the units of the simulations. The SDE has the
    kernel N(mean_t_fn(t) theta, std_fn(t)^2 I) from ``t_min`` to ``t_max``, which is that of the
    training; drift and diffusion are derived from it. Where the estimator says the mean and the
    standard deviation of theta (``mean_0``, ``std_0``), they are the `Normalizer`'s mean and the
    model's ``data_std``. Their VP ends where alpha is still 0.08, so that sampling starts from a
    law that is a little off: the reverse SDE forgets it, the probability flow does not, here as
    there. Their posterior rejects samples outside of the prior's support; a model
    knows of no prior, so that this is left to the caller.

    Raises TypeError where a method is missing, or takes no times of as many samples, as that of
    FMPE does not.
    """
    lacking = [name for name in _NEEDED if not hasattr(estimator, name)]
    if lacking:
        inside = hasattr(estimator, "vector_field_estimator")
        hint = (
            "pass its vector_field_estimator" if inside else "pass what NPSE(...).train() returns"
        )
        raise TypeError(
            f"from_sbi: {type(estimator).__name__} has no {', '.join(lacking)}, as score "
            f"estimators of sbi have: pass {hint}"
        )
    shape = tuple(estimator.input_shape)
    _check(estimator, shape)
    mean = torch.as_tensor(getattr(estimator, "mean_0", 0.0)).detach().expand(shape).clone()
    std = torch.as_tensor(getattr(estimator, "std_0", 1.0)).detach().double().expand(shape)
    return ScoreModel(
        _Score(estimator, mean),
        _Kernel(estimator),
        "score",
        data_std=float(std.square().mean().sqrt()),
        normalizer=Normalizer(mean.double()),
    )


def _check(estimator: Any, shape: tuple[int, ...]) -> None:
    """A TypeError unless ``score`` takes parameters, observations and times of B samples."""
    place = getattr(estimator, "mean_0", torch.zeros(())).device
    x = torch.zeros(5, *shape, device=place)
    y = torch.zeros(5, *estimator.condition_shape, device=place)
    t = torch.full((5,), float(estimator.t_max), device=place)
    try:
        with torch.no_grad():
            found = estimator.score(x, y, t)
        reason = "" if found.shape == x.shape else f"it returned shape {tuple(found.shape)}"
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error)
    if reason:
        raise TypeError(
            f"from_sbi: {type(estimator).__name__}.score failed on parameters {tuple(x.shape)}, "
            f"observations {tuple(y.shape)} and times (5,): {reason}; estimators of NPSE are "
            "taken, and those of FMPE are not"
        )

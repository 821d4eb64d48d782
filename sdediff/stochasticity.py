"""How much noise the reverse process has: one number, a function of time, or a number a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sdediff.options import Stochasticity
from sdediff.solvers import Solver
from sdediff.solvers.given import plain, reading, real, reals

__all__ = ["Stepwise", "asks_for_noise", "check_stochasticity"]

_EITHER: Final = "; one for all samples, a function of t, or one a step"


def asks_for_noise(stochasticity: Stochasticity | None) -> bool:
    """Whether a solve with it needs a stochastic solver."""
    if stochasticity is None or callable(stochasticity):
        return stochasticity is not None
    one = plain(stochasticity)
    if isinstance(one, bool | str | float | int):
        return real("stochasticity", one, _EITHER) != 0
    return bool((reals("stochasticity", one) != 0).any())


@dataclass(frozen=True, eq=False)
class Stepwise:
    """lambda(t) of one value a step: that of the step which starts at t, or within which t lies."""

    times: Tensor
    values: Tensor

    def __call__(self, t: Tensor) -> Tensor:
        return self.values[self._step(t)]

    def mixing(self, t: Tensor, log_snr: Callable[[Tensor], Tensor]) -> Tensor:
        """The integral of lambda^2 du, u = log(alpha / sigma), up to a constant: exact at jumps,
        at which a quadrature over t is not.
        """
        u = 0.5 * log_snr(self.times)
        whole = self.values**2 * u.diff()
        whole = torch.where(torch.isfinite(whole), whole, 0.0)
        before = torch.cat([whole.new_zeros(1), whole.cumsum(0)[:-1]])
        anchor = torch.where(torch.isfinite(u[:-1]), u[:-1], u[1:])
        step = self._step(t)
        square = self.values[step] ** 2
        since = square * (0.5 * log_snr(t) - anchor[step])
        return before[step] + torch.where(square > 0, since, 0.0)

    def _step(self, t: Tensor) -> Tensor:
        way = 1.0 if self.times[-1] > self.times[0] else -1.0
        found = torch.searchsorted(way * self.times, way * t.detach(), right=True) - 1
        return found.clamp(0, len(self.values) - 1)


def _stepwise(
    values: float | Sequence[float] | Tensor, times: Tensor, solver: Solver
) -> Stepwise | float:
    """lambda(t) by its values for each step of the grid, or one number."""
    if isinstance(plain(values), bool | str | float | int):
        return real("stochasticity", values, _EITHER)
    given = reals("stochasticity", values, "cpu")
    if solver.adaptive:
        raise ValueError(
            f"{solver!r} chooses its own steps, so that stochasticity has no number for each of "
            "them: give one number, or a function of t"
        )
    if times.ndim > 1:
        raise ValueError(
            "stochasticity of a value a step takes one grid for all samples: give a function of t"
        )
    if given.shape != (len(times) - 1,):
        raise ValueError(
            f"stochasticity must be a number, a function of t, or one number for each of the "
            f"{len(times) - 1} steps; got shape {tuple(given.shape)}"
        )
    return Stepwise(times, given)


def check_stochasticity(
    solver: Solver, stochasticity: Stochasticity | None, times: Tensor
) -> float | Callable[[Tensor], Tensor]:
    """lambda >= 0, at all times of the grid if it is a function, and 0 where the solver has no
    noise along the path.
    """
    if stochasticity is None:
        return 1.0 if solver.solves_sde else 0.0
    if not solver.solves_sde and asks_for_noise(stochasticity):
        raise ValueError(
            f"{type(solver).__name__} draws no noise along the path: stochasticity must be 0; "
            "EulerMaruyama takes any"
        )
    if not callable(stochasticity):
        stochasticity = _stepwise(stochasticity, times, solver)
    if not callable(stochasticity):
        if not 0 <= stochasticity < float("inf"):
            raise ValueError(
                "stochasticity must be a finite number >= 0 or a function of t, got "
                f"{stochasticity!r}"
            )
        return stochasticity
    times = times.reshape(-1)
    values = reals("stochasticity(t)", reading("stochasticity", stochasticity, "t", times))
    if values.shape not in (times.shape, ()) or not bool(
        (torch.isfinite(values) & (values >= 0)).all()
    ):
        got = (
            f"shape {tuple(values.shape)}"
            if values.shape not in (times.shape, ())
            else f"{float(values.min()):.4g}"
        )
        raise ValueError(
            f"stochasticity(t) must be finite and >= 0, shaped as t, {tuple(times.shape)}; got "
            f"{got}"
        )
    return stochasticity

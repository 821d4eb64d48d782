"""The forward SDE as solvers see it."""

from __future__ import annotations

from torch import Tensor

from sdediff.sde import SDE
from sdediff.sde.base import drift_of
from sdediff.solvers import Problem
from sdediff.solvers.arithmetic import weighted
from sdediff.solvers.coefficients import Coef

__all__ = ["Forward"]


class Forward(Problem):
    """dx = drift(x, t) dt + g(t) dw, the forward SDE itself, for states in units of ``unit``."""

    offers = frozenset({"drift", "diffusion"})

    def __init__(self, sde: SDE, samples: int, unit: float = 1.0) -> None:
        super().__init__(samples)
        self.sde, self.unit = sde, unit

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        drift = drift_of(self.sde, weighted((self.unit, x)), t)
        return self.seen(x, drift / self.unit)  # a copy: the SDE may return one tensor each time

    def diffusion(self, t: Tensor) -> Coef:
        g: Coef = self.sde.diffusion(t)
        return g * (1 / self.unit)

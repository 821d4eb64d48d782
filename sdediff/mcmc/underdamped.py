"""Underdamped (kinetic) Langevin dynamics by splitting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sdediff.mcmc.kernels import Kernel, Noise, positive
from sdediff.mcmc.target import Point, Target, known
from sdediff.solvers.arithmetic import weighted
from sdediff.solvers.given import check_choice

__all__ = ["Underdamped"]


@dataclass(frozen=True)
class Underdamped(Kernel):
    """Underdamped Langevin, dx = p dt, dp = score(x) dt - friction p dt + sqrt(2 friction) dw,
    stationary law p(x) N(p; 0, I).

    A step is a sequence of exact flows, of half a step each where a letter comes twice:

        A: x <- x + h p,    B: p <- p + h score(x),    O: p <- exp(-friction h) p + sqrt(1 - exp(-2
        friction h)) z.

    ``"BAOAB"`` and ``"OBABO"`` are of weak order 2 and so is the error of their stationary laws,
    but the positions' variance on N(0, v) is exactly v under BAOAB (Leimkuhler and Matthews 2013,
    doi 10.1093/amrx/abs010; its error on other laws is smallest too), and v / (1 - step^2 / (4 v))
    under OBABO (Bussi and Parrinello 2007), whose momenta are exact instead. Both diverge from step
    = 2 sqrt(v) on. With friction 0 both are velocity Verlet, reversible and of order 2; as the
    friction grows BAOAB becomes x <- x + h score(x) + sqrt(h / 2) (z_n + z_{n+1}) with h = step^2 /
    2. One evaluation a step.
    """

    step: float
    friction: float
    scheme: Literal["BAOAB", "OBABO"] = "BAOAB"

    def __post_init__(self) -> None:
        positive("Underdamped", "step", self.step)
        positive("Underdamped", "friction", self.friction, zero=True)
        check_choice("scheme", self.scheme, ("BAOAB", "OBABO"))

    def start(self, target: Target, x: Tensor, momentum: Tensor | None, noise: Noise) -> Point:
        """A momentum from its stationary law."""
        return target.look(x, score=True)._replace(
            momentum=noise.normal(0, 2) if momentum is None else momentum
        )

    def move(self, target: Target, here: Point, noise: Noise, number: int) -> tuple[Point, None]:
        x = here.x
        p = here.momentum
        half = 0.5 * self.step
        if p is None:
            raise ValueError(
                "Underdamped goes on from a state that has a momentum; start it from the states "
                "alone"
            )
        middle = self.scheme == "BAOAB"
        p = p if middle else self._refresh(p, half, noise.normal(number, 0))
        p = weighted((1.0, p), (half, known(here.score)))
        if middle:
            x = weighted((1.0, x), (half, p))
            p = self._refresh(p, self.step, noise.normal(number, 0))
            x = weighted((1.0, x), (half, p))
        else:
            x = weighted((1.0, x), (float(self.step), p))
        there = target.look(x, score=True)
        p = weighted((1.0, p), (half, known(there.score)))
        p = p if middle else self._refresh(p, half, noise.normal(number, 1))
        return there._replace(momentum=p), None

    def _refresh(self, p: Tensor, h: float, z: Tensor) -> Tensor:
        """O: the exact Ornstein-Uhlenbeck flow."""
        return weighted(
            (math.exp(-self.friction * h), p), (math.sqrt(-math.expm1(-2 * self.friction * h)), z)
        )

"""A variance-preserving SDE whose log-SNR is a network (Kingma et al. 2021, arXiv 2107.00630)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdediff.sde.linear import LinearSDE
from sdediff.solvers.given import integer, real, reals

__all__ = ["LearnedVP", "MonotoneSchedule"]


class MonotoneSchedule(nn.Module):
    """gamma(t), which rises from ``first`` at t = 0 to ``last`` at t = 1: gamma = -log_snr (Kingma
    et al. 2021, Appendix H).

    (t + sum_k b_k sigmoid(a_k t + c_k)) with b, a > 0, shifted and scaled to the ends, which are
    parameters too. Float64, on the host, where schedules are evaluated.
    """

    def __init__(self, first: float = -13.3, last: float = 5.0, width: int = 64) -> None:
        super().__init__()
        first = real("MonotoneSchedule: first", first)
        last = real("MonotoneSchedule: last", last)
        if not first < last or not (math.isfinite(first) and math.isfinite(last)):
            raise ValueError(
                "MonotoneSchedule: gamma rises from first to last, finite numbers; got "
                f"{first!r} and {last!r}"
            )
        width = integer("MonotoneSchedule: width", width, 1)
        rates = torch.full((width,), 8.0, dtype=torch.float64)
        places = torch.linspace(0, 1, width, dtype=torch.float64)
        self.first = nn.Parameter(torch.tensor(first, dtype=torch.float64))
        self.log_length = nn.Parameter(torch.tensor(last - first, dtype=torch.float64).log())
        self.log_rates = nn.Parameter(rates.log())
        self.offsets = nn.Parameter(-rates * places)
        self.log_heights = nn.Parameter(torch.full((width,), -6.0, dtype=torch.float64))
        self.config: dict[str, Any] = {"width": width}  # what is not among the parameters

    def _shape(self, t: Tensor) -> Tensor:
        waves = torch.sigmoid(t[..., None] * self.log_rates.exp() + self.offsets)
        return t + (waves * self.log_heights.exp()).sum(dim=-1)

    def forward(self, t: Tensor) -> Tensor:
        """gamma(t), shaped as t, float64."""
        low, high = self._shape(torch.tensor([0.0, 1.0], dtype=torch.float64))
        gamma: Tensor = self.first + self.log_length.exp() * (self._shape(t) - low) / (high - low)
        return gamma


@dataclass(frozen=True, eq=False)
class LearnedVP(LinearSDE):
    """alpha^2 = sigmoid(-gamma(t)) and sigma^2 = sigmoid(gamma(t)), over sigmoid(-gamma(0)), for t
    in [0, 1]: gamma = -log_snr is a rising function that may learn. alpha is 1 at t = 0, and
    alpha^2 + sigma^2 constant.

    ``schedule``: a module gamma(t) on float64 host tensors, `MonotoneSchedule` by default. Data
    carry noise of sigma(0) at t = 0. Coefficients follow its present parameters; losses are
    differentiable in them, and `fit` trains and saves them.
    """

    schedule: nn.Module

    data_std = 1.0
    spacing = "uniform"

    def __post_init__(self) -> None:
        if not callable(self.schedule):
            raise TypeError(
                "LearnedVP: schedule must be a module gamma(t), MonotoneSchedule() say; got "
                f"{self.schedule!r}"
            )
        t = torch.linspace(0, 1, 257, dtype=torch.float64)
        with torch.no_grad():
            gamma = self.schedule(t)
        if (
            not isinstance(gamma, Tensor)
            or gamma.shape != t.shape
            or not bool(torch.isfinite(gamma).all())
        ):
            raise ValueError(
                "LearnedVP: schedule(t) must be finite and shaped as t, for float64 tensors (n,)"
            )
        falls = torch.nonzero(gamma.diff() <= 0).flatten()
        if len(falls):
            raise ValueError(
                "LearnedVP: gamma = -log_snr must rise with t, and does not at t = "
                f"{float(t[falls[0]]):.4g}; "
                "make it monotone by construction, as MonotoneSchedule is"
            )

    def __repr__(self) -> str:
        with torch.no_grad():
            low, high = self.gamma(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return f"LearnedVP(gamma {low:.4g} to {high:.4g})"

    def gamma(self, t: Tensor) -> Tensor:
        """-log_snr, float64, for host times of any shape up to (B,)."""
        return reals("schedule(t)", self.schedule(t))

    @property
    def _whole(self) -> Tensor:
        return torch.sigmoid(-self.gamma(torch.zeros((), dtype=torch.float64)))

    @property
    def sigma_0(self) -> float:
        with torch.no_grad():
            return float(self.sigma(torch.zeros((), dtype=torch.float64)))

    @property
    def t_min(self) -> float:
        return 0.0

    @property
    def t_max(self) -> float:
        return 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return (torch.sigmoid(-self.gamma(t)) / self._whole).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (torch.sigmoid(self.gamma(t)) / self._whole).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        return -self.gamma(t)

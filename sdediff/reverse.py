"""Problems for the solvers: the only place that joins an SDE's coefficients and a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sdediff.model import ScoreModel
from sdediff.sde import SDE, LinearSDE
from solvers import Problem, expand

__all__ = ["Forward", "Reverse"]


class Forward(Problem):
    """dx = drift(x, t) dt + g(t) dw, the forward SDE itself."""

    offers = frozenset({"drift", "diffusion"})

    def __init__(self, sde: SDE, samples: int) -> None:
        super().__init__(samples)
        self.sde = sde

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The SDE's drift."""
        return self.sde.drift(x, t)

    def diffuse(self, dw: Tensor, t: Tensor) -> Tensor:
        """g(t) dw."""
        return expand(self.sde.diffusion(t), dw) * dw


class Reverse(Problem):
    """dx = [f x - (1 + lambda^2) / 2 g^2 score(x, t)] dt + lambda g dw, backward in time.

    lambda = 1 is the reverse-time SDE (Song et al. 2021, arXiv 2011.13456, eq. 6), lambda = 0 the probability flow (eq. 13), and
    every lambda(t) >= 0 has the same marginals.
    """

    offers = frozenset({"drift", "diffusion", "score", "marginal", "kernel", "data", "semilinear:data"})

    def __init__(
        self,
        model: ScoreModel,
        samples: int,
        stochasticity: float | Callable[[Tensor], Tensor] = 0.0,
        condition: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(samples)
        self.model, self.sde, self.lam = model, model.sde, stochasticity
        self.condition = dict(condition or {})

    def take(self, rows: Tensor) -> Self:
        """Some of the rows, with their conditions."""
        part = super().take(rows)
        part.condition = {name: value[rows.to(value.device)] for name, value in self.condition.items()}
        return part

    def stochasticity(self, t: Tensor) -> Tensor:
        """lambda(t)."""
        if callable(self.lam):
            return torch.as_tensor(self.lam(t), dtype=torch.float64).expand(t.shape)
        return torch.full_like(t, self.lam)

    def _output(self, x: Tensor, t: Tensor) -> Tensor:
        return self.seen(x, self.model.output(x, t, self.condition))

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f x - (1 + lambda^2) / 2 g^2 score, with one evaluation."""
        a, b = self.model.conversion("score", t)
        pull = -0.5 * (1 + self.stochasticity(t) ** 2) * self.sde.g(t) ** 2
        return expand(self.sde.f(t) + pull * a, x) * x + expand(pull * b, x) * self._output(x, t)

    def diffuse(self, dw: Tensor, t: Tensor) -> Tensor:
        """lambda g dw."""
        return expand(self.stochasticity(t) * self.sde.g(t), dw) * dw

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x)."""
        return self.model.convert(self._output(x, t), x, t, "score")

    def data(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x]."""
        return self.model.convert(self._output(x, t), x, t, "data")

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma)."""
        return self.sde.alpha(t), self.sde.sigma(t)

    def kernel(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """The SDE's forward kernel."""
        return self.sde.kernel(t, s)

    def semilinear(self, form: str) -> DataForm:
        """The data form, for a constant lambda."""
        if form != "data":
            raise ValueError(f"no semilinear form is called {form!r}; there is 'data'")
        if callable(self.lam):
            raise ValueError("this solver takes a constant stochasticity; EulerMaruyama and ReverseDiffusion take a function of t")
        return DataForm(self, self.sde, float(self.lam))


@dataclass(frozen=True)
class DataForm:
    """d(x / scale) = E[x_0 | x] dclock + dB(variance), with u = log(alpha / sigma) and lambda constant.

    scale = alpha exp(-(1 + lambda^2) u), clock = exp((1 + lambda^2) u), variance = exp(2 lambda^2 u): for lambda = 0 the
    variables of DDIM, sigma and alpha / sigma; for lambda = 1, sigma^2 / alpha and the signal-to-noise ratio.
    """

    problem: Problem
    sde: LinearSDE
    lam: float

    def scale(self, t: Tensor) -> Tensor:
        """alpha exp(-(1 + lambda^2) u)."""
        return self.sde.alpha(t) / self.clock(t)

    def clock(self, t: Tensor) -> Tensor:
        """exp((1 + lambda^2) u)."""
        return torch.exp((1 + self.lam**2) * 0.5 * self.sde.log_snr(t))

    def variance(self, t: Tensor) -> Tensor:
        """exp(2 lambda^2 u)."""
        return torch.exp(self.lam**2 * self.sde.log_snr(t))

    def nonlinear(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x]."""
        return self.problem.data(x, t)

"""torchsde as a solver of the reverse SDE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from solvers.arithmetic import rowwise
from solvers.external.driver import External, Run, check_method
from solvers.noise import StepNoise

__all__ = ["TorchSDE"]


class _Method(NamedTuple):
    order: float  # weak, for noise that does not depend on the state
    evaluations: int
    kind: str


_METHODS: Final = {
    "euler": _Method(1, 1, "ito"),
    "milstein": _Method(1, 1, "ito"),
    "srk": _Method(2, 3, "ito"),
    "euler_heun": _Method(1, 1, "stratonovich"),
    "heun": _Method(2, 2, "stratonovich"),
    "midpoint": _Method(1, 2, "stratonovich"),
}
_INSTEAD: Final = {
    "log_ode": "where noise does not depend on the state it is 'midpoint'",
    "reversible_heun": "it needs the diffusion as a matrix; take 'heun'",
    "adjoint_reversible_heun": "it is for torchsde's adjoint; take 'heun'",
}


@dataclass(frozen=True)
class TorchSDE(External):
    """A method of torchsde's ``sdeint`` on the reverse SDE.

    ``euler``, ``milstein``, ``srk``, ``euler_heun``, ``heun`` and ``midpoint``.
    The noise does not depend on the state ("additive"), so that Ito and Stratonovich are one, ``milstein`` is ``euler``, and
    ``srk`` is Roessler's SRA1, with 3 evaluations where `SRA1` makes 2. The steps are the intervals of the grid, one call of
    ``sdeint`` each, in the time -t. Increments and space-time integrals are those of the noise that a solver of our own would
    draw: sample i depends on seed i alone. With ``last="mean"`` the last step is taken without noise.
    """

    method: str = "srk"

    library = "torchsde"
    needs = frozenset({"drift", "diffusion"})
    stochastic = True
    diffuses = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_method(self, self.method, tuple(_METHODS), _INSTEAD)

    @property
    def order(self) -> float:  # type: ignore[override]
        """The method's, in law."""
        return _METHODS[self.method].order

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        """Of a step."""
        return _METHODS[self.method].evaluations

    def advance(self, run: Run, x: Tensor, first: int, last: int) -> Sequence[Tensor]:
        """One call of ``sdeint``, one step."""
        from torchsde import sdeint

        times = run.sign * run.times[[first, last]]
        silent = run.options.last == "mean" and last == len(run.times) - 1
        flat = rowwise(x)
        path = _Path(run.noise.at(first), flat, run.sign, silent=silent)  # type: ignore[union-attr]
        sde = _Sde(run, x.shape, flat, _METHODS[self.method].kind)
        step = 2 * float(times[1] - times[0])  # sdeint cuts it at the end: one step, that ends there to the bit
        # sdeint checks the shape of g dw with a draw from the global generator.
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            states: Tensor = sdeint(sde, flat, times, bm=path, dt=step, method=self.method)
        return [states[-1].reshape(x.shape)]


class _Sde:
    """dx = f dtau + g dw in the rising time tau = t or -t, as torchsde wants it: states (rows, d), g applied to an increment."""

    noise_type = "additive"

    def __init__(self, run: Run, shape: torch.Size, start: Tensor, kind: str) -> None:
        self.run, self.shape, self.sde_type = run, shape, kind
        self.start: Tensor | None = start
        self.kept: Tensor | None = None

    def f(self, tau: Tensor, y: Tensor) -> Tensor:
        """The drift. sdeint evaluates it at the start to see its shape: that evaluation is kept, and serves the step once."""
        if y is self.start and self.kept is not None:
            self.start = None
            return self.kept
        out = self.run.sign * rowwise(self.run.drift(y.reshape(self.shape), self.run.sign * tau))
        if y is self.start:
            self.kept = out
        return out

    def g_prod(self, tau: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The diffusion applied to v."""
        return rowwise(self.run.diffuse(v.reshape(self.shape), self.run.sign * tau))


class _Path:
    """The noise of one step, as torchsde wants a Brownian path."""

    levy_area_approximation = "space-time"

    def __init__(self, noise: StepNoise, like: Tensor, sign: float, *, silent: bool) -> None:
        self.noise, self.sign, self.silent = noise, sign, silent
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The increment, and with ``return_U`` the integral of w - w_a over the interval."""
        if self.silent:
            still = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
            return (still, still) if return_U else still
        a, b = self.sign * ta, self.sign * tb
        if return_U:
            w, integral = self.noise.pair(a, b)
            return self._flat(w), self._flat(integral)
        return self._flat(self.noise.increment(a, b))

    def _flat(self, w: Tensor) -> Tensor:
        return rowwise(w).to(self.dtype).to(self.device)

"""torchsde as a solver of the reverse SDE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import rowwise
from sdediff.solvers.brownian import BrownianPath
from sdediff.solvers.external.driver import External, Run, check_method
from sdediff.solvers.given import Positive
from sdediff.solvers.masked import Masked
from sdediff.solvers.noise import Noise
from sdediff.solvers.solver import check_tolerances, tolerances
from sdediff.solvers.white import White

__all__ = ["TorchSDE"]


class _Method(NamedTuple):
    order: float  # weak, for noise that does not depend on the state
    evaluations: int
    kind: str
    general: bool = True  # whether noise may be a matrix that depends on the state


_METHODS: Final = {
    "euler": _Method(1, 1, "ito"),
    "milstein": _Method(1, 1, "ito", False),
    "srk": _Method(2, 3, "ito", False),
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
    Where noise does not depend on the state, Ito and Stratonovich are one, ``milstein`` is
    ``euler``, and ``srk`` is Roessler's SRA1, with 3 evaluations where `SRA1` makes 2. Where it
    does (`solve_sde`), ``euler`` and ``srk`` are Ito's, ``milstein`` is either's and the others are
    Stratonovich's; ``milstein`` and ``srk`` take diagonal noise alone. The steps are the intervals
    of the grid, one call of ``sdeint`` each, in the time -t. Increments and space-time integrals
    are those of the noise that a solver of our own would draw: sample i depends on seed i alone.
    With ``last="mean"`` the last step is taken without noise.

    ``adaptive=True``: torchsde compares a step with two halves of it, by the root mean square over
    the whole batch, at three times the evaluations of a step. ``dt`` is the first step in each
    interval of the grid, by default a thousandth of it; steps do not fall below 1e-6 of it: such a
    one is taken whatever its error, with torchsde's warning. The path has to be known at all times:
    it is the noise if that is one, else made from its seeds. Then a sample depends on its batch.
    Gradients are those of the accepted steps; their sizes are not differentiated.
    """

    method: str = "srk"
    adaptive: bool = False
    rtol: float = 1e-2
    atol: float | None = None
    dt: Positive | None = None

    default_atol = 1e-2
    library = "torchsde"
    needs = frozenset({"drift", "diffusion"})
    solves_sde = True

    def __post_init__(self) -> None:
        check_method(self, self.method, tuple(_METHODS), _INSTEAD)
        check_tolerances(self)
        if self.dt is not None and not self.adaptive:
            raise ValueError(
                f"{self!r}: the steps are the intervals of the grid; drop dt, or set adaptive=True"
            )

    @property
    def senses(self) -> frozenset[str]:
        """That of the method; Milstein's has both."""
        kinds = {"ito", "stratonovich"}
        return frozenset(kinds if self.method == "milstein" else {_METHODS[self.method].kind})

    @property
    def structures(self) -> frozenset[str]:
        """What torchsde gives the method for."""
        general = {"commutative", "general"} if _METHODS[self.method].general else set()
        return frozenset({"diagonal"} | general)

    @property
    def order(self) -> float:
        return _METHODS[self.method].order

    @property
    def evaluations(self) -> int:
        """Of a step, or of an attempt, which is three."""
        return _METHODS[self.method].evaluations * (3 if self.adaptive else 1)

    def check(self, run: Run) -> None:
        if self.adaptive and run.options.last == "mean":
            raise ValueError(
                f"{self!r} does not know its last step: take last='denoise' or 'noisy'"
            )

    def advance(self, run: Run, x: Tensor, first: int, last: int) -> Sequence[Tensor]:
        from torchsde import sdeint

        times = run.sign * run.times[[first, last]]
        flat, length = rowwise(x), float(times[1] - times[0])
        silent = run.options.last == "mean" and last == len(run.times) - 1
        drawn = cast(Noise, run.noise)  # a solver that draws noise is not called without
        noise = self._noise(run, flat) if self.adaptive else drawn.at(first)
        path = _Path(noise, flat, run, silent=silent, adaptive=self.adaptive)
        kind = run.problem.sense if self.method == "milstein" else _METHODS[self.method].kind
        make = _AdditiveSde if run.problem.structure == "additive" else _StateSde
        sde = make(run, x, path, kind)
        # cut at the end: one step, which ends there to the bit
        options: dict[str, Any] = {"dt": 2 * length}
        if self.adaptive:
            rtol, atol = tolerances(self, run.problem, x.dtype)
            options = {
                "dt": self.dt or 1e-3 * length,
                "dt_min": 1e-6 * length,
                "adaptive": True,
                "rtol": rtol,
                "atol": atol,
            }
        # sdeint checks the shape of g dw with a draw from the global generator.
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            states: Tensor = sdeint(sde, sde.start, times, bm=path, method=self.method, **options)
        return [states[-1].reshape(x.shape)]

    def _noise(self, run: Run, flat: Tensor) -> Path:
        """The noise as a path at all times, one for the whole solve."""
        if run.memory is None:
            # The problem's diffusion leaves out what does not exist.
            noise = run.noise.noise if isinstance(run.noise, Masked) else run.noise
            run.memory = noise if isinstance(noise, Path) else self._made(run, noise, flat)
        path: Path = run.memory
        return path

    def _made(self, run: Run, noise: Noise | None, flat: Tensor) -> Path:
        if not isinstance(noise, White):
            raise ValueError(
                f"{self!r} needs a Brownian path at all times, which {noise!r} is not: pass "
                "seeds, or a BrownianPath"
            )
        start, end = run.times[[0, -1]].tolist()
        return BrownianPath(
            noise.seeds, noise.event, start, end, dtype=flat.dtype, device=flat.device
        )


@runtime_checkable
class Path(Protocol):
    """A Brownian path, at any times."""

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        """w_b - w_a, (rows, *event)."""

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The increment and the integral of w - w_a over the interval, its length taken
        positive.
        """


class _Sde:
    """dx = f dtau + g dw in the rising time tau = t or -t, as torchsde wants it: states (rows, d).
    A subclass has g.
    """

    noise_type: str

    def __init__(self, run: Run, x: Tensor, path: _Path, kind: str) -> None:
        self.run = run
        self.shape = x.shape
        self.path = path
        self.sde_type = kind
        self.start: Tensor | None = rowwise(x)
        self.kept: Tensor | None = None

    def f(self, tau: Tensor, y: Tensor) -> Tensor:
        """The drift. sdeint evaluates it at the start to see its shape: that evaluation is kept,
        and serves the step once.
        """
        if self.path.moved:
            self.path.moved = False
            self.run.arrive(self.run.sign * tau, y.reshape(self.shape))
        if y is self.start and self.kept is not None:
            self.start = None
            return self.kept
        out = self.run.sign * rowwise(self.run.drift(y.reshape(self.shape), self.run.sign * tau))
        if y is self.start:
            self.kept = out
        return out


class _AdditiveSde(_Sde):
    """The SDE with its g applied to an increment."""

    noise_type = "additive"

    def g_prod(self, tau: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The diffusion applied to v."""
        dw = v.reshape(len(v), *self.path.event)
        return rowwise(self.run.diffuse(dw, self.run.sign * tau))


class _StateSde(_Sde):
    """The SDE with its g as a function of (tau, y), on which it depends."""

    def __init__(self, run: Run, x: Tensor, path: _Path, kind: str) -> None:
        super().__init__(run, x, path, kind)
        diagonal = run.problem.structure == "diagonal"
        self.noise_type = "diagonal" if diagonal else "general"

    def g(self, tau: Tensor, y: Tensor) -> Tensor:
        """The diffusion: (rows, d), or a matrix (rows, d, m)."""
        x, time = y.reshape(self.shape), self.run.time(self.run.sign * tau, y.dtype)
        found: Any = self.run.ours(lambda: self.run.problem.loading(x, time))
        values: Tensor = found.values
        return self.run.still(rowwise(values) if self.noise_type == "diagonal" else values)


class _Path:
    """The noise, as torchsde wants a Brownian path; steps are counted by what is asked of it."""

    levy_area_approximation = "space-time"

    def __init__(
        self, noise: Path, like: Tensor, run: Run, *, silent: bool, adaptive: bool
    ) -> None:
        self.noise = noise
        self.run = run
        self.silent = silent
        self.adaptive = adaptive
        self.event = getattr(run.problem, "brownian", run.x.shape[1:])
        self.shape = (len(like), self.event.numel())
        self.dtype = like.dtype
        self.device = like.device
        self.asked, self.moved = 0, False
        self.before: float | None = None

    def __call__(
        self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The increment, and with ``return_U`` the integral of w - w_a over the interval."""
        if self.adaptive:
            self._count(float(ta))
        if self.silent:
            still = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
            return (still, still) if return_U else still
        a, b = self.run.sign * ta, self.run.sign * tb
        if return_U:
            w, integral = self.run.ours(lambda: self.noise.pair(a, b))
            return self._flat(w), self._flat(integral)
        return self._flat(self.run.ours(lambda: self.noise.increment(a, b)))

    def _count(self, start: float) -> None:
        """An attempt is a step and its two halves: it starts where the last one did if that was
        rejected.
        """
        if self.asked % 3 == 0:
            self.moved = self.before is not None and start != self.before
            self.run.rejected += self.before is not None and not self.moved
            self.before = start
        self.asked += 1

    def _flat(self, w: Tensor) -> Tensor:
        return rowwise(w).to(self.dtype).to(self.device)

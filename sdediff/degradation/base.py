"""What a degradation is: D(x_0, t), which data go through in place of noise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from sdediff.calls import check_condition, check_floating
from sdediff.degradation.sampling import TACoS
from sdediff.degradation.start import MixtureStart
from sdediff.drawing import drawn
from sdediff.protocols import Rows
from sdediff.sde import SDE, LinearSDE
from sdediff.sde.base import as_time, check_linear
from sdediff.solvers import expand
from sdediff.solvers.arithmetic import along
from sdediff.solvers.given import Count, fact, reading

__all__ = ["Degradation", "Function", "Hot", "Levelled", "Unchanged", "own_condition"]


class Degradation(SDE):
    """A process without noise: x_t = D(x_0, t), with D(x_0, 0) = x_0, t from 0 to T = 1 (Bansal et
    al. 2022, arXiv 2208.09392, section 3).

    It has neither drift nor kernel, and offers ``degrade`` alone. A model of it predicts the data,
    R(x_t, t); `RestorationLoss` trains it, `TACoS` and `NaiveSampling` sample from it. A subclass
    gives `degrade`, which has to be deterministic. What is random in a sample, the place of a mask
    say, is a condition: ``conditions`` names it, and `draw` returns it for training.

    ``levels``: the published index i = 1..N is the time i T / N, and ``steps=N`` are the published
    steps.
    """

    offers = frozenset({"degrade"})
    predicted = "data"
    solver = TACoS()

    @fact
    def levels(self) -> int:
        """N, the number of times that training sees."""
        return 50

    @fact
    def start(self) -> MixtureStart | None:
        """The law of fully degraded data, from which `sample` starts without ``x_init``."""
        return None

    @property
    def t_min(self) -> float:
        """0: the data themselves."""
        return 0.0

    @property
    def data_std(self) -> float:
        """1: a degradation has no scale of its own."""
        return 1.0

    @property
    def prior(self) -> Any:
        """The ``start``; a NotImplementedError that says how to get one where there is none."""
        if self.start is not None:
            return self.start
        raise NotImplementedError(
            f"{self!r} has no law of fully degraded data to start from: pass x_init, degraded "
            "data, or fit one where they end in constant colours: Blur(...).fitted(data)"
        )

    def diffusion(self, t: Tensor | float) -> NoReturn:
        """Raise a ValueError: there is none."""
        raise ValueError(
            f"{self!r} has neither drift nor diffusion: its state at t is process(x_0, t)"
        )

    def drift(self, x: Tensor, t: Tensor) -> NoReturn:
        """Raise a ValueError: there is none."""
        self.diffusion(t)

    def degrade(self, x_0: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """D(x_0, t), (B, *event), for float64 host times t, () or (B,), and the conditions of
        ``rows``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no degrade(self, x_0, t, rows)")

    def draw(self, x_0: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The ``conditions`` of samples x_0 (B, *event), drawn on the host."""
        return {}

    def known(self, x_0: Tensor, x: Tensor, t: Tensor, rows: Rows) -> Rows:
        """The rows with what a state x at t, whose data are taken to be x_0, tells of their
        conditions: by default nothing more.
        """
        return rows

    def fitted(
        self, x_0: Tensor, *, components: int = 1, noise: float = 0.002, seed: int = 0
    ) -> Self:
        """The same with the law of its fully degraded data x_0 (N, C, *space), as the model sees
        them, for a ``start``: `MixtureStart.fit`.
        """
        check_floating("x_0", x_0)
        made: Any = self
        if not is_dataclass(self) or "start" not in {each.name for each in fields(made)}:
            raise ValueError(
                f"{type(self).__name__} has no field start, because its fully degraded data are "
                "not images of one colour: pass sample x_init, degraded data, and their condition"
            )
        ends = self(x_0, self.t_max)
        fit = MixtureStart.fit(ends, components=components, noise=noise, seed=seed)
        found: Self = replace(made, start=fit)
        return found

    def __call__(self, x_0: Tensor, t: Tensor | float, **condition: Tensor | float) -> Tensor:
        """D(x_0, t) of data x_0 (B, *event), for t in [0, T], a number or (B,), and the conditions
        by their names.
        """
        check_floating("x_0", x_0)
        time = self.check_time(as_time(t))
        if time.ndim and len(time) != len(x_0):
            raise ValueError(
                f"t must be a number or ({len(x_0)},), one for each sample, got shape "
                f"{tuple(time.shape)}"
            )
        found = check_condition(condition, len(x_0), None, x_0.device)
        return self.degrade(x_0, time, Rows.of(len(x_0), found))


class Levelled(Degradation):
    """A degradation that is given at its levels i = 1..N, and interpolated linearly between."""

    def level(self, x_0: Tensor, i: Tensor, rows: Rows) -> Tensor:
        """D at levels i, int64 (B,) on the host, each in 1..N."""
        raise NotImplementedError

    def degrade(self, x_0: Tensor, t: Tensor, rows: Rows) -> Tensor:
        place = (t * (self.levels / self.T)).expand(len(x_0))
        nearest = place.round()
        place = torch.where((place - nearest).abs() < 1e-6, nearest, place)
        below = place.floor()
        found = self._at(x_0, below, rows)
        if torch.equal(below, place):
            return found
        above = self._at(x_0, place.ceil(), rows)
        return torch.lerp(found, above, along(place - below, x_0).to(x_0))

    def _at(self, x_0: Tensor, i: Tensor, rows: Rows) -> Tensor:
        """D at levels i, whole numbers of 0..N: the data at 0."""
        found = self.level(x_0, i.long().clamp(1, self.levels), rows)
        return torch.where(along(i > 0, x_0), found, x_0)


def own_condition(process: Degradation, rows: Rows, name: str) -> Tensor:
    """A condition of the process; a ValueError where it is not there."""
    if name in rows.condition:
        return rows.condition[name]
    raise ValueError(
        f"{process!r} needs the condition {name!r} of each sample: pass condition={{{name!r}: "
        "...}, as it was for x_init, or new ones, process.draw(x_0)"
    )


@dataclass(frozen=True)
class Unchanged(Degradation):
    """D(x_0, t) = x_0: the process of an autoencoder, whose model R(x_0) = D(E(x_0)) returns data
    through its latents. `objectives.Autoencoding` trains it. Nothing is sampled from it.
    """

    def degrade(self, x_0: Tensor, t: Tensor, rows: Rows) -> Tensor:
        return x_0


@dataclass(frozen=True)
class Function(Degradation):
    """The degradation function(x_0, t, ...), for data (B, *event) and float64 host times t, () or
    (B,), in [0, 1]; ``solvers.expand(t, x_0)`` multiplies a state.

    The function is handed the conditions that its signature names, one entry a sample. Those in
    ``own`` are for it alone, the others for the network too.
    """

    function: Callable[..., Tensor]
    levels: Count = 50
    own: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"Function: function must be one, function(x_0, t); got {self.function!r}"
            )
        if isinstance(self.own, str):
            raise TypeError(f"Function: own must be names, ({self.own!r},); got a string")
        vars(self).update(own=tuple(self.own))

    @property
    def conditions(self) -> frozenset[str]:
        return frozenset(self.own)

    def degrade(self, x_0: Tensor, t: Tensor, rows: Rows) -> Tensor:
        named = list(inspect.signature(self.function).parameters.values())[2:]
        wanted = [each.name for each in named if each.default is each.empty]
        given = [each.name for each in named if each.name in rows.condition]
        handed = {name: own_condition(self, rows, name) for name in dict.fromkeys(wanted + given)}
        found: Tensor = reading("the degradation", self.function, "x_0, t", x_0, t, **handed)
        return found


@dataclass(frozen=True)
class Hot(Degradation):
    """Noise as a degradation: D(x_0, t) = alpha x_0 + sigma z of ``sde``, with the noise that a
    state tells, z = (x_t - alpha x_0) / sigma.

    With it both samplers are DDIM (Bansal et al. 2022, section 3.3; Song et al. 2021, arXiv
    2010.02502, eq. 12 at eta = 0). In training z is drawn.
    """

    sde: LinearSDE
    levels: Count = 1000

    conditions = frozenset({"noise"})

    def __post_init__(self) -> None:
        check_linear(self.sde)

    @property
    def T(self) -> float:
        return self.sde.T

    @property
    def t_max(self) -> float:
        return self.sde.t_max

    @property
    def prior(self) -> Any:
        return self.sde.prior

    def degrade(self, x_0: Tensor, t: Tensor, rows: Rows) -> Tensor:
        alpha, sigma = (expand(each, x_0) for each in (self.sde.alpha(t), self.sde.sigma(t)))
        noise: Tensor = own_condition(self, rows, "noise")
        return alpha * x_0 + sigma * noise

    def draw(self, x_0: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        noise = drawn(
            len(x_0),
            generator,
            lambda n, g: torch.randn((n, *x_0.shape[1:]), generator=g, dtype=x_0.dtype),
        )
        return {"noise": noise.to(x_0.device)}

    def known(self, x_0: Tensor, x: Tensor, t: Tensor, rows: Rows) -> Rows:
        alpha, sigma = (expand(each, x) for each in (self.sde.alpha(t), self.sde.sigma(t)))
        noise: Any = (x - alpha * x_0) / sigma
        condition: Mapping[str, Tensor] = {**rows.condition, "noise": noise}
        return rows.under(condition)

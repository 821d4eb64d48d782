"""One step of a Markov chain that has a given law, or nearly so, as its stationary one: Metropolis
and Hastings, overdamped and underdamped Langevin dynamics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdediff.mcmc.target import Point, Target, known
from sdediff.solvers import White
from sdediff.solvers.arithmetic import along, weighted
from sdediff.solvers.given import NotNegative, Positive, Record, described, reading
from sdediff.solvers.metropolis import accepts, proposal_ratio

__all__ = [
    "MALA",
    "ULA",
    "Draws",
    "Kernel",
    "MetropolisHastings",
    "Noise",
    "RandomWalk",
    "Underdamped",
    "accept",
    "langevin",
]


@dataclass(frozen=True)
class Noise:
    """What a chain draws, by the number of the step: functions of the chain's seed alone."""

    events: White
    rows: White

    def normal(self, step: int, k: int = 0) -> Tensor:
        """Standard normal (chains, *event), the draw number ``k`` of the step."""
        return self.events.normal(step, "proposal", k)

    def decision(self, step: int) -> Tensor:
        """Standard normal (chains,), for the Metropolis test."""
        return self.rows.normal(step, "acceptance", 0)


class Kernel(Record):
    """A Markov chain's transition, a value: subclasses are frozen dataclasses and give `move`."""

    uses_score: bool = True
    minibatches: bool = False
    """Whether it may see estimates of the score in place of the score."""

    def start(self, target: Target, x: Tensor, momentum: Tensor | None, noise: Noise) -> Point:
        """What is known at the first states; ``momentum`` is that of a chain that goes on."""
        return target.look(x, score=self.uses_score)

    def move(
        self, target: Target, here: Point, noise: Noise, number: int
    ) -> tuple[Point, Tensor | None]:
        """The point after the step ``number``, and which proposals were taken, bool (chains,),
        where there is a test.
        """
        raise NotImplementedError

    def size(self, number: int) -> float | None:
        """The step size of the step ``number``, by which draws are weighted; None where it is
        constant.
        """
        return None


@dataclass(frozen=True)
class RandomWalk(Kernel):
    """Random-walk Metropolis-Hastings: y = x + step z is accepted with probability min(1, p(y) /
    p(x)).

    (Metropolis et al. 1953.) Exact for every step. In d dimensions steps of 2.38 / sqrt(d) standard
    deviations of the target, which accept 0.234 of the proposals, mix fastest (Roberts, Gelman and
    Gilks 1997). One evaluation a step, of log p alone; two on a score.
    """

    step: Positive

    uses_score = False

    def move(self, target: Target, here: Point, noise: Noise, number: int) -> tuple[Point, Tensor]:
        there = target.look(
            weighted((1.0, here.x), (float(self.step), noise.normal(number))), score=False
        )
        return accept(here, there, target.rise(here, there), noise.decision(number))


@dataclass(frozen=True)
class ULA(Kernel):
    """Unadjusted Langevin: x <- x + step score(x) + sqrt(2 step) z, the Euler-Maruyama scheme of dx
    = score(x) dt + sqrt(2) dw.

    Its stationary law is off by O(step): on N(0, v) its variance is v / (1 - step / (2 v)), and it
    diverges from step = 2 v on (Roberts and Tweedie 1996; Durmus and Moulines 2017, arXiv
    1507.05021). One evaluation a step.
    """

    step: Positive

    def move(self, target: Target, here: Point, noise: Noise, number: int) -> tuple[Point, None]:
        return target.look(langevin(here, self.step, noise.normal(number)), score=True), None


@dataclass(frozen=True)
class MALA(Kernel):
    """Metropolis-adjusted Langevin: y = x + step score(x) + sqrt(2 step) z is accepted with
    probability

        min(1, p(y) q(x | y) / (p(x) q(y | x))),    q(. | x) = N(x + step score(x), 2 step I).

    (Roberts and Tweedie 1996.) Exact for every step; steps that accept 0.574 of the proposals mix
    fastest in many dimensions (Roberts and Rosenthal 1998), at a cost that grows as d^{1/3}. One
    evaluation a step; two on a score.
    """

    step: Positive

    def move(self, target: Target, here: Point, noise: Noise, number: int) -> tuple[Point, Tensor]:
        z = noise.normal(number)
        there = target.look(langevin(here, self.step, z), score=True)
        ratio = proposal_ratio(
            here.x, there.x, z, known(there.score), float(self.step), math.sqrt(2 * self.step)
        )
        return accept(here, there, target.rise(here, there) + ratio, noise.decision(number))


def langevin(here: Point, step: float, z: Tensor) -> Tensor:
    """x + step score(x) + sqrt(2 step) z."""
    return weighted((1.0, here.x), (float(step), known(here.score)), (math.sqrt(2 * step), z))


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step that a proposal may use: functions of the chain's seed and the
    step's number alone. ``k`` = 0, 1, ... numbers independent draws.
    """

    noise: Noise
    number: int

    def normal(self, k: int = 0) -> Tensor:
        """Standard normal (chains, *event)."""
        return self.noise.normal(self.number, k)

    def uniform(self, k: int = 0) -> Tensor:
        """Uniform on (0, 1), (chains,), to choose a component say."""
        u: Tensor = torch.special.ndtr(self.noise.rows.normal(self.number, "acceptance", k + 1))
        return u


@dataclass(frozen=True)
class MetropolisHastings(Kernel):
    """Metropolis-Hastings with any proposal: y = ``propose(x, draws)`` is accepted with probability

        min(1, p(y) q(x | y) / (p(x) q(y | x)))

    (Hastings 1970, doi 10.1093/biomet/57.1.97). ``propose`` takes states x (chains, *event) and
    `Draws`, and returns proposals of the same shape and dtype. ``log_q(y, x)`` is log q(y | x),
    (chains,), up to a constant that is the same for all x and y; -inf where x never proposes y.
    None: the proposal is symmetric, q(y | x) = q(x | y). Of an independence proposal q(y | x) is
    q(y). Exact for every proposal that reaches the whole support. One evaluation of log p a step;
    two on a score.

    Raises ValueError, at the first states already, where the shapes are others or log_q is not
    finite at a proposal of its own.
    """

    propose: Callable[[Tensor, Draws], Tensor]
    log_q: Callable[[Tensor, Tensor], Tensor] | None = None

    uses_score = False

    def __post_init__(self) -> None:
        if not callable(self.propose) or not (self.log_q is None or callable(self.log_q)):
            raise TypeError(
                "MetropolisHastings takes functions propose(x, draws) and log_q(y, x), or None for "
                f"a symmetric proposal; got {self.propose!r} and {self.log_q!r}"
            )

    def start(self, target: Target, x: Tensor, momentum: Tensor | None, noise: Noise) -> Point:
        """The target at x; the proposal is tried once."""
        _ = self._proposed(x, Draws(noise, 0))
        return super().start(target, x, momentum, noise)

    def move(self, target: Target, here: Point, noise: Noise, number: int) -> tuple[Point, Tensor]:
        y, ratio = self._proposed(here.x, Draws(noise, number))
        there = target.look(y, score=False)
        return accept(here, there, target.rise(here, there) + ratio, noise.decision(number))

    def _proposed(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """y and log q(x | y) - log q(y | x)."""
        y = reading("propose", lambda x: self.propose(x, draws), "x", x)
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
            raise ValueError(
                f"propose(x, draws) must return proposals like x, {described(x)}; got "
                f"{described(y)}"
            )
        if self.log_q is None:
            return y, y.new_zeros(len(x))
        forth, back = (_log_density(self.log_q, *pair) for pair in ((y, x), (x, y)))
        # A chain that is lost already stays so; what it proposes counts for nothing.
        sound = torch.isfinite(x.flatten(1)).all(dim=1) & torch.isfinite(y.flatten(1)).all(dim=1)
        bad = sound & ~(torch.isfinite(forth) & (back < math.inf))
        if bool(bad.any()):
            i = int(torch.nonzero(bad)[0, 0])
            raise ValueError(
                "log_q(y, x) must be finite where x proposes y, and below inf: of chain "
                f"{i} it is {float(forth[i]):g}, and back {float(back[i]):g}; check that it is the "
                "log-density of what propose draws, y first"
            )
        return y, back - forth


def _log_density(log_q: Callable[[Tensor, Tensor], Tensor], y: Tensor, x: Tensor) -> Tensor:
    """log q(y | x), (chains,)."""
    found = reading("log_q", log_q, "y, x", y, x)
    if isinstance(found, Tensor) and found.shape == x.shape[:1]:
        return found
    raise ValueError(
        f"log_q(y, x) must return a tensor of shape {tuple(x.shape[:1])}, one number a chain; got "
        f"{described(found)}"
    )


def accept(here: Point, there: Point, log_ratio: Tensor, z: Tensor) -> tuple[Point, Tensor]:
    """The Metropolis-Hastings test: the point after it, and which proposals were taken, (chains,).

    ``here`` and ``there`` are `Point`s: states (chains, *event), with log-densities and scores as
    far as they are known. ``there`` is taken with the probability min(1, exp(log_ratio)), decided
    by standard normals z (chains,), where log_ratio (chains,) is log p(there) - log p(here) + log
    q(here | there) - log q(there | here). A state becomes NaN where the ratio is none, so that a
    target that fails does not pass for a rejection.
    """
    if there.log_prob is not None:
        # outside the support
        log_ratio = log_ratio.masked_fill(there.log_prob == -math.inf, -math.inf)
    lost = torch.isnan(log_ratio) | (log_ratio == math.inf)
    go = accepts(log_ratio, z)
    x = torch.where(along(go, here.x), there.x, here.x).masked_fill(along(lost, here.x), math.nan)
    pairs = ((here.log_prob, there.log_prob), (here.score, there.score))
    return Point(
        x, *(None if a is None or b is None else torch.where(along(go, a), b, a) for a, b in pairs)
    ), go


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

    step: Positive
    friction: NotNegative
    scheme: Literal["BAOAB", "OBABO"] = "BAOAB"

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

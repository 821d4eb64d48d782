"""Correctors: Markov chain Monte Carlo steps that leave the law at one time as it is, and
predictor-corrector pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, along, expand, rowwise, weighted
from sdediff.solvers.given import Natural, Positive
from sdediff.solvers.metropolis import accepts, line_integral, proposal_ratio
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver, Step

__all__ = ["Langevin", "MetropolisLangevin", "PredictorCorrector"]


class _Plan(NamedTuple):
    at: Any  # x + step score, or the score where the step is not known beforehand
    step: Number
    root: Number  # of 2 step


def _planned(problem: Problem, t: Tensor, size: Tensor, *, folded: bool) -> list[_Plan]:
    """Steps of each size at times t."""
    root = torch.where(size > 0, 2 * size, 1.0).sqrt() * (size > 0)  # at 0 a root has no gradient
    at = problem.at(t, "score", 1.0, size) if folded else problem.at(t, "score")
    return [_Plan(*row) for row in zip(at, *problem.coefs(len(t), size, root), strict=True)]


def _alphas(problem: Problem, times: Tensor) -> Tensor:
    """alpha_i = 1 - beta_i >= 0 at the end of each interval: beta_i = -2 f h, h the next interval
    of the whole grid.
    """
    ends, whole = times[1:], times if problem.grid is None else problem.grid
    lengths = whole.diff(dim=0).abs()
    places = (whole[:, None] == ends).int().argmax(dim=0).clamp(max=len(lengths) - 1)
    following = lengths[places] if lengths.ndim == 1 else lengths.gather(0, places)
    # At the start of a grid f may be infinite.
    f = torch.where(following > 0, problem.coefficients(ends)[0], 0.0)
    return (1 + 2 * f * following).clamp(min=0)


@dataclass(frozen=True)
class Langevin(Solver):
    """x <- x + step score(x, t) + sqrt(2 step) z with step = 2 alpha_i (snr sigma(t))^2.

    A corrector: it takes ``n_steps`` such steps at one time, which move the samples towards the
    law at that time. The step is the one of Song et al. (arXiv 2011.13456, Algorithms 4 and 5) with
    the norms of noise and score replaced by their means, so that a sample does not depend on its
    batch; their code calls this ``AnnealedLangevinDynamics``.

    alpha_i = 1 - beta_i, as in their code, where beta_i is the variance that their chain adds in a
    step: beta_i = -2 f(t) h, where h is the length of the grid's interval that starts at t, or of
    the last interval at the end of the grid. It is 1 where alpha is constant (VE, EDM). Where
    beta_i > 1, for which their code has no step, alpha_i is 0 and the samples stay. Their beta_i is
    beta(t) T / N, read from a table at t = T i / (N - 1). In the notation of the paper's section
    2.2 alpha_i would be the product of 1 - beta_j over j <= i, which their code does not take.

    A chain with a fixed step has a variance excess of order snr^2: `MetropolisLangevin` has none.
    Alone on a grid under VE or EDM it is annealed Langevin dynamics: the step
    eps sigma^2 / sigma_L^2 of NCSN (Song and Ermon 2019, arXiv 1907.05600, Algorithm 1) has
    snr = sqrt(eps) / (2 sigma_L).

    ``rule="song"``: step = 2 alpha_i (snr |z| / |score|)^2 with the norms averaged over the batch,
    as in their ``LangevinCorrector``. A sample then depends on its batch.
    """

    snr: Positive = 0.16
    n_steps: Natural = 1
    rule: Literal["schedule", "song"] = "schedule"

    needs = frozenset({"score", "marginal", "coefficients"})
    corrects = True

    @property
    def stochastic(self) -> bool:
        return self.n_steps > 0

    @property
    def evaluations(self) -> int:
        return self.n_steps

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan | None]:
        """The step size at the end of each interval; in Song's rule the factor of the norms."""
        if not self.n_steps:
            return [None] * (len(times) - 1)
        t = times[1:]
        alphas = _alphas(problem, times)
        song = self.rule == "song"
        spread = torch.ones_like(alphas) if song else problem.marginal(t)[1]
        return _planned(problem, t, 2 * alphas * (self.snr * spread) ** 2, folded=not song)

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        mean = x
        for k in range(self.n_steps):
            z = noise.normal("corrector", k)
            if self.rule == "song":
                score = problem.evaluate(x, plan.at)
                ratio = rowwise(z).norm(dim=1).mean() / rowwise(score).norm(dim=1).mean()
                mean = weighted((1.0, x), (plan.step, ratio**2 * score))
                x = weighted((1.0, mean), (plan.root, ratio * z))
            else:
                mean = problem.evaluate(x, plan.at)
                x = weighted((1.0, mean), (plan.root, z))
        return Step(x, mean)


@dataclass(frozen=True)
class MetropolisLangevin(Solver):
    """A Langevin step proposes, and is accepted with the probability that leaves the law at s
    exactly as it is.

    y = x + step score(x) + sqrt(2 step) z, step = 2 (snr sigma)^2, is accepted with probability
    min(1, p(y) q(x | y) / (p(x) q(y | x))) (MALA: Roberts and Tweedie 1996). No density being
    known, log p(y) - log p(x) is the integral of the score along the segment from x to y by
    Simpson's rule: exact for Gaussian laws and for any log-density of degree 4. Two evaluations a
    Langevin step, and one to start. Small steps are hardly ever rejected: a larger ``snr`` mixes
    faster. For a network whose score is no gradient the law that is kept is near that of the score.
    """

    snr: Positive = 0.5
    n_steps: Natural = 1

    needs = frozenset({"score", "marginal"})
    corrects = True

    @property
    def stochastic(self) -> bool:
        return self.n_steps > 0

    @property
    def evaluations(self) -> int:
        """Two a Langevin step, and one to start."""
        return 2 * self.n_steps + 1 if self.n_steps else 0

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan | None]:
        """The step size at the end of each interval."""
        if not self.n_steps:
            return [None] * (len(times) - 1)
        t = times[1:]
        return _planned(problem, t, 2 * (self.snr * problem.marginal(t)[1]) ** 2, folded=False)

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        """``n_steps`` steps at the end of the interval; the mean is the state itself, as a rejected
        step adds no noise.
        """
        if not self.n_steps:
            return Step(x)
        size, root = expand(plan.step, x), expand(plan.root, x)
        score = problem.evaluate(x, plan.at)
        for k in range(self.n_steps):
            z = noise.normal("corrector", 2 * k)
            y = x + size * score + root * z
            there = problem.evaluate(y, plan.at)
            middle = problem.evaluate(0.5 * (x + y), plan.at)
            log_ratio = line_integral(x, y, score, middle, there) + proposal_ratio(
                x, y, z, there, size, root
            )
            go = accepts(log_ratio, problem.first(noise.normal("corrector", 2 * k + 1)))
            # A network that fails at the proposal must not pass for a rejection: 0 * NaN is NaN.
            x = torch.where(along(go, x), y, x) + 0.0 * (middle + there)
            score = torch.where(along(go, x), there, score)
        return Step(x)


@dataclass(frozen=True)
class _Stay(Solver):
    """The time moves from t to s, and the state stays as it is."""

    needs = frozenset()
    evaluations = 0

    def step(
        self, problem: Problem, x: Tensor, plan: Any, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        return Step(x)


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """A solver made of two: the predictor moves from t to s, the corrector improves the samples at
    one time.

    ``sequence="predictor-first"`` corrects at s, after the move (Song et al. 2021, arXiv
    2011.13456, Algorithm 1); ``"corrector-first"`` corrects at t, before it (the order of their
    code), so that the last samples are not corrected. With a corrector of no steps,
    ``Langevin(n_steps=0)``, it is the predictor. ``predictor=None`` is none: the time moves and the
    state does not (``NonePredictor`` in their code), so that the corrector alone takes the samples
    from noise to data, as in annealed Langevin dynamics.
    """

    predictor: Solver | None
    corrector: Solver
    sequence: Literal["predictor-first", "corrector-first"] = "predictor-first"

    def __post_init__(self) -> None:
        for role, part in (("predictor", self._mover), ("corrector", self.corrector)):
            if not isinstance(part, Solver):
                raise TypeError(
                    f"PredictorCorrector: the {role} must be a solver such as "
                    f"{'ReverseDiffusion(), or None' if role == 'predictor' else 'Langevin()'}; "
                    f"got {part!r}"
                )
            if part.adaptive:
                raise ValueError(
                    f"PredictorCorrector: the {role} {part!r} chooses its own steps; take a "
                    "solver with fixed steps"
                )
            if part.external:
                raise ValueError(
                    f"PredictorCorrector: the {role} {part!r} is another library's driver, "
                    "without steps of its own"
                )
        if not self.corrector.corrects:
            raise ValueError(
                f"PredictorCorrector: the corrector {self.corrector!r} moves samples from t to s, "
                "where the predictor has taken them already; take one that stays at s, Langevin() "
                "say (a solver of yours says so by corrects = True)"
            )
        if min(groups := (self._mover.group, self.corrector.group)) not in (1, max(groups)):
            raise ValueError(
                f"PredictorCorrector: the two have groups of {groups[0]} and {groups[1]} rows; "
                "take one number"
            )

    @property
    def _mover(self) -> Solver:
        """The predictor, or what stands for none."""
        return _Stay() if self.predictor is None else self.predictor

    @property
    def needs(self) -> frozenset[str]:
        return self._mover.needs | self.corrector.needs

    @property
    def order(self) -> float:
        return self._mover.order

    @property
    def stochastic(self) -> bool:
        return self._mover.stochastic or self.corrector.stochastic

    @property
    def spacing(self) -> str:
        return self._mover.spacing

    @property
    def group(self) -> int:
        return max(self._mover.group, self.corrector.group)

    @property
    def has_memory(self) -> bool:
        return self._mover.has_memory

    @property
    def solves_sde(self) -> bool:
        return self._mover.solves_sde

    @property
    def init_evaluations(self) -> int:
        return self._mover.init_evaluations

    def cost(self, plan: Any) -> int:
        move, correct = plan
        return self._mover.cost(move) + self.corrector.cost(correct)

    @property
    def evaluations(self) -> int:
        return self._mover.evaluations + self.corrector.evaluations

    def plan(self, problem: Problem, times: Tensor) -> Sequence[Any]:
        whole = times if problem.grid is None else problem.grid
        # A corrector acts at the end of its interval: after one of no length, that is a start.
        ends = times if self.sequence == "predictor-first" else torch.cat([times[:1], times[:-1]])
        correct = self.corrector.plan(problem.within(problem.piece, whole), ends)
        return list(zip(self._mover.plan(problem, times), correct, strict=True))

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return self._mover.init(problem, x, t)

    def step(
        self, problem: Problem, x: Tensor, plan: Any, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        move, correct = plan
        if self.sequence == "corrector-first":
            x = self.corrector.step(problem, x, correct, noise, ()).x
            return self._mover.step(problem, x, move, noise, state)
        moved = self._mover.step(problem, x, move, noise, state)
        corrected = self.corrector.step(problem, moved.x, correct, noise, ())
        mean = moved.mean if corrected.x is moved.x else corrected.mean  # a corrector of no steps
        return Step(corrected.x, mean, moved.state)

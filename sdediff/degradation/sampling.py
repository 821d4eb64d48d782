"""The two samplers of cold diffusion (Bansal et al. 2022, arXiv 2208.09392)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers import Problem, Solver, Step, StepNoise
from sdediff.solvers.given import described

__all__ = ["NaiveSampling", "TACoS", "check_degraded"]


class _Plan(NamedTuple):
    restored: Any
    """The evaluation of R(x, t)."""
    t: Tensor
    s: Tensor


@dataclass(frozen=True, repr=False)
class NaiveSampling(Solver):
    """x_s = D(R(x_t, t), s), from t to s < t: the data restored, then degraded again (Bansal et
    al. 2022, Algorithm 1).

    R(x, t) is the model's prediction of the data, D the degradation. With noise that is estimated
    from the state (`Hot`) it is DDIM. What R gets wrong, each step makes anew: `TACoS` is better
    for a smooth D.
    """

    needs = frozenset({"data", "degrade"})

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The evaluation at each start, and the ends (t, s); a ValueError unless the times fall."""
        if bool((times[1:] > times[:-1]).any()):
            raise ValueError(
                f"{self!r} goes back to the data, and these times rise: degrade data by the "
                "process itself, process(x_0, t)"
            )
        return list(map(_Plan, problem.at(times[:-1], "data"), times[:-1], times[1:]))

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Nothing to remember; a ValueError where the degradation is none."""
        check_degraded(x, lambda: problem.degrade(x, t, (x, t)))
        return ()

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        """Restore, and degrade less."""
        restored = problem.evaluate(x, plan.restored)
        return Step(problem.degrade(restored, plan.s, (x, plan.t)))


@dataclass(frozen=True, repr=False)
class TACoS(NaiveSampling):
    """x_s = x_t - D(R(x_t, t), t) + D(R(x_t, t), s), from t to s < t: transformation agnostic cold
    sampling (Bansal et al. 2022, Algorithm 2).

    The state is moved by the difference of two degradations of one restoration. Where D(x, t) =
    x + t e with e fixed, that is right whatever R is, and for other smooth D the errors of R count
    in proportion to the step.
    """

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        """Restore, and move by what the two degradations differ in."""
        restored, seen = problem.evaluate(x, plan.restored), (x, plan.t)
        there, here = (problem.degrade(restored, each, seen) for each in (plan.s, plan.t))
        return Step(x - here + there)


def check_degraded(x: Tensor, degrade: Callable[[], Tensor]) -> Tensor:
    """What ``degrade`` makes of states x; a ValueError unless it has their shape and dtype, and is
    the same twice.
    """
    found = degrade()
    if not isinstance(found, Tensor) or found.shape != x.shape or found.dtype != x.dtype:
        raise ValueError(
            f"a degradation returns a tensor of the shape and the dtype of x_0, {tuple(x.shape)}, "
            f"{x.dtype}; got {described(found)}: where it has fewer pixels, resize it back"
        )
    if not torch.equal(found, degrade()) and not bool(found.isnan().any()):
        raise ValueError(
            "a degradation has to be deterministic, and two calls of this one with the same "
            "arguments differ: what is random in it is a condition, which its draw(x_0, generator) "
            "returns for training, as Masking's centre"
        )
    return found

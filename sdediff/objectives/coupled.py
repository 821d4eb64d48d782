"""Objectives around objectives: coupled pairs of data and noise, and conditions that are
dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Unpack

import torch
from torch import Tensor

from sdediff.arguments import check_shape
from sdediff.objectives.denoising import DenoisingScoreMatching, FlowMatching
from sdediff.objectives.objective import DrawingObjective
from sdediff.objectives.timed import check_loss, check_loss_call
from sdediff.options import SolveOptions, takes
from sdediff.protocols import Model
from sdediff.sampling import sample
from sdediff.solvers import Solver, White, seeds
from sdediff.solvers.given import Record
from sdediff.solving import chosen

__all__ = ["ConditionDropout", "Coupled", "reflow"]

_PAIRED: Final = (
    "t_start",
    "noise",
    "x_init",
    "stochasticity",
    "mask",
    "trajectory",
    "on_fail",
)
"""With these a sample would not be what the flow makes of the noise of its seed."""


@takes(SolveOptions, without=_PAIRED)
def reflow(
    model: Model,
    shape: Sequence[int],
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    seed: int = 0,
    **options: Unpack[SolveOptions],
) -> Tensor:
    """Pairs (count, 2, *event) of what the probability flow makes of noise, and that noise: the
    data of `Coupled`.

    The data are in the user's units where the model has a `Normalizer`, the noise is standard
    normal always. ``shape`` is (count, *event); solver and steps are those of `sample`, RK45 by
    default. Trained on such pairs, a flow is straighter and takes fewer steps (Liu et al. 2023,
    arXiv 2209.03003, section 2.2). The options are those of `sdediff.options.SolveOptions`:
    """
    _ = chosen(reflow, options)
    if solver is not None and getattr(solver, "stochastic", False):
        raise ValueError(
            f"{solver!r} draws noise along the way: pairs are made by the probability flow, with "
            "RK45() say"
        )
    shape = check_shape(shape)
    out = sample(model, shape, solver=solver, steps=steps, seed=seed, **options)
    noise = (
        White(seeds(seed, shape[0]), shape[1:], dtype=out.x.dtype, device=out.x.device)
        .at(0)
        .normal("prior")
    )
    return torch.stack([out.x, noise], dim=1)


@dataclass(frozen=True)
class Coupled(Record):
    """A loss on pairs (B, 2, *event) of data and noise, as `reflow` makes them: x_t = alpha x_0 +
    sigma noise of the same pair.
    """

    pairs: ClassVar[bool] = True
    """``fit`` normalises the data alone, and leaves the noise as it is."""
    loss: DenoisingScoreMatching = field(default_factory=FlowMatching)

    def __post_init__(self) -> None:
        check_loss("Coupled", self.loss)

    def __call__(
        self,
        model: Model,
        x_0: Tensor,
        condition: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Losses of the pairs, (B,); ``mask`` is that of the data, as for the loss."""
        check_loss_call(model, x_0, generator)
        if x_0.ndim < 2 or x_0.shape[1] != 2:
            raise ValueError(
                f"pairs of data and noise have shape (B, 2, *event), got {tuple(x_0.shape)}; "
                "make them by reflow"
            )
        return self.loss(
            model, x_0[:, 0], condition, noise=x_0[:, 1], generator=generator, mask=mask
        )


@dataclass(frozen=True)
class ConditionDropout(Record):
    """A loss in which a sample's conditions are replaced by their ``null`` with probability
    ``rate``, all of them together.

    So that one network serves with and without them (classifier-free guidance: Ho and Salimans
    2022, arXiv 2207.12598, Algorithm 1). ``null`` has a number or a tensor of one sample's shape
    for each condition that is to be dropped.
    """

    loss: DrawingObjective
    null: Mapping[str, Tensor | float]
    rate: float = 0.1

    @property
    def pairs(self) -> bool:
        """Whether the loss is one on pairs, as `Coupled`."""
        return bool(getattr(self.loss, "pairs", False))

    def __post_init__(self) -> None:
        check_loss("ConditionDropout", self.loss)
        if not isinstance(self.null, Mapping):
            raise TypeError(
                f"ConditionDropout: null must be a dict, {{'label': 10}} say; got {self.null!r}"
            )
        if not 0 <= self.rate <= 1:
            raise ValueError(f"ConditionDropout: rate is a probability, got {self.rate!r}")
        if not self.null:
            raise ValueError(
                "ConditionDropout: null must name the conditions to drop, {'label': 10} say"
            )

    def __call__(
        self,
        model: Model,
        x_0: Tensor,
        condition: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Losses of the samples x_0 (B, *event), (B,)."""
        check_loss_call(model, x_0, generator)
        missing = sorted(set(self.null) - set(condition or {}))
        if missing:
            names = ", ".join(map(repr, missing))
            raise ValueError(
                f"ConditionDropout: there is no condition {names}; given: {sorted(condition or {})}"
            )
        dropped = torch.rand(len(x_0), generator=generator) < self.rate
        seen = dict(condition or {})
        for name, value in self.null.items():
            rows = dropped.to(seen[name].device).reshape(-1, *(1,) * (seen[name].ndim - 1))
            seen[name] = torch.where(
                rows,
                torch.as_tensor(value, dtype=seen[name].dtype, device=seen[name].device),
                seen[name],
            )
        if mask is None:  # a loss of the user's need not know of masks
            return self.loss(model, x_0, seen, generator=generator)
        return self.loss(model, x_0, seen, generator=generator, mask=mask)

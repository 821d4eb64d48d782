"""Denoising score matching in continuous time, and the losses around a loss: coupled pairs of data
and noise, and conditions that are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Unpack

import torch
from torch import Tensor

from sdediff.arguments import check_condition, check_shape
from sdediff.calls import Condition
from sdediff.drawing import drawn
from sdediff.masks import mean_over
from sdediff.objectives.objective import (
    Batch,
    Loss,
    Objective,
    Timed,
    check_loss,
    clean_of,
    factor,
    seen_by,
)
from sdediff.options import SolveOptions, takes
from sdediff.predict import outputs, target
from sdediff.protocols import Model, sigma_data
from sdediff.sampling import sample
from sdediff.solvers import Solver, White, expand, seeds
from sdediff.solvers.arithmetic import along
from sdediff.solving import chosen

__all__ = ["ConditionDropout", "Coupled", "DenoisingScoreMatching", "FlowMatching", "reflow"]

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


@dataclass(frozen=True)
class DenoisingScoreMatching(Timed):
    """The loss of denoising score matching, one number for each sample:

        w(t) / d ||score_model(x_t, t) - grad log p(x_t | x_0)||^2,

    at one random t in [t_min, t_max] for each sample.

    x_t = alpha x_0 + sigma noise, so the target is -noise / sigma (Vincent 2011; Song et al.
    2021, arXiv 2011.13456, eq. 7); d is the number of coordinates of an event. `Timed` has
    ``weighting``, ``times``, ``stratified`` and ``importance``.

    The error is formed in the network's own output and rescaled, so that its value does not depend
    on what the network predicts.
    """

    def check(self, model: Model, x_0: Tensor, condition: Condition | None = None) -> None:
        """Raise a ValueError unless the model's SDE has a Gaussian kernel."""
        if "kernel" not in model.sde.offers:
            raise ValueError(
                "denoising score matching needs a Gaussian kernel, which "
                f"{model.sde!r} does not have: "
                "use a LinearSDE, or SlicedScoreMatching, which needs none; for a degradation "
                "RestorationLoss"
            )

    def losses(self, batch: Batch) -> Tensor:
        model, sde = batch.model, batch.model.sde
        self.check(model, batch.x_0)
        time, weights = self.given(batch)
        batch = batch.prepared()
        noise = batch.drawn()
        x_t = sde.perturb(batch.x_0, time, noise)
        error = outputs(model, x_t, time, batch.condition, batch.mask).value
        error = error - target(model, batch.x_0, noise, time)
        scale = weights * factor(self.weighting, sde, model.predicts, time, sigma_data(model))
        losses = mean_over(error.square(), batch.mask)
        return torch.as_tensor(expand(scale, losses)) * losses


@dataclass(frozen=True)
class FlowMatching(DenoisingScoreMatching):
    """1 / d ||flow(x_t, t) - d x_t / dt||^2 with x_t = alpha x_0 + sigma noise (Lipman et al. 2023,
    arXiv 2210.02747, eq. 9).

    Denoising score matching in another weighting, w = g^4 / 4, for any linear SDE and whatever the
    network predicts; under `RectifiedFlow` the target is noise - x_0 (Liu et al. 2023, arXiv
    2209.03003, eq. 1). Give ``noise`` where it is coupled to the data, as `reflow` makes them.
    """

    weighting: str = "flow"


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
    arXiv 2209.03003, section 2.2). The options are those of `SolveOptions`:
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
class Coupled(Loss):
    """A loss on pairs (B, 2, *event) of data and noise, as `reflow` makes them: x_t = alpha x_0 +
    sigma noise of the same pair.
    """

    takes: ClassVar[tuple[str, ...]] = ()
    loss: DenoisingScoreMatching = field(default_factory=FlowMatching)

    def __post_init__(self) -> None:
        check_loss("Coupled", self.loss)

    def clean(self, data: Tensor) -> Tensor:
        """The data of the pairs."""
        return data[:, 0]

    def seen(self, batch: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
        """The pairs, their data in the units of the model, their noise as it is."""
        return torch.stack([normalize(batch[:, 0]), batch[:, 1]], dim=1)

    def losses(self, batch: Batch) -> Tensor:
        """``mask`` is that of the data, as for the loss."""
        pairs = batch.x_0
        if pairs.ndim < 2 or pairs.shape[1] != 2:
            raise ValueError(
                f"pairs of data and noise have shape (B, 2, *event), got {tuple(pairs.shape)}; "
                "make them by reflow"
            )
        return self.loss(
            batch.model,
            pairs[:, 0],
            batch.condition,
            noise=pairs[:, 1],
            generator=batch.generator,
            mask=batch.mask,
        )


@dataclass(frozen=True)
class ConditionDropout(Loss):
    """A loss in which a sample's conditions are replaced by their ``null`` with probability
    ``rate``, all of them together.

    So that one network serves with and without them (classifier-free guidance: Ho and Salimans
    2022, arXiv 2207.12598, Algorithm 1). ``null`` has a number or a tensor of one sample's shape
    for each condition that is to be dropped; by default it is the ``null`` of the model.
    """

    takes: ClassVar[tuple[str, ...]] = ()
    loss: Objective
    null: Condition | None = None
    rate: float = 0.1

    def clean(self, data: Tensor) -> Tensor:
        """Of the loss inside."""
        return clean_of(self.loss, data)

    def seen(self, batch: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
        """Of the loss inside."""
        return seen_by(self.loss, batch, normalize)

    def __post_init__(self) -> None:
        check_loss("ConditionDropout", self.loss)
        if not isinstance(self.null, Mapping | None):
            raise TypeError(
                f"ConditionDropout: null must be a dict, {{'label': 10}} say; got {self.null!r}"
            )
        if not 0 <= self.rate <= 1:
            raise ValueError(f"ConditionDropout: rate is a probability, got {self.rate!r}")
        if self.null is not None and not self.null:
            raise ValueError(
                "ConditionDropout: null must name the conditions to drop, {'label': 10} say"
            )

    def losses(self, batch: Batch) -> Tensor:
        null = getattr(batch.model, "null", None) if self.null is None else self.null
        if not null:
            raise ValueError(
                "ConditionDropout: the model does not say what stands for no condition: "
                "ScoreModel(net, sde, null={'label': 10}), say"
            )
        seen = check_condition(batch.condition, len(batch.x_0), None, batch.x_0.device)
        if missing := sorted(set(null) - set(seen)):
            names = ", ".join(map(repr, missing))
            raise ValueError(
                f"ConditionDropout: there is no condition {names}; given: {sorted(seen)}"
            )
        chance = drawn(len(batch.x_0), batch.generator, lambda n, g: torch.rand(n, generator=g))
        dropped = chance < self.rate
        for name, value in null.items():
            given = seen[name]
            instead = torch.as_tensor(value, dtype=given.dtype, device=given.device)
            seen[name] = torch.where(along(dropped, given), instead, given)
        # A loss of the user's need not know of them.
        both: dict[str, Any] = {"generator": batch.generator, "mask": batch.mask}
        known = {name: value for name, value in both.items() if value is not None}
        return self.loss(batch.model, batch.x_0, seen, **known)

    def check(
        self, model: Model, x_0: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> None:
        """Let the loss inside look before `fit` begins."""
        if hasattr(self.loss, "check"):
            self.loss.check(model, x_0, condition)

    def state_dict(self) -> dict[str, Any]:
        """What the loss inside has learned."""
        return dict(self.loss.state_dict()) if hasattr(self.loss, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        if hasattr(self.loss, "load_state_dict"):
            self.loss.load_state_dict(state)

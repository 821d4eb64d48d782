"""What a loss is: how it is called, what it looks at, and how it weighs the times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Final, NamedTuple, Protocol

import torch
from torch import Tensor

from sdediff.calls import Condition, check_floating
from sdediff.drawing import drawn
from sdediff.masks import kept, mask_of
from sdediff.objectives.times import Proposal, Times, check_times, time_at, uniform
from sdediff.predictions import PREDICTIONS, conversion, meant
from sdediff.protocols import Model, Prediction, is_model, sigma_data
from sdediff.sde import LinearSDE
from sdediff.solvers.arithmetic import at_least_float32
from sdediff.solvers.given import Positive, Record, nearest, reading, reals

__all__ = [
    "WEIGHTINGS",
    "Batch",
    "Loss",
    "MinSNR",
    "Objective",
    "Timed",
    "check_loss",
    "clean_of",
    "factor",
    "seen_by",
]


class Objective(Protocol):
    """``loss(model, x_0, condition) -> (B,)``, the losses of samples x_0 (B, *event), random by
    torch's own generator.

    One that learns something itself has ``state_dict`` and ``load_state_dict`` too, with tensors,
    which run folders keep. One with a ``check`` of the same arguments is asked before `fit` begins.
    One whose samples are not x_0 alone, as of pairs, has two more. ``clean(data)`` is x_0 in the
    user's units, of all ``data`` of `fit` or of some; ``seen(batch, normalize)`` is what the loss
    is called with, ``normalize`` taking x_0 to the units of the model.
    """

    def __call__(
        self, model: Model, x_0: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Losses, (B,)."""


class Batch(NamedTuple):
    """What one call of a loss is about: the model without its constraints, and the arguments.

    ``at`` holds the times t or the levels i of the samples, None where they are to be drawn.
    """

    model: Model
    x_0: Tensor
    condition: Condition | None = None
    at: Tensor | None = None
    noise: Tensor | None = None
    generator: torch.Generator | None = None
    mask: Tensor | None = None

    def prepared(self) -> Batch:
        """The data in float32 or wider, the mask in their shape, 0 where nothing exists."""
        mask = mask_of(self.mask, self.x_0)
        return self._replace(x_0=kept(at_least_float32(self.x_0), mask), mask=mask)

    def drawn(self) -> Tensor:
        """The noise of the call, or one that is drawn on the host, so that a seed gives the same
        loss on every device.
        """
        noise = self.noise
        if noise is None:
            x = self.x_0

            def draw(count: int, generator: torch.Generator | None) -> Tensor:
                return torch.randn((count, *x.shape[1:]), generator=generator, dtype=x.dtype)

            noise = drawn(len(x), self.generator, draw).to(x.device)
        return kept(noise, self.mask)


class Loss(Record):
    """The base of the losses, which define `losses`.

    Every loss is called as ``loss(model, x_0, condition)``. ``takes`` names what else of t, i and
    noise it can be given.
    """

    takes: ClassVar[tuple[str, ...]] = ("t", "noise")

    def __call__(
        self,
        model: Model,
        x_0: Tensor,
        condition: Condition | None = None,
        *,
        t: Tensor | None = None,
        i: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The losses of the samples x_0 (B, *event), (B,).

        A value of ``condition`` is a tensor (B, ...), or one for all samples: a number, or a tensor
        with leading dimension 1. The times ``t`` (B,), or the levels ``i`` in 1..N (B,) of a
        discrete model, and ``noise`` (shape of x_0) are drawn where they are not given, on the host
        from ``generator`` (default: torch's own). ``mask`` says which coordinates exist, True or 1:
        (B, *event), or its first dimensions, or 1 in place of some. The others are 0 in x_0 and
        noise, and a mean is over those that exist.

        Raises TypeError for what is no model, no samples, no generator, and for an argument that
        this loss does not take.
        """
        if not is_model(model):
            raise TypeError(
                f"model must be a ScoreModel, got {type(model).__name__}; a loss is called as "
                "loss(model, x_0)"
            )
        check_floating("x_0", x_0)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator or None, got {generator!r}; "
                "torch.Generator().manual_seed(0), say"
            )
        for name, value in (("t", t), ("i", i), ("noise", noise)):
            if value is not None and name not in self.takes:
                known = " and ".join(self.takes) or "generator and mask alone"
                raise TypeError(f"{type(self).__name__} takes no {name}=; it takes {known}")
        at = t if i is None else i
        learner = getattr(model, "learner", model)
        return self.losses(Batch(learner, x_0, condition, at, noise, generator, mask))

    def losses(self, batch: Batch) -> Tensor:
        """The losses of one batch, (B,)."""
        raise NotImplementedError


def check_loss(who: str, loss: object) -> None:
    """A TypeError unless it is a loss, called as loss(model, x_0, condition)."""
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(f"{who}: loss must be one, DenoisingScoreMatching() say; got {loss!r}")


def clean_of(loss: object, data: Tensor) -> Tensor:
    """x_0 of the data of `fit`, in the user's units: the data, unless the loss says otherwise."""
    clean: Callable[[Tensor], Tensor] | None = getattr(loss, "clean", None)
    return data if clean is None else clean(data)


def seen_by(loss: object, batch: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """What a loss is called with: x_0 in the units of the model, unless it says otherwise."""
    seen: Callable[..., Tensor] | None = getattr(loss, "seen", None)
    return normalize(batch) if seen is None else seen(batch, normalize)


Weighting = Callable[[LinearSDE, Tensor], Tensor]
"""w(sde, t): the weight of the squared score error at float64 host times (B,)."""


def _likelihood(sde: LinearSDE, t: Tensor) -> Tensor:
    return sde.diffusion(t) ** 2


@dataclass(frozen=True)
class MinSNR(Record):
    """The squared error of the data times min(snr, gamma), snr = alpha^2 / sigma^2 (Hang et al.
    2023, arXiv 2303.09556).

    sigma is in the units in which the SDE was declared, so that ``sde.scaled(c)`` has the same
    weights.
    """

    gamma: Positive = 5.0

    def __call__(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """min(snr, gamma) sigma^4 / alpha^2."""
        snr = sde.log_snr(t).exp()
        most = self.gamma / sde.unit**2
        return snr.clamp(max=most) * sde.sigma(t) ** 2 / snr


WEIGHTINGS: Final[dict[str, str | Weighting]] = {
    "sigma2": "noise",
    "snr": "noise",
    "uniform": "score",
    "likelihood": _likelihood,
    "min-snr": MinSNR(),
    **{name: name for name in PREDICTIONS},
}
"""Weights by name. The name of a prediction is the squared error of that: ``noise``, ``data``,
``score``, ``v``, ``flow`` (flow matching), ``edm`` (Karras et al. 2022, arXiv 2206.00364, Table 1:
w = sigma^2 (1 + sigma^2 / (alpha sigma_data)^2) of the score). ``sigma2`` (Song et al. 2021, arXiv
2011.13456) and ``snr`` (that of the data times snr) are the noise's, ``uniform`` the score's;
``likelihood`` is g^2 (Song et al. 2021, arXiv 2101.09258), ``min-snr`` is `MinSNR`.
"""


def check_weighting(weighting: object) -> None:
    """A ValueError unless it is a name or a function."""
    if not callable(weighting) and not (isinstance(weighting, str) and weighting in WEIGHTINGS):
        hint = nearest(str(weighting), WEIGHTINGS) or meant(str(weighting))
        raise ValueError(
            f"weighting must be one of {', '.join(WEIGHTINGS)} or a function, got "
            f"{weighting!r}{hint}"
        )


def factor(
    weighting: str | Weighting,
    sde: LinearSDE,
    source: str | Prediction,
    t: Tensor,
    sigma_data: float,
) -> Tensor:
    """What the squared error of the prediction ``source`` is multiplied by, shaped as t, float64
    host times.
    """
    weight = WEIGHTINGS[weighting] if isinstance(weighting, str) else weighting
    # at once from one to the other: through the score it may be infinity times 0
    if isinstance(weight, str):
        return conversion(sde, source, weight, t, sigma_data)[1] ** 2
    given = reals("weighting(sde, t)", reading("weighting", partial(weight, sde), "t", t))
    if given.shape not in (t.shape, ()):
        raise ValueError(
            f"weighting(sde, t) must be shaped as t, {tuple(t.shape)}, got {tuple(given.shape)}"
        )
    return given * conversion(sde, source, "score", t, sigma_data)[1] ** 2


@dataclass(frozen=True)
class Timed(Loss):
    """The mean over t of w(t) times an error, t of the density ``times``, one a sample.

    ``weighting`` is a name in `WEIGHTINGS` or a function w(sde, t) of float64 host times (B,);
    ``times`` a name in `TIMES`, a `TimeLaw` (`LogNormal(-1.2, 1.2)`, `LogitNormal(0, 1)`) or a
    function from a uniform u (B,) to the share of [t_min, t_max].

    Two ways to lower the variance, neither of which changes the objective: ``stratified`` takes u =
    (i + u_i) / B in random order, so that a batch covers the range; ``importance`` draws times in
    proportion to w(t) / sigma(t)^2, the weight of the squared error of the noise, and divides by
    the density (Song et al. 2021, arXiv 2101.09258, Appendix B, for the weighting
    ``"likelihood"``).
    """

    weighting: str | Weighting = "sigma2"
    times: str | Times = "uniform"
    stratified: bool = False
    importance: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        check_times(self.times)

    def draw(
        self, model: Model, count: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(t, weights), float64 (count,) on the host: a mean of the weighted losses is the
        objective.
        """
        u = uniform(count, generator, stratified=self.stratified)
        weights = torch.ones_like(u)
        if self.importance:
            u, weights = self._proposal(model)(u)
        return time_at(self.times, model.sde, u), weights

    def _proposal(self, model: Model) -> Proposal:
        known = vars(self).get("_known")
        if known is None or known[0] is not model.sde or known[1] != sigma_data(model):

            def size(u: Tensor) -> Tensor:
                return factor(
                    self.weighting,
                    model.sde,
                    "noise",
                    time_at(self.times, model.sde, u),
                    sigma_data(model),
                )

            known = (model.sde, sigma_data(model), Proposal(size))
            vars(self)["_known"] = known
        proposal: Proposal = known[2]
        return proposal

    def given(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(t, weights) of the samples: the times of the call, weighted by 1, or drawn ones."""
        if batch.at is None:
            return self.draw(batch.model, len(batch.x_0), batch.generator)
        time = batch.model.sde.check_time(reals("t", batch.at, "cpu").detach())
        if time.shape != batch.x_0.shape[:1]:
            raise ValueError(
                f"t must have shape ({len(batch.x_0)},), one time a sample, got {tuple(time.shape)}"
            )
        return time, torch.ones_like(time)

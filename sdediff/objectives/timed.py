"""What all objectives over random times share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdediff.calls import check_floating
from sdediff.objectives.times import Proposal, Times, check_times, time_at, uniform
from sdediff.objectives.weightings import Weighting, check_weighting, factor
from sdediff.protocols import Model, is_model, sigma_data
from sdediff.solvers.given import Record, reals

__all__ = ["Timed", "check_loss", "check_loss_call"]


@dataclass(frozen=True)
class Timed(Record):
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

    def given(
        self, model: Model, x_0: Tensor, t: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """(t, weights) of the samples x_0: those given, weighted by 1, or drawn."""
        check_loss_call(model, x_0, generator)
        if t is None:
            return self.draw(model, len(x_0), generator)
        time = model.sde.check_time(reals("t", t, "cpu").detach())
        if time.shape != x_0.shape[:1]:
            raise ValueError(
                f"t must have shape ({len(x_0)},), one time a sample, got {tuple(time.shape)}"
            )
        return time, torch.ones_like(time)


def check_loss_call(model: Model, x_0: Tensor, generator: torch.Generator | None) -> Model:
    """The model that a loss is about, without its constraints; a TypeError unless it is called with
    a model, samples and, if anything, a generator.
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
    learner: Model = getattr(model, "learner", model)
    return learner


def check_loss(who: str, loss: object) -> None:
    """A TypeError unless it is a loss, called as loss(model, x_0, condition)."""
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(f"{who}: loss must be one, DenoisingScoreMatching() say; got {loss!r}")

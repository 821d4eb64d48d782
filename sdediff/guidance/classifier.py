"""Guidance by a classifier of noisy states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.guidance.base import Guidance, Interval, Scale
from sdediff.guidance.conditions import given_to, left_for, names_of
from sdediff.guidance.gradients import gradient
from sdediff.guidance.pairs import replaced
from sdediff.model import Call, ScoreModel
from sdediff.network_time import NetworkTime
from sdediff.predict import conversion_of
from sdediff.protocols import Like, Model, Output, Piece, Rows, value_of
from sdediff.sde import SDE
from sdediff.solvers.arithmetic import planned, weighted
from sdediff.solvers.coefficients import Coef

__all__ = ["Classifier", "Evidence"]

_ROUNDING = 1e-4


class Evidence(ScoreModel):
    """The model with the score grad_x log p(y | x_t), from a classifier of noisy states alone.

    ``log_prob(x, t, **condition)`` returns log p(y | x_t = x), (B,). It gets x and t in the dtype
    of its network, by the rules of `ScoreModel`, and those conditions that its signature names (all
    of them if it has ``**``). Each evaluation is one backward pass through it. No diffusion network
    is evaluated.
    """

    def __init__(
        self, log_prob: Callable[..., Tensor], sde: SDE, *, time: NetworkTime = "t"
    ) -> None:
        super().__init__(log_prob, sde, "score", time=time)
        self.takes = names_of(log_prob)

    def evaluate(self, x: Tensor, at: Call, rows: Rows) -> Tensor:
        """The gradient at states x, with its graph where the caller keeps one."""
        first = rows.monitor.calls == 0  # a device is waited for once a solve

        def see(x: Tensor) -> tuple[Tensor, Tensor]:
            own = len(at.time) == len(x)
            return x.to(at.dtype), at.time if own else at.time[:1].expand(len(x))

        def check(found: Tensor) -> None:
            if (first or found.device.type == "cpu") and bool((found > _ROUNDING).any()):
                raise ValueError(
                    "log_prob must return log-probabilities, which are at most 0; got "
                    f"{float(found.max()):.3g}. Of probabilities take the log, of logits the "
                    "log_softmax; from the log-density of a continuous y subtract a constant"
                )

        named, graph = given_to(self.takes, rows.condition), torch.is_grad_enabled()
        pull = gradient("log_prob", self.net, x, see, named, _RETURNS, graph=graph, check=check)
        rows.count(0, backward=1)
        return pull


_RETURNS = (
    "log p(y | x_t) of each state, a tensor ({},); got {}. Around a network that returns logits "
    "(B, K) write lambda x, t, label: net(x, t).log_softmax(1).gather(1, label[:, None])[:, 0]"
)


class _At(NamedTuple):
    inner: Any
    scale: Any
    push: Coef = 0.0
    """How much the model's prediction changes where the gradient is 1."""
    evidence: Any = None
    level: Tensor | None = None
    """The level of the chain, if it has a learned variance."""


class Classifier(Guidance):
    """Classifier guidance: score(x, t) + scale grad_x log p(y | x_t = x).

    With scale 1 and the exact p(y | x_t) this is the score of the law given y.

    ``log_prob``: a function ``log_prob(x, t, **condition)`` that returns log p(y | x_t = x) as a
    tensor (B,): the log-probability that a classifier of noisy states gives to the class that is
    asked for. For a network with logits (B, K) it is

        lambda x, t, label: net(x, t).log_softmax(1).gather(1, label[:, None])[:, 0]

    It gets x, and t as a tensor (B,), in the dtype of its network, and those of the call's
    conditions that its signature names. Conditions that the model's network does not name are for
    the classifier alone: an unconditional network ``net(x, t)`` does not get the label. The
    classifier must judge each sample by itself.
    ``scale`` and ``interval``: as in `Guidance`.
    ``time``: the time that the classifier gets, by default the SDE's, else as in `ScoreModel`.
    ``chain``: a `DDPM`. In the steps of that solver the mean then moves by scale Sigma grad, as in
    Algorithm 1 of Dhariwal and Nichol, where Sigma is the chain's variance, fixed or learned. The
    model can then be evaluated at the times of the chain only. Without ``chain`` every solver takes
    the model, and with `DDIM` it is their Algorithm 2, where sigma scale grad is subtracted from
    the noise. For small beta_i both agree.

    An evaluation costs one of the model and one backward pass through the classifier, which
    `Solution.backward` counts.

    Raises ValueError before the first evaluation if alpha = 0 at a time, where the change of data
    or v is not finite, and if ``log_prob`` returns another shape, positive numbers, or a result
    that does not depend on x.

    Dhariwal and Nichol 2021 (arXiv 2105.05233); Song et al. 2021 (arXiv 2011.13456, eq. 14).
    """

    extrapolates = True  # by c - u = grad log p(y | x_t), of scores

    def __init__(
        self,
        model: Model,
        log_prob: Callable[..., Tensor],
        scale: Scale = 1.0,
        *,
        interval: Interval | None = None,
        time: NetworkTime = "t",
        chain: Any = None,
    ) -> None:
        if not callable(log_prob):
            raise TypeError(
                "Classifier: log_prob must be a function of (x, t, **condition) that returns log "
                f"p(y | x_t), (B,); got {log_prob!r}"
            )
        super().__init__(model, scale, interval)
        if chain is not None and not hasattr(chain, "log_variance"):
            raise TypeError(f"Classifier: chain must be a DDPM, got {chain!r}")
        if chain is not None:
            chain.check_model(model)
        self.evidence = Evidence(log_prob, model.sde, time=time)
        self.chain = chain

    @property
    def takes(self) -> frozenset[str] | None:
        """The conditions that ``log_prob`` names."""
        return self.evidence.takes

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[_At]:
        scales = self.strengths(times, like, piece)
        inner = self.model.at(times, like, piece)
        if scales[0] is None:
            return [_At(*row) for row in zip(inner, scales, strict=True)]
        flat = times.reshape(-1)
        levels: Sequence[Any] = [None] * len(times)
        if self.chain is None:
            push = 1 / conversion_of(self.model, "score", flat)[1]
        else:
            level = self._level(times)
            push = 1 / (
                conversion_of(self.model, "data", flat)[1]
                * self.chain.posterior_columns[0][level - 1]
            )
            if self.chain.variance == "learned":
                levels = level.reshape(times.shape).unbind()
            else:
                push = push * self.chain.log_variance(level).exp()
        if not bool(torch.isfinite(push).all()):
            bad = float(flat[~torch.isfinite(push)][0])
            raise ValueError(
                f"Classifier: at t = {bad:.6g}, where alpha = 0, the shift of a network that "
                f"predicts {self.model.predicts!r} is not finite: begin later, "
                "interval=(-20, math.inf) in log-SNR, or take a network that predicts noise"
            )
        (pushes,) = planned(len(times), like, push.reshape(times.shape))
        evidence = self.evidence.at(times, like, piece)
        rows = zip(inner, scales, pushes, evidence, levels, strict=True)
        return [_At(*row) for row in rows]

    def _level(self, times: Tensor) -> Tensor:
        """The levels of the chain whose times these are, in one dimension, int64."""
        t = times.reshape(-1)
        known: Tensor = self.chain.level_times
        gaps, level = (t[:, None] - known).abs().min(dim=1)
        if float(gaps.max()) > 1e-9 * float(known[-1]):
            raise ValueError(
                f"Classifier: with chain={self.chain!r} the shift is known at the chain's times, "
                f"and t = {float(t[gaps.argmax()]):.6g} is none of them: take solver=chain, or "
                "leave chain out for other solvers"
            )
        if bool((level.reshape(times.shape).diff(dim=0).abs() > 1).any()):
            raise ValueError(
                f"Classifier: the steps skip levels of chain={self.chain!r}, on whose steps the "
                "shift depends: pass the chain that is the solver, chain.respaced(50) say, to both"
            )
        return level + 1

    def evaluate(self, x: Tensor, at: _At, rows: Rows) -> Tensor | Output:
        left = rows.under(left_for(self.model, rows.condition, self.takes))
        scale = self.strength(at.scale, x, rows)
        if scale is None or (isinstance(scale, float) and scale == 0.0):
            return self.ask(x, at.inner, left)
        pull = weighted((at.push, weighted((scale, self.evidence.evaluate(x, at.evidence, rows)))))
        found = self.ask(x, at.inner, left)
        if at.level is not None:
            learned: Tensor = found.variance  # type: ignore[union-attr]  # check_model asked for it
            pull = self.chain.log_variance(at.level, learned).exp() * pull
        return replaced(found, value_of(found, x, self.model) + pull)

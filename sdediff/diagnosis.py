"""Does a network predict what was declared? Its denoising errors under every reading tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.arguments import check_condition, check_model, check_states
from sdediff.calls import Condition
from sdediff.modules import evaluating
from sdediff.normalizer import coordinate_moments
from sdediff.predict import outputs
from sdediff.predictions import PREDICTIONS, conversion, prediction_of
from sdediff.protocols import Model, Prediction, facts
from sdediff.sde import LinearSDE
from sdediff.solvers import White, expand, seeds
from sdediff.solvers.arithmetic import at_least_float32
from sdediff.solvers.given import integer
from sdediff.suitability import unsuited

__all__ = ["Diagnosis", "diagnose"]

_FIT = 0.95
"""A reading fits if its error is below this share of the error without a network."""


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found: for each reading of the output its denoising error, where 1 is the
    error without a network.
    """

    declared: str
    errors: dict[str, float]
    data: str = ""
    """What is wrong with the data: that they do not suit the SDE; nothing if they do."""
    reversed_errors: dict[str, float] = field(default_factory=dict)
    """The errors of the readings with the network's time the other way round, T - t in place of
    t."""
    time: object = "t"
    """What the network is handed as its time, as declared."""

    @property
    def best(self) -> str:
        """The reading with the least error."""
        return min(self.errors, key=lambda name: self.errors[name])

    @property
    def reversed(self) -> str | None:
        """The reading that denoises better than all others with the network's time the other way
        round; None if none does.
        """
        errors = self.reversed_errors
        least = min(errors, key=lambda name: errors[name], default=self.best)
        return least if errors and errors[least] < _FIT * min(1, self.errors[self.best]) else None

    @property
    def ok(self) -> bool:
        """Whether the declared reading fits, and no other fits better (two may be the same, as
        noise and flow under EDM), nor one with the time the other way round.
        """
        return (
            self.reversed is None
            and self.errors[self.declared] < _FIT
            and self.errors[self.declared] <= (1 + 1e-6) * self.errors[self.best]
        )

    def __str__(self) -> str:
        lines = [f"{'predicts':<10}{'denoising error':>16}"]
        for name, error in sorted(self.errors.items(), key=lambda item: item[1]):
            lines.append(
                f"{name:<10}{error:>16.4g}{'   declared' if name == self.declared else ''}"
            )
        if self.ok:
            lines.append(f"The network predicts {self.declared}, as declared.")
        elif self.reversed is not None:
            turned = {"t": "'reversed'", "reversed": "'t'"}.get(str(self.time))
            time = turned or "a function that hands it the time of T - t"
            lines.append(
                f"The network was trained with time the other way round. So read, its output "
                f"denoises as {self.reversed} (error {self.reversed_errors[self.reversed]:.4g}): "
                f"say ScoreModel(net, sde, {self.reversed!r}, time={time})."
            )
        elif self.errors[self.best] < _FIT:
            lines.append(
                f"Declared: {self.declared}. The output denoises as {self.best}: say "
                f"ScoreModel(net, sde, {self.best!r})."
            )
        else:
            lines.append(
                "No reading beats a linear guess: is the network trained, and is `time` what it "
                "was trained with?"
            )
        if self.data:
            lines.append(f"The data do not suit the SDE: {self.data}.")
        return "\n".join(lines)


def diagnose(
    model: Model, x_0: Tensor, *, condition: Condition | None = None, seed: int = 0
) -> Diagnosis:
    """Find out what a network predicts: its denoising error if its output is read as noise, as
    data, as v and so on.

        print(sd.diagnose(model, data))  # the reading with the least error is right

    Pass clean data x_0 (B, *event), in your units as for ``fit``. Each sample gets noise at a
    log-SNR of its own, evenly spread over the part of [-4, 4] that the SDE has, in units of 2
    ``sde.sigma_data``, which is 1 for published schedules. Fewer than 256 samples are repeated. The
    error is the mean of |E[x_0 | x] - x_0|^2, weighted so that the best linear guess from x has
    error 1 for white data: the squared error of Karras et al.'s preconditioned output (arXiv
    2206.00364, Table 1). The network is evaluated twice. It is evaluated twice more with T - t in
    place of t, because networks for flow matching are often trained with the time reversed.

    The text of the result also says if the scale of the data does not suit the SDE.

    Raises ValueError or TypeError if the SDE has no Gaussian kernel, or if the data are not a batch
    of finite numbers.
    """
    check_model(model)
    sde = model.sde
    if "kernel" not in sde.offers:
        raise ValueError(
            f"diagnose needs a Gaussian kernel, which {sde!r} does not have: its networks "
            f"predict the {sde.predicted} alone"
        )
    model = getattr(model, "learner", model)
    known = facts(model)
    x_0 = at_least_float32(check_states("x_0", x_0)).to(known.device)
    event = x_0.shape[1:]
    condition = check_condition(condition, len(x_0), known.net, known.device, event=event)
    seed = integer("seed", seed, kind="a non-negative int")
    if known.normalizer is not None:
        x_0 = known.normalizer.normalize(x_0)
    amiss = unsuited(sde, *coordinate_moments(x_0).existing)
    copies = -(-256 // len(x_0))
    x_0 = x_0.repeat(copies, *(1,) * (x_0.ndim - 1))
    condition = {
        name: value.repeat(copies, *(1,) * (value.ndim - 1)) for name, value in condition.items()
    }
    # Not by a torch generator: data drawn with the same seed would be this very noise.
    noise = (
        White(seeds(seed, len(x_0)), x_0.shape[1:], dtype=x_0.dtype, device=x_0.device)
        .at(0)
        .normal("probe")
    )
    t = _times(sde, len(x_0), seed)
    x_t = sde.perturb(x_0, t, noise)
    predicts = prediction_of(model.predicts)
    declared = predicts if isinstance(predicts, str) else type(predicts).__name__
    readings: dict[str, str | Prediction] = {
        **{name: name for name in PREDICTIONS},
        declared: predicts,
    }
    time = getattr(model, "time", "t")
    backwards = time == "reversed"

    def answer(times: Tensor, scale: Tensor) -> Tensor:
        """What the network itself returns at these times, its input multiplied by ``scale``."""
        out = outputs(model, expand(scale, x_t) * x_t, times, condition).value
        return -out if backwards and declared == "flow" else out

    with torch.no_grad(), evaluating(model):
        errors, other = (
            _errors(
                _Probe(sde, x_0, x_t, t, known.sigma_data), readings, declared, answer, at, turned
            )
            for at, turned in (
                (t, backwards),
                ((sde.T - t).clamp(sde.t_min, sde.t_max), not backwards),
            )
        )
    return Diagnosis(declared, errors, amiss or "", other, time)


class _Probe(NamedTuple):
    """Clean data, and states x_t = alpha x_0 + sigma noise at times t (B,)."""

    sde: LinearSDE
    x_0: Tensor
    x_t: Tensor
    t: Tensor
    sigma_data: float


def _errors(
    probe: _Probe,
    readings: Mapping[str, str | Prediction],
    declared: str,
    answer: Callable[[Tensor, Tensor], Tensor],
    at: Tensor,
    turned: bool,
) -> dict[str, float]:
    """The denoising error of every reading of what the network returns for x_t at the times ``at``.

    ``turned``: the network's time goes from noise to data, and its flow with it.
    """
    sde, x_0, x_t, t, sigma_data = probe
    spread = float(x_0.std())
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    unit = (sigma**2 + (alpha * spread) ** 2) / (sigma * spread) ** 2

    def scale(name: str, t: Tensor) -> Tensor:
        """What a network that predicts edm is handed x multiplied by."""
        root = (sde.sigma(t) ** 2 + (sigma_data * sde.alpha(t)) ** 2).sqrt()
        return 1 / root if name == "edm" else torch.ones_like(root)

    errors = {}
    answers: dict[bool, Tensor] = {}
    for name, reading in readings.items():
        scaled = name == "edm"
        if scaled not in answers:
            answers[scaled] = answer(at, scale(name, t) / scale(declared, at))
        a, b = conversion(sde, reading, "data", t, sigma_data)
        b = -b if turned and name == "flow" else b
        wrong = expand(a, x_t) * x_t + expand(b, x_t) * answers[scaled] - x_0
        errors[name] = float((expand(unit, wrong) * wrong.square()).mean(dtype=torch.float64))
    return errors


def _times(sde: LinearSDE, count: int, seed: int) -> Tensor:
    """Times (count,) at log-SNRs that are evenly spread over [-4, 4], in an order of the seed."""
    most, least = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
    middle = -2 * math.log(2 * sde.sigma_data)  # 0 for published schedules
    high, low = (min(max(middle + each, least), most) for each in (4.0, -4.0))
    levels = torch.linspace(high, low, count, dtype=torch.float64)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63))
    times: Tensor = sde.time_of(levels[order])
    return times.clamp(sde.t_min, sde.t_max)

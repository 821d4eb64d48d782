"""By what a model is known again: its process, what it predicts, and its answers to fixed
questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch

from sdediff.describing import describe_sde
from sdediff.modules import evaluating
from sdediff.solvers import White, rowwise, seeds
from sdediff.solving import Solving

__all__ = ["differences", "fingerprint"]

_PROBES: Final = 8
_SHARES: Final = (0.2, 0.5, 0.8)
"""Where on the way from the first to the last time the model is asked."""
_CLOSE: Final = 1e-3
"""Relative differences of answers that another machine, or a network in float32, may make."""


def fingerprint(solving: Solving) -> dict[str, Any]:
    """What is kept of a model beside what was tuned for it.

    ``probes``: the root mean square of its data prediction and the mean of its first coordinate,
    over fixed states at three times, in units of the data's standard deviation.
    """
    predicts = solving.model.predicts
    return {
        "sde": repr(solving.model.sde),
        "entry": describe_sde(solving.model.sde),
        "data_std": solving.facts.data_std,
        "event": list(solving.event),
        "predicts": predicts if isinstance(predicts, str) else type(predicts).__name__,
        "probes": _answers(solving),
    }


def differences(known: Mapping[str, Any], solving: Solving) -> list[str]:
    """In what a model differs from the one that ``known`` is the `fingerprint` of, in words."""
    here = fingerprint(solving)
    names = {
        "sde": "the SDE",
        "data_std": "the standard deviation of the data",
        "event": "the shape of a sample",
        "predicts": "what the network predicts",
    }
    found = [
        f"{words}: {here[name]} in place of {known.get(name)}"
        for name, words in names.items()
        if here[name] != known.get(name)
    ]
    old, new = known.get("probes", []), here["probes"]
    close = len(old) == len(new) and all(
        math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_CLOSE) for a, b in zip(old, new, strict=True)
    )
    return found if close else [*found, "the answers to fixed states"]


def _answers(solving: Solving) -> list[float]:
    count = min(_PROBES, solving.count)
    rows = torch.arange(count)
    noise = White(seeds(0, count), solving.event, dtype=solving.dtype, device=solving.device)
    z = noise.at(0).normal("prior")
    problem = solving.reverse(rows)
    first, last = solving.times[0], solving.times[-1]
    ends = problem.log_snr(torch.stack([first, last])).clamp(-20.0, 20.0)
    shares = torch.tensor(_SHARES, dtype=torch.float64)
    times = problem.time_of(ends[0] + shares * (ends[1] - ends[0]))
    alpha, sigma = problem.marginal(times)
    size = torch.hypot(alpha, sigma).tolist()
    found = []
    with torch.no_grad(), evaluating(solving.model):
        for entry, scale in zip(problem.at(times, "data"), size, strict=True):
            data = rowwise(problem.evaluate(scale * z, entry)).double()
            found += [float(data.square().mean().sqrt()), float(data[:, 0].mean())]
    return [float(f"{each:.6g}") for each in found]

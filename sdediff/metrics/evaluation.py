"""Quality of samples against data, batch by batch: Frechet and kernel distance, precision, recall
and inception score, each with its standard error and bias.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from sdediff.metrics.classes import ClassShares
from sdediff.metrics.extractors import Extractor, Features, extractor
from sdediff.metrics.gaussians import Moments, measured_frechet
from sdediff.metrics.measured import GROUPS, Measured, Reference
from sdediff.metrics.pairs import kernel_distance, precision_recall
from sdediff.metrics.samples import check_count, check_sample
from sdediff.progress import progress_bar
from sdediff.solvers.given import check_choice

__all__ = ["METRICS", "Evaluated", "Evaluation", "evaluate"]

METRICS: Final = ("frechet", "kernel", "precision", "recall", "score")
"""Frechet distance, kernel distance, precision, recall and inception score."""
_PAIRS: Final = ("kernel", "precision", "recall")
"""What needs the features of all samples at once."""
_NAMES: Final = {
    ("frechet", "inception"): "FID",
    ("kernel", "inception"): "KID",
    ("score", "inception"): "Inception score",
    ("frechet", "dinov2"): "FD-DINOv2",
    ("kernel", "dinov2"): "KD-DINOv2",
    ("frechet", ""): "Frechet distance",
    ("kernel", ""): "Kernel distance",
    ("precision", ""): "Precision",
    ("recall", ""): "Recall",
    ("score", ""): "Classifier score",
}
"""By features, where the field has a name of its own."""


@dataclass(frozen=True)
class Evaluated:
    """Metrics by name, and the features that they are of; prints as a table."""

    features: str
    metrics: dict[str, Measured]

    def __getitem__(self, name: str) -> Measured:
        check_choice("metric", name, tuple(self.metrics))
        return self.metrics[name]

    def __str__(self) -> str:
        rows = [("metric", "value", "± error", "bias", "at infinite n")]
        for name, found in self.metrics.items():
            rows.append(
                (
                    self.called(name),
                    f"{found.value:.4g}",
                    "" if found.stderr is None else f"{found.stderr:.2g}",
                    "not known" if found.bias is None else f"{found.bias:+.2g}",
                    "" if found.at_infinity is None else f"{found.at_infinity:.4g}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self._remarks()])

    def called(self, name: str) -> str:
        """What the field calls a metric on these features."""
        return _NAMES.get((name, self.features)) or _NAMES[name, ""]

    def _remarks(self) -> list[str]:
        """What holds for all, and notes."""
        any_one = next(iter(self.metrics.values()))
        two = [found for found in self.metrics.values() if found.m]
        words = f"{any_one.n} samples, features: {self.features}"
        if two:
            words += f"; reference of {two[0].m} data, {two[0].reference}"
        notes = [
            f"{self.called(name)}: {found.note}"
            for name, found in self.metrics.items()
            if found.note
        ]
        return [words, "at infinite n: extrapolated in 1 / n", *notes]

    def to_json(self) -> str:
        """The numbers with all that belongs to them."""
        found = {
            name: {"name": self.called(name), **each.record()}
            for name, each in self.metrics.items()
        }
        return json.dumps({"features": self.features, "metrics": found}, indent=2) + "\n"


@dataclass(eq=False)
class Evaluation:
    """Metrics of samples against data that come batch by batch; the result does not depend on how
    they are cut into batches.

    ``features``: as `extractor` takes them, or what it made. ``metrics``: some of ``"frechet"``,
    ``"kernel"``, ``"precision"``, ``"recall"`` and ``"score"``, by default all, the score where the
    features have logits. ``reference``: ``"fixed"``, the field's convention, where errors and
    biases are those for these data; ``"sampled"``, where those of the data are in them.
    ``groups``: how many groups of samples are left out in turn for the errors; 0: none.

    Frechet distance and score are of sums that take memory for ``groups`` matrices (d, d) and (K,),
    whatever the number of samples; the others keep all features.
    """

    features: Features | None = None
    metrics: Sequence[str] | None = None
    reference: Reference = "fixed"
    groups: int = GROUPS
    _samples: _Side = field(init=False)
    _data: _Side = field(init=False)

    def __post_init__(self) -> None:
        self._extractor = extractor(self.features)
        self.groups = check_count("groups", self.groups, 2, zero=True)
        check_choice("reference", self.reference, ("fixed", "sampled"))
        logits = self._extractor.has_logits
        known = METRICS if logits else METRICS[:-1]
        self.metrics = known if self.metrics is None else tuple(self.metrics)
        for name in self.metrics:
            check_choice("metrics", name, METRICS)
            if name not in known:
                raise ValueError(
                    "the score needs logits, and these features have none: pass logits="
                )
        if not self.metrics:
            raise ValueError(f"metrics is empty: name some of {', '.join(METRICS)}")
        many = max(self.groups, 1)
        both = self.reference == "sampled"
        keep = any(name in self.metrics for name in _PAIRS)
        moments = "frechet" in self.metrics
        score = "score" in self.metrics
        self._samples = _Side(
            Moments(many) if moments else None, ClassShares(many) if score else None, keep
        )
        self._data = _Side(Moments(many if both else 1) if moments else None, None, keep)

    def add_samples(self, x: Tensor) -> None:
        """Add samples (B, *event)."""
        self._samples.update(self._extractor, x)

    def add_data(self, x: Tensor) -> None:
        """Add data (B, *event)."""
        self._data.update(self._extractor, x)

    def result(self) -> Evaluated:
        """The metrics of what was added so far."""
        found: dict[str, Measured] = {}
        samples, data = self._samples, self._data
        if samples.moments is not None and data.moments is not None:
            found["frechet"] = measured_frechet(
                samples.moments, data.moments, reference=self.reference
            )
        wanted = self.metrics or ()
        if "kernel" in wanted:
            found["kernel"] = kernel_distance(
                samples.rows, data.rows, groups=self.groups, reference=self.reference
            )
        if "precision" in wanted or "recall" in wanted:
            near = precision_recall(
                samples.rows, data.rows, groups=self.groups, reference=self.reference
            )
            found["precision"], found["recall"] = near
        if samples.classes is not None:
            found["score"] = samples.classes.measured()
        return Evaluated(self._extractor.name, {name: found[name] for name in wanted})


@dataclass(eq=False)
class _Side:
    """What is kept of samples, or of data."""

    moments: Moments | None
    classes: ClassShares | None
    keep: bool
    parts: list[Tensor] = field(default_factory=list)

    def update(self, network: Extractor, x: Tensor) -> None:
        """Add a batch."""
        with torch.no_grad():
            features, logits = network.both(check_sample("samples", x))
        features = check_sample("features", features)
        if self.moments is not None:
            self.moments.update(features)
        if self.classes is not None and logits is not None:
            self.classes.update(logits)
        if self.keep:
            self.parts.append(features)

    @property
    def rows(self) -> Tensor:
        """All features."""
        return torch.cat(self.parts) if self.parts else torch.zeros(0, 1)


def evaluate(
    samples: Tensor | Iterable[Tensor],
    data: Tensor | Iterable[Tensor],
    *,
    features: Features | None = None,
    metrics: Sequence[str] | None = None,
    reference: Reference = "fixed",
    groups: int = GROUPS,
    batch_size: int = 256,
    progress: bool = False,
) -> Evaluated:
    """Quality of ``samples`` (n, *event) against ``data`` (m, *event), each a tensor or batches of
    one, in the user's units.

    The arguments are those of `Evaluation`; tensors go through the features ``batch_size`` at a
    time. ``progress``: show how far it is. The result prints as a table, and has ``to_json``.
    """
    batch_size = check_count("batch_size", batch_size, 1)
    made = Evaluation(features, metrics, reference, groups)
    sides: tuple[tuple[str, Tensor | Iterable[Tensor], Callable[[Tensor], None]], ...] = (
        ("data", data, made.add_data),
        ("samples", samples, made.add_samples),
    )
    for name, given, add in sides:
        count = len(given) if isinstance(given, Tensor) else 0
        batches = given.split(batch_size) if isinstance(given, Tensor) else given
        with progress_bar(
            f"features of {name}", total=max(count, 1), show=progress and count > 0
        ) as bar:
            done = 0
            for batch in batches:
                add(batch)
                done += len(batch)
                bar.update(done)
    return made.result()

"""``sdediff train``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from sdediff.cli.large import Large, large_data
from sdediff.cli.names import check_device, loss_for, process_for
from sdediff.data import Dataset, load_data, split
from sdediff.model import ScoreModel
from sdediff.networks import initialised, network_for
from sdediff.normalizer import Normalizer
from sdediff.run_folder import check_ours
from sdediff.sde import SDE
from sdediff.training import Optimization, Watch, fit

__all__ = ["Asked", "about", "run"]


def about(dataset: Dataset) -> dict[str, object]:
    """What a run folder keeps of its data."""
    span = {"low": dataset.low, "high": dataset.high} if dataset.is_image else {}
    return {"name": dataset.name, "image": dataset.is_image, **span}


@dataclass(frozen=True)
class Asked:
    """What the command line asks of a training; `sdediff.cli.train_command` documents it."""

    out: Path
    sde: str
    data: str
    steps: int
    checkpoint_every: int
    resume: bool
    overwrite: bool
    batch_size: int
    accumulate: int
    lr: float
    ema: str
    clip: float
    weighting: str
    times: str
    held_out: int
    watch_every: int
    watch_samples: int
    track: str | None
    image_size: int | None
    raw: bool
    labels: bool
    ignore_labels: bool
    drop: float | None
    network: str | None
    mixed_precision: str | None
    seed: int
    device: str | None
    quiet: bool

    def decays(self) -> float | tuple[float, ...]:
        """The decays of ``--ema``."""
        try:
            decays = tuple(float(word) for word in self.ema.split(","))
        except ValueError as error:
            raise ValueError(
                f"--ema is a decay, 0.999, or several, 0.999,0.9999; got {self.ema!r}"
            ) from error
        return decays if len(decays) > 1 else decays[0]


def run(asked: Asked) -> None:
    """Train and write the run folder."""
    out, labels = asked.out, asked.labels
    if asked.resume and asked.overwrite:
        raise ValueError(
            f"--resume goes on with the run in {out} and --overwrite starts anew: pass one of them"
        )
    if not check_ours(out) and asked.resume and not asked.quiet:
        print(f"there is no run in {out} yet: starting one", file=sys.stderr)
    make = process_for(asked.sde)
    loss = loss_for(asked.sde, asked.weighting, asked.times)
    place = check_device(asked.device)
    network = asked.network and asked.network.lower()
    share = _share(asked.drop, labels=labels)
    found = _found(asked, network)
    rest = found.few
    classes = list(rest.classes) if labels else []
    model = _model(rest, make, asked.seed, network, len(classes) or None, dropped=share > 0)
    if not asked.quiet:
        _tell(found, model, place)
    fit(
        model,
        found.data,
        out=out,
        steps=asked.steps,
        batch_size=asked.batch_size,
        lr=asked.lr,
        loss=loss,
        ema=asked.decays(),
        clip=asked.clip,
        drop=share,
        seed=asked.seed,
        checkpoint_every=asked.checkpoint_every,
        resume=asked.resume,
        overwrite=asked.overwrite,
        device=place,
        mixed_precision=asked.mixed_precision,
        progress=not asked.quiet,
        about={**about(rest), **({"classes": classes} if classes else {})},
        optimization=Optimization(accumulate=asked.accumulate),
        watch=_watch(asked, found.held_out, classes),
    )
    if not asked.quiet:
        _tell_next(out, rest, classes)


def _found(asked: Asked, network: str | None) -> Large:
    """The data: as they are where they are large, else read."""
    large = large_data(
        asked.data,
        image_size=asked.image_size,
        raw=asked.raw,
        labels=asked.labels,
        held_out=asked.held_out,
        seed=asked.seed,
    )
    if large is not None:
        return large
    dataset = _dataset(asked, network)
    if not asked.held_out:
        return Large(_pairs(dataset, labels=asked.labels), None, dataset)
    rest, kept = split(dataset, asked.held_out, 0)
    found, apart = (_pairs(each, labels=asked.labels) for each in (rest, kept))
    return Large(found, apart, rest)


def _pairs(dataset: Dataset, *, labels: bool) -> Tensor | TensorDataset:
    """The samples, with their labels where the network takes them."""
    if not labels or dataset.labels is None:
        return dataset.x
    return TensorDataset(dataset.x, dataset.labels)


def _watch(asked: Asked, held_out: Any, classes: list[str]) -> Watch:
    """What is looked at on the way."""
    labels = torch.arange(asked.watch_samples) % max(1, len(classes))
    return Watch(
        held_out=held_out,
        every=asked.watch_every,
        samples=asked.watch_samples,
        condition={"label": labels} if classes and asked.watch_samples else None,
        trackers=() if asked.track is None else asked.track,
    )


def _share(drop: float | None, *, labels: bool) -> float:
    """The share of samples that are trained without their label."""
    if drop is not None and not labels:
        raise ValueError("--drop is the share of samples trained without a label: add --labels")
    return 0.0 if not labels else 0.1 if drop is None else drop


def _dataset(asked: Asked, network: str | None) -> Dataset:
    """The data of this name or path, as the network sees them; a ValueError for labels that nobody
    said to take or to ignore, and where there are none to take.
    """
    data, labels, ignored = asked.data, asked.labels, asked.ignore_labels
    if labels and ignored:
        raise ValueError("--labels takes the labels and --ignore-labels does not: pass one of them")
    dataset = load_data(data, image_size=asked.image_size, raw=asked.raw)
    if labels and dataset.labels is None:
        raise ValueError(
            f"{data} has no labels for --labels: it takes digits, mnist, a folder with a folder "
            "for each class in it, or an .npz with labels (N,)"
        )
    if dataset.labels is not None and data.endswith(".npz") and not (labels or ignored):
        raise ValueError(
            f"{data} holds labels: pass --labels to train with them, or --ignore-labels to train "
            "without"
        )
    if labels and dataset.labels is not None:  # 0, 1, ... in their order
        values, index = dataset.labels.unique(return_inverse=True)
        names = tuple(dataset.classes[v] if dataset.classes else str(v) for v in values.tolist())
        dataset = replace(dataset, labels=index, classes=names)
    return _signals(dataset, data) if network == "unet1d" else dataset


def _signals(dataset: Dataset, data: str) -> Dataset:
    """An array (N, C, L) of signals, which is otherwise one of fields of one channel."""
    if dataset.is_image or dataset.x.ndim != 4 or dataset.x.shape[1] != 1:
        raise ValueError(
            f"--network unet1d is for signals: {data} must be an array of floats (N, C, L), with "
            "--raw"
        )
    return replace(dataset, x=dataset.x[:, 0])


def _model(
    dataset: Dataset,
    make: Callable[[Tensor], SDE],
    seed: int,
    network: str | None,
    classes: int | None,
    *,
    dropped: bool,
) -> ScoreModel:
    """An untrained model of these data.

    Images are in [-1, 1] already. Points and raw arrays come in any units, and samples go back to
    those.
    """
    normalizer = None if dataset.is_image else Normalizer.of(dataset.x)
    sde = make(dataset.x if normalizer is None else normalizer.normalize(dataset.x))
    spread = 1.0 if normalizer else round(float(dataset.x.std()), 3)
    event = tuple(dataset.x.shape[1:])
    net = initialised(partial(network_for, event, classes, network), seed)
    null = {"label": classes} if classes is not None and dropped else None
    predicts = "edm" if "kernel" in sde.offers else sde.predicted
    return ScoreModel(net, sde, predicts, sigma_data=spread, normalizer=normalizer, null=null)


def _tell_next(out: Path, dataset: Dataset, classes: list[str]) -> None:
    """Print how to draw from the run."""
    which = f" --condition label={','.join(classes[:3])}" if classes else ""
    suffix = "png" if dataset.is_image else "npy"
    print(f"wrote {out}; draw from it with: sdediff sample {out}{which} --out samples.{suffix}")


def _tell(found: Large, model: ScoreModel, device: str | None) -> None:
    size, dataset = sum(p.numel() for p in model.parameters()), found.few
    count = f"{len(found.data)} samples" if hasattr(found.data, "__len__") else "samples"
    print(
        f"{count} of shape {tuple(dataset.x.shape[1:])} from {dataset.name}; "
        f"{size / 1e6:.2f} M parameters on {device}",
        file=sys.stderr,
    )
    if model.normalizer is not None:
        print(f"data are standardised, samples are not: {model.normalizer}", file=sys.stderr)

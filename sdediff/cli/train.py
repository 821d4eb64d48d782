"""``sdediff train``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from sdediff.cli.names import check_device, loss_for, process_for
from sdediff.data import Dataset, load_data
from sdediff.model import ScoreModel
from sdediff.networks import initialised, network_for
from sdediff.normalizer import Normalizer
from sdediff.run_folder import check_ours
from sdediff.sde import SDE
from sdediff.training import fit

__all__ = ["about", "run"]


def about(dataset: Dataset) -> dict[str, object]:
    """What a run folder keeps of its data."""
    span = {"low": dataset.low, "high": dataset.high} if dataset.is_image else {}
    return {"name": dataset.name, "image": dataset.is_image, **span}


def run(
    *,
    out: Path,
    sde: str,
    data: str,
    steps: int,
    checkpoint_every: int,
    resume: bool,
    overwrite: bool,
    batch_size: int,
    lr: float,
    weighting: str,
    times: str,
    image_size: int | None,
    raw: bool,
    labels: bool,
    ignore_labels: bool,
    drop: float | None,
    network: str | None,
    mixed_precision: str | None,
    seed: int,
    device: str | None,
    quiet: bool,
) -> None:
    """Train and write the run folder."""
    if resume and overwrite:
        raise ValueError(
            f"--resume goes on with the run in {out} and --overwrite starts anew: pass one of them"
        )
    if not check_ours(out) and resume and not quiet:
        print(f"there is no run in {out} yet: starting one", file=sys.stderr)
    make = process_for(sde)
    loss = loss_for(sde, weighting, times)
    place = check_device(device)
    share = _share(drop, labels=labels)
    dataset = _dataset(data, image_size, raw, network, labels=labels, ignored=ignore_labels)
    classes, condition = _classes(dataset) if labels else ([], None)
    model = _model(dataset, make, seed, network, len(classes) or None, dropped=share > 0)
    if not quiet:
        _tell(dataset, model, place)
    fit(
        model,
        dataset.x,
        out=out,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        loss=loss,
        condition=condition,
        drop=share,
        seed=seed,
        checkpoint_every=checkpoint_every,
        resume=resume,
        overwrite=overwrite,
        device=place,
        mixed_precision=mixed_precision,
        progress=not quiet,
        about={**about(dataset), **({"classes": classes} if classes else {})},
    )
    if not quiet:
        _tell_next(out, dataset, classes)


def _share(drop: float | None, *, labels: bool) -> float:
    """The share of samples that are trained without their label."""
    if drop is not None and not labels:
        raise ValueError("--drop is the share of samples trained without a label: add --labels")
    return 0.0 if not labels else 0.1 if drop is None else drop


def _dataset(
    data: str,
    image_size: int | None,
    raw: bool,
    network: str | None,
    *,
    labels: bool,
    ignored: bool,
) -> Dataset:
    """The data of this name or path, as the network sees them; a ValueError for labels that nobody
    said to take or to ignore, and where there are none to take.
    """
    if labels and ignored:
        raise ValueError("--labels takes the labels and --ignore-labels does not: pass one of them")
    dataset = load_data(data, image_size=image_size, raw=raw)
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
    return _signals(dataset, data) if network == "unet1d" else dataset


def _classes(dataset: Dataset) -> tuple[list[str], dict[str, Tensor]]:
    """The names of the classes, and as a condition the class of each sample, 0, 1, ... in their
    order.
    """
    if dataset.labels is None:
        raise ValueError(f"{dataset.name} has no labels")
    values, index = dataset.labels.unique(return_inverse=True)
    names = [dataset.classes[v] if dataset.classes else str(v) for v in values.tolist()]
    return names, {"label": index}


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


def _tell(dataset: Dataset, model: ScoreModel, device: str | None) -> None:
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{len(dataset.x)} samples of shape {tuple(dataset.x.shape[1:])} from {dataset.name}; "
        f"{size / 1e6:.2f} M parameters on {device}",
        file=sys.stderr,
    )
    if model.normalizer is not None:
        print(f"data are standardised, samples are not: {model.normalizer}", file=sys.stderr)

"""``sdediff train``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from sdediff.cli.names import check_device, make_sde
from sdediff.data import Dataset, load_data
from sdediff.model import ScoreModel
from sdediff.networks import initialised, network_for
from sdediff.normalizer import Normalizer
from sdediff.objectives import DenoisingScoreMatching
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
    ignore_labels: bool,
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
    is_run = check_ours(out)
    if resume and not is_run and not quiet:
        print(f"there is no run in {out} yet: starting one", file=sys.stderr)
    process = make_sde(sde)
    loss = DenoisingScoreMatching(weighting, times, stratified=True)
    place = check_device(device)
    dataset = _dataset(data, image_size, raw, ignore_labels)
    model = _model(dataset, process, seed)
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
        seed=seed,
        checkpoint_every=checkpoint_every,
        resume=resume,
        overwrite=overwrite,
        device=place,
        mixed_precision=mixed_precision,
        progress=not quiet,
        about=about(dataset),
    )
    if not quiet:
        print(
            f"wrote {out}; draw from it with: sdediff sample {out} --out "
            f"samples.{'png' if dataset.is_image else 'npy'}"
        )


def _dataset(data: str, image_size: int | None, raw: bool, ignore_labels: bool) -> Dataset:
    """The data of this name or path; a ValueError for labels that nobody said to ignore."""
    dataset = load_data(data, image_size=image_size, raw=raw)
    if dataset.labels is not None and data.endswith(".npz") and not ignore_labels:
        raise ValueError(
            f"{data} holds labels, and the networks of the command line take none: pass "
            "--ignore-labels to train without them, "
            "or train a network of your own in Python, sdediff.fit(model, x, "
            "condition={'labels': labels})"
        )
    return dataset


def _model(dataset: Dataset, sde: SDE, seed: int) -> ScoreModel:
    """An untrained model of these data.

    Images are in [-1, 1] already. Points and raw arrays come in any units, and samples go back to
    those.
    """
    normalizer = None if dataset.is_image else Normalizer.of(dataset.x)
    spread = 1.0 if normalizer else round(float(dataset.x.std()), 3)
    net = initialised(partial(network_for, tuple(dataset.x.shape[1:])), seed)
    return ScoreModel(net, sde, "edm", sigma_data=spread, normalizer=normalizer)


def _tell(dataset: Dataset, model: ScoreModel, device: str | None) -> None:
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{len(dataset.x)} samples of shape {tuple(dataset.x.shape[1:])} from {dataset.name}; "
        f"{size / 1e6:.2f} M parameters on {device}",
        file=sys.stderr,
    )
    if model.normalizer is not None:
        print(f"data are standardised, samples are not: {model.normalizer}", file=sys.stderr)

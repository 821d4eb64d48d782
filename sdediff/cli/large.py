"""Data of the command line that are too large to be read whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset, random_split

from sdediff.data import NAMED, Dataset
from sdediff.large_data import ImageFolder, Shards, open_array
from sdediff.sources import source_of

__all__ = ["Large", "large_data"]

_LARGE: Final = 2**30
"""Bytes above which data are read a batch at a time."""


class Large(NamedTuple):
    """What `fit` trains on, what it validates with, and some of the samples."""

    data: Any
    held_out: Any
    few: Dataset


def large_data(
    spec: str, *, image_size: int | None, raw: bool, labels: bool, held_out: int, seed: int
) -> Large | None:
    """The data of this path if they are shards or large; None if they are to be read whole."""
    path = Path(spec).expanduser()
    data: Any = None
    classes: tuple[str, ...] = ()
    if spec.lower() in NAMED:
        return None
    if spec.endswith(".tar"):
        if labels:
            raise ValueError(
                "--labels is not for shards, which do not say how many classes there are: train in "
                "Python, fit(model, Shards(..., labels=True))"
            )
        data = Shards(spec, image_size=image_size, seed=seed)
    elif path.suffix == ".npy" and path.is_file() and path.stat().st_size > _LARGE:
        data = open_array(path, raw=raw)
    elif path.is_dir():
        folder = ImageFolder(path, image_size=image_size, labels=labels)
        first = folder[0]
        one = first if isinstance(first, Tensor) else first[0]
        if len(folder) * one.numel() * 4 > _LARGE:
            data, classes = folder, folder.classes
    if data is None:
        return None
    kept = None
    if held_out:
        if not isinstance(data, ImageFolder):
            raise ValueError(f"--held-out is for a folder, or for data below 1 GiB; not for {spec}")
        generator = torch.Generator().manual_seed(0)
        rest = len(data) - held_out
        data, kept = _two(data, rest, held_out, generator)
    source = source_of(data, None, None, 128, seed)
    x, beside, _ = source.probe()
    label = None if beside is None else torch.as_tensor(beside["label"])
    low, high = (math.nan if end is None else end for end in (source.low, source.high))
    is_image = not math.isnan(low)
    return Large(data, kept, Dataset(x, label, path.stem, low, high, is_image, classes))


def _two(
    data: ImageFolder, rest: int, held_out: int, generator: torch.Generator
) -> tuple[Subset[Any], Subset[Any]]:
    if rest < 1:
        raise ValueError(f"--held-out {held_out} leaves nothing of {len(data)} images to train on")
    one, two = random_split(data, [rest, held_out], generator)
    return one, two

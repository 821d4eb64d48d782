"""Data that are too large to be read whole: memory-mapped arrays, folders of images and shards, as
`sdediff.fit` takes them.
"""

from __future__ import annotations

import glob
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from sdediff.array_files import channels_first, check_array
from sdediff.data import image_classes, image_files, read_image, resized
from sdediff.solvers.given import integer

__all__ = ["ImageFolder", "Shards", "open_array"]


def open_array(path: str | Path, *, raw: bool = False) -> NDArray[Any]:
    """The array of an .npy file, memory-mapped: images (N, C, H, W) of bytes, or points (N, d).

    Images may be stored as (N, H, W) or (N, H, W, C) too.

    ``raw``: whether floats (N, C, H, W) or (N, H, W) are taken as they are stored, whatever their
    range, for a model with a `Normalizer`.

    Raises ValueError where the file is no single array of such a shape, and for images of floats
    without ``raw``, because their range would take a look at all of them: store bytes.
    """
    file = Path(path)
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"cannot map {file} ({error}): expected an array by np.save") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{file} is no single array, which alone can be memory-mapped: np.save it")
    check_array(array, file)
    if array.ndim == 2 or (raw and array.dtype.kind == "f"):
        return array[:, None] if array.ndim == 3 else array
    if array.dtype != np.uint8:
        raise ValueError(
            f"{file} holds images of {array.dtype}: expected bytes, uint8; convert them, or pass "
            "raw=True for floats of any range"
        )
    return channels_first(array, file)


class ImageFolder(Dataset[Any]):
    """The images below a folder, each read when it is asked for: bytes (C, H, W), sorted by path.

    Item i is x, or (x, label) where every image lies in one of several folders, whose names are
    ``classes``. `fit` makes [-1, 1] of the bytes.

    ``path``: the folder. Its images are .bmp, .gif, .jpg, .pbm, .pgm, .png, .ppm, .tif and .webp.
    ``image_size``: the side in pixels to which the central square of each image is resized; by
    default images stay as they are.
    ``labels``: whether items have labels where the folders give them.
    ``colour``: whether there are three channels, or one; by default as the first image has it.

    Raises ValueError where there are fewer than two images, and where one cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_size: int | None = None,
        labels: bool = True,
        colour: bool | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.files = image_files(self.path)
        self.size = None if image_size is None else integer("image_size", image_size, 1)
        found, classes = image_classes(self.files, self.path)
        self.classes: tuple[str, ...] = classes if labels else ()
        self._labels = found if labels else None
        self.colour = read_image(self.files[0]).shape[2] == 3 if colour is None else colour

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor | tuple[Tensor, int]:
        x = _bytes(read_image(self.files[i]), self.size, colour=self.colour)
        return x if self._labels is None else (x, int(self._labels[i]))


def _bytes(picture: NDArray[Any], size: int | None, *, colour: bool) -> Tensor:
    """A picture (H, W, 1 or 3) in 0..255 as bytes (C, H, W), grey by its luminance."""
    x = torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1)
    if colour and x.shape[0] == 1:
        x = x.expand(3, -1, -1)
    elif not colour and x.shape[0] == 3:
        x = torch.einsum("c,chw->hw", torch.tensor([0.299, 0.587, 0.114]), x)[None]
    x = x if size is None else resized(x[None], size)[0]
    return x.round().clamp(0, 255).byte()


class Shards(IterableDataset[Any]):
    """The samples of tar files, laid out as WebDataset's shards, read from one end to the other.

    Files of a shard that follow one another and have the same name up to its first dot are a
    sample: an image, .png, .jpg, .jpeg or .webp, which becomes bytes (C, H, W), or an array, .npy.
    The workers of a DataLoader share the files.

    ``pattern``: a path with ``*`` and the like, ``"data/part-*.tar"``.
    ``image_size``: the side in pixels to which the central square of each image is resized; by
    default images stay as they are.
    ``labels``: whether a sample is a pair (x, label), with the number in its .cls.
    ``colour``: whether images have three channels, or one.
    ``mixed``: how many samples the buffer holds from which the next one is drawn at random; 1 keeps
    the order of the files.
    ``seed``: decides the order, which is another one in each epoch.

    Raises FileNotFoundError where no file fits the pattern, and ValueError, when it is read, for a
    shard that is damaged or a sample without an image, an array or its label. For shards that are
    not on a disk, a ``webdataset.WebDataset`` is data for `fit` too.
    """

    def __init__(
        self,
        pattern: str | Path,
        *,
        image_size: int | None = None,
        labels: bool = False,
        colour: bool = True,
        mixed: int = 1000,
        seed: int = 0,
    ) -> None:
        self.files = sorted(glob.glob(str(pattern)))
        if not self.files:
            raise FileNotFoundError(f"no files {pattern} (looked in {Path.cwd()}): check the path")
        self.size = None if image_size is None else integer("image_size", image_size, 1)
        self.labels, self.colour = labels, colour
        self.mixed, self.seed = integer("mixed", mixed, 1), integer("seed", seed, 0)
        self._epoch = 0

    def __iter__(self) -> Iterator[Any]:
        worker, files, numbers = get_worker_info(), self.files, (self.seed, self._epoch)
        self._epoch += 1
        if worker is not None:  # a copy, whose seed is that of its epoch
            files, numbers = files[worker.id :: worker.num_workers], (self.seed, worker.seed)
        rng = np.random.Generator(np.random.PCG64(numbers))
        return map(self._sample, _mixed(_samples(files), self.mixed, rng))

    def _sample(self, found: Mapping[str, Any]) -> Any:
        x = self._read(found)
        if not self.labels:
            return x
        if "cls" not in found:
            raise ValueError(f"sample {found.get('__key__')} of the shards has no .cls for a label")
        return x, int(found["cls"])

    def _read(self, found: Mapping[str, Any]) -> Tensor:
        for kind, content in found.items():
            read = _KINDS.get(kind.lower())
            if read is not None:
                picture = read(content)
                if kind.lower() == "npy":
                    return torch.from_numpy(np.array(picture))
                return _bytes(picture, self.size, colour=self.colour)
        raise ValueError(
            f"sample {found.get('__key__')} of the shards has {sorted(found)}: expected one of "
            f"{', '.join(_KINDS)}"
        )


def _samples(files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The samples of tar files: their contents by what follows the first dot of their names."""
    for path in files:
        found: dict[str, Any] = {}
        try:
            with tarfile.open(path) as shard:
                for entry in shard:
                    content = shard.extractfile(entry) if entry.isfile() else None
                    if content is None:
                        continue
                    folder, _, name = entry.name.rpartition("/")
                    key, _, kind = name.partition(".")
                    if found and found["__key__"] != f"{folder}/{key}":
                        yield found
                        found = {}
                    found |= {"__key__": f"{folder}/{key}", kind: content.read()}
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"cannot read the shard {path} ({error}): make it again") from error
        if found:
            yield found


def _mixed(
    samples: Iterable[dict[str, Any]], size: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """The samples, each taken at random from a buffer of ``size`` that is filled up in order."""
    held: list[dict[str, Any]] = []
    for sample in samples:
        held.append(sample)
        if len(held) >= size:
            yield held.pop(int(rng.integers(len(held))))
    while held:
        yield held.pop(int(rng.integers(len(held))))


def _image(content: bytes) -> NDArray[Any]:
    return read_image(io.BytesIO(content))


def _array(content: bytes) -> NDArray[Any]:
    found: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return found


_KINDS: dict[str, Callable[[bytes], NDArray[Any]]] = {
    **dict.fromkeys(("png", "jpg", "jpeg", "webp"), _image),
    "npy": _array,
}

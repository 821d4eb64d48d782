"""The arrays of .npy and .npz files: what they hold, and what they have to be."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["channels_first", "check_array", "check_labels", "read_arrays", "value_range"]

_CHANNELS: Final = (1, 3, 4)
_DATA_KEYS: Final = ("x", "images", "data")
_LABEL_KEYS: Final = ("labels", "y")


def read_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The data array of a file, and its labels."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded:
            keys = list(loaded.files)
            labels = [key for key in _LABEL_KEYS if key in keys]
            data = [key for key in _DATA_KEYS if key in keys] or [
                key for key in keys if key not in labels
            ]
            clear = len(data) == 1 and len(labels) <= 1
            found = [loaded[key] for key in data + labels] if clear else []
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        reason = "it holds dtype object" if "Object arrays" in reason else reason
        raise ValueError(
            f"cannot read {path} ({reason}): expected numbers written by np.save or np.savez"
        ) from error
    if not clear:
        wanted = "one array, or one named x, images or data; and labels or y, not both"
        raise ValueError(
            f"{path} holds {', '.join(keys) or 'nothing'}: expected {wanted}; use np.savez(path, "
            "x=x)"
        )
    return found[0], found[1] if labels else None


def check_array(array: NDArray[Any], path: Path) -> None:
    """A ValueError unless there are at least two points (N, d) or images, of numbers."""
    got = f"{path} has dtype {array.dtype} and shape {array.shape}"
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{got}: expected uint8, bool or float numbers; convert it with .astype")
    if array.ndim not in (2, 3, 4):
        wanted = "points (N, d) or images (N, H, W), (N, C, H, W) or (N, H, W, C)"
        raise ValueError(f"{got}, rank {array.ndim}: expected {wanted}; reshape it")
    if array.size == 0:
        raise ValueError(
            f"{got}, which is empty: expected at least 2 samples; check how it was written"
        )
    if len(array) < 2:
        raise ValueError(
            f"{got}, one sample: expected at least 2 along the first axis; add more, or a first "
            "axis"
        )


def check_labels(labels: NDArray[Any], count: int, path: Path) -> NDArray[np.int64]:
    """Labels (count,) as int64; a ValueError unless they are integers of that shape."""
    if labels.dtype.kind not in "biu" or labels.shape != (count,):
        got = f"{labels.dtype} of shape {labels.shape}"
        raise ValueError(
            f"the labels in {path} are {got}: expected integers of shape ({count},), one for "
            "each sample"
        )
    return labels.astype(np.int64)


def value_range(array: NDArray[Any], path: Path) -> tuple[float, float]:
    """The range that becomes [-1, 1], from the type and the values of images."""
    least, most = float(array.min()), float(array.max())
    got = f"{path} has images with values from {least:g} to {most:g}"
    if array.dtype == np.uint8:
        if most > 1:
            return 0.0, 255.0
        raise ValueError(
            f"{got}: expected 0 to 255; if they are masks, save them with .astype(bool)"
        )
    if array.dtype.kind in "iu":
        raise ValueError(
            f"{got}: expected uint8, bool or float, not {array.dtype}; use .astype('uint8') for "
            "0..255, or floats in [0, 1]"
        )
    slack = 1e-6  # rounding of a division by 255, say
    if least < -1 - slack or most > 1 + slack:
        raise ValueError(
            f"{got}: expected [0, 1] or [-1, 1]; scale them, save 0..255 as uint8, "
            "or take them as they are and let a normalizer standardise them (raw, --raw on the "
            "command line)"
        )
    return (-1.0 if least < -slack else 0.0), 1.0


def channels_first(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """(N, C, H, W) from (N, H, W), (N, C, H, W) or (N, H, W, C)."""
    if array.ndim == 3:
        return array[:, None]
    _, a, b, c = array.shape
    first, last = a in _CHANNELS, c in _CHANNELS
    if not first and not last:
        wanted = "1, 3 or 4 channels on axis 1 (N, C, H, W) or on the last axis (N, H, W, C)"
        raise ValueError(
            f"{path} has rank 4, shape {array.shape}: expected {wanted}; transpose or drop channels"
        )
    # small images: the reading in which they are square, (N, C, H, W) when that does not tell
    if first and last:
        first = b == c or a != b
    return array if first else array.transpose(0, 3, 1, 2)

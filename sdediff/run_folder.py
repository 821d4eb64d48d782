"""The folder of a run: whose it is, who writes it, and how one run takes the place of another.

``config.json`` says what is trained; ``model.safetensors`` holds the averaged weights, which
sampling uses; ``training.safetensors`` holds all that training needs to go on. Each file is
replaced as a whole or not at all. Where all three change together, they are written to a folder
beside them, ``.next``, which appears complete or not at all; readers look there first, and its
files then move to their places one by one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sdediff._extras import require
from sdediff.files import sweep, write_atomically

__all__ = [
    "CONFIG",
    "FORMAT",
    "GRIDS",
    "LOSSES",
    "SECTIONS",
    "TRAINING",
    "VALIDATION",
    "WEIGHTS",
    "Run",
    "being_written",
    "check_ours",
    "check_out",
    "locate",
    "locked",
    "recognised",
    "write_config",
]

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
TRAINING: Final = "training.safetensors"
LOSSES: Final = "losses.csv"
VALIDATION: Final = "validation.csv"
GRIDS: Final = "samples-step-????????.*"
"""Pictures of samples on the way, by step."""
FORMAT: Final = 2
"""Of the folders that this version writes. 1: without run id and checksums."""

SECTIONS: Final = ("sde", "network", "model", "data")
_LOCK: Final = ".lock"
_NEXT: Final = ".next"
_STAGING: Final = ".staging"
_WEIGHTS_OF_OTHERS: Final = (
    ".safetensors",
    ".bin",
    ".ckpt",
    ".pt",
    ".pth",
    ".onnx",
    ".gguf",
    ".h5",
    ".msgpack",
)
_INDICES_OF_OTHERS: Final = (
    "model_index.json",
    "scheduler_config.json",
    "adapter_config.json",
    "tokenizer_config.json",
)


def check_out(out: str | Path, name: str = "out") -> Path:
    """``out`` as a path; ValueError where it is empty, which would be the current folder."""
    if not isinstance(out, str | os.PathLike):
        raise TypeError(f"{name} must be a path, 'runs/first' say; got {out!r}")
    if not str(out).strip():
        raise ValueError(f"{name} is empty; name a path, or write . for the current folder")
    return Path(out)


def recognised(config: object) -> bool:
    """Whether a configuration is one of ours."""
    return isinstance(config, dict) and all(key in config for key in (*SECTIONS, "format"))


def check_ours(folder: Path, names: Sequence[str] = (CONFIG, WEIGHTS, TRAINING)) -> bool:
    """Whether ``folder`` holds a run; ValueError if it holds another tool's model, or files called
    ``names`` that are no run's.
    """
    path = locate(folder, CONFIG)
    if path.is_file():
        try:
            if recognised(json.loads(path.read_text(encoding="utf-8"))):
                return True
        except ValueError:  # no JSON, or no text
            pass
    if not folder.is_dir():
        return False
    there = sorted(found.name for found in folder.iterdir())
    theirs = [name for name in there if name in names]
    theirs += [
        name
        for name in there
        if Path(name).suffix in _WEIGHTS_OF_OTHERS or name in _INDICES_OF_OTHERS
    ]
    if theirs:
        raise ValueError(
            f"{folder} holds {theirs[0]}, and no {CONFIG} of a run: another tool wrote it, or it "
            "is damaged; "
            "nothing was touched: choose another folder, or move the file away"
        )
    return False


def locate(folder: Path, name: str) -> Path:
    """Where the present file of that name is: on its way to its place, or there."""
    coming = folder / _NEXT / name
    return coming if coming.is_file() else folder / name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only writer of ``folder``, which is made if need be; ValueError if there is another
    one.

    The operating system lets the lock go when its process ends, however it ends. What a killed
    writer left is cleared away.
    """
    filelock = require("filelock", "train")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise ValueError(
            f"{folder} is being written by another training, which holds {folder / _LOCK}: wait "
            "for its "
            "end, or choose another folder"
        ) from error
    except OSError as error:
        raise OSError(
            f"cannot write to {folder}: {error.strerror}; choose another folder"
        ) from error
    try:
        _settle(folder)
        shutil.rmtree(folder / _STAGING, ignore_errors=True)
        _sweep(folder)
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open; filelock removes it there
            (folder / _LOCK).unlink()
        lock.release()


def being_written(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    filelock = require("filelock", "train")
    if not (folder / _LOCK).exists():
        return False
    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        return True
    lock.release()
    return False


def _sweep(folder: Path) -> None:
    """Remove what killed writers of the run's files left; for the only writer."""
    for name in (CONFIG, WEIGHTS, TRAINING):
        sweep(folder / name)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration alone."""
    write_atomically(folder / CONFIG, _config_bytes(config))


def _config_bytes(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2) + "\n").encode()


@dataclass
class Run:
    """A run that is being written by this process.

    ``begun`` is the configuration in the folder, if there is a state from which training goes on.
    While ``replaces``, the folder holds another configuration, and perhaps another run's files,
    until the first `save`.
    """

    folder: Path
    config: Mapping[str, Any]
    begun: Mapping[str, Any] | None = None
    replaces: bool = False

    @property
    def another(self) -> bool:
        """Whether the folder holds another run until the first `save`."""
        return self.replaces and self.begun is None

    def save(self, training: bytes, weights: bytes, tables: Mapping[str, bytes | None]) -> None:
        """Bring the folder up to date: the training state first, so that the weights never run
        ahead of it. ``tables`` take the places of another run's.
        """
        _sweep(self.folder)
        if self.replaces:
            files = {CONFIG: _config_bytes(self.config), TRAINING: training, WEIGHTS: weights}
            _replace(self.folder, files, tables if self.another else {})
            self.replaces = False
            return
        write_atomically(self.folder / TRAINING, training)
        self.save_weights(weights)

    def save_weights(self, weights: bytes) -> None:
        """Put other weights in the place of those of the last `save`."""
        write_atomically(self.folder / WEIGHTS, weights)


def _replace(folder: Path, files: Mapping[str, bytes], tables: Mapping[str, bytes | None]) -> None:
    """Put three files and tables in the place of those that are there: a kill at any moment leaves
    all of the old ones or all of the new. A table that is None is empty in the new run.
    """
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for name, content in {**files, **tables}.items():
        write_atomically(staging / name, content or b"")
    os.rename(staging, folder / _NEXT)
    _settle(folder)


def _settle(folder: Path) -> None:
    """Move the files of a complete ``.next`` to their places."""
    coming = folder / _NEXT
    if not coming.is_dir():
        return
    if (coming / LOSSES).is_file():  # another run was there
        for grid in folder.glob(GRIDS):
            grid.unlink()
    for name in (LOSSES, VALIDATION, TRAINING, WEIGHTS, CONFIG):
        new = coming / name
        if new.is_file() and new.stat().st_size:
            os.replace(new, folder / name)
        elif new.is_file():  # a table without rows
            (folder / name).unlink(missing_ok=True)
            new.unlink()
    coming.rmdir()

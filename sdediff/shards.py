"""A set of samples as a folder of shards, which any number of processes draw together.

``set.json`` says what is drawn, all that decides a bit of it; ``000/000012.safetensors`` holds
the samples of shard 12; ``manifest.json`` is written when all shards are there, with the checksum
of each. A process needs no word from another one: it takes the next shard that is missing and that
nobody holds the lock of, and the operating system lets the lock of a killed process go. Each file
appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from sdediff._extras import require
from sdediff.files import plain, write_atomically
from sdediff.solvers.given import integer
from sdediff.states import read_tensors, serialise

__all__ = ["MANIFEST", "SET", "Shards"]

SET: Final = "set.json"
MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1
_FOLDER: Final = 1000
"""Shards in one folder: listing it stays fast, however many there are in all."""
_PAUSE: Final = 0.5
"""Seconds between two looks at what others are drawing."""


@dataclass(frozen=True)
class Shards:
    """A set of samples in ``folder``, as its ``description`` says; `begin` and `open` make one.

    Shard k holds the samples k size, ..., (k + 1) size - 1, those of them that did not fail, as
    tensors (n, ...) by name: ``index`` int64 are their numbers in the set, and the others are what
    was drawn.
    """

    folder: Path
    description: Mapping[str, Any]

    @classmethod
    def begin(
        cls,
        folder: Path,
        count: int,
        size: int,
        about: Mapping[str, Any],
        rounding: Sequence[str] = (),
    ) -> Self:
        """The set of ``count`` samples in shards of ``size``, begun now or before, perhaps by
        another process.

        ``about``, of what JSON holds, says what is drawn; where its entries ``rounding`` are others
        than those of a set that was begun, a UserWarning says so, and the set is gone on with.
        Raises ValueError where the folder holds
        another set or other files, OSError where it cannot be written.
        """
        count = integer("count", count, 1)
        size = integer("size", size, 1)
        asked = json.loads(
            json.dumps({"format": _FORMAT, "count": count, "shard_size": size, **plain(about)})
        )
        path = folder / SET
        if not path.is_file():
            _check_empty(folder)
            try:
                folder.mkdir(exist_ok=True)
                write_atomically(path, _json(asked))
            except OSError as error:
                raise OSError(
                    f"cannot write to {folder} ({error.strerror}); choose another folder"
                ) from error
        found = cls.open(folder)
        for name in {**asked, **found.description}:
            there, wanted = found.description.get(name), asked.get(name)
            if there == wanted:
                continue
            if name not in rounding:
                raise ValueError(
                    f"{folder} holds a set with {name} {json.dumps(there)}, and "
                    f"{json.dumps(wanted)} is asked for: choose another folder, or ask for the same"
                )
            warnings.warn(
                f"{folder} was begun with {name} {json.dumps(there)}, and here it is "
                f"{json.dumps(wanted)}: sums round by that, so that the samples are those of the "
                "set up to rounding, not to the bit",
                stacklevel=2,
            )
        return found

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The set in a folder, complete or not; ValueError if there is none."""
        path = folder / SET
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
            version = integer("format", description["format"], 1)
            for name in ("count", "shard_size"):
                _ = integer(name, description[name], 1)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{folder} holds no set of samples: no {SET}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}); restore it, or draw anew") from error
        if version > _FORMAT:
            raise ValueError(
                f"{path} has format {version}, and this version of sdediff reads formats up to "
                f"{_FORMAT}: read it with a newer one"
            )
        return cls(folder, description)

    @property
    def count(self) -> int:
        """The samples of the whole set."""
        return int(self.description["count"])

    def __len__(self) -> int:
        return -(-self.count // int(self.description["shard_size"]))

    def rows(self, shard: int) -> range:
        """The numbers of the samples of a shard."""
        size = int(self.description["shard_size"])
        return range(shard * size, min((shard + 1) * size, self.count))

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{shard // _FOLDER:03d}" / f"{shard:06d}.safetensors"

    def missing(self) -> list[int]:
        """The shards that are not there, by the names of the files alone."""
        there: set[Path] = set()
        for first in range(0, len(self), _FOLDER):
            part = self.path(first).parent
            there.update(part.iterdir() if part.is_dir() else ())
        return [shard for shard in range(len(self)) if self.path(shard) not in there]

    def read(self, shard: int) -> dict[str, Tensor]:
        """The tensors of a shard; ValueError unless its checksum holds and it is of this set."""
        tensors, meta = read_tensors(self.path(shard), sealed=True)
        if meta.get("set") != self._name() or meta.get("shard") != str(shard):
            raise ValueError(f"{self.path(shard)} is of another set or shard: draw it anew")
        return tensors

    def gathered(self, name: str) -> Tensor:
        """The tensors of that name of all samples in one; FileNotFoundError if some are missing."""
        missing = self.missing()
        if missing:
            raise FileNotFoundError(
                f"{self.folder} lacks {len(missing)} of its {len(self)} shards: ask for the same "
                "set again, which draws them"
            )
        return torch.cat([self.read(shard)[name] for shard in range(len(self))])

    def remove_damaged(self, process: int = 0, processes: int = 1) -> list[int]:
        """Read the shards that are there, every one in ``processes`` from the one of number
        ``process`` on, and remove the damaged ones, which are then missing; their numbers.
        """
        absent = set(self.missing())
        there = [shard for shard in range(len(self)) if shard not in absent]
        damaged = []
        for shard in there[process::processes]:
            try:
                self.read(shard)
            except ValueError:
                self.path(shard).unlink(missing_ok=True)
                damaged.append(shard)
        return damaged

    def fill(
        self,
        draw: Callable[[range], Mapping[str, Tensor]],
        *,
        process: int = 0,
        processes: int = 1,
        wait: bool = False,
    ) -> int:
        """Draw what is missing and nobody else is drawing; how many shards that were.

        ``draw`` makes the tensors of the samples of these numbers, ``index`` among them, and has to
        make the same whenever it is called. Process number ``process`` of ``processes`` begins at
        its share, and goes on to those of others. ``wait``: until all shards are there, also those
        that others are drawing now; what they leave, it draws.
        """
        drawn = 0
        while True:
            before, missing = drawn, self.missing()
            first = process * len(missing) // processes
            for shard in [*missing[first:], *missing[:first]]:
                with self._claimed(shard) as mine:
                    if mine and not self.path(shard).is_file():
                        self._write(shard, draw(self.rows(shard)))
                        drawn += 1
            if drawn > before:
                continue
            if not wait or not missing:
                return drawn
            time.sleep(_PAUSE)

    def finish(self) -> dict[str, Any] | None:
        """The manifest, written now if all shards are there; None if some are missing."""
        if self.missing():
            return None
        entries = [self._entry(shard) for shard in range(len(self))]
        manifest = {
            "format": _FORMAT,
            "set": self._name(),
            "count": self.count,
            "samples": sum(entry["samples"] for entry in entries),
            "shards": entries,
        }
        write_atomically(self.folder / MANIFEST, _json(manifest))
        for first in range(0, len(self), _FOLDER):
            for left in self.path(first).parent.glob(".*"):  # by processes that were killed
                left.unlink(missing_ok=True)
        return manifest

    def _entry(self, shard: int) -> dict[str, Any]:
        """What the manifest says of a shard, from the head of its file."""
        path = self.path(shard)
        with require("safetensors", "train").safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["sdediff"])
            samples = file.get_slice("index").get_shape()[0]
        return {
            "file": path.relative_to(self.folder).as_posix(),
            "first": self.rows(shard).start,
            "samples": samples,
            "bytes": path.stat().st_size,
            "sha256": meta["sha256"],
        }

    def _write(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        content = serialise(tensors, {"set": self._name(), "shard": str(shard)})
        try:
            write_atomically(self.path(shard), content)
        except OSError as error:
            raise OSError(
                f"cannot write {self.path(shard)} ({error.strerror}): make room or mend the disk, "
                "and ask for the same again, which keeps the shards that are there"
            ) from error

    @contextmanager
    def _claimed(self, shard: int) -> Iterator[bool]:
        """Whether this process is the only one to draw a shard, until the end of the block."""
        filelock = require("filelock", "train")
        path = self.path(shard)
        path.parent.mkdir(exist_ok=True)
        lock = filelock.FileLock(path.with_name(f".{path.stem}.lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def _name(self) -> str:
        """What tells the files of this set from those of others."""
        return hashlib.sha256(_json(self.description)).hexdigest()


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _check_empty(folder: Path) -> None:
    """Refuse a folder with other files in it."""
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in there if not name.startswith(f".{SET}.")]
    if others and SET not in there:  # another process may have begun meanwhile
        raise ValueError(
            f"{folder} holds {others[0]}, and no {SET} of a set of samples: choose another folder"
        )

"""Work that several processes share, as ``accelerate launch`` and ``torchrun`` start them: which of
them this one is, what is its part, and how each comes to know what the others found.

What can be divided calls `in_parts`, and inside `together` each process goes through a share of the
parts. Every process makes the same calls and gets the results of all, so that all come to the same
end.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, Self, TypeVar

import torch

__all__ = [
    "Processes",
    "current",
    "dividing",
    "in_parts",
    "joined",
    "part_size",
    "together",
]

T = TypeVar("T")

_JOINING: Final = timedelta(minutes=10)
"""How long processes wait for each other at the start."""
_WORKING: Final = timedelta(days=7)
"""How long they wait for each other's work. One that has ended breaks its connection, and the
others hear of that at once.
"""


@dataclass(frozen=True)
class Processes:
    """This process, number ``index`` of ``count``; alone by default."""

    index: int = 0
    count: int = 1
    local: int = 0
    """Its number on its machine."""
    group: Any = field(default=None, repr=False, compare=False)
    """What they exchange results by, a group of torch.distributed; None: they do not."""

    @classmethod
    def here(cls) -> Self:
        """As torch.distributed says, where it is at work, or else the environment: RANK, WORLD_SIZE
        and LOCAL_RANK. Raises ValueError where these are no such numbers.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        words = [os.environ.get(name, default) for name, default in zip(names, "010", strict=True)]
        if not all(word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
            said = ", ".join(map("=".join, zip(names, words, strict=True)))
            raise ValueError(
                f"the environment says {said}: expected numbers with RANK below WORLD_SIZE, as "
                "accelerate launch and torchrun set them"
            )
        index, count, local = map(int, words)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            index, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return cls(index, count, local)

    @property
    def first(self) -> bool:
        """Whether it is the one that speaks for all."""
        return self.index == 0

    def share(self, parts: int) -> range:
        """Which of so many parts are this process's: neighbours, as many as others have, give or
        take one.
        """
        first, last = (parts * k // self.count for k in (self.index, self.index + 1))
        return range(first, last)

    def each(self, work: Callable[[], T]) -> list[T]:
        """What ``work()`` returned in each process, in their order. Where it failed in one, all
        raise the error of the first that did.
        """
        if self.count == 1:
            return [work()]
        value, error = None, None
        try:
            with dividing(None):
                value = work()
        except Exception as caught:  # of any kind: the others have to hear of it
            error = caught
        every = self._exchanged(value, error)
        for number, (_, failed) in enumerate(every):
            if failed is not None:
                raise error if error is not None and number == self.index else failed
        return [found for found, _ in every]

    def once(self, work: Callable[[], T]) -> T:
        """What ``work()`` returns in the first process, the only one that calls it; the others
        wait for that.
        """
        found: list[Any] = self.each(work if self.first else _nothing)
        answer: T = found[0]
        return answer

    def _exchanged(self, value: Any, error: Exception | None) -> list[tuple[Any, Any]]:
        content = _packed(value, error)
        every: list[Any] = [None] * self.count
        try:
            torch.distributed.all_gather_object(every, content, group=self.group)
        except RuntimeError as broken:
            raise RuntimeError(
                f"process {self.index} of {self.count} waited for results of the others, and one "
                f"of them has ended: what it said itself is the reason ({broken})"
            ) from broken
        return [_unpacked(each, self._mine) for each in every]

    def _mine(self, storage: Any, place: str) -> Any:
        """A tensor of another process's GPU goes to this one's."""
        if place.startswith("cuda"):
            place = f"cuda:{self.local % torch.cuda.device_count()}"
        return torch.serialization.default_restore_location(storage, place)


_current: ContextVar[Processes | None] = ContextVar("processes that share work", default=None)


def current() -> Processes:
    """Those among which work is divided at present; this one alone outside of `together`."""
    return _current.get() or Processes()


@contextmanager
def dividing(processes: Processes | None) -> Iterator[None]:
    """With `in_parts` divided among these processes; None: not divided."""
    token = _current.set(processes)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def joined() -> Iterator[Processes]:
    """All processes that were started together, able to exchange results; every one of them has to
    enter.

    They are connected by gloo, on any device. An own connection is made where torch.distributed is
    not at work yet. Raises ValueError where nothing says how to find the others.
    """
    here, dist = Processes.here(), torch.distributed
    if here.count == 1:
        yield here
        return
    alone = not dist.is_initialized()
    if alone:
        if "MASTER_ADDR" not in os.environ:
            raise ValueError(
                f"{here.count} processes share this work and exchange their results, and nothing "
                "says where they meet (MASTER_ADDR): start them by accelerate launch or torchrun"
            )
        dist.init_process_group("gloo", timeout=_JOINING)
    group = dist.new_group(backend="gloo", timeout=_WORKING)
    try:
        yield replace(here, group=group)
    finally:
        dist.destroy_process_group(None if alone else group)


@contextmanager
def together() -> Iterator[Processes]:
    """Divide the work inside among all processes that were started together, by ``accelerate
    launch`` say.

    Each of them makes the same calls inside, with the same arguments, of `sdediff.sample`,
    `sdediff.compare`, `sdediff.tune` and their like, solves its share of the samples, and gets the
    results of all:

        with together() as here:
            found = sd.compare(model, (256, 2))
        if here.first:
            found.show()

    Batches are of ``batch_size`` samples, or of the Nth part of all if that is less, with N
    processes; sums of the network round by batches, and the results are those of one process with
    batches of that size, to the bit. An error in one process is raised in all of them. A callback
    sees the samples of its own process. A solve whose gradients are kept is not divided. Alone it
    changes nothing.
    """
    with joined() as processes, dividing(processes):
        yield processes


def part_size(count: int, size: int, *, group: int = 1) -> int:
    """How many of ``count`` rows `in_parts` takes at a time."""
    share = -(-count // current().count)
    return min(size, -(-share // group) * group)


def in_parts(count: int, size: int, work: Callable[[range], T], *, group: int = 1) -> list[T]:
    """What ``work(rows)`` returns for the rows 0, ..., ``count`` - 1, at most ``size`` at a time,
    one after the other.

    Inside `together` each process does its share, and all get all; parts are smaller where there
    would be fewer of them than processes. ``size`` is a multiple of ``group``, the rows that no
    part splits.
    """
    among = _current.get()
    size = part_size(count, size, group=group)
    parts = [range(first, min(first + size, count)) for first in range(0, count, size)]
    if among is None:
        return [work(rows) for rows in parts]
    every = among.each(lambda: [work(parts[k]) for k in among.share(len(parts))])
    return [found for own in every for found in own]


def _packed(value: Any, error: Exception | None) -> bytes:
    """Both in bytes; an error that cannot be sent as it is, in words."""
    try:
        _ = pickle.loads(pickle.dumps(error))
        return _bytes((value, error))
    except Exception as lost:  # of any kind: what its own methods make of it
        told = lost if error is None else error
        return _bytes((None, RuntimeError(f"{type(told).__name__}: {told}")))


def _bytes(found: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(found, buffer)
    return buffer.getvalue()


def _unpacked(content: bytes, place: Callable[[Any, str], Any]) -> tuple[Any, Any]:
    """What `_packed` made of a value and an error of a process of this run; ``place`` says where
    its tensors go.
    """
    found: tuple[Any, Any] = torch.load(io.BytesIO(content), map_location=place, weights_only=False)
    return found


def _nothing() -> None:
    """What the others do meanwhile."""

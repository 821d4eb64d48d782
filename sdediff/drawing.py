"""The random numbers of a loss where a batch is taken in parts: by several processes, or one part
after another.

The numbers of the whole batch are drawn, and a part takes those of its own rows; what a loss learns
of its samples it learns once the batch is whole. So the losses of a batch do not depend on how it
is divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

__all__ = ["Draws", "drawn", "learned", "note_times", "noted_times"]

Learn = Callable[..., None]
"""Takes tensors (B, ...) with a row a sample."""


class Draws:
    """The random numbers of a whole batch of ``count`` rows, in the order in which a loss asks for
    them.

    A loss that is called for one part and then for another gets the numbers that were drawn for the
    first again, in other rows.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self._generator = torch.Generator().manual_seed(seed)
        self._known: list[Tensor] = []
        self._next = 0
        self._rows = torch.arange(count)
        self._noted: list[tuple[Learn, list[tuple[Tensor, ...]]]] = []
        self._place = 0

    @contextmanager
    def of(self, rows: Tensor) -> Iterator[None]:
        """What is drawn inside is for these rows (B,) of the whole batch, an index each."""
        self._rows, self._next, self._place = rows, 0, 0
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def take(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """The rows of the next tensor that ``draw(count, generator)`` makes."""
        if self._next == len(self._known):
            self._known.append(draw(self.count, self._generator))
        whole = self._known[self._next]
        self._next += 1
        return whole[self._rows]

    def note(self, learn: Learn, values: tuple[Tensor, ...]) -> None:
        """Keep what is to be learned of the rows of this part, (B, ...) each."""
        if self._place == len(self._noted):
            self._noted.append((learn, []))
        self._noted[self._place][1].append((self._rows, *(each.detach().cpu() for each in values)))
        self._place += 1

    def learn(self, gathered: Callable[[Any], list[Any]]) -> None:
        """Let all that was noted be learned, each of the whole batch in the order of its rows;
        ``gathered`` returns what it is given in each of the processes.
        """
        if not self._noted:
            return
        every = gathered([parts for _, parts in self._noted])
        for place, (learn, _) in enumerate(self._noted):
            parts = [part for own in every for part in own[place]]
            rows, *values = (torch.cat(column) for column in zip(*parts, strict=True))
            order = rows.argsort()
            learn(*(each[order] for each in values))

    def __len__(self) -> int:
        return len(self._rows)


_current: ContextVar[Draws | None] = ContextVar("draws of a batch in parts", default=None)
_times: ContextVar[list[Tensor] | None] = ContextVar("times of a loss", default=None)


def drawn(
    count: int,
    generator: torch.Generator | None,
    draw: Callable[[int, torch.Generator | None], Tensor],
) -> Tensor:
    """``draw(count, generator)``, a tensor with a row for each of ``count`` samples.

    Where the samples are a part of a batch (`Draws`) and no generator was handed in, the rows of
    this part of what is drawn for the whole batch.
    """
    whole = _current.get()
    if whole is None or generator is not None or count != len(whole):
        return draw(count, generator)
    return whole.take(draw)


def learned(learn: Learn, *values: Tensor) -> None:
    """``learn(*values)``, with a row for each of the samples of a loss.

    Where the samples are a part of a batch (`Draws`), it is called once, with all rows of the
    batch, when its last part is done.
    """
    whole = _current.get()
    if whole is None or len(values[0]) != len(whole):
        learn(*values)
    else:
        whole.note(learn, values)


@contextmanager
def noted_times() -> Iterator[list[Tensor]]:
    """A list to which losses add the times (B,) at which they evaluate the model."""
    times: list[Tensor] = []
    token = _times.set(times)
    try:
        yield times
    finally:
        _times.reset(token)


def note_times(t: Tensor) -> None:
    """Add times to the list of `noted_times`, if somebody asks for them."""
    times = _times.get()
    if times is not None:
        times.append(t.detach())

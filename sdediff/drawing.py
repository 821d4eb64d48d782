"""The random numbers of a loss where a batch is taken in parts: by several processes, or one part
after another.

The numbers of the whole batch are drawn, and a part takes those of its own rows. So the losses of a
batch do not depend on how it is divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["Draws", "drawn", "note_times", "noted_times"]


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

    @contextmanager
    def of(self, rows: Tensor) -> Iterator[None]:
        """What is drawn inside is for these rows (B,) of the whole batch, an index each."""
        self._rows, self._next = rows, 0
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

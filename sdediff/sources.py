"""What a step of training sees: rows of an array or of a Dataset, or the next batch of an iterable.

Nothing is read before it is needed, but a Dataset that is small enough to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain, islice
from typing import Any, Final, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sdediff._extras import require
from sdediff.calls import Condition, check_condition
from sdediff.masks import mask_of

__all__ = ["Part", "Samples", "Source", "Taken", "batch", "seed_of", "source_of"]

_KEPT: Final = 2**30
"""Bytes of a Dataset that is read once and kept."""
_LOOKED_AT: Final = 1024
"""Samples of large data that are looked at before training."""
_PEEKED: Final = 8
"""Batches of an iterable that are looked at, at most."""


class Samples(NamedTuple):
    """Samples x (B, *event), float; their conditions, (B, ...) each; which coordinates exist."""

    x: Tensor
    condition: dict[str, Tensor]
    mask: Tensor | None = None

    def some(self, count: int) -> Samples:
        """So many of them at most, evenly spaced."""
        rows = torch.linspace(0, len(self.x) - 1, min(len(self.x), count)).long()
        condition = {name: value[rows] for name, value in self.condition.items()}
        return Samples(self.x[rows], condition, None if self.mask is None else self.mask[rows])


class Part(Protocol):
    """Some rows of a batch, (B,) of them by their place in it."""

    def __call__(self, rows: Tensor) -> Samples: ...


class Taken(NamedTuple):
    """A batch: how many samples it has, how to read some of them, and what to call them in an
    error.
    """

    size: int
    part: Part
    named: Callable[[Tensor], str]


class Source(Protocol):
    """Where batches come from. ``count`` is the number of samples, None if it is not known;
    ``low`` and ``high`` are the stored values that became -1 and 1, None if none were scaled.
    """

    count: int | None
    low: float | None
    high: float | None

    def probe(self) -> tuple[Tensor, Condition | None, Tensor | None]:
        """The samples that are looked at before training, their conditions and their mask: all of
        them where they are a tensor of floats in memory.
        """

    def batches(self, start: int) -> Iterator[Taken]:
        """The batches of the steps from ``start`` on."""

    def keep(self, condition: dict[str, Tensor], exist: Tensor | None) -> None:
        """Take the conditions and the mask of what `probe` gave, as they were checked."""

    def once(self) -> Iterator[Samples]:
        """All samples once, in their order, a batch at a time."""


def source_of(
    data: object, condition: Condition | None, mask: Tensor | None, size: int, seed: int
) -> Source:
    """The source of batches of ``size`` that ``data`` are.

    Tensors, NumPy arrays (memory-mapped ones too) and Datasets with a length are read by index; of
    these, the batch of a step depends on the seed and the step alone. A `DataLoader`, and whatever
    else can be iterated, is an iterable of batches; an IterableDataset is one of samples. A
    TypeError says what else was given.
    """
    if _is_indexed(data):
        data, condition = _small_or_lazy(cast("Dataset[Any]", data), condition)
    if isinstance(data, Tensor | np.ndarray | _Items):
        return _Indexed(data, condition, mask, size, seed)
    if not isinstance(data, Iterable) or isinstance(data, str | bytes | Mapping):
        raise TypeError(
            "data must be a floating-point tensor (N, *event), a NumPy array, a torch Dataset or "
            f"an iterable of batches, got {type(data).__name__}; {_way_out(data)}"
        )
    for name, given in (("condition", condition), ("mask", mask)):
        if given is not None:
            raise ValueError(
                f"{name} goes with data that are a tensor, an array or a Dataset: batches carry "
                "what stands beside their samples, (x, {'label': y})"
            )
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=size)
    return _Stream(data, seed)


def _is_indexed(data: object) -> bool:
    indexed = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    return indexed and hasattr(data, "__len__")


def _way_out(data: object) -> str:
    """How to make a tensor of what was given as data."""
    if isinstance(getattr(data, "x", None), Tensor):
        labels = isinstance(getattr(data, "labels", None), Tensor)
        return "pass data.x" + (
            ", and condition={'label': data.labels} if the network takes labels" if labels else ""
        )
    return "make one of it, torch.tensor(data) or torch.stack(list(data)) say"


class _Items:
    """The items of a Dataset, read when they are asked for."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(cast(Any, self.dataset))

    def __getitem__(self, index: Tensor) -> Any:
        found = [self.dataset[i] for i in index.tolist()]
        return torch.utils.data.default_collate(found)


def _small_or_lazy(
    data: Dataset[Any], condition: Condition | None
) -> tuple[Tensor | _Items, Condition | None]:
    """(data, condition): a Dataset that is small is read once; a larger one when it is needed."""
    items = _Items(data)
    if not len(items):
        return torch.empty(0), condition
    first = items[torch.zeros(1, dtype=torch.long)]
    bytes_of_one = sum(part.nbytes for part in _tensors(first))
    if bytes_of_one * len(items) > _KEPT and not isinstance(data, TensorDataset):
        _refuse_two(first, condition)
        return items, condition
    found = (
        list(data.tensors) if isinstance(data, TensorDataset) else items[torch.arange(len(items))]
    )
    _refuse_two(found, condition)
    x, beside = _pair(found, items.dataset[0])
    return x, condition if beside is None else beside


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        yield from chain.from_iterable(map(_tensors, found.values()))
    elif isinstance(found, list | tuple):
        yield from chain.from_iterable(map(_tensors, found))


def _refuse_two(found: Any, condition: Condition | None) -> None:
    if condition is not None and isinstance(found, list | tuple) and len(found) == 2:
        raise ValueError(
            "data has the conditions beside its samples, and condition is passed too: pass one of "
            "them"
        )


def _pair(found: Any, item: object) -> tuple[Any, Condition | None]:
    """(x, condition) of what a Dataset or an iterable gives: x, (x,), (x, label) or (x, {name:
    value}).
    """
    if isinstance(found, Tensor | np.ndarray):
        return found, None
    whole = isinstance(found, list | tuple) and len(found) in (1, 2)
    if not whole or not isinstance(found[0], Tensor | np.ndarray):
        raise TypeError(
            "items of data must be tensors x, pairs (x, label) or pairs (x, {name: value}); got "
            f"{type(item).__name__}"
        )
    if len(found) == 1:
        return found[0], None
    beside = found[1]
    return found[0], beside if isinstance(beside, Mapping) else {"label": beside}


def _floats(x: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """Samples as the model takes them: bytes 0..255 become [-1, 1]; float arrays of NumPy float32;
    tensors of floats stay as they are.
    """
    if isinstance(x, np.ndarray):
        # a copy: rows of a memory-mapped array may be read-only
        x = torch.from_numpy(np.array(x, np.float32 if x.dtype.kind == "f" else x.dtype))
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x


def _beside(condition: Condition | None) -> Condition | None:
    """Conditions with tensors in the place of NumPy arrays."""
    if not isinstance(condition, Mapping):
        return condition  # None, or what `check_condition` refuses
    return {
        name: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        for name, value in condition.items()
    }


class _Indexed:
    """Data of which any rows can be read."""

    def __init__(
        self,
        data: Tensor | np.ndarray[Any, Any] | _Items,
        condition: Condition | None,
        mask: Tensor | None,
        size: int,
        seed: int,
    ) -> None:
        if isinstance(data, np.ndarray) and data.dtype.kind != "f" and data.dtype != np.uint8:
            raise TypeError(
                f"data must be an array of floats, or of bytes (uint8, 0..255), got {data.dtype}; "
                "data.astype(np.float32), say"
            )
        if not getattr(data, "ndim", 1):
            raise TypeError("data must have a first dimension, the samples: (N, *event)")
        self._data, self._mask, self._size, self._seed = data, mask, size, seed
        self._condition = _beside(condition)
        self._rows: dict[str, Tensor] = {}
        self._exist: Tensor | None = None
        self.count: int | None = len(data)
        bytes_of = isinstance(data, Tensor | np.ndarray) and "uint8" in str(data.dtype)
        self.low: float | None = 0.0 if bytes_of else None
        self.high: float | None = 255.0 if bytes_of else None

    def probe(self) -> tuple[Tensor, Condition | None, Tensor | None]:
        data, total = self._data, self.count or 0
        if isinstance(data, Tensor) and data.dtype != torch.uint8:
            return data, self._condition, self._mask
        rows = torch.linspace(0, total - 1, min(total, _LOOKED_AT), dtype=torch.float64).long()
        x, beside = self._read(rows)
        if beside is None and self._condition is not None:
            self._rows = check_condition(self._condition, total, None)
            beside = {name: value[rows] for name, value in self._rows.items()}
        return x, beside, None if self._mask is None else self._mask[rows]

    def keep(self, condition: dict[str, Tensor], exist: Tensor | None) -> None:
        data = self._data
        if isinstance(data, Tensor) and data.dtype != torch.uint8:  # `probe` gave all of it
            self._rows, self._exist = condition, exist

    def once(self) -> Iterator[Samples]:
        for index in torch.arange(self.count or 0).split(self._size):
            yield self._batch(index).part(torch.arange(len(index)))

    def _read(self, index: Tensor) -> tuple[Tensor, Condition | None]:
        data = self._data
        if isinstance(data, np.ndarray):
            return _floats(data[index.numpy()]), None
        if isinstance(data, Tensor):
            return _floats(data[index.to(data.device)]), None
        x, beside = _pair(data[index], data)
        return _floats(x), beside

    def batches(self, start: int) -> Iterator[Taken]:
        step = start
        while True:
            yield self._batch(batch(self.count or 0, self._size, self._seed, step))
            step += 1

    def _batch(self, index: Tensor) -> Taken:
        def part(rows: Tensor) -> Samples:
            chosen = index[rows]
            x, beside = self._read(chosen)
            given = {name: value[chosen] for name, value in self._rows.items()}
            if beside is not None:
                given = check_condition(beside, len(x), None)
            mask = self._exist
            if mask is None and self._mask is not None:
                return Samples(x, given, mask_of(self._mask[chosen], x))
            return Samples(x, given, None if mask is None else mask[chosen])

        return Taken(len(index), part, lambda rows: f"rows {_listed(index[rows])} of the data")


def _listed(rows: Tensor) -> str:
    values = rows.tolist()
    return ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")


class _Stream:
    """Batches that are iterated over, and then again from their beginning.

    A `DataLoader` that shuffles does so by torch's own generator, which is seeded with the seed and
    the number of the epoch.
    """

    def __init__(self, data: Iterable[Any], seed: int) -> None:
        self._data, self._seed = data, seed
        self._peeked: list[Any] = []
        self._once = isinstance(data, Iterator)
        self.count: int | None = None
        self.low: float | None = None
        self.high: float | None = None

    def probe(self) -> tuple[Tensor, Condition | None, Tensor | None]:
        found: list[tuple[Tensor, Condition | None]] = []
        with torch.random.fork_rng(devices=[]):
            for given in self._epoch(0):
                self._peeked += [given] if self._once else []
                found.append(self._samples(given))
                if len(found) == _PEEKED or sum(len(x) for x, _ in found) >= _LOOKED_AT:
                    break
        if not found:
            raise ValueError("data has no batches: expected at least one")
        self._event = found[0][0].shape[1:]
        together = [check_condition(beside, len(x), None) for x, beside in found]
        condition = {name: torch.cat([each[name] for each in together]) for name in together[0]}
        return torch.cat([x for x, _ in found]), condition or None, None

    def _samples(self, given: Any) -> tuple[Tensor, Condition | None]:
        x, beside = _pair(given, given)
        if str(x.dtype).endswith("uint8"):
            self.low, self.high = 0.0, 255.0
        return _floats(x), _beside(beside)

    def _epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """The batches of an epoch but the first ``skip``."""
        torch.manual_seed(seed_of(self._seed, 2, epoch))
        if isinstance(self._data, DataLoader) and skip:
            accelerate = require("accelerate", "train")
            return iter(accelerate.skip_first_batches(self._data, skip))
        peeked, self._peeked = self._peeked, []
        return islice(chain(peeked, self._data), skip, None)

    def _lasting(self, start: int) -> Iterator[tuple[int, Any]]:
        """(step, batch) from step ``start`` on, epoch after epoch."""
        step, epoch = 0, 0
        length = _length(self._data)
        if length:
            epoch, skip = divmod(start, length)
            step = start - skip
        while True:
            first = step
            skipped = max(0, start - step) if length else 0
            step += skipped
            for given in self._epoch(epoch, skipped):
                if step >= start:
                    yield step, given
                step += 1
            if step == first or self._once:
                raise ValueError(
                    f"data ended after {step} batches, and cannot be iterated over again: give "
                    "something that can, a DataLoader or a list, or ask for fewer steps"
                )
            epoch += 1

    def keep(self, condition: dict[str, Tensor], exist: Tensor | None) -> None:
        """Nothing: batches carry what stands beside their samples."""

    def once(self) -> Iterator[Samples]:
        for given in self._epoch(0):
            x, beside = self._samples(given)
            yield Samples(x, check_condition(beside, len(x), None))

    def batches(self, start: int) -> Iterator[Taken]:
        for step, given in self._lasting(start):
            x, beside = self._samples(given)
            if x.shape[1:] != self._event or not bool(torch.isfinite(x).all()):
                raise ValueError(
                    f"batch {step} of data: samples must be finite, of shape "
                    f"{tuple(self._event)} as in the first batch; got {tuple(x.shape[1:])}, and "
                    f"{int((~torch.isfinite(x)).sum())} values that are not finite"
                )
            condition = check_condition(beside, len(x), None)
            yield _taken(x, condition, step)


def _taken(x: Tensor, condition: dict[str, Tensor], step: int) -> Taken:
    def part(rows: Tensor) -> Samples:
        return Samples(x[rows], {name: value[rows] for name, value in condition.items()})

    return Taken(len(x), part, lambda rows: f"rows {_listed(rows)} of batch {step}")


def _length(data: object) -> int:
    """The batches of an epoch; 0 where they have to be counted."""
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        return len(data)
    return 0


def seed_of(*numbers: int) -> int:
    """A seed of torch's generators for such numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


def batch(count: int, size: int, seed: int, step: int) -> Tensor:
    """Which samples step ``step`` sees: consecutive pieces of a shuffle of the data for each
    epoch.
    """
    position = np.arange(step * size, (step + 1) * size)
    epochs, within = position // count, position % count
    index = np.empty(size, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        index[chosen] = _order(count, seed, int(epoch))[within[chosen]]
    return torch.from_numpy(index)


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    """The shuffle of an epoch; kept, for it takes as long as the data are many."""
    return np.random.Generator(np.random.PCG64((seed, 0, epoch))).permutation(count)

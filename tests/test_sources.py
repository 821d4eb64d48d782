"""Data of every kind: what a step sees, what is read, and that a resumed run sees the same."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradients import Labelled
from small_runs import DATA, make, train
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import sdediff as sd
from sdediff import sources
from sdediff.networks import initialised
from sdediff.sources import batch, source_of
from sdediff.states import read_tensors
from sdediff.training import Interrupted

LABELS = torch.arange(50) % 5


class Items(Dataset[Any]):
    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, i: int) -> Any:
        self.read.append(i)
        found = tuple(part[i] for part in self.parts)
        return found if len(found) > 1 else found[0]


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(DATA)


class Again:
    """Batches that can be iterated over again."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(DATA.split(10))


def seen(data: object, steps: int = 7, start: int = 0, **beside: Any) -> list[Any]:
    """(x, condition) of the steps from ``start`` on, as `fit` reads them."""
    source = source_of(data, beside.get("condition"), beside.get("mask"), 10, 3)
    with torch.random.fork_rng():
        x, condition, _ = source.probe()
        source.keep(dict(condition or {}), beside.get("mask"))  # type: ignore[arg-type]
        taken = source.batches(start)
        found = []
        for _ in range(start, steps):
            each = next(taken)
            found.append(each.part(torch.arange(each.size)))
    assert torch.isfinite(x).all()
    return found


def by_index(step: int) -> Tensor:
    return DATA[batch(50, 10, 3, step)]


BYTES = np.arange(50 * 3, dtype=np.uint8).reshape(50, 3)
INDEXED: dict[str, Callable[[Path], object]] = {
    "a tensor": lambda _: DATA,
    "an array": lambda _: DATA.numpy(),
    "an array of float64": lambda _: DATA.double().numpy(),
    "a memory-mapped array": lambda path: _mapped(path, DATA.numpy()),
    "a TensorDataset": lambda _: TensorDataset(DATA),
    "a Dataset": lambda _: Items(DATA),
    "a Dataset of arrays": lambda _: Items(DATA.numpy()),
}


def _mapped(path: Path, array: np.ndarray) -> np.ndarray:
    np.save(path / "x.npy", array)
    mapped: np.ndarray = np.load(path / "x.npy", mmap_mode="r")
    return mapped


@pytest.mark.parametrize("kind", INDEXED)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_what_has_an_index_is_seen_in_the_order_of_seed_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, kept: bool
) -> None:
    monkeypatch.setattr(sources, "_KEPT", 2**30 if kept else 0)
    for step, samples in enumerate(seen(INDEXED[kind](tmp_path), start=2), 2):
        assert torch.equal(samples.x, by_index(step))
        assert samples.x.dtype == torch.float32


def test_only_the_rows_of_a_step_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_KEPT", 100)
    monkeypatch.setattr(sources, "_LOOKED_AT", 4)
    data = Items(DATA, LABELS)
    found = seen(data, 3)
    looked_at = [0, *torch.linspace(0, 49, 4).long().tolist()]
    expected = torch.cat([batch(50, 10, 3, step) for step in range(3)])
    assert data.read == looked_at + expected.tolist()
    assert torch.equal(found[1].condition["label"], LABELS[batch(50, 10, 3, 1)])


def test_bytes_become_the_range_from_minus_one_to_one(tmp_path: Path) -> None:
    for data in (BYTES, torch.from_numpy(BYTES), _mapped(tmp_path, BYTES)):
        (first, *_) = seen(data, 1)
        expected = torch.from_numpy(BYTES).float()[batch(50, 10, 3, 0)] / 127.5 - 1
        assert torch.equal(first.x, expected)
    with pytest.raises(TypeError, match=r"array of floats, or of bytes .* got int64"):
        seen(np.zeros((3, 2), np.int64))


def test_conditions_and_masks_go_with_arrays(tmp_path: Path) -> None:
    mask = torch.arange(100).reshape(50, 2) % 3 > 0
    mask[:, 0] = True
    for data in (DATA, _mapped(tmp_path, DATA.numpy())):
        for step, each in enumerate(seen(data, 3, condition={"label": LABELS.numpy()}, mask=mask)):
            rows = batch(50, 10, 3, step)
            assert torch.equal(torch.as_tensor(each.condition["label"]), LABELS[rows])
            assert torch.equal(each.mask, mask[rows])


STREAMS: dict[str, Callable[[], object]] = {
    "a list": lambda: list(DATA.split(10)),
    "an iterable": Again,
    "a DataLoader": lambda: DataLoader(TensorDataset(DATA), 10),
    "an IterableDataset": Streamed,
    "a DataLoader of one": lambda: DataLoader(Streamed(), 10),
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("start", [0, 3, 5, 6])
def test_batches_are_iterated_over_again_and_their_place_is_their_number(
    kind: str, start: int
) -> None:
    for step, samples in enumerate(seen(STREAMS[kind](), 8, start), start):
        assert torch.equal(samples.x, DATA[step % 5 * 10 :][:10])


def test_a_shuffling_loader_is_resumed_where_it_was() -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(DATA, LABELS), 10, shuffle=True)

    whole = seen(loader(), 12)
    assert not torch.equal(whole[0].x, whole[5].x)  # another order in the next epoch
    assert sorted(torch.cat([each.x for each in whole[:5]])[:, 0].tolist()) == sorted(
        DATA[:, 0].tolist()
    )
    for start in (3, 5, 8):
        for one, two in zip(seen(loader(), 12, start), whole[start:], strict=True):
            assert torch.equal(one.x, two.x)
            assert torch.equal(one.condition["label"], two.condition["label"])


def test_what_can_be_iterated_over_once_is_peeked_at_without_loss_and_says_where_it_ends() -> None:
    for step, samples in enumerate(seen(iter(DATA.split(10)), 5, 1), 1):
        assert torch.equal(samples.x, DATA[10 * step :][:10])
    with pytest.raises(ValueError, match="data ended after 5 batches, and cannot be iterated"):
        seen(iter(DATA.split(10)), 6)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (3, TypeError, "a torch Dataset or an iterable of batches, got int"),
        ("digits", TypeError, "got str"),
        ([], ValueError, "data has no batches"),
        ([[0.1, 0.2]], TypeError, "items of data must be tensors x, pairs"),
        ([DATA, DATA[:, :1]], ValueError, r"batch 1 of data: .* of shape \(2,\).*; got \(1,\)"),
        ([DATA, DATA / 0], ValueError, "batch 1 of data: .* 100 values that are not finite"),
        (Items(DATA, LABELS, LABELS), TypeError, "items of data must be tensors x, pairs"),
    ],
)
def test_data_that_cannot_be_used_are_refused(
    monkeypatch: pytest.MonkeyPatch, data: object, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(sources, "_PEEKED", 1)
    with pytest.raises(error, match=message):
        seen(data, 3)


def test_conditions_beside_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="condition goes with data that are a tensor"):
        seen([DATA], condition={"label": 3})
    with pytest.raises(ValueError, match="conditions beside its samples, and condition is passed"):
        seen(Items(DATA, LABELS), condition={"label": LABELS})


def test_a_run_on_a_stream_is_resumed_to_the_bit(tmp_path: Path) -> None:
    def fit(name: str, **options: Any) -> None:
        data = DataLoader(TensorDataset(DATA, LABELS), 8, shuffle=True)
        model = sd.ScoreModel(initialised(Labelled, 0), sd.VP())
        sd.fit(model, data, out=tmp_path / name, steps=30, device="cpu", **options)

    def stop(step: int, loss: float) -> None:
        if step == 20:
            os.kill(os.getpid(), signal.SIGINT)

    fit("whole")
    with pytest.raises(Interrupted):
        fit("parts", callback=stop)
    fit("parts", resume=True)
    for name in ("config.json", "losses.csv", "model.safetensors", "training.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["data"]["count"] is None


def test_a_memory_mapped_array_trains_as_the_tensor_does(tmp_path: Path) -> None:
    train(tmp_path / "tensor", steps=12)
    sd.fit(
        make(),
        _mapped(tmp_path, DATA.numpy()),
        out=tmp_path / "mapped",
        steps=12,
        batch_size=16,
        device="cpu",
    )
    one, two = (
        read_tensors(tmp_path / name / "training.safetensors")[0] for name in ("tensor", "mapped")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)

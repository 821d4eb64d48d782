"""A set of samples in shards: the same whoever draws it, and whole whatever happens on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import filelock
import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.shards import MANIFEST, SET, Shards

MODEL = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.3], [0.4, 0.6]).model(sd.VP())
ABOUT = {"seed": 7, "scale": float("inf")}
COUNT, SIZE = 23, 5


def draw(rows: range) -> Mapping[str, Tensor]:
    """As the command does; sample 11 fails."""
    out = sd.sample(MODEL, (len(rows), 2), steps=3, seed=sd.seeds(7, rows))
    index = torch.tensor([i for i in rows if i != 11])
    return {"index": index, "x": out.x[index - rows.start], "nfe": out.nfe[index - rows.start]}


def begun(folder: Path) -> Shards:
    return Shards.begin(folder, COUNT, SIZE, ABOUT)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a set that one process has drawn without an interruption."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    shards = begun(folder)
    assert shards.fill(draw) == 5
    assert shards.finish() is not None
    return content(folder)


def test_the_samples_are_those_of_one_call(whole: dict[str, bytes], tmp_path: Path) -> None:
    for name, each in whole.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(each)
    shards = Shards.open(tmp_path)
    read = [shards.read(k) for k in range(len(shards))]
    x, index = (torch.cat([part[name] for part in read]) for name in ("x", "index"))
    there = [i for i in range(COUNT) if i != 11]
    assert index.tolist() == there
    expected = torch.cat(
        [
            sd.sample(MODEL, (len(r), 2), steps=3, seed=sd.seeds(7, r)).x
            for r in map(shards.rows, range(5))
        ]
    )
    assert torch.equal(x, expected[there])
    alone = sd.sample(MODEL, (COUNT, 2), steps=3, seed=7).x
    torch.testing.assert_close(x, alone[there], rtol=1e-5, atol=1e-6)  # other batches
    manifest = json.loads(whole[MANIFEST])
    assert (manifest["count"], manifest["samples"]) == (COUNT, COUNT - 1)
    assert [entry["first"] for entry in manifest["shards"]] == [0, 5, 10, 15, 20]
    assert [entry["samples"] for entry in manifest["shards"]] == [5, 5, 4, 5, 3]


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_draws_the_same_set(
    whole: dict[str, bytes], tmp_path: Path, processes: int
) -> None:
    """Each stops after so many shards, as if the others had drawn meanwhile."""
    folder = tmp_path / "set"
    order: list[int] = []

    def limited(rows: range) -> Mapping[str, Tensor]:
        if len(order) == limit:
            raise KeyboardInterrupt
        order.append(rows.start // SIZE)
        return draw(rows)

    for process in range(processes - 1, -1, -1):
        limit = len(order) + 2
        try:
            begun(folder).fill(limited, process=process, processes=processes)
        except KeyboardInterrupt:
            assert begun(folder).finish() is None
    limit = 99
    begun(folder).fill(limited)
    assert begun(folder).finish() is not None
    assert sorted(order) == list(range(5))
    assert order[0] == (5 * (processes - 1)) // processes
    assert content(folder) == whole


def _killed_in_its_third_shard(folder: Path) -> None:
    drawn = []

    def dying(rows: range) -> Mapping[str, Tensor]:
        if len(drawn) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        drawn.append(rows)
        return draw(rows)

    begun(folder).fill(dying)


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_found_and_drawn(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    worker = multiprocessing.get_context("spawn").Process(
        target=_killed_in_its_third_shard, args=(folder,)
    )
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert list(folder.glob("000/.*.lock"))
    assert begun(folder).missing() == [2, 3, 4]
    assert begun(folder).fill(draw) == 3
    assert begun(folder).finish() is not None
    assert content(folder) == whole


def test_a_shard_that_another_process_draws_is_left_to_it(tmp_path: Path) -> None:
    shards = begun(tmp_path / "set")
    (tmp_path / "set" / "000").mkdir()
    with filelock.FileLock(tmp_path / "set" / "000" / ".000001.lock"):
        assert shards.fill(draw) == 4
        assert shards.missing() == [1]
        assert shards.finish() is None
    assert shards.fill(draw, process=2, processes=3) == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "swapped"])
def test_damaged_shards_are_found_and_drawn_anew(
    whole: dict[str, bytes], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "set"
    shards = begun(folder)
    shards.fill(draw)
    path, good = shards.path(3), shards.path(3).read_bytes()
    bad = {
        "flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "cut": good[:-4],
        "empty": b"",
        "swapped": shards.path(1).read_bytes(),
    }
    path.write_bytes(bad[damage])
    assert shards.remove_damaged(0, 2) == []  # shards 0, 2 and 4
    assert shards.remove_damaged(1, 2) == [3]
    assert shards.fill(draw) == 1
    shards.finish()
    assert content(folder) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"about": {**ABOUT, "seed": 8}}, "a set with seed 7, and 8 is asked for"),
        ({"about": {"seed": 7}}, 'a set with scale "inf", and null is asked for'),
        ({"count": 24}, "a set with count 23, and 24 is asked for"),
        ({"size": 6}, "a set with shard_size 5, and 6 is asked for"),
        ({"size": 0}, "size must be"),
    ],
)
def test_another_set_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    begun(tmp_path / "set")
    asked = {"count": COUNT, "size": SIZE, "about": ABOUT, **change}
    with pytest.raises(ValueError, match=said):
        Shards.begin(tmp_path / "set", **asked)  # type: ignore[arg-type]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no set of samples"):
        Shards.open(tmp_path)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds mine.txt, and no set.json"):
        begun(tmp_path)
    with pytest.raises(OSError, match="cannot write to"):
        begun(tmp_path / "no" / "set")
    for plan, said in (
        ("{", "is damaged"),
        ('{"format": 2, "count": 1, "shard_size": 1}', "newer"),
    ):
        (tmp_path / SET).write_text(plan)
        with pytest.raises(ValueError, match=said):
            Shards.open(tmp_path)


def test_many_shards_are_spread_over_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdediff.shards._FOLDER", 2)
    shards = Shards.begin(tmp_path / "set", 5, 1, {})
    assert shards.fill(lambda rows: {"index": torch.tensor(rows)}) == 5
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["000", "001", "002", SET]
    assert sorted(path.name for path in (tmp_path / "set" / "001").iterdir()) == [
        "000002.safetensors",
        "000003.safetensors",
    ]
    shards.path(4).unlink()
    assert shards.missing() == [4]

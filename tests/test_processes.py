"""Work that several processes share: the same numbers as of one process, and no process that waits
for one that has failed.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sharing
import torch
from command_line import command, trained_on_points
from launched import launched, start

import sdediff as sd
from sdediff.comparison import Comparison
from sdediff.processes import (
    Processes,
    _packed,
    _unpacked,
    current,
    dividing,
    in_parts,
    joined,
    together,
)

HERE = Path(__file__).parent


# -- the division, by threads in place of processes ------------------------------------------------


class Meeting:
    """Where threads exchange what they found."""

    def __init__(self, count: int) -> None:
        self.told: list[bytes] = [b""] * count
        self.barrier = threading.Barrier(count, timeout=60)


@dataclass(frozen=True)
class Thread(Processes):
    """A thread in place of a process."""

    def _exchanged(self, value: Any, error: Exception | None) -> list[tuple[Any, Any]]:
        self.group.told[self.index] = _packed(value, error)
        self.group.barrier.wait()
        found = [_unpacked(each, self._mine) for each in self.group.told]
        self.group.barrier.wait()
        return found


def shared(count: int, work: Callable[[], Any]) -> list[Any]:
    """What ``work()`` returns, or raises, in each of ``count`` that share it."""
    meeting, found = Meeting(count), [None] * count

    def one(index: int) -> None:
        with dividing(Thread(index, count, index, meeting)):
            try:
                found[index] = work()
            except Exception as error:
                found[index] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize(
    ("count", "size", "group", "least"),
    [(12, 12, 1, 4), (12, 2, 1, 2), (10, 100, 1, 4), (2, 5, 1, 1), (24, 24, 6, 12)],
)
def test_parts_are_all_done_once_by_three(count: int, size: int, group: int, least: int) -> None:
    """``least`` is the size of the largest part; each of the three does a third of them, to one."""
    made: list[tuple[int, range]] = []

    def work(rows: range) -> list[int]:
        assert current().count == 1  # what is shared is not shared again inside
        made.append((here[threading.get_ident()], rows))
        return list(rows)

    here: dict[int, int] = {}

    def each() -> list[int]:
        here[threading.get_ident()] = current().index
        return list(chain(*in_parts(count, size, work, group=group)))

    assert shared(3, each) == 3 * [list(range(count))]
    sizes = [len(rows) for _, rows in made]
    assert all(own <= least and (own % group == 0) for own in sizes)
    assert max(sizes) == least
    shares = [sum(index == k for index, _ in made) for k in range(3)]
    assert max(shares) - min(shares) <= 1
    assert list(chain(*in_parts(count, size, list, group=group))) == list(range(count))


class Unsendable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("cannot be made again")


def test_an_error_in_one_is_raised_in_all() -> None:
    def fails(error: Exception) -> Callable[[], Any]:
        def work() -> Any:
            if current().index == 2:  # before the work is shared
                raise error
            return in_parts(6, 2, str)

        def inside(rows: range) -> str:
            if 4 in rows:
                raise error
            return str(rows)

        return lambda: in_parts(6, 2, inside)

    for error, kind, words in (
        (ValueError("a\nb"), ValueError, "a\nb"),
        (Unsendable(1, 2), RuntimeError, "Unsendable: cannot be made again"),
    ):
        found = shared(3, fails(error))
        assert found[2] is error  # its own, with the place where it was raised
        for other in found[:2]:
            assert type(other) is kind
            assert str(other) == words


def test_what_one_does_all_know() -> None:
    calls: list[int] = []
    assert (
        shared(3, lambda: current().once(lambda: calls.append(1) or torch.arange(2).tolist()))
        == [[0, 1]] * 3
    )
    assert len(calls) == 1


def test_samples_shared_by_three_are_those_of_one() -> None:
    """To the bit, with batches of the third part."""
    model = sharing.LAW.model(sd.VP())

    def drawn(batch_size: int | None) -> tuple[Any, ...]:
        solver = sd.EulerMaruyama()
        out = sd.sample(model, (12, 2), solver=solver, steps=2, seed=3, batch_size=batch_size)
        return out.x, out.nfe, out.seeds

    one = drawn(4)
    for x, nfe, seeds in shared(3, lambda: drawn(None)):
        assert torch.equal(x, one[0])
        assert torch.equal(nfe, one[1])
        assert seeds == one[2]
    fresh = shared(3, lambda: sd.sample(model, (3, 2), steps=1).seeds)
    assert fresh[0] == fresh[1] == fresh[2]


def test_nothing_says_where_processes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    with together() as alone:
        assert alone == Processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match="start them by accelerate launch or torchrun"), joined():
        pass
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match="RANK=2, WORLD_SIZE=2, LOCAL_RANK=0: expected"):
        Processes.here()


# -- real processes --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_script_of_a_user_in_two_processes_finds_what_one_does(tmp_path: Path) -> None:
    launched(HERE / "tables" / "sharing.py", tmp_path, "works")
    first, second = (json.loads((tmp_path / f"{k}.json").read_text()) for k in (0, 1))
    alone = json.loads(json.dumps(sharing.found(sharing.LAW.model(sd.VP()), parts=2)))
    assert first == second == alone


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raises", "ends"])
def test_a_process_that_fails_ends_the_others(tmp_path: Path, how: str) -> None:
    began = time.monotonic()
    process = start(2, HERE / "tables" / "sharing.py", tmp_path, how)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert time.monotonic() - began < 120
    if how == "raises":
        assert err.count("ArithmeticError: the second one cannot") >= 2
    assert not list(tmp_path.glob("*.json"))


def same_to_rounding(one: Any, two: Any) -> None:
    """Two JSON values, with numbers to 1e-5."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            same_to_rounding(one[name], two[name])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            same_to_rounding(a, b)
    elif isinstance(one, float) and math.isfinite(one):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-5)
    else:
        assert one == two


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on_points(tmp_path_factory.mktemp("shared"), 20)


def measured(found: Comparison) -> list[dict[str, Any]]:
    """The rows but for their seconds, and for the calls, which say the size of batches."""
    rows = json.loads(found.to_json())["rows"]
    return [{**row, "code": "", "seconds": 0} for row in rows]


@pytest.mark.slow
def test_compare_by_two_processes_is_that_of_one(run: Path, tmp_path: Path) -> None:
    """To the bit with batches of half the samples, and printed once."""
    given = ["compare", run, "--nfe", "3,6", "--count", 20, "--device", "cpu", "--seed", 2]
    given += ["--solvers", "default,euler-maruyama,ode", "--data", run.parent / "points.npy"]
    printed = launched("-m", "sdediff", *given, "--quiet", "--out", tmp_path / "two")
    command(*given, "--quiet", "--batch-size", 10, "--out", tmp_path / "one")
    two, one = (
        Comparison.from_json((tmp_path / name / "compare.json").read_text())
        for name in ("two", "one")
    )
    assert printed.count("out = sd.sample(") == 1
    assert measured(two) == measured(one)
    assert two.reference == one.reference


@pytest.mark.slow
def test_a_budget_of_seconds_is_kept_by_two(run: Path, tmp_path: Path) -> None:
    """Clocks differ, and all that they decide is decided by the first."""
    given = ["compare", run, "--nfe", "3,6,50,200", "--count", 64, "--device", "cpu"]
    launched("-m", "sdediff", *given, "--quiet", "--budget-seconds", 1, "--out", tmp_path / "two")
    found = Comparison.from_json((tmp_path / "two" / "compare.json").read_text())
    assert len(found.rows) > 10
    assert any("no time" in row.note or "time was over" in row.note for row in found.rows)


@pytest.mark.slow
def test_tune_by_two_processes_is_that_of_one(run: Path, tmp_path: Path) -> None:
    """Without gradients, which follow the rounding of other batches."""
    given = ["tune", run, "--nfe", 3, "--count", 32, "--device", "cpu", "--method", "dp"]
    printed = launched("-m", "sdediff", *given, "--out", tmp_path / "two.json")
    command(*given, "--out", tmp_path / "one.json")
    two, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    assert printed.count("starts held out") == 1
    assert two["made"].pop("seconds") > 0 < one["made"].pop("seconds")
    same_to_rounding(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["memory", "shards"])
def test_evaluate_by_two_processes_is_that_of_one(run: Path, tmp_path: Path, place: str) -> None:
    given = ["evaluate", run, "--against", run.parent / "points.npy", "--steps", 3, "--count", 60]
    given += ["--device", "cpu", "--quiet", "--batch-size", 10]
    more = ["--samples", tmp_path / "set"] if place == "shards" else []
    printed = launched("-m", "sdediff", *given, *more, "--out", tmp_path / "two.json")
    command(*given, "--out", tmp_path / "one.json")
    two, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    assert printed.count("Frechet distance") == 1
    assert two["metrics"] == one["metrics"]
    if place == "shards":  # complete when they begin: again the first one alone prints
        again = launched("-m", "sdediff", *given, *more)
        assert again == printed


@pytest.mark.slow
def test_a_file_of_samples_by_two_processes_is_that_of_one(run: Path, tmp_path: Path) -> None:
    given = ["sample", run, "--steps", 3, "--count", 20, "--device", "cpu", "--quiet"]
    launched("-m", "sdediff", *given, "--out", tmp_path / "two.npz")
    command(*given, "--batch-size", 10, "--out", tmp_path / "one.npz")
    with np.load(tmp_path / "two.npz") as two, np.load(tmp_path / "one.npz") as one:
        assert sorted(two) == sorted(one)
        for name in one:
            np.testing.assert_array_equal(two[name], one[name])

"""What the strategies draw is consistent, what they promise, and small when it has shrunk."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from quiet import QUIET

import sdediff as sd
from sdediff.predictions import PREDICTIONS
from sdediff.testing import check_sde, strategies
from sdediff.testing.equivalences.case import NEEDS


@pytest.mark.thin(0)
@settings(QUIET, max_examples=5)
@given(strategies.sdes())
def test_drawn_sdes_are_consistent(sde: sd.LinearSDE) -> None:
    assert check_sde(sde, verbose=False).passed


@pytest.mark.slow
@settings(QUIET, max_examples=80)
@given(strategies.sdes())
def test_drawn_sdes_are_consistent_deep(sde: sd.LinearSDE) -> None:
    assert check_sde(sde, verbose=False).passed


def test_every_family_and_every_way_of_giving_an_sde_is_drawn() -> None:
    seen = Counter()

    @settings(QUIET, max_examples=150, phases=[Phase.generate])
    @given(strategies.sdes())
    def draw(sde: sd.LinearSDE) -> None:
        seen[type(sde).__name__] += 1

    draw()
    assert set(seen) == set(
        "VP VE SubVP EDM Cosine RectifiedFlow Preserving ByRates BySchedule ByLevels".split()
    )


@settings(QUIET, max_examples=15)
@given(st.data())
def test_drawn_cases_are_what_they_promise(data) -> None:
    event = data.draw(strategies.event_shapes(max_dims=2, max_side=2))
    law = data.draw(strategies.mixtures(event, max_components=2))
    assert tuple(law.event) == event
    assert len(law.means) <= 2
    sde = data.draw(strategies.sdes(("unit variance",), built_in=False))
    assert NEEDS["unit variance"][1](sde)
    grid = data.draw(strategies.grids(sde, max_steps=4))
    assert 2 <= len(grid) <= 5
    assert all(sde.t_min <= t <= sde.t_max for t in grid)
    assert all(t > s for t, s in pairwise(grid))
    assert data.draw(strategies.predictions(sde, grid)) in PREDICTIONS


@pytest.mark.parametrize(
    ("strategy", "least"),
    [
        (strategies.sdes(), repr(sd.VP())),
        (strategies.event_shapes(), "(1,)"),
        (strategies.grids(sd.VP()), "(1.0, 0.001)"),
        (strategies.predictions(sd.VP()), "'noise'"),
    ],
    ids=["sdes", "event_shapes", "grids", "predictions"],
)
def test_strategies_shrink_to_what_is_simple(strategy, least: str) -> None:
    assert repr(find(strategy, lambda _: True, settings=settings(QUIET, max_examples=20))) == least
    with pytest.raises(NoSuchExample):
        find(strategy, lambda _: False, settings=settings(QUIET, max_examples=5))


def test_strategies_say_that_they_need_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "sdediff.testing.strategies")
    with pytest.raises(
        ImportError,
        match=r'hypothesis is not installed; install it with: pip install "sdediff\[testing\]"',
    ):
        importlib.import_module("sdediff.testing.strategies")

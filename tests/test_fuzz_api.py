"""Public functions and classes with arguments of every kind: what fails is a ValueError, TypeError,
OSError or SolveError that says something, within a second of this process's time.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz import CALLS as CASES
from fuzz import LIMIT, few
from hypothesis import given
from hypothesis import strategies as st

import sdediff as sd
from sdediff.shards import Shards
from sdediff.solvers import SolveError

MODEL = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.3]).model(sd.VP())
X = torch.zeros(3, 2)
SOLVE = {"model": MODEL, "x": X, "solver": sd.solvers.Euler(), "steps": 2}
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "sample": (sd.sample, {"model": MODEL, "shape": (3, 2), "steps": 2, "seed": 0}),
    "encode": (sd.encode, SOLVE),
    "decode": (sd.decode, {"model": MODEL, "z": X, "solver": sd.solvers.Euler(), "steps": 2}),
    "simulate": (sd.simulate, {"sde": sd.VP(), "x_0": X, "steps": 2, "seed": 0}),
    "log_prob": (sd.log_prob, SOLVE),
    "seeds": (sd.solvers.seeds, {"seed": 0, "samples": 3}),
    "White": (sd.White, {"seeds": (1, 2), "event": (2,)}),
    "ScoreModel": (sd.ScoreModel, {"net": torch.nn.Identity(), "sde": sd.VP()}),
    "DenoisingScoreMatching": (sd.DenoisingScoreMatching, {}),
    "loss": (sd.DenoisingScoreMatching(), {"model": MODEL, "x_0": X}),
    "Shards": (Shards.begin, {"folder": Path("no/where"), "count": 3, "size": 2, "about": {}}),
    "load": (sd.load, {"run": "there/is/none"}),
}
for module in (sd.solvers, sd.sde):
    for made in (getattr(module, name) for name in module.__all__):
        if inspect.isclass(made) and is_dataclass(made):
            required = [
                p
                for p in inspect.signature(made).parameters.values()
                if p.default is p.empty and p.kind is not p.VAR_KEYWORD
            ]
            if not required:
                CALLS[made.__name__] = (made, {})

VALUES: list[Any] = [None, True, False, -1, 0, 1, 2, 3, 0.5, -0.5, 1e308, 10**400]
VALUES += [float("nan"), float("inf"), 1j, "", "foo", "karras", "cpu", b"x", [], [1.0, 0.5], [2, 3]]
VALUES += [(), (3, 2), (0, 2), {}, {"a": 1}, {"label": X}, range(3), ..., int, object(), Path("no")]
VALUES += [torch.zeros(0), torch.ones(3), X, X.double(), torch.tensor(float("nan")), X.long()]
VALUES += [
    np.float32(2),
    np.array("x"),
    np.zeros((3, 2)),
    torch.Generator(),
    lambda: 0,
    lambda x: x,
]
VALUES += [lambda *a, **k: None, sd.VP(), MODEL, sd.solvers.Heun(), sd.VP, torch.nn.Linear(2, 2)]


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A call with one to three arguments of any kind."""
    name = draw(st.sampled_from(sorted(CALLS)))
    names = [
        p.name
        for p in inspect.signature(CALLS[name][0]).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    given: dict[str, Any] = {}
    for argument in draw(st.lists(st.sampled_from([*names, "typo"]), min_size=1, max_size=3)):
        given[argument] = draw(st.sampled_from(VALUES))
    return name, given


def fuzz(cases: int) -> Counter[str]:
    """Try so many calls, and count what came of them."""
    tally: Counter[str] = Counter()

    @few(cases)
    @given(calls())
    def attempt(call: tuple[str, dict[str, Any]]) -> None:
        function, right = CALLS[call[0]]
        began, failure = time.process_time(), None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                function(**{**right, **call[1]})
            except (ValueError, TypeError, OSError, SolveError) as error:
                failure = error
        seconds = time.process_time() - began
        tally["calls"] += 1
        tally["done" if failure is None else type(failure).__name__] += 1
        if failure is not None:
            assert str(failure).strip(), call
            assert seconds < LIMIT, (call, failure)

    with torch.random.fork_rng():  # losses draw from the global generator where none is given
        attempt()
    return tally


def test_some_calls_end_in_words() -> None:
    assert fuzz(100)["calls"] >= 100


@pytest.mark.slow
def test_calls_end_in_words() -> None:
    print(dict(fuzz(CASES)))

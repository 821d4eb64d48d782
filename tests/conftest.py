"""Fixtures that several files share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch
from all_sdes import SDES
from pairwise import spread

import sdediff as sd

torch.set_num_threads(1)
torch.manual_seed(0)  # for what is made when tests are collected


@pytest.hookimpl(tryfirst=True)  # before -m leaves out what is marked slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``thin(n)`` all rows but n become slow ones, marked ``sweep`` as well."""
    rows = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and "slow" not in item.keywords:
            rows[item.path, item.originalname].append(item)
    for each in rows.values():
        thin = each[0].get_closest_marker("thin")
        if thin is not None:
            for i in spread(len(each))[thin.args[0] :]:
                each[i].add_marker(pytest.mark.slow)
                each[i].add_marker(pytest.mark.sweep)


@pytest.fixture(params=SDES)
def sde(request: pytest.FixtureRequest) -> sd.LinearSDE:
    return SDES[request.param]


@pytest.fixture
def gaussian() -> sd.exact.Gaussian:
    return sd.exact.Gaussian([0.3, -0.5], [[0.25, 0.1], [0.1, 0.5]])


@pytest.fixture(autouse=True)
def _global_rng_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing in the library may move torch's global generator, except losses without a
    generator. Every test finds it in the same state.
    """
    torch.manual_seed(0)
    before = torch.get_rng_state()
    yield
    if "uses_global_rng" not in request.keywords:
        assert torch.equal(before, torch.get_rng_state()), "torch's global generator was moved"

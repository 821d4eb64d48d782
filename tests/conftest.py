"""Fixtures that several files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from all_sdes import SDES

import sdediff as sd

torch.set_num_threads(1)


@pytest.fixture(params=SDES)
def sde(request: pytest.FixtureRequest) -> sd.LinearSDE:
    return SDES[request.param]


@pytest.fixture
def gaussian() -> sd.exact.Gaussian:
    return sd.exact.Gaussian([0.3, -0.5], [[0.25, 0.1], [0.1, 0.5]])


@pytest.fixture(autouse=True)
def _global_rng_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing in the library may move torch's global generator, except losses without a
    generator.
    """
    before = torch.get_rng_state()
    yield
    if "uses_global_rng" not in request.keywords:
        assert torch.equal(before, torch.get_rng_state()), "torch's global generator was moved"

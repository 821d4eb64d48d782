"""Fixtures that several files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import sdediff as sd

torch.set_num_threads(1)


class Cubic(sd.LinearSDE):
    """A user's SDE by f and g: alpha and sigma come from quadrature."""

    T = 1.5

    def f(self, t):
        return -0.5 * (0.1 + 5 * t**3)

    def g(self, t):
        return (0.3 + 4 * t**2).sqrt()


class Warped(sd.LinearSDE):
    """A user's SDE by alpha and log_snr, with noise on the data: f and g come from autograd."""

    def alpha(self, t):
        return torch.exp(-1.5 * t**2)

    def log_snr(self, t):
        return 8 - 12 * torch.sin(1.2 * t)


SDES = {
    "VE": sd.VE(0.02, 30.0),
    "VP": sd.VP(),
    "SubVP": sd.SubVP(),
    "VP-other": sd.VP(0.2, 8.0, T=2.0, t_min=0.01),
    "Cosine": sd.Cosine(),
    "EDM": sd.EDM(0.01, 20.0),
    "RectifiedFlow": sd.RectifiedFlow(),
    "user, f and g": Cubic(),
    "user, alpha and log_snr": Warped(),
}


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

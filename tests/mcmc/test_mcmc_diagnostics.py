"""R-hat and effective sample size, by ArviZ's numbers and on autoregressive chains, for which both
are known.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

import sdediff as sd

F64 = torch.float64
mcmc = sd.mcmc


def autoregressive(rho, draws, chains, seed):
    """x <- rho x + sqrt(1 - rho^2) z, stationary, (draws, chains); of a generator that NumPy never
    changes.
    """
    z = np.random.RandomState(seed).standard_normal((draws, chains))
    z[1:] *= (1 - rho**2) ** 0.5
    return torch.from_numpy(lfilter([1.0], [1.0, -rho], z, axis=0))


A = autoregressive(0.5, 1000, 4, 0)
# R-hat split and rank, ESS mean and bulk of ArviZ 0.19.0.
ARVIZ = {
    "slow": (A, (1.00319050382, 1.00321003216, 1407.44682672, 1413.71427991)),
    "antithetic, odd": (
        autoregressive(-0.6, 801, 3, 1),
        (0.999037228566, 1.00027160739, 8112.50698011, 8112.50698011),
    ),
    "very slow": (
        autoregressive(0.95, 200, 2, 2),
        (1.03435152693, 1.21206917348, 15.18009844, 15.2980064225),
    ),
    "ties": (A.round(), (1.00343830292, 1.00345626223, 1438.35564292, 1442.21203203)),
    "one is elsewhere": (
        A + torch.tensor([0, 0, 0, 1.0]),
        (1.1173607456, 1.11427086956, 24.1997084142, 25.0042895172),
    ),
    "one is wider": (
        A * torch.tensor([1, 1, 1, 3.0]),
        (1.00299259836, 1.14450936337, 1361.1742976, 1369.65359446),
    ),
}


@pytest.mark.parametrize(("samples", "want"), ARVIZ.values(), ids=ARVIZ)
def test_as_arviz(samples, want):
    got = [
        mcmc.split_rhat(samples, rank_normalized=False),
        mcmc.split_rhat(samples),
        mcmc.effective_sample_size(samples),
        mcmc.effective_sample_size(samples, rank_normalized=True),
    ]
    assert [float(value) for value in got] == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.3])
def test_effective_sample_size_of_an_autoregression(rho):
    """n (1 - rho) / (1 + rho), in the mean over 60 coordinates within 3 % (Geyer's truncation
    leaves out 1 % or so).
    """
    draws, chains = 4000, 4
    x = autoregressive(rho, draws, 60 * chains, 10).reshape(draws, chains, 60)
    ratio = mcmc.effective_sample_size(x) / (draws * chains * (1 - rho) / (1 + rho))
    assert float(ratio.mean()) == pytest.approx(1, abs=0.03)
    assert float((ratio - 1).abs().max()) < 0.4


def test_the_standard_error_is_that_of_the_mean():
    """200 coordinates of ULA's chain on N(0, v), an autoregression of 1 - h / v: the mean over its
    standard error has variance 1, within 5 standard errors of a chi-square.
    """
    law = mcmc.LogDensity(lambda x: -0.5 * x.square().sum(dim=1))
    h, d = 0.3, 200
    start = sd.White(sd.seeds(9, 4), (d,), dtype=F64).normal(0, "path", 0) / (1 - h / 2) ** 0.5
    out = mcmc.run(mcmc.ULA(h), law, start, steps=1500, seed=1)
    assert float((out.mean / out.stderr).square().mean()) == pytest.approx(
        1, abs=5 * (2 / d) ** 0.5
    )
    assert float(out.ess.mean()) == pytest.approx(6000 * h / (2 - h), rel=0.03)
    assert float(out.std.square().mean()) == pytest.approx(1 / (1 - h / 2), rel=0.02)
    assert 1 - 1e-3 < float(out.rhat.min()) <= float(out.rhat.max()) < 1.03


def test_rhat_sees_chains_that_disagree():
    same = autoregressive(0.3, 500, 4, 3)
    drift = same + torch.linspace(-1, 1, 500, dtype=F64)[:, None]  # seen by halves of a chain alone
    # seen by ranks of distances from the median alone
    wide = same * torch.tensor([1.0, 1.0, 1.0, 4.0])
    assert float(mcmc.split_rhat(same)) < 1.01
    assert float(mcmc.split_rhat(same + torch.tensor([0.0, 0.0, 0.0, 1.0]))) > 1.1
    for rank_normalized in (False, True):
        assert float(mcmc.split_rhat(drift[:, :1], rank_normalized=rank_normalized)) > 1.1
    assert float(mcmc.split_rhat(wide, rank_normalized=False)) < 1.01
    assert float(mcmc.split_rhat(wide)) > 1.1
    assert (
        float(mcmc.effective_sample_size(drift))
        < 0.02 * same.numel()
        < 0.1 * float(mcmc.effective_sample_size(same))
    )


def test_chains_that_do_not_move():
    still = torch.full((100, 3), 0.1, dtype=F64)
    apart = still + torch.tensor([0.0, 1.0, 2.0])
    for rank_normalized in (False, True):
        assert math.isnan(mcmc.split_rhat(still, rank_normalized=rank_normalized))
        assert math.isnan(mcmc.effective_sample_size(still, rank_normalized=rank_normalized))
        assert float(mcmc.split_rhat(apart, rank_normalized=rank_normalized)) == math.inf
        assert float(mcmc.effective_sample_size(apart, rank_normalized=rank_normalized)) < 4


def test_events_and_blocks(monkeypatch):
    x = torch.stack([autoregressive(0.2 * i, 300, 3, i) for i in range(4)], dim=2).reshape(
        300, 3, 2, 2
    )
    monkeypatch.setattr("sdediff.mcmc.chains._BLOCK", 1)
    for function in (mcmc.split_rhat, mcmc.effective_sample_size):
        got = function(x)
        assert got.shape == (2, 2)
        for i, value in enumerate(got.flatten()):
            torch.testing.assert_close(function(x[:, :, i // 2, i % 2]), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("function", [mcmc.split_rhat, mcmc.effective_sample_size])
@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (torch.zeros(3, 2), "there must be 4 draws, got 3"),
        (torch.zeros(5), r"\(draws, chains, \*event\)"),
        (torch.zeros(5, 2, dtype=torch.int64), "must be a floating-point tensor"),
        (torch.zeros(5, 0), "must be a floating-point tensor"),
        (torch.full((5, 2), math.nan), "not finite"),
        ([1.0, 2.0], "got list"),
    ],
)
def test_bad_input(function, samples, words):
    with pytest.raises(ValueError, match=words):
        function(samples)

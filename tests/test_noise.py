"""Noise addressed by key."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest

import sdediff as sd
from solvers import White
from solvers.noise import STREAMS


def test_seeds_of_shards_agree_and_differ() -> None:
    whole = sd.seeds(7, 2000)
    assert sd.seeds(7, range(500, 900)) == whole[500:900]
    assert len(set(whole)) == 2000
    assert sd.seeds(8, 2000)[:5] != whole[:5]
    assert not set(sd.seeds(8, 2000)) & set(whole)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(ValueError, match="seed must be a non-negative int"):
        sd.seeds(seed, 3)  # type: ignore[arg-type]


def test_same_key_same_noise_in_any_order() -> None:
    one, two = White([1, 2, 3], (5, 2)), White([1, 2, 3], (5, 2))
    steps = [0, 200, 3, 64, 63, 1, 65, 0]
    first = {(i, stream): one.at(i).normal(stream, 1).clone() for i in steps for stream in STREAMS if stream != "prior"}
    for i in reversed(steps):
        for stream in ("probe", "churn", "corrector", "path", "dequantization"):
            assert torch.equal(two.at(i).normal(stream, 1), first[i, stream])
    assert torch.equal(two.at(0).normal("prior"), one.at(0).normal("prior"))


def test_rows_do_not_depend_on_the_batch() -> None:
    white = White([4, 5, 6, 7], (3,))
    part = white.take(torch.tensor([2, 0]))
    for i in (0, 70):
        assert torch.equal(part.at(i).normal(), white.at(i).normal()[[2, 0]])


def test_streams_draws_and_steps_differ() -> None:
    white = White([9], (1000,))
    draws = [white.at(i).normal(stream, k)[0].clone() for i in (0, 1, 9) for stream in ("path", "corrector") for k in (0, 1)]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    # Normal with standard deviation 1 / sqrt(1000); 66 pairs beyond 6 standard deviations: chance 1e-7.
    assert float(correlation.abs().max()) < 6 / math.sqrt(1000)


def test_values_are_standard_normal() -> None:
    """Kolmogorov-Smirnov on 200,000 values over seeds, steps and blocks; false alarm 1e-6."""
    white = White(sd.seeds(0, 500), (4,))
    values = torch.cat([white.at(i).normal().flatten() for i in range(0, 200, 2)])
    assert kstest(values.numpy(), "norm").pvalue > 1e-6


def test_increment_has_the_variance_of_its_interval() -> None:
    white = White([3, 4], (2,), dtype=torch.float64)
    step, a, b = white.at(5), torch.tensor(0.7, dtype=torch.float64), torch.tensor([0.2, 0.6], dtype=torch.float64)
    expected = step.normal() * (a - b).sqrt()[:, None]
    torch.testing.assert_close(step.increment(a, b), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(step.increment(b, a), expected, rtol=1e-14, atol=0)

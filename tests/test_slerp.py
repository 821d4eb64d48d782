"""Spherical interpolation: closed forms on the circle, ends, norms, and what has no answer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_angles_on_a_circle() -> None:
    """From angle 0 to 2 at share w is angle 2 w, whether the radius is one or moves from 1 to 3."""
    w = torch.linspace(0, 1, 7, dtype=torch.float64)
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for radius in (1.0, 3.0):
        b = radius * torch.tensor([[math.cos(2), math.sin(2)]], dtype=torch.float64)
        found = sd.slerp(a, b, w)
        size = 1 + w * (radius - 1)
        circle = torch.stack([(2 * w).cos(), (2 * w).sin()], dim=1)
        assert torch.allclose(found, size[:, None] * circle, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_exact_and_every_sample_has_its_weight(dtype: torch.dtype) -> None:
    a, b = randn(5, 1, 4, 4, seed=0).to(dtype), randn(5, 1, 4, 4, seed=1).to(dtype)
    assert torch.equal(sd.slerp(a, b, 0), a)
    assert torch.equal(sd.slerp(a, b, 1.0), b)
    weight = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    found = sd.slerp(a, b, weight)
    assert found.dtype == dtype
    for i in range(5):
        assert torch.allclose(found[i : i + 1], sd.slerp(a[i : i + 1], b[i : i + 1], weight[i]))
    assert sd.slerp(a[:1], b, 0.3).shape == a.shape


def test_norms_are_kept_and_close_latents_do_no_harm() -> None:
    """Between latents of one norm; equal ones are the limit of small angles."""
    a, b = randn(3, 50, seed=0), randn(3, 50, seed=1)
    b = b * a.norm(dim=1, keepdim=True) / b.norm(dim=1, keepdim=True)
    assert torch.allclose(sd.slerp(a, b, 0.4).norm(dim=1), a.norm(dim=1))
    for near in (0.0, 1e-12, 1e-7):
        moved = a + near * b
        assert torch.allclose(sd.slerp(a, moved, 0.25), 0.75 * a + 0.25 * moved, atol=1e-13)


A = randn(3, 4, seed=0)
WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "opposite": ((A, torch.cat([A[:2], -2 * A[2:]]), 0.5), "sample 2 of a and b are opposite"),
    "zero": ((A, A * torch.tensor([[1.0], [0.0], [1.0]]), 0.5), "sample 1 of b is zero"),
    "weight": ((A, A, 1.5), r"in \[0, 1\]"),
    "not a number": ((A, A, math.nan), r"in \[0, 1\]"),
    "weights": ((A, A, torch.zeros(2)), r"a number or \(B,\)"),
    "counts": ((A, A[:2], 0.5), r"a number or \(B,\)"),
    "events": ((A, A[:, :3], 0.5), "must have one event"),
    "states": ((A, A.long(), 0.5), "b"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_has_no_answer_is_named(name: str) -> None:
    given, match = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=match):
        sd.slerp(*given)

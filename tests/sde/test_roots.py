"""The inverse of a falling function: exact where it answers, silent where it does not know."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.sde.roots import Inverse

SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "logarithm": lambda t: -2 * t.log(),
    "logarithms at both ends": lambda t: 2 * ((1 - t).log() - t.log()),
    "exponential": lambda t: torch.exp(-5 * t),
    "line": lambda t: 3.0 - 7.0 * t,
    "VP": lambda t: -2 * torch.expm1(0.1 * t + 9.95 * t**2).log(),
}
ROUGH: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {  # and where it is rough
    "kink": (lambda t: torch.where(t < 0.3, 1 - t, 0.7 - 5 * (t - 0.3)), 0.3),
    "jump": (lambda t: -t - (t >= 0.3).double(), 0.3),
    "flat": (lambda t: -t.clamp(max=0.3) - (t - 0.55).clamp(min=0), 0.3),
    "kink at a knot": (lambda t: torch.where(t < 0.25, 1 - t, 0.75 - 5 * (t - 0.25)), 0.25),
    "slight kink": (lambda t: -t - 1e-5 * (t - 0.37).clamp(min=0), 0.37),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_function_is_inverted_by_one_evaluation(name: str) -> None:
    calls = 0

    def function(t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return SMOOTH[name](t / 2)

    inverse = Inverse(function, 2.0)
    t = 2 * torch.cat(
        [
            torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
            torch.tensor([2e-6]),
        ]
    )
    value, calls = function(t), 0
    found, known = inverse(function, value)
    assert calls == 1
    inside = (t > 2e-6) & (t < 2 * (1 - 2e-6))
    assert float(known[inside].double().mean()) > 0.998  # a value may round to that of a knot
    torch.testing.assert_close(found[known], t[known], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ROUGH)
def test_where_a_function_is_rough_the_table_is_silent_or_right(name: str) -> None:
    function, at = ROUGH[name]
    near = at + torch.cat([s * torch.logspace(-16, -1, 200, dtype=torch.float64) for s in (-1, 1)])
    t = torch.cat([near, torch.tensor([at, 0.55], dtype=torch.float64)])
    value = function(t)
    found, known = Inverse(function, 1.0)(function, value)
    # the earliest time with that value
    first = torch.where((name == "flat") & (t > 0.3) & (t <= 0.55), 0.3, t)
    torch.testing.assert_close(found[known], first[known], rtol=0, atol=1e-12)
    assert not bool(known[-2]), "at the rough place itself"


def test_a_function_that_has_changed_is_noticed() -> None:
    """However little it has: what is found solves the new function."""
    t = torch.linspace(0.01, 0.99, 500, dtype=torch.float64)
    inverse = Inverse(lambda t: -2 * t.log(), 1.0)
    for change in (0.0, *10.0 ** -torch.arange(1.0, 17.0, dtype=torch.float64)):
        found, known = inverse(lambda t, c=change: -2 * t.log() - c * t, -2 * t.log() - change * t)
        torch.testing.assert_close(found[known], t[known], rtol=1e-13, atol=0)
        assert bool(known.all()) if change < 1e-12 else True
        assert not bool(known.any()) if change > 1e-3 else True
    level = torch.tensor([4.0], dtype=torch.float64)
    assert not bool(inverse(lambda t: 8 + 2 * t.log(), level)[1]), (
        "the right time, but the function rises there"
    )


def test_time_of_follows_a_schedule_that_changes() -> None:
    class Own(sd.LinearSDE):
        power = 1.0

        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:
            return t**self.power

    sde = Own()
    assert float(sde.time_of(2.0)) == pytest.approx(math.exp(-1.0), rel=1e-13)
    sde.power = 2.0
    assert float(sde.time_of(2.0)) == pytest.approx(math.exp(-0.5), rel=1e-13)
    with pytest.raises(ValueError, match="log_snr = -1 is never reached"):
        sde.time_of(torch.tensor([1.0, -1.0]))


def test_levels_are_those_of_each_alone() -> None:
    t = torch.linspace(0.01, 1, 7, dtype=torch.float64)
    own = sd.LinearSDE(f=lambda t: -0.5 - t, g=lambda t: 1 + t)
    for sde in (own, sd.VP(), sd.LinearSDE(alpha=lambda t: 1 - 0.9 * t, sigma=lambda t: t)):
        for together, alone in zip(
            sde.levels(t), (sde.alpha(t), sde.sigma(t), sde.log_snr(t)), strict=True
        ):
            torch.testing.assert_close(together, alone, rtol=0, atol=0)

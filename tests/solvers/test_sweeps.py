"""Contracts of solvers, noise and paths, by Hypothesis over random SDEs, grids, seeds and times."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from all_methods import GAUSSIAN, METHODS, Method
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from quiet import QUIET
from torch import Tensor

import sdediff as sd
from sdediff.exact.chain import affine_moments
from sdediff.reverse import Reverse
from sdediff.solvers.noise import STREAMS
from sdediff.testing import strategies
from sdediff.testing.equivalences.case import span

pytestmark = pytest.mark.slow
F64 = torch.float64
FIXED = [m for m in METHODS if not m.solver.adaptive and m.solver.times is None]
BY_THEIR_SEEDS = [m for m in FIXED if "song" not in repr(m.solver)]
CONSISTENT = [
    m
    for m in FIXED
    if (m.weak if m.solver.stochastic else m.deterministic) and "song" not in repr(m)
]


REFUSALS = re.compile(r"Restart: t_high|not finite at t|eta <= |singular|times as many steps")
"""Grids that a solver is not for, and says so."""


def refused(seen: Counter[str], solve: Callable[[], sd.Solution]) -> sd.Solution:
    """The solution; an example that the solver refuses in words before it begins is dropped."""
    try:
        out = solve()
    except ValueError as refusal:
        seen["refused"] += 1
        if not REFUSALS.search(str(refusal)):
            raise
        reject()
    seen["solved"] += 1
    return out


# -- contracts -------------------------------------------------------------------------------------


def test_contracts_of_a_solve() -> None:
    """A sample depends on its seed alone, its states are finite, evaluations are counted, and what
    is denoised is E[x_0 | x] of the state that is not.
    """
    seen: Counter[str] = Counter()

    @settings(QUIET, max_examples=200)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        solver = data.draw(st.sampled_from(BY_THEIR_SEEDS)).solver
        sde = data.draw(strategies.sdes())
        grid = data.draw(strategies.grids(sde, max_steps=6))
        law = data.draw(strategies.mixtures((2,)))
        model = law.model(sde)
        seeds = data.draw(st.lists(st.integers(0, 2**70), min_size=2, max_size=5, unique=True))
        order = data.draw(st.permutations(range(len(seeds))))[: len(seeds) - 1]
        z = torch.randn(len(seeds), 2, generator=torch.Generator().manual_seed(0), dtype=F64)
        x = sde.perturb(law.sample(len(seeds), seed=0), grid[0], z)

        def solve(rows: list[int], last: str = "noisy") -> sd.Solution:
            chosen = [seeds[i] for i in rows]
            options = {"solver": solver, "grid": grid, "seed": chosen, "last": last}
            return sd.sample(model, (len(rows), 2), x_init=x[rows], dtype=F64, **options)

        whole = refused(seen, lambda: solve(list(range(len(seeds)))))
        size = float(whole.x.abs().max()) + model.sde.prior.std
        assert bool(torch.isfinite(whole.x).all())
        assert int(whole.nfe.min()) >= len(grid) - 1
        if not isinstance(getattr(solver, "corrector", None), sd.solvers.MetropolisLangevin):
            part = solve(order)  # a row is accepted or not: rounding may decide
            assert torch.equal(part.nfe, whole.nfe[order])
            torch.testing.assert_close(part.x, whole.x[order], rtol=0, atol=1e-7 * size)
        clean = solve(list(range(len(seeds))), "denoise")
        assert torch.equal(clean.nfe, whole.nfe + 1)
        want = model.data(whole.x, grid[-1])
        torch.testing.assert_close(clean.x, want, rtol=1e-9, atol=1e-9 * size)

    holds()
    assert seen["solved"] > 3 * seen["refused"], seen


def error(sde: sd.LinearSDE, method: Method, n: int, lam: float) -> float:
    """Of mean and standard deviation of the chain on Gaussian data, in units of the law's, over
    the middle of the SDE's range in log-SNR.
    """
    first, last = sde.log_snr(torch.tensor(span(sde), dtype=F64)).clamp(-5, 5).tolist()
    grid = sde.time_of(torch.linspace(first, last, n + 1, dtype=F64))
    model, (mean, cov) = GAUSSIAN.model(sde), GAUSSIAN.moments(sde, grid[0])
    found, variance = affine_moments(
        lambda rows: Reverse(model, rows, lam),
        method.at(n),
        grid,
        mean,
        cov.diagonal().sqrt(),
    )
    mean, cov = GAUSSIAN.moments(sde, grid[-1])
    std = cov.sqrt()
    return float(((found - mean).abs().max() + (variance.sqrt() - std).abs().max()) / std.max())


def test_the_law_is_right_in_the_limit_of_small_steps() -> None:
    """Mean and variance without Monte Carlo, at any stochasticity: four times the steps leave less
    than 0.45 of the error, or 1e-8.
    """
    seen: Counter[str] = Counter()

    @settings(QUIET, max_examples=120)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        method = data.draw(st.sampled_from(CONSISTENT))
        sde = data.draw(strategies.sdes())
        lam = data.draw(st.sampled_from([1.0, 0.5, 0.0, 1.4])) if method.solver.solves_sde else 0.0
        coarse, fine = (refused(seen, lambda n=n: error(sde, method, n, lam)) for n in (32, 128))
        assert fine < max(0.45 * coarse, 1e-8), (method, sde, lam, coarse, fine)

    holds()
    assert seen["solved"] > 3 * seen["refused"], seen


# -- noise -----------------------------------------------------------------------------------------

EVENTS = st.one_of(st.just(()), strategies.event_shapes(), st.sampled_from([(70,), (5000,)]))
SEEDS = st.lists(st.integers(0, 2**80), min_size=1, max_size=6, unique=True)
DTYPES = st.sampled_from([torch.float32, F64])


@settings(QUIET, max_examples=400)
@given(st.data())
def test_noise_is_a_function_of_seed_stream_and_step(data: st.DataObject) -> None:
    """Whatever the batch, its order, the dtype and what was drawn before; other keys, other
    values.
    """
    seeds, event, dtype = data.draw(SEEDS), data.draw(EVENTS), data.draw(DTYPES)
    white = sd.White(seeds, event, dtype=dtype)
    keys = st.tuples(st.integers(0, 400), st.sampled_from(sorted(STREAMS)), st.integers(0, 3))
    asked = data.draw(st.lists(keys, min_size=2, max_size=4, unique=True))
    found = [white.at(step).normal(stream, k).clone() for step, stream, k in asked]
    assert {(tuple(z.shape), z.dtype) for z in found} == {((len(seeds), *event), dtype)}
    rows = data.draw(st.lists(st.integers(0, len(seeds) - 1), min_size=1, max_size=6))
    others = (
        white.take(torch.tensor(rows)),
        sd.White([seeds[i] for i in rows], event, dtype=dtype),
    )
    for (step, stream, k), z in reversed(list(zip(asked, found, strict=True))):
        for other in others:
            assert torch.equal(other.at(step).normal(stream, k), z[rows])
        wide = sd.White(seeds, event, dtype=F64).at(step).normal(stream, k)
        assert torch.equal(wide.to(dtype), z)
    values = torch.cat([z.flatten(1) if event else z[:, None] for z in found])[:, 0]
    same = sum(key[1] == "prior" for key in asked)  # one draw a solve: its steps are far apart
    assert len(values.unique()) == len(values) or same > 1


@settings(QUIET, max_examples=200)
@given(st.data())
def test_a_step_of_noise_is_one_path(data: st.DataObject) -> None:
    """The increment is sqrt(h) times the normal, and first of the pair; the integral's rest has
    the variance h^3 / 12 and another stream's normal.
    """
    white = sd.White(data.draw(SEEDS), data.draw(EVENTS), dtype=F64)
    noise = white.at(data.draw(st.integers(0, 100)))
    a, b = (torch.tensor(data.draw(st.integers(0, 1000)) / 500, dtype=F64) for _ in range(2))
    h = abs(float(a - b))
    z, (w, integral) = noise.over(a, b), noise.pair(a, b)
    tight = {"rtol": 1e-13, "atol": 1e-14}
    torch.testing.assert_close(noise.increment(a, b), h**0.5 * z, **tight)
    torch.testing.assert_close(w, h**0.5 * z, **tight)
    rest = (h**3 / 12) ** 0.5 * noise.normal("path", 1)
    torch.testing.assert_close(integral, 0.5 * h * w + rest, **tight)


# -- paths -----------------------------------------------------------------------------------------


@st.composite
def paths(draw: st.DrawFn, *, rows: int | None = None, area: bool | None = None):
    """A path in either direction, over equal intervals or others, and its arguments."""
    start, end = draw(st.sampled_from([(1.0, 0.0), (0.0, 2.0), (5.0, 4.9), (-1.0, 80.0)]))
    intervals: int | Tensor = draw(st.integers(1, 9))
    if draw(st.booleans()):
        parts = torch.tensor(draw(st.lists(st.integers(1, 5), min_size=2, max_size=6)), dtype=F64)
        shares = torch.cat([torch.zeros(1, dtype=F64), parts.cumsum(0) / parts.sum()])
        intervals = start + (end - start) * shares
        intervals[-1] = end
    seeds = draw(SEEDS) if rows is None else sd.seeds(draw(st.integers(0, 99)), rows)
    event = draw(EVENTS) if rows is None else ()
    options = {
        "intervals": intervals,
        "depth": draw(st.integers(4, 14)) if rows is None else 20,
        "area": draw(st.booleans()) if area is None else area,
        "dtype": F64,
    }
    return seeds, event, start, end, options


def made(arguments) -> sd.solvers.BrownianPath:
    seeds, event, start, end, options = arguments
    return sd.solvers.BrownianPath(seeds, event, start, end, **options)


def times_of(data: st.DataObject, one: sd.solvers.BrownianPath, count: int) -> list[Tensor]:
    """Times of the path in any order, nodes and neighbours of others among them.

    They are multiples of 2^-23: a time nearer to a node than 1e-6 of the finest cell is that node.
    """
    shares = st.one_of(
        st.integers(0, 64).map(lambda k: k / 64),
        st.integers(0, 2**23).map(lambda k: k / 2**23),
    )
    found = [data.draw(shares) for _ in range(count)]
    return [torch.tensor(one.start + (one.end - one.start) * each, dtype=F64) for each in found]


@settings(QUIET, max_examples=300)
@given(st.data())
def test_parts_of_a_path_add_up(data: st.DataObject) -> None:
    """Increments, their integrals where there are any, and the way back, over any three times."""
    one = made(data.draw(paths()))
    a, b, c = times_of(data, one, 3)
    span_of = abs(one.end - one.start)
    tight = {"rtol": 0, "atol": 1e-13 * (1 + span_of**1.5)}
    torch.testing.assert_close(
        one.increment(a, b) + one.increment(b, c), one.increment(a, c), **tight
    )
    torch.testing.assert_close(one.increment(c, a), -one.increment(a, c), **tight)
    h = float((a - c).abs())
    torch.testing.assert_close(one.over(a, c) * h**0.5, one.increment(a, c), **tight)
    if not one.area:
        return
    a, b, c = sorted((a, b, c), key=float, reverse=one.end < one.start)
    (w1, z1), (w2, z2), (w, z) = one.pair(a, b), one.pair(b, c), one.pair(a, c)
    torch.testing.assert_close(w1 + w2, w, **tight)
    torch.testing.assert_close(z1 + float((c - b).abs()) * w1 + z2, z, **tight)
    h = float((a - c).abs())
    torch.testing.assert_close(one.pair(c, a)[1], z - h * w, **tight)


@settings(QUIET, max_examples=200)
@given(st.data())
def test_a_path_is_one_whatever_is_asked(data: st.DataObject) -> None:
    """The same numbers in another batch, in another order, after other questions and for rows with
    times of their own; over base intervals those of `White`.
    """
    arguments = data.draw(paths())
    one, again = made(arguments), made(arguments)
    seeds, event = arguments[:2]
    ends = [tuple(times_of(data, one, 2)) for _ in range(4)]
    found = [one.increment(a, b) for a, b in ends]
    rows = data.draw(st.lists(st.integers(0, len(seeds) - 1), min_size=1, max_size=5))
    part = again.take(torch.tensor(rows))
    for (a, b), w in reversed(list(zip(ends, found, strict=True))):
        assert torch.equal(part.increment(a, b), w[rows])
    which = data.draw(st.lists(st.integers(0, 3), min_size=len(seeds), max_size=len(seeds)))
    a, b = (torch.stack([ends[i][side] for i in which]) for side in (0, 1))
    want = torch.stack([found[i][row] for row, i in enumerate(which)])
    size = float(want.abs().max())
    torch.testing.assert_close(made(arguments).increment(a, b), want, rtol=0, atol=1e-6 * size)
    white = sd.White(seeds, event, dtype=F64)
    knots = one._times
    step = data.draw(st.integers(0, len(knots) - 2))
    assert torch.equal(one.over(knots[step], knots[step + 1]), white.at(step).over(*knots[:2]))


@settings(QUIET, max_examples=40)
@given(st.data())
def test_refining_a_path_leaves_it_where_it_was(data: st.DataObject) -> None:
    """Halves of halves sum to the whole at every level; 4,000 rows of the middle given the ends
    have a bridge's mean and variance, and the integral given the increment h^3 / 12: 6 deviations.
    """
    rows = 4000
    one = made(data.draw(paths(rows=rows, area=True)))
    a, b = sorted(times_of(data, one, 2), key=float)
    h = float(b - a)
    if h < 1e-3 * abs(one.end - one.start):
        reject()
    w, z = one.pair(a, b)
    for level in (1, 3):
        cut = torch.linspace(0, 1, 2**level + 1, dtype=F64) * h + a
        parts = [one.pair(s, t) for s, t in itertools.pairwise(cut)]
        torch.testing.assert_close(sum(part for part, _ in parts), w, rtol=0, atol=1e-12 * (1 + h))
    share = data.draw(st.sampled_from([0.5, 0.3, 0.9]))
    rest = one.increment(a, a + share * h) - share * w
    error = 6 * 2**0.5 / rows**0.5
    variance = share * (1 - share) * h
    assert abs(float(rest.square().mean()) / variance - 1) < error
    assert abs(float((rest * w).mean())) < 6 * (variance * h / rows) ** 0.5
    left = z - 0.5 * h * w
    assert abs(float(left.square().mean()) / (h**3 / 12) - 1) < error
    assert abs(float((left * w).mean())) < 6 * (h**4 / 12 / rows) ** 0.5

"""A Brownian path for any times: its law, that it is one path, and that solvers converge along
it.
"""

from __future__ import annotations

import itertools
import tracemalloc
from functools import cache

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

import sdediff as sd
from sdediff.reverse import Reverse
from sdediff.solvers import Options, Solver, bridge, brownian, integrate
from sdediff.solvers.noise import STREAMS
from sdediff.testing.orders import fitted_order

MIXTURE = sd.exact.GaussianMixture([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.0]], 0.3)
X = torch.tensor([[0.3, -1.2], [1.4, 0.2], [-0.6, 0.9]], dtype=torch.float64)
F64 = torch.float64


def time(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def path(
    rows: int = 3, event: tuple[int, ...] = (2,), intervals: int | Tensor = 5, **options: object
) -> sd.solvers.BrownianPath:
    """From 1 down to 0.2: base intervals of 0.16."""
    return sd.solvers.BrownianPath(
        sd.seeds(7, rows), event, 1.0, 0.2, intervals=intervals, dtype=F64, **options
    )  # type: ignore[arg-type]


# Both ends of the path, ends of base intervals, dyadic parts of one, and others; within one
# interval, over several, backwards.
INTERVALS = [
    (1.0, 0.2),
    (0.84, 0.68),
    (0.92, 0.88),
    (0.93, 0.31),
    (0.9501, 0.9499),
    (0.99, 0.86),
    (0.5, 0.9),
    (0.21, 0.2),
]
N = 20_000
PINNED = """
-0x1.4e11f80000000p-3 -0x1.29ce240000000p-1 0x1.d538340000000p-1
0x1.51d2840000000p-3 -0x1.2bef000000000p-4 -0x1.6869380000000p-2
0x1.8b81840000000p-3 0x1.67362c0000000p-4 -0x1.0eef200000000p-3
-0x1.1b67ca0000000p+0 0x1.71680a0000000p-2 0x1.6838540000000p-2
""".split()


@pytest.mark.parametrize(("a", "b"), INTERVALS)
def test_law_of_an_increment_and_its_integral(a: float, b: float) -> None:
    """Kolmogorov-Smirnov of both, and of the integral given the increment, 20,000 samples; false
    alarm 3e-7 each.
    """
    w, z = path(N, ()).pair(time(a), time(b))
    h = abs(a - b)
    assert kstest((w / h**0.5).numpy(), "norm").pvalue > 3e-7
    assert kstest((z / (h**3 / 3) ** 0.5).numpy(), "norm").pvalue > 3e-7
    # cov(w, z) = h^2 / 2: what is left of z is independent of w, of variance h^3 / 12.
    rest = (z - 0.5 * h * w) / (h**3 / 12) ** 0.5
    assert kstest(rest.numpy(), "norm").pvalue > 3e-7
    assert abs(float((rest * w).mean()) / h**0.5) < 5.2 / N**0.5


def test_increments_are_independent() -> None:
    """Of 33 neighbouring intervals across nodes of all levels, with their integrals; 2,145 pairs,
    none beyond 6 deviations.
    """
    times = torch.cat(
        [
            torch.linspace(0.97, 0.6, 31, dtype=F64),
            torch.tensor([0.599999, 0.59999, 0.5999], dtype=F64),
        ]
    )
    one = path(N, ())
    pairs = [(one.pair(a, b), float(a - b)) for a, b in itertools.pairwise(times)]
    x = torch.stack(
        [w / h**0.5 for (w, _), h in pairs]
        + [(z - 0.5 * h * w) / (h**3 / 12) ** 0.5 for (w, z), h in pairs]
    )
    assert float((x @ x.T / N - torch.eye(len(x))).abs().max()) < 6 * 2**0.5 / N**0.5


@pytest.mark.parametrize(("i", "j"), [(1.0, 0.84), (0.84, 0.2)], ids=["one interval", "four"])
def test_a_bridge_given_its_ends(i: float, j: float) -> None:
    """Two points of it given w over the whole: mean by regression, variances and covariance (s -
    a)(b - t) / h; 6 deviations.
    """
    one, (r, s) = path(N, ()), (i - 0.3 * (i - j), i - 0.55 * (i - j))
    whole = one.increment(time(i), time(j))
    points = torch.stack([one.increment(time(i), time(t)) for t in (r, s)])
    rest = points - torch.tensor([[0.3], [0.55]], dtype=F64) * whole
    h = i - j
    want = h * torch.tensor([[0.3 * 0.7, 0.3 * 0.45], [0.3 * 0.45, 0.55 * 0.45]], dtype=F64)
    assert float((rest @ rest.T / N - want).abs().max()) < 6 * 0.5 * h * 0.5 / N**0.5
    assert float((rest @ whole / N).abs().max()) < 6 * 0.5 * h / N**0.5


@pytest.mark.parametrize(
    "times",
    [
        (0.93, 0.77, 0.31),
        (0.95, 0.94, 0.93),
        (0.84, 0.7, 0.2),
        (0.31, 0.5, 0.83),
        (0.5, 0.51, 0.5101),
    ],
)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_parts_add_up(times: tuple[float, float, float], dtype: torch.dtype) -> None:
    one = sd.solvers.BrownianPath(range(50), (3,), 1.0, 0.2, intervals=5, dtype=dtype)
    a, b, c = map(time, times)
    (w1, z1), (w2, z2), (w, z) = one.pair(a, b), one.pair(b, c), one.pair(a, c)
    tight = {"rtol": 0, "atol": 1e-14 if dtype == F64 else 1e-6}
    torch.testing.assert_close(w1 + w2, w, **tight)
    torch.testing.assert_close(z1 + abs(times[2] - times[1]) * w1 + z2, z, **tight)
    torch.testing.assert_close(one.increment(a, c), w, **tight)
    torch.testing.assert_close(one.over(a, c) * abs(times[0] - times[2]) ** 0.5, w, **tight)
    # From c to a: the integral is of w - w_c.
    back = one.pair(c, a)
    torch.testing.assert_close(back, (-w, z - abs(times[0] - times[2]) * w), **tight)


def test_many_small_parts_add_up() -> None:
    one, times = path(), torch.linspace(1.0, 0.2, 1001, dtype=F64)
    w = sum(one.increment(a, b) for a, b in itertools.pairwise(times))
    torch.testing.assert_close(w, one.increment(times[0], times[-1]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("area", [True, False])
def test_below_the_depth_the_path_is_a_parabola(area: bool) -> None:
    """Third differences vanish within the last cells, and only there; without areas second ones, of
    a line.
    """
    times = time(1.0) - 0.16 / 8 * torch.linspace(0.0, 1.0, 5, dtype=F64)
    for depth, smooth in ((3, True), (4, False)):
        one = path(depth=depth, area=area)
        w = torch.stack([one.increment(time(1.0), t) for t in times]).diff(dim=0).diff(dim=0)
        assert (float((w.diff(dim=0) if area else w).abs().max()) < 1e-14) == smooth


@pytest.mark.parametrize("area", [True, False])
def test_nodes_lie_on_the_path_beside_them(area: bool) -> None:
    """At dyadic parts of a base interval, which are of fewer normals, it is what it is 1e-9 away,
    but for 1e-5 of its size.
    """
    one = path(50, area=area)
    for level in range(1, 12):
        at = 1.0 - 0.16 * (1 + 3 / 2**level)
        near = one.increment(time(1.0), time(at - 1e-9))
        torch.testing.assert_close(one.increment(time(1.0), time(at)), near, rtol=0, atol=5e-5)


def test_over_base_intervals_it_is_white_noise() -> None:
    white = sd.White(sd.seeds(7, 3), (2,), dtype=F64)
    times = torch.linspace(1.0, 0.2, 6, dtype=F64)
    for options in ({"intervals": 5}, {"intervals": times}, {"area": False}):
        step = path(**options).at(3)  # type: ignore[arg-type]
        a, b = times[3], times[4]
        assert torch.equal(step.over(a, b), white.at(3).over(a, b))
        torch.testing.assert_close(
            step.increment(a, b), white.at(3).increment(a, b), rtol=1e-14, atol=0
        )
        if "area" not in options:
            torch.testing.assert_close(
                step.pair(a, b), white.at(3).pair(a, b), rtol=1e-13, atol=1e-16
            )
        for stream in set(STREAMS) - {"path"}:
            assert torch.equal(step.normal(stream, 2), white.at(3).normal(stream, 2))
        with pytest.raises(ValueError, match=r"noise\.over\(t, s\)"):
            step.normal("path")


def test_times_beside_the_ends_of_base_intervals_draw_no_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A grid that was computed in another way is off by rounding."""
    want = path().increment(time(0.84), time(0.36))
    monkeypatch.setattr(brownian, "keyed", None)
    for shift in (-2e-15, 0.0, 2e-15):
        found = path().increment(time(0.84 + shift), time(0.36 + shift))
        torch.testing.assert_close(found, want, rtol=0, atol=1e-14)


def test_the_values_are_these() -> None:
    """On every machine, as those of `White`; the nodes' stream is their own."""
    one = sd.solvers.BrownianPath([0, 2**32 + 1], (2,), 1.0, 0.0, intervals=4)
    other = sd.solvers.BrownianPath([0, 2**32 + 1], (2,), 1.0, 0.0, intervals=4, area=False)
    found = torch.stack([*one.pair(time(0.9), time(0.3)), other.increment(time(0.9), time(0.3))])
    assert [value.hex() for value in found.flatten().tolist()] == PINNED


def test_an_uneven_base() -> None:
    times = torch.tensor([1.0, 0.9, 0.3, 0.2], dtype=F64)
    one = path(N, (), times)
    w, z = one.pair(time(0.95), time(0.25))
    assert kstest((w / 0.7**0.5).numpy(), "norm").pvalue > 1e-6
    assert kstest((z / (0.7**3 / 3) ** 0.5).numpy(), "norm").pvalue > 1e-6


@pytest.mark.thin(7)
@pytest.mark.parametrize("event", [(), (3,), (4096,), (5000,)], ids=str)
@pytest.mark.parametrize("small", [None, 0, 2**40], ids=["as it is", "large", "small"])
@pytest.mark.parametrize("area", [True, False])
def test_values_do_not_depend_on_batch_or_order(
    event: tuple[int, ...], small: int | None, area: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [*sd.seeds(2, 3), 2**70]
    asked = [*INTERVALS[:6], (0.97, 0.9502)]

    def ask(rows: list[int], order: list[int]) -> dict[int, Tensor]:
        one = sd.solvers.BrownianPath(
            [seeds[i] for i in rows], event, 1.0, 0.2, intervals=5, depth=6, area=area
        )
        kinds = (one.increment, one.over, one.pair)[: 2 + area]
        return {
            i: torch.stack([each for kind in kinds for each in flat(kind(*map(time, asked[i])))])
            for i in order
        }

    def flat(found: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return found if isinstance(found, tuple) else (found,)

    whole = ask([0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6])
    if small is not None:
        for module in (bridge, brownian):
            monkeypatch.setattr(module, "SMALL", small)
    for rows, order in (
        ([0, 1, 2, 3], [6, 5, 4, 3, 2, 1, 0]),
        ([2, 0], [3, 1, 3, 0, 6]),
        ([3], [0, 6, 4, 5]),
    ):
        for i, part in ask(rows, order).items():
            assert torch.equal(part, whole[i][:, rows])


@pytest.mark.parametrize("event", [(3,), (4096,), (5000,)], ids=str)
def test_every_row_may_have_its_own_times(event: tuple[int, ...]) -> None:
    """The same numbers as those of the row alone; over one base interval, where products are
    grouped otherwise, to rounding.
    """
    a = torch.tensor([1.0, 0.93, 0.3, 0.84, 0.951, 0.4], dtype=F64)
    b = torch.tensor([0.2, 0.31, 0.9, 0.68, 0.95, 0.4], dtype=F64)
    one = sd.solvers.BrownianPath(sd.seeds(4, 6), event, 1.0, 0.2, intervals=5, depth=6)
    found = torch.stack([*one.pair(a, b), one.over(a, b)])
    apart = torch.stack([*one.pair(a, time(0.55)), one.over(a, time(0.55))])
    for i in range(6):
        alone, row = one.take(torch.tensor([i])), [i]
        want = torch.stack([*alone.pair(a[i], b[i]), alone.over(a[i], b[i])])
        if i == 3:
            torch.testing.assert_close(found[:, row], want, rtol=0, atol=1e-6)
        else:
            assert torch.equal(found[:, row], want)
        assert torch.equal(
            apart[:, row],
            torch.stack([*alone.pair(a[i], time(0.55)), alone.over(a[i], time(0.55))]),
        )
    assert bool((found[:, 5] == 0).all())


def grow(queries: int, rows: int) -> int:
    """Bytes that the second half of so many random queries, each row's its own, leaves behind."""
    one = sd.solvers.BrownianPath(range(rows), (), 0.0, 1.0, intervals=4, depth=6)
    times = torch.rand(
        queries // rows, 2, rows, generator=torch.Generator().manual_seed(0), dtype=F64
    )
    tracemalloc.start()
    for i, (a, b) in enumerate(times):
        one.pair(a, b)
        if i == len(times) // 2:
            before = tracemalloc.get_traced_memory()[0]
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return after - before


@pytest.mark.parametrize(
    ("queries", "rows"),
    [(300, 1), (100_000, 250), pytest.param(100_000, 1, marks=pytest.mark.slow)],
)
def test_memory_does_not_grow(queries: int, rows: int) -> None:
    """A sixteenth of what a hundredth of the queries would be that were kept."""
    assert grow(queries, rows) < 20_000


def test_what_is_kept_is_bounded() -> None:
    """The path at the last two times, whatever was asked."""
    one = sd.solvers.BrownianPath([0, 1], (2000,), 0.0, 1.0, intervals=4)
    for a, b in torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=F64):
        for ask in (one.increment, one.pair):
            ask(a, b)
            assert len(one._kept) <= 2
            assert (
                sum(place.base.nbytes for place in one._kept.values()) <= 2 * 2 * 2 * 2 * 2000 * 8
            )  # type: ignore[union-attr]


def test_a_step_that_begins_where_the_last_one_ended_draws_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn, keyed = [], brownian.keyed
    monkeypatch.setattr(
        brownian,
        "keyed",
        lambda words, ids, *rest: (drawn.append(len(ids)), keyed(words, ids, *rest))[1],
    )
    one = path(depth=9)
    one.increment(time(0.9301), time(0.7107))
    one.increment(time(0.7107), time(0.503))
    one.increment(time(0.7107), time(0.503))
    assert sum(drawn) == 3 * 9


# -- without time integrals ------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), INTERVALS)
def test_law_of_an_increment_alone(a: float, b: float) -> None:
    """Kolmogorov-Smirnov, 20,000 samples; false alarm 3e-7 each."""
    w = path(N, (), area=False).over(time(a), time(b))
    assert kstest(w.numpy(), "norm").pvalue > 3e-7


def test_increments_alone_are_independent() -> None:
    """Of 33 neighbouring intervals across nodes of all levels; 528 pairs, none beyond 6
    deviations.
    """
    times = torch.cat(
        [
            torch.linspace(0.97, 0.6, 31, dtype=F64),
            torch.tensor([0.599999, 0.59999, 0.5999], dtype=F64),
        ]
    )
    one = path(N, (), area=False)
    x = torch.stack([one.over(a, b) for a, b in itertools.pairwise(times)])
    assert float((x @ x.T / N - torch.eye(len(x))).abs().max()) < 6 * 2**0.5 / N**0.5


def test_it_takes_half_the_normals_and_refuses_integrals(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, keyed = [], brownian.keyed
    monkeypatch.setattr(
        brownian, "keyed", lambda *args: (sizes.append(args[-1] * len(args[1])), keyed(*args))[1]
    )
    for area in (True, False):
        path(area=area).increment(time(0.9301), time(0.7107))
    # two times, 20 levels, two normals for each of two numbers
    assert sizes[0] == 2 * sizes[1] == 2 * 20 * 2 * 2
    some, w = torch.tensor([2, 0]), path(area=False).increment(time(0.93), time(0.71))
    assert torch.equal(path(area=False).take(some).increment(time(0.93), time(0.71)), w[some])
    for a in (0.93, 1.0):
        with pytest.raises(
            ValueError, match=r"made with area=False it has no time integrals.*take area=True"
        ):
            path(area=False).pair(time(a), time(0.84))
    with pytest.raises(ValueError, match="take area=True"):
        integrate_by(sd.solvers.SRA1(), torch.linspace(1.0, 0.2, 8, dtype=F64), path(area=False))
    grid = torch.linspace(1.0, 0.2, 8, dtype=F64)
    ours, theirs = (
        integrate_by(solver, grid, path(area=False))
        for solver in (sd.EulerMaruyama(), sd.solvers.TorchSDE("euler"))
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


STRONG = {
    sd.EulerMaruyama(): 1.0,
    sd.solvers.SRA1(): 1.5,
    sd.solvers.SEEDS(2): 1.0,
    sd.solvers.ERSDE(2, scale=torch.square): 1.0,
}


@pytest.mark.thin(1)
@pytest.mark.parametrize("solver", STRONG, ids=lambda solver: type(solver).__name__)
def test_solvers_converge_along_one_path(solver: Solver) -> None:
    """20, 40 and 80 steps, which the 64 base intervals do not fit, against SRA3 in 200."""
    exact = end(sd.solvers.SRA3(), 200)
    errors = [float((end(solver, n) - exact).square().mean().sqrt()) for n in (20, 40, 80)]
    assert fitted_order(errors) > STRONG[solver] - 0.25, errors


@cache
def end(solver: Solver, steps: int) -> Tensor:
    rows, grid = 24, torch.linspace(0.8, 0.2, steps + 1, dtype=F64)
    smooth = sd.exact.GaussianMixture([[-0.5, 0.3], [0.5, 0.0], [0.2, -0.5]], 0.5)
    one = sd.solvers.BrownianPath(sd.seeds(0, rows), (2,), 0.8, 0.2, dtype=F64)
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    return integrate(Reverse(smooth.model(sd.VP()), rows, 1.0), solver, x, grid, one).x


@pytest.mark.thin(0)
def test_sampling_on_a_path() -> None:
    """The whole of `sample`: the prior is the seeds' own, a coarse solve ends near a fine one, and
    batches do not matter.
    """
    model, seeds = MIXTURE.model(sd.VP()), sd.seeds(3, 64)
    one = sd.solvers.BrownianPath(seeds, (2,), 1.0, 1e-3, intervals=160)
    options = {"solver": sd.solvers.SRA1(), "grid": "uniform", "t_end": 1e-3, "noise": one}
    fine, coarse = (sd.sample(model, (64, 2), steps=n, **options).x for n in (160, 80))  # type: ignore[arg-type]
    other = sd.sample(
        model,
        (64, 2),
        steps=80,
        seed=list(seeds),
        solver=sd.solvers.SRA1(),
        grid="uniform",
        t_end=1e-3,
    ).x
    near, far = ((x - fine).norm(dim=1).median() for x in (coarse, other))
    assert float(near) < 0.05 * float(far)
    parts = sd.sample(model, (64, 2), steps=80, batch_size=24, **options).x  # type: ignore[arg-type]
    torch.testing.assert_close(parts, coarse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [20, 33])
def test_euler_maruyama_is_that_of_torchsde_on_our_path(steps: int) -> None:
    grid = torch.linspace(1.0, 0.2, steps + 1, dtype=F64)
    ours, theirs = (
        integrate_by(solver, grid, path())
        for solver in (sd.EulerMaruyama(), sd.solvers.TorchSDE("euler"))
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def integrate_by(
    solver: sd.EulerMaruyama | sd.solvers.TorchSDE, grid: Tensor, noise: sd.solvers.BrownianPath
) -> Tensor:
    return solver.solve(Reverse(MIXTURE.model(sd.VP()), 3, 1.0), X, grid, noise, Options()).x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intervals": 0}, "intervals must be an int from 1"),
        ({"intervals": True}, "intervals must be an int from 1"),
        ({"intervals": torch.tensor([1.0, 0.5, 0.6, 0.2])}, "rise or fall"),
        ({"intervals": torch.tensor([1.0, 0.5])}, "not from 1 to 0.2"),
        ({"depth": 0}, "depth must be an int from 1 to 30"),
        ({"depth": 2.0}, "depth must be an int from 1 to 30"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        path(**change)  # type: ignore[arg-type]


def test_bad_ends_and_times() -> None:
    for start, end in ((0.5, 0.5), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="two different times"):
            sd.solvers.BrownianPath([0], (2,), start, end)
    one = path()
    for a, b in ((1.1, 0.5), (0.5, 0.1), (float("nan"), 0.5)):
        with pytest.raises(ValueError, match=r"times must lie between 1 and 0\.2"):
            one.increment(time(a), time(b))
    with pytest.raises(ValueError, match=r"times must be \(\) or \(3,\)"):
        one.increment(torch.ones(2, dtype=F64), time(0.5))
    with pytest.raises(ValueError, match="no derivative in time"):
        one.increment(time(0.5).requires_grad_(), time(0.3))


def test_no_rows_and_other_types() -> None:
    empty = sd.solvers.BrownianPath([], (2,), 0.0, 1.0)
    assert empty.increment(time(0.1), time(0.7)).shape == (0, 2)
    assert empty.increment(torch.zeros(0, dtype=F64), time(0.7)).shape == (0, 2)
    exact, half = (
        sd.solvers.BrownianPath([1, 2], (3,), 0.0, 1.0, dtype=d).increment(time(0.1), time(0.7))
        for d in (F64, torch.float16)
    )
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), exact, rtol=0, atol=2e-3)

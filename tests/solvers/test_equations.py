"""Any ODE and any SDE by functions: against matrix exponentials, exact laws, exact paths and exact
times of events.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import sdediff as sd
import solvers
from solvers import Event, solve_ode, solve_sde

A = torch.tensor([[0.0, 1.0], [-1.0, -0.2]], dtype=torch.float64)
X = torch.tensor([[1.0, 0.0], [2.0, -0.5], [0.3, 1.0]], dtype=torch.float64)
ONES = torch.ones(2000, 1, dtype=torch.float64)


def linear(x, t):
    return x @ A.T


def exact(t, x=X):
    return torch.stack([x @ torch.matrix_exp(A * float(s)).T for s in torch.atleast_1d(t)])


def turn(x, t):
    """The harmonic oscillator (x, v)."""
    return torch.stack([x[:, 1], -x[:, 0]], dim=1)


def grid(n, end=1.0):
    return torch.linspace(0, end, n + 1, dtype=torch.float64)


# -- ODEs ------------------------------------------------------------------------------------------

OTHERS = [
    solvers.RK45(1e-9, 1e-9),
    solvers.DOP853(1e-9, 1e-9),
    solvers.Tsit5(1e-9, 1e-9),
    solvers.SciPy("Radau", 1e-9, 1e-9),
    solvers.SciPy("BDF", 1e-10, 1e-10),
    solvers.TorchDiffEq("dopri5", 1e-9, 1e-9),
]


@pytest.mark.thin(4)
@pytest.mark.parametrize("end", [2.0, -2.0], ids=["rising", "falling"])
@pytest.mark.parametrize("solver", OTHERS, ids=lambda solver: repr(solver).split(",")[0])
def test_a_linear_system_is_the_matrix_exponential(solver, end):
    times = grid(4, end)
    out = solve_ode(linear, X, times, solver, dense=True)
    assert out.success
    assert torch.allclose(out.trajectory, exact(times), atol=3e-8, rtol=0)
    assert torch.equal(out.trajectory[-1], out.x)
    between = torch.linspace(0.1, 0.9, 7, dtype=torch.float64) * end
    # A cubic stands for the steps of other libraries, which are long at these tolerances.
    assert torch.allclose(
        out.dense(between), exact(between), atol=1e-4 if solver.external else 3e-8, rtol=0
    )
    assert torch.equal(out.dense(times[1]), out.trajectory[1])


@pytest.mark.parametrize(
    ("solver", "order"),
    [(solvers.Heun(), 2), (solvers.RungeKutta4(), 4), (solvers.DormandPrince(), 5)],
    ids=lambda value: repr(value),
)
def test_dense_output_has_the_order_of_the_solver(solver, order):
    between = torch.linspace(0.03, 1.97, 40, dtype=torch.float64)
    errors = []
    for n in (10, 20):
        out = solve_ode(linear, X, grid(n, 2.0), solver, dense=True)
        assert out.dense.order == order
        errors.append(float((out.dense(between) - exact(between)).abs().max()))
    assert math.log2(errors[0] / errors[1]) > order - 0.3


@pytest.mark.parametrize("end", [0.1, -0.1])
def test_dense_output_takes_the_ends_in_float32(end):
    out = solve_ode(linear, X, [0.0, end], dense=True)  # float32 0.1 is 0.1 + 1.5e-9
    assert torch.equal(out.dense(torch.tensor([0.0, end]))[-1], out.x)
    with pytest.raises(ValueError, match="not between them"):
        out.dense(end * (1 + 1e-8))


@pytest.mark.parametrize(
    "solver",
    [solvers.RK45(), solvers.Heun(), solvers.SciPy(), solvers.EulerMaruyama()],
    ids=repr,
)
def test_of_no_samples_and_of_no_way_there_is_dense_output_too(solver):
    def solve(x, times):
        watched = {"events": Event(lambda x, t: x[:, 0], terminal=True), "dense": True}
        if solver.stochastic:
            return solve_sde(linear, 0.3, x, times, solver, **watched)
        return solve_ode(linear, x, times, solver, **watched)

    out = solve(X[:0], [1.0, 0.0])
    assert out.dense([0.0, 0.5]).shape == (2, 0, 2)
    assert len(out.events[0].t) == 0
    assert torch.equal(solve(X, [1.0]).dense(1.0), X)


def test_dense_output_of_another_library_is_cubic():
    between = torch.linspace(0.03, 1.97, 40, dtype=torch.float64)
    errors = []
    for n in (10, 20):
        solver = solvers.SciPy("DOP853", 1e-10, 1e-10)
        # Steps of a tenth of a time unit: the grid is where it lands.
        out = solve_ode(linear, X, grid(n, 2.0), solver, dense=True)
        assert out.dense.order == 4
        errors.append(float((out.dense(between) - exact(between)).abs().max()))
    assert 3.7 < math.log2(errors[0] / errors[1]) < 5.5


def test_a_sample_has_its_own_steps_conditions_and_grid():
    stiffness = torch.tensor([[0.5], [40.0], [3.0]], dtype=torch.float64)

    def decay(x, t, k):
        return -k * x + solvers.expand(t, x).cos()

    out = solve_ode(decay, X, grid(1), condition={"k": stiffness}, dense=True)
    assert int(out.accepted[1]) > int(out.accepted[0])
    for i in range(3):
        alone = solve_ode(decay, X[i : i + 1], grid(1), condition={"k": stiffness[i : i + 1]})
        assert torch.allclose(alone.x, out.x[i : i + 1], rtol=1e-14, atol=0)
        assert alone.nfe[0] == out.nfe[i]
    own = torch.stack([grid(1)[:, None].squeeze(1) * s for s in (1.0, 0.5, 2.0)], dim=1)
    apart = solve_ode(linear, X, own, solvers.RK45(1e-9, 1e-9), dense=True)
    for i in range(3):
        assert torch.allclose(apart.x[i], exact(own[-1, i])[0, i], atol=1e-7)
    assert torch.allclose(apart.dense(0.5 * own)[1, 1], exact(own[-1, 1] / 2)[0, 1], atol=1e-7)


@pytest.mark.parametrize("grad", ["full", "checkpoint"])
def test_gradients_are_those_of_the_flow(grad):
    """d / dk of exp(-k) and of the time ln(2) / k at which half is left."""
    k = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    x = torch.ones(2, 1, dtype=torch.float64)
    half = Event(lambda x, t: x[:, 0] - 0.5)
    out = solve_ode(
        lambda x, t: -k * x, x, grid(1), solvers.RK45(1e-9, 1e-9), grad=grad, events=half
    )
    (found,) = torch.autograd.grad(out.x.sum(), k, retain_graph=True)
    assert float(found) == pytest.approx(-2 * math.exp(-1.3), abs=1e-7)
    (found,) = torch.autograd.grad(out.events[0].t[0], k)
    assert float(found) == pytest.approx(-math.log(2) / 1.3**2, abs=1e-6)


# -- events ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [10.0, -10.0], ids=["rising", "falling"])
def test_events_of_an_oscillator_are_at_known_times(end):
    """x = r cos(t - p): it falls through 0 at p + pi / 2 on a way with rising times."""
    phase = torch.tensor([0.0, 0.7, -0.4], dtype=torch.float64)
    x = torch.stack([phase.cos(), phase.sin()], dim=1)
    events = [
        Event(lambda x, t: x[:, 0]),
        Event(lambda x, t: x[:, 0], direction="falling"),
        Event(lambda x, t: x[:, 0] + 0.0 * t - 0.5, terminal=True, direction="rising"),
    ]
    out = solve_ode(turn, x, grid(1, end), solvers.DOP853(1e-12, 1e-12), events=events, dense=True)
    either, falling, last = out.events
    zeros = phase[:, None] + math.pi * (0.5 + torch.arange(-6, 6).double())
    rises = phase - math.pi / 3 if end > 0 else phase + math.pi / 3
    for i in range(3):
        way = math.copysign(1.0, end)
        stop = float((rises[i] * way) % (2 * math.pi))
        wanted = sorted(way * z for z in zeros[i].tolist() if 0 < way * z < stop)
        assert either.t[either.sample == i].mul(way).tolist() == pytest.approx(wanted, abs=1e-9)
        assert int((falling.sample == i).sum()) == 1
        assert float(last.t[i]) * way == pytest.approx(stop, abs=1e-9)
    assert out.status.tolist() == [sd.Status.EVENT] * 3
    assert out.success
    assert torch.equal(out.x, last.x)
    assert torch.equal(out.trajectory[-1], out.x)
    assert torch.equal(out.dense(end), out.x)
    assert torch.allclose(out.x[:, 0], torch.tensor(0.5, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize(
    "solver", [solvers.RK45(1e-10, 1e-10), solvers.RungeKutta4(), solvers.SciPy("RK45", 1e-10)]
)
def test_a_ball_that_bounces(solver):
    """Height h falls for sqrt(2 h / 9.81) and comes back at 0.8 of its speed, sample by sample."""
    fall = lambda x, t: torch.stack([x[:, 1], torch.full_like(x[:, 1], -9.81)], dim=1)  # noqa: E731
    ground = Event(lambda x, t: x[:, 0], terminal=True, direction="falling")
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    t, speed = torch.zeros(2, dtype=torch.float64), (2 * 9.81 * x[:, 0]).sqrt()
    wanted = speed / 9.81
    for _ in range(3):
        times = t + torch.linspace(0, 1.5, 16, dtype=torch.float64)[:, None]
        if solver.external:  # one grid for all: one sample at a time
            parts = [
                solve_ode(fall, x[i : i + 1], times[:, i], solver, events=ground) for i in (0, 1)
            ]
            t = torch.cat([part.events[0].t for part in parts])
            x = torch.cat([part.x for part in parts])
        else:
            out = solve_ode(fall, x, times, solver, events=ground)
            t, x = out.events[0].t, out.x
        assert torch.allclose(t, wanted, atol=1e-8, rtol=0)
        speed, x = 0.8 * speed, x * torch.tensor([0.0, -0.8], dtype=torch.float64)
        wanted = wanted + 2 * speed / 9.81


@pytest.mark.parametrize("heights", [(0.2, 0.5), (0.5, 0.2)])
def test_the_first_of_two_terminal_events_in_a_step_counts(heights):
    """From height 1 in one step of 1: 0.7 is passed, 0.5 ends the way, 0.3 and 0.2 are after it."""
    fall = lambda x, t: torch.stack([x[:, 1], torch.full_like(x[:, 1], -2.0)], dim=1)  # noqa: E731
    levels = [*((h, True) for h in heights), (0.7, False), (0.3, False)]
    events = [Event(lambda x, t, h=h: x[:, 0] - h, terminal=end) for h, end in levels]
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    out = solve_ode(fall, x, [0.0, 1.0], solvers.RungeKutta4(), events=events)
    found = {h: each.t.tolist() for (h, _), each in zip(levels, out.events, strict=True)}
    assert found == {
        0.2: [],
        0.3: [],
        0.5: [pytest.approx(math.sqrt(0.5), abs=1e-9)],
        0.7: [pytest.approx(math.sqrt(0.3), abs=1e-9)],
    }
    assert float(out.x[0, 0]) == pytest.approx(0.5, abs=1e-9)


def test_a_sample_that_has_ended_is_held():
    """x = 1 / (1 - t) ends at 3; were it to go on, it would come to infinity before the others."""
    x, seen = torch.tensor([[1.0], [0.1]], dtype=torch.float64), []
    out = solve_ode(
        lambda x, t: x.square(),
        x,
        grid(40, 4.0),
        solvers.RungeKutta4(),
        events=Event(lambda x, t: x[:, 0] - 3, terminal=True),
        callback=seen.append,
    )
    assert len(seen) == 40
    assert bool((seen[-1].x[:1] - 3).abs() < 1e-9)
    assert out.status.tolist() == [sd.Status.EVENT, 0]
    assert out.accepted.tolist() == [7, 40]
    assert float(out.x[1]) == pytest.approx(0.1 / 0.6, abs=1e-6)


@pytest.mark.parametrize("end", [1.0, -1.0], ids=["rising", "falling"])
def test_a_function_that_arrives_at_zero_and_stays_there(end):
    """The event is where it arrives, inside a step; a function that is always 0 has none."""
    stops = Event(lambda x, t: (0.3 - abs(t) + 0 * x[:, 0]).clamp(min=0), terminal=True)
    out = solve_ode(linear, X, [0.0, end], events=[stops, Event(lambda x, t: 0 * x[:, 0])])
    assert out.events[0].t.tolist() == [pytest.approx(math.copysign(0.3, end), abs=1e-10)] * 3
    assert out.events[1].t.tolist() == []


# -- SDEs ------------------------------------------------------------------------------------------


def pull(x, t):
    return -2.0 * x


def test_ornstein_uhlenbeck_has_its_moments_and_its_path():
    x = torch.full((40_000, 1), 1.5)
    out = solve_sde(pull, 0.7, x, grid(50), solvers.SRA1(), seed=3)
    mean, variance = 1.5 * math.exp(-2.0), 0.49 / 4 * (1 - math.exp(-4.0))
    assert float(out.x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 40_000))
    assert float(out.x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / 40_000))
    # Euler and Maruyama's scheme on known increments, by hand.
    few = torch.ones(3, 2, dtype=torch.float64)
    path = solvers.BrownianPath([1, 2, 3], (2,), 0.0, 1.0, dtype=torch.float64)
    found = solve_sde(pull, lambda x, t: 0.7 + 0 * x, few, grid(8), noise=path)
    times, y = grid(8), few
    for t, s in itertools.pairwise(times):
        y = y - 2.0 * y * (s - t) + 0.7 * path.increment(t, s)
    assert torch.allclose(found.x, y, atol=1e-14)
    for i in range(3):  # a sample depends on its seed alone
        own = solve_sde(pull, 0.7, few[:1], grid(8), seed=[out.seeds[i]])
        assert torch.equal(
            own.x, solve_sde(pull, 0.7, few, grid(8), seed=out.seeds[:3]).x[i : i + 1]
        )


def sra1(x, h, g, w, z):
    second = x - 0.75 * h * 2 * x + 1.5 * g[1] * z
    return x - 2 * h * (x + 2 * second) / 3 + w * g[1] + z * (g[0] - g[1])


def sra3(x, h, g, w, z):
    second = x - h * 2 * x
    third = x - 0.25 * h * 2 * (x + second) + (g[1] + 0.5 * g[0]) * z
    return x - 2 * h * (x + second + 4 * third) / 6 + w * g[1] + z * (g[0] - g[1])


@pytest.mark.parametrize("solver", [solvers.SRA1(), solvers.SRA3()], ids=repr)
def test_a_step_of_roesslers_methods_is_the_published_one(solver):
    """Roessler 2010, Table 6.3, on dx = -2 x dt + (1 + t)^2 dw. Where b depends on the time, this
    tells its ends apart; the orders do not, because exchanged weights in a stage have them too.
    """
    path = solvers.BrownianPath(range(3), (2,), 0.0, 0.4, dtype=torch.float64)
    b = lambda x, t: torch.ones_like(x) * (1 + t) ** 2  # noqa: E731
    found = solve_sde(pull, b, X, [0.0, 0.4], solver, structure="additive", noise=path)
    w, area = path.pair(*torch.tensor([0.0, 0.4], dtype=torch.float64))
    step = {"SRA1": sra1, "SRA3": sra3}[type(solver).__name__]
    assert torch.allclose(found.x, step(X, 0.4, (1.0, 1.96), w, area / 0.4), atol=1e-13, rtol=0)


def test_a_path_reaches_ends_that_were_rounded_to_float32():
    path = solvers.BrownianPath(range(3), (2,), 0.1, 1 / 3, dtype=torch.float64)
    times = torch.linspace(0.1, 1 / 3, 5)
    found = solve_sde(pull, 0.7, X, times, noise=path).x
    assert torch.allclose(found, solve_sde(pull, 0.7, X, times.double(), noise=path).x, atol=1e-6)
    with pytest.raises(ValueError, match=r"must lie between 0\.1 and 0\.333333"):
        solve_sde(pull, 0.7, X, times * 1.0001, noise=path)


def grow(x, t):
    return 0.5 * x


def shake(x, t):
    return 0.8 * x


def geometric(path, sense):
    """x exp((mu - sigma^2 / 2) t + sigma w) in Ito's sense, without the correction in the other."""
    shift = 0.32 if sense == "ito" else 0.0
    w = path.increment(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    return torch.exp(0.5 - shift + 0.8 * w)


STRONG = [
    (solvers.EulerMaruyama(), "ito", "diagonal", 0.5),
    (solvers.Milstein(), "ito", "diagonal", 1.0),
    (solvers.Milstein(), "stratonovich", "diagonal", 1.0),
    (solvers.StratonovichHeun(), "stratonovich", "diagonal", 1.0),
    (solvers.EulerMaruyama(), "ito", "general", 0.5),
    (solvers.Milstein(), "ito", "commutative", 1.0),
    (solvers.TorchSDE("milstein"), "stratonovich", "diagonal", 1.0),
    (solvers.TorchSDE("heun"), "stratonovich", "general", 1.0),
]


@pytest.mark.parametrize(
    ("solver", "sense", "structure", "order"), STRONG, ids=lambda value: str(value).split(",")[0]
)
def test_strong_orders_on_geometric_brownian_motion(solver, sense, structure, order):
    path = solvers.BrownianPath(range(2000), (1,), 0.0, 1.0, intervals=64, dtype=torch.float64)
    b = shake if structure == "diagonal" else lambda x, t: 0.8 * x[:, :, None]
    errors = []
    for n in (16, 64):
        out = solve_sde(
            grow, b, ONES, grid(n), solver, sense=sense, structure=structure, noise=path
        )
        errors.append(float((out.x - geometric(path, sense)).square().mean().sqrt()))
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(order, abs=0.12)


@pytest.mark.thin(0)
def test_steps_of_an_sde_are_the_samples_own():
    """On geometric Brownian motion: less error for less tolerance, and no trace of the batch."""
    x = ONES[:100]
    path = solvers.BrownianPath(range(100), (1,), 0.0, 1.0, depth=10, area=False, dtype=x.dtype)
    errors = []
    for tolerance in (0.3, 0.03):
        solver = solvers.AdaptiveMilstein(tolerance, tolerance)
        out = solve_sde(grow, shake, x, [0.0, 1.0], solver, noise=path)
        errors.append(float((out.x - geometric(path, "ito")).square().mean().sqrt()))
    assert errors[0] > 2 * errors[1]
    assert errors[1] < 0.06
    assert int(out.accepted.max()) > 2 * int(out.accepted.min())
    assert int(out.rejected.max()) > 0
    whole = solve_sde(grow, shake, x[:4], [0.0, 1.0], solvers.AdaptiveMilstein(), seed=2)
    alone = solve_sde(
        grow, shake, x[:1], [0.0, 1.0], solvers.AdaptiveMilstein(), seed=whole.seeds[3:]
    )
    assert torch.equal(alone.x[0], whole.x[3])


def test_the_senses_differ_by_the_drift_correction():
    """Ito's solution with a + b' b / 2 is Stratonovich's with a; where times fall the other way."""
    path = solvers.BrownianPath(range(2000), (1,), 0.0, 1.0, intervals=256, dtype=torch.float64)
    back = solvers.BrownianPath(range(2000), (1,), 1.0, 0.0, intervals=256, dtype=torch.float64)
    for noise, times, sign in ((path, grid(256), 1.0), (back, grid(256).flip(0), -1.0)):
        own = solve_sde(
            grow, shake, ONES, times, solvers.Milstein(), sense="stratonovich", noise=noise
        )
        moved = solve_sde(
            lambda x, t, sign=sign: (0.5 + sign * 0.32) * x,
            shake,
            ONES,
            times,
            solvers.Milstein(),
            noise=noise,
        )
        plain = solve_sde(grow, shake, ONES, times, solvers.Milstein(), noise=noise)
        scale = float(own.x.square().mean().sqrt())
        assert float((own.x - moved.x).square().mean().sqrt()) < 0.01 * scale
        assert float((own.x - plain.x).square().mean().sqrt()) > 0.2 * scale


def test_noise_that_commutes_in_two_dimensions():
    """dx_i = x_i sum_k s_ik dw_k has an exact path: a derivative given and one found agree."""
    s = torch.tensor([[0.5, 0.2, -0.3], [0.1, -0.4, 0.3]], dtype=torch.float64)
    path = solvers.BrownianPath(range(500), (3,), 0.0, 1.0, dtype=torch.float64)
    ends = torch.tensor(0.0).double(), torch.tensor(1.0).double()
    wanted = torch.exp(path.increment(*ends) @ s.T - 0.5 * s.square().sum(1))
    x = torch.ones(500, 2, dtype=torch.float64)

    def slope(x, t):
        return torch.einsum("ik,ij->ikj", s, torch.eye(2, dtype=torch.float64)).expand(
            len(x), 2, 3, 2
        )

    def solve(n, **more):
        return solve_sde(
            lambda x, t: 0.0 * x,
            lambda x, t: x[:, :, None] * s,
            x,
            grid(n),
            solvers.Milstein(),
            structure="commutative",
            noise=path,
            **more,
        ).x

    errors = [float((solve(n) - wanted).square().mean().sqrt()) for n in (16, 64)]
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(1.0, abs=0.12)
    assert torch.allclose(solve(16), solve(16, derivative=slope), atol=1e-14)


def test_the_path_between_steps_is_the_samples_own():
    """Dense output of an SDE follows the Brownian path, and a passage is found on it."""
    level = Event(lambda x, t: x[:, 0] - 1.2, terminal=True)
    x = torch.ones(50, 1, dtype=torch.float64)
    drift = lambda x, t: 0.0 * x  # noqa: E731
    out = solve_sde(drift, 1.0, x, grid(16), solvers.EulerMaruyama(), seed=1, events=level)
    path = solvers.BrownianPath(out.seeds, (1,), 0.0, 1.0, intervals=grid(16), dtype=x.dtype)
    hit = out.events[0]
    assert 20 < len(hit.sample) < 50
    start = torch.zeros(len(hit.sample), dtype=torch.float64)
    w = path.take(hit.sample).increment(start, hit.t)
    assert torch.allclose(1.0 + w, torch.tensor(1.2, dtype=x.dtype), atol=1e-4)
    free = solve_sde(drift, 1.0, x, grid(16), seed=1, dense=True)
    t = torch.tensor(0.61).double()
    assert torch.allclose(free.dense(t), 1.0 + path.increment(0.0 * t, t), atol=1e-12)


@pytest.mark.parametrize("grad", ["full", "checkpoint"])
def test_gradients_of_an_sde(grad):
    """x exp((mu - s^2 / 2) + s w): d / ds is x (w - s), of the scheme on 512 steps to 2 %."""
    s = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    path = solvers.BrownianPath(range(8), (1,), 0.0, 1.0, intervals=256, dtype=torch.float64)
    out = solve_sde(
        lambda x, t: 0.2 * x,
        lambda x, t: s * x,
        ONES[:8],
        grid(256),
        solvers.Milstein(),
        noise=path,
        grad=grad,
    )
    (found,) = torch.autograd.grad(out.x.sum(), s)
    w = path.increment(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    x = torch.exp(0.2 - 0.18 + 0.6 * w)
    assert float(found) == pytest.approx(float((x * (w - 0.6)).sum()), rel=0.02)


def test_simulate_takes_ode_solvers_where_nothing_diffuses():
    class Still(sd.SDE):
        T = 1.0

        def drift(self, x, t):
            return x @ A.T

        def diffusion(self, t):
            return torch.zeros_like(t)

    out = sd.simulate(Still(), X, solver=sd.RK45(1e-9, 1e-9))
    assert torch.allclose(out.x, exact(torch.tensor(1.0))[0], atol=1e-7)
    with pytest.raises(ValueError, match="integrates no diffusion"):
        sd.simulate(sd.VP(), X, solver=sd.RK45())


# -- errors ----------------------------------------------------------------------------------------

BAD = {
    "shape of f": ({"f": lambda x, t: x[:, :1]}, ValueError, r"shape of x, \(3, 2\)"),
    "no tensor": ({"f": lambda x, t: 1.0}, TypeError, "must return a tensor, got float"),
    "no function": ({"f": 3}, TypeError, "f must be a function"),
    "f writes": ({"f": lambda x, t: x.mul_(2)}, ValueError, r"f\(x, t\) writes to x in place"),
    "times turn": ({"times": [0.0, 1.0, 0.5]}, ValueError, "not strictly monotone"),
    "times of others": ({"times": torch.ones(2, 4).cumsum(0)}, ValueError, "4 grids for 3"),
    "x is whole": ({"x": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "real numbers"),
    "x is nan": ({"x": X / 0.0}, ValueError, "not finite"),
    "noise": ({"solver": solvers.EulerMaruyama()}, ValueError, "an ODE has none: take RK45"),
    "needs": ({"solver": solvers.UniPC(2)}, ValueError, "this problem does not offer"),
    "solver class": ({"solver": solvers.RK45}, TypeError, "pass an instance"),
    "event": ({"events": [3]}, TypeError, "must be Event objects"),
    "no event": ({"events": lambda x, t: x[:, 0]}, TypeError, "must be Event objects"),
    "bools of g": ({"events": Event(lambda x, t: x[:, 0] > 1)}, TypeError, "not bools"),
    "complex f": ({"f": lambda x, t: torch.complex(x, x)}, TypeError, "real numbers, got"),
    "condition without names": ({"condition": [X]}, TypeError, "must be a dict"),
    "shape of g": ({"events": Event(lambda x, t: x)}, ValueError, r"one number a sample, \(3,\)"),
    "condition": ({"condition": {"k": torch.ones(2)}}, ValueError, "3 rows, one a sample"),
    "option": ({"evnts": ()}, TypeError, "takes no option 'evnts' .did you mean 'events'"),
    "grad": ({"grad": "some"}, ValueError, "grad must be one of"),
    "t over the last axis": (
        {"f": lambda x, t: x * t, "x": X[:2], "times": [1.0, 2.0]},
        ValueError,
        "shape t for x first",
    ),
    "grad of SciPy": (
        {"solver": solvers.SciPy(), "grad": "full"},
        ValueError,
        "which keeps no graph",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments_of_an_ode(name):
    changed, kind, words = BAD[name]
    given = {"f": linear, "x": X, "times": [0.0, 1.0]} | changed
    with pytest.raises(kind, match=words):
        solve_ode(**given)


REFUSED = {
    "ode solver": ({"solver": solvers.RK45()}, "integrates no diffusion: take EulerMaruyama"),
    "general Milstein": (
        {"solver": solvers.Milstein(), "structure": "general"},
        "iterated integrals of pairs",
    ),
    "additive solver": ({"solver": solvers.SRA1()}, "does not depend on the state"),
    "sense of Euler": ({"sense": "stratonovich"}, r"hand over the drift a \+ 1/2"),
    "sense of Heun": ({"solver": solvers.StratonovichHeun()}, r"hand over the drift a - 1/2"),
    "torchsde": (
        {"solver": solvers.TorchSDE("srk"), "structure": "general"},
        "structure='general': take EulerMaruyama",
    ),
    "not additive": ({"structure": "additive"}, "differs from b"),
    "no matrix": ({"structure": "general"}, r"must return \(rows, d, m\)"),
    "a matrix": ({"diffusion": lambda x, t: x[:, :, None]}, "structure='general'"),
    "not diagonal": (
        {"solver": solvers.Milstein(), "diffusion": lambda x, t: x.flip(1)},
        "others than coordinate i",
    ),
    "not commutative": (
        {
            "solver": solvers.Milstein(),
            "structure": "commutative",
            "diffusion": lambda x, t: torch.stack([x, x.flip(1).square()], dim=2),
        },
        "do not commute",
    ),
    "no derivative": (
        {"solver": solvers.Milstein(), "diffusion": lambda x, t: 0.8 * x.detach()},
        "torch finds no derivative",
    ),
    "wrong derivative": (
        {"solver": solvers.Milstein(), "derivative": lambda x, t: 0.7 + 0 * x},
        "differs from the differences of b",
    ),
    "wrong derivative of a matrix": (
        {
            "solver": solvers.Milstein(),
            "structure": "commutative",
            "diffusion": lambda x, t: x[:, :, None] * torch.tensor([1.0, 2.0]).double(),
            "derivative": lambda x, t: torch.ones(3, 2, 2, 2).double(),
        },
        "differs from the differences of b",
    ),
    "white and dense": ({"noise": solvers.White(range(3), (2,)), "dense": True}, "a BrownianPath"),
    "torchsde dense": ({"solver": solvers.TorchSDE("euler"), "dense": True}, "between its steps"),
    "noise of others": ({"noise": solvers.White(range(3), (4,))}, r"noise is for \(3, 4\)"),
    "two noises": ({"noise": solvers.White(range(3), (2,)), "seed": 1}, "pass one of them"),
    "seeds": ({"seed": [1, 2]}, "one for each of 3 samples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_refused_with_an_alternative(name):
    changed, words = REFUSED[name]

    def drift(x, t):
        raise AssertionError("the drift was evaluated")

    given = {"drift": drift, "diffusion": shake, "x": X, "times": [0.0, 1.0]} | changed
    with pytest.raises(ValueError, match=words):
        solve_sde(**given)


@pytest.mark.parametrize("solver", [solvers.RK45(), solvers.Heun(), solvers.SciPy()], ids=repr)
def test_a_failure_names_the_sample_and_the_time(solver):
    def broken(x, t):
        late = solvers.expand(t + 0 * x[:, 0].double(), x) > 0.5
        return torch.where(late & (x[:, :1] > 1.5), torch.nan, 0.1 * x)

    with pytest.raises(
        sd.SolveError, match=r"sample 1 failed at t = 0\.\d+: f's output is not finite"
    ):
        solve_ode(broken, X, grid(10), solver, dense=True)
    out = solve_ode(broken, X, grid(10), solver, on_fail="return")
    assert out.status.tolist() == [0, sd.Status.NETWORK_NOT_FINITE, 0]
    assert torch.allclose(out.x[[0, 2]], X[[0, 2]] * math.exp(0.1), rtol=1e-3)

"""What the arguments of `sample` mean, and what happens when something is wrong."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.networks import MLP, initialised
from sdediff.solvers import Snapshot, Status

VP = sd.VP()
SOLVER = sd.EulerMaruyama()


def model(std: float = 0.5) -> sd.ScoreModel:
    return sd.exact.Gaussian([0.2, -0.1], std**2).model(VP)


def broken(at: float, sample: float, value: float = float("nan")) -> sd.ScoreModel:
    """A model whose output goes bad below t = ``at`` where the third coordinate, which never moves,
    is ``sample``.
    """
    exact = sd.exact.Gaussian([0.2, -0.1], 0.25).model(VP)

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        out = exact.net(x, t)
        bad = (label == sample) & (t < at)
        return torch.where(bad[:, None], torch.full_like(out, value), out)

    return sd.ScoreModel(net, VP, "v")


def test_last_step_policies() -> None:
    """noisy: the state at t_min; mean: without the last noise; denoise: E[x_0 | x] of the noisy
    state. NFE tells them apart.
    """
    m = model()
    out = {
        last: sd.sample(m, (4, 2), solver=SOLVER, steps=20, seed=0, last=last, dtype=torch.float64)
        for last in ("noisy", "mean", "denoise")
    }
    torch.testing.assert_close(
        out["denoise"].x, m.data(out["noisy"].x, VP.t_min), rtol=0, atol=1e-12
    )
    white = sd.White(sd.seeds(0, 4), (2,), dtype=torch.float64)
    t, s = out["noisy"].times[-2], out["noisy"].times[-1]
    torch.testing.assert_close(
        out["noisy"].x - out["mean"].x, VP.g(t) * white.at(19).increment(t, s), rtol=0, atol=1e-12
    )
    assert [int(out[k].nfe[0]) for k in ("noisy", "mean", "denoise")] == [20, 20, 21]


def test_default_last_depends_on_t_end() -> None:
    m = model()
    assert sd.sample(m, (1, 2), solver=SOLVER, steps=5, seed=0).nfe.tolist() == [6]
    assert sd.sample(m, (1, 2), solver=SOLVER, steps=5, seed=0, t_end=0.3).nfe.tolist() == [5]


@pytest.mark.parametrize(
    "solver",
    [sd.DDIM(), sd.DDIM(1.0), sd.solvers.UniPC(3), sd.solvers.ERSDE(), sd.Heun(variable="sigma")],
    ids=repr,
)
@pytest.mark.parametrize("sde", [VP, sd.EDM(), sd.RectifiedFlow()], ids=repr)
def test_an_end_at_the_data(sde: sd.LinearSDE, solver: sd.Solver) -> None:
    """t_end=0.0 takes N - 1 steps of the grid by name, and one to sigma = 0: what is denoised from
    t_min; nothing is denoised again. An array may end so too.
    """
    law = sd.exact.GaussianMixture([[-0.5, 0.3], [0.5, 0.0], [0.2, -0.5]], 0.3).model(sde)

    def end(last: str, **given: object) -> sd.Solution:
        return sd.sample(
            law, (3, 2), solver=solver, seed=0, last=last, dtype=torch.float64, **given
        )  # type: ignore[arg-type]

    grid = "karras"
    whole = end("noisy", steps=6, t_end=0.0, grid=grid)
    short = end("denoise", steps=5, grid=grid)
    assert whole.times.tolist() == [*short.times.tolist(), 0.0]
    torch.testing.assert_close(whole.x, short.x, rtol=0, atol=1e-12)
    for again in (end("denoise", steps=6, t_end=0.0, grid=grid), end("noisy", grid=whole.times)):
        assert torch.equal(again.x, whole.x)
        assert torch.equal(again.nfe, whole.nfe)
    assert torch.equal(whole.nfe, short.nfe)


def test_the_grid_of_edm_and_who_cannot_step_to_its_end() -> None:
    """18 steps of Heun's method are 35 evaluations, as published."""
    edm = sd.exact.Gaussian([0.2, -0.1], 0.25).model(sd.EDM())
    out = sd.sample(edm, (2, 2), solver=sd.Heun(), steps=18, t_end=0.0, seed=0)
    assert out.nfe.tolist() == [35] * 2
    one = sd.sample(edm, (2, 2), solver=sd.DDIM(), steps=1, t_end=0.0, seed=0)
    assert one.times.tolist() == [80.0, 0.0]
    for solver, message in (
        (sd.Heun(variable="log_snr"), "infinite at t = 0, an end of the grid"),
        (sd.solvers.StochasticHeun(), "at t = 0, where sigma = 0: there is no noise"),
    ):
        with pytest.raises(ValueError, match=message):
            sd.sample(edm, (2, 2), solver=solver, steps=4, t_end=0.0, seed=0)
    with pytest.raises(ValueError, match="outside the usable range"):
        sd.encode(edm, torch.zeros(2, 2), steps=4, t_start=0.0)


def test_a_stochasticity_a_step_is_that_function_of_time() -> None:
    """To the bit for a solver that looks lambda up, and where alpha vanishes at the start."""
    m = model()
    values = [0.0, 1.0, 0.5, 1.5, 0.0]
    times = sd.sample(m, (1, 2), solver=SOLVER, steps=5, seed=0).times

    def at(t: Tensor) -> Tensor:
        rows = zip(values, times[:-1], times[1:], strict=True)
        return sum((value * ((t <= a) & (t > b)) for value, a, b in rows), 0 * t)

    one, two = (
        sd.sample(m, (3, 2), solver=SOLVER, steps=5, seed=0, stochasticity=given).x
        for given in (values, at)
    )
    assert torch.equal(one, two)
    flow = sd.exact.Gaussian([0.2, -0.1], 0.25).model(sd.RectifiedFlow(t_max=1.0))
    for solver in (sd.solvers.SASolver(2), sd.solvers.Ancestral()):
        one, two = (
            sd.sample(flow, (3, 2), solver=solver, steps=5, seed=0, stochasticity=given).x
            for given in ([0.7] * 5, 0.7)
        )
        torch.testing.assert_close(one, two)
    for given, message in (
        ([1.0, 0.5], r"one number for each of the 5 steps; got shape \(2,\)"),
        ([1.0] * 4 + [-1.0], "finite and >= 0"),
        ("1", "stochasticity must be a number, got '1'; one for all samples, a function"),
    ):
        with pytest.raises(ValueError, match=message):
            sd.sample(m, (3, 2), solver=SOLVER, steps=5, seed=0, stochasticity=given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chooses its own steps, so that stochasticity has no num"):
        sd.sample(m, (3, 2), solver=sd.AdaptiveSDE(), stochasticity=values)
    with pytest.raises(ValueError, match="one grid for all samples"):
        sd.sample(
            m,
            (2, 2),
            solver=SOLVER,
            steps=5,
            t_start=torch.tensor([0.5, 0.6]),
            x_init=torch.zeros(2, 2),
            stochasticity=values,
        )


def test_grids() -> None:
    m = model()
    uniform = sd.sample(m, (1, 2), solver=SOLVER, steps=4, seed=0)
    torch.testing.assert_close(uniform.times, torch.linspace(1, 1e-3, 5, dtype=torch.float64))
    quadratic = sd.sample(m, (1, 2), solver=SOLVER, steps=4, grid="quadratic", seed=0)
    torch.testing.assert_close(
        quadratic.times.sqrt(), torch.linspace(1, 1e-3**0.5, 5, dtype=torch.float64)
    )
    assert quadratic.times[-1] == 1e-3
    array = sd.sample(m, (1, 2), solver=SOLVER, grid=[1.0, 0.6, 0.001], seed=0)
    function = sd.sample(
        m,
        (1, 2),
        solver=SOLVER,
        steps=2,
        grid=lambda n: torch.tensor([1.0, 0.6, 0.001], dtype=torch.float64),
        seed=0,
    )
    assert torch.equal(array.x, function.x)
    assert array.times.dtype == torch.float64
    part = sd.sample(
        m, (1, 2), solver=SOLVER, steps=2, seed=0, t_start=0.5, t_end=0.1, x_init=torch.zeros(1, 2)
    )
    torch.testing.assert_close(part.times, torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64))


def test_trajectory_runs_from_the_prior_to_the_sample() -> None:
    out = sd.sample(model(), (3, 2), solver=SOLVER, steps=6, seed=4, trajectory=True)
    assert out.trajectory is not None
    assert out.trajectory.shape == (7, 3, 2)
    prior = VP.prior.from_noise(sd.White(sd.seeds(4, 3), (2,)).at(0).normal("prior"))
    torch.testing.assert_close(out.trajectory[0], prior)
    assert torch.equal(out.trajectory[-1], out.x)
    two = sd.sample(model(), (3, 2), solver=SOLVER, grid=out.times[:4], seed=4, last="noisy")
    assert torch.equal(out.trajectory[3], two.x)


def test_callback_sees_every_step() -> None:
    seen: list[Snapshot] = []
    out = sd.sample(
        model(), (3, 2), solver=SOLVER, steps=6, seed=4, callback=seen.append, last="noisy"
    )
    assert [s.step for s in seen] == list(range(1, 7))
    assert seen[-1].done == 1.0
    assert torch.equal(seen[-1].x, out.x)
    assert [int(s.nfe[0]) for s in seen] == list(range(1, 7))


def test_seed_none_is_fresh_and_reported() -> None:
    one, two = (sd.sample(model(), (2, 2), solver=SOLVER, steps=3) for _ in range(2))
    assert one.seeds is not None
    assert two.seeds is not None
    assert one.seeds != two.seeds
    assert torch.equal(one.x, sd.sample(model(), (2, 2), solver=SOLVER, steps=3, seed=one.seeds).x)


def test_conditions_follow_their_rows() -> None:
    def net(x: Tensor, t: Tensor, centre: Tensor) -> Tensor:
        time = t.double()
        alpha, sigma = VP.alpha(time)[:, None].to(x), VP.sigma(time)[:, None].to(x)
        return sigma * (x - alpha * centre) / (alpha**2 * 0.01 + sigma**2)

    centre = torch.tensor([[3.0], [-2.0], [0.5], [7.0], [-5.0]])
    for solver in (sd.RK45(), sd.DDIM()):
        out = sd.sample(
            sd.ScoreModel(net, VP),
            (5, 1),
            solver=solver,
            steps=None if solver.adaptive else 40,
            seed=0,
            condition={"centre": centre},
            batch_size=2,
        )
        # Standard deviation 0.1 about each centre.
        assert float((out.x - centre).abs().max()) < 0.5


def test_default_solvers() -> None:
    # an evaluation a step, and one at the end
    assert int(sd.sample(model(), (1, 2), seed=0, steps=7).nfe) == 8
    out = sd.sample(model(), (1, 2), seed=0)
    assert int(out.accepted) > 3
    assert out.success


def test_float32_follows_float64(gaussian: sd.exact.Gaussian) -> None:
    for solver in (
        sd.EulerMaruyama(),
        sd.solvers.Ancestral(),
        sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin()),
        sd.Heun(),
    ):
        single, double = (
            sd.sample(gaussian.model(VP), (6, 2), solver=solver, steps=50, seed=1, dtype=d).x
            for d in (torch.float32, torch.float64)
        )
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4)


def test_evaluation_mode_for_sampling_only() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.modes: list[bool] = []

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.modes.append(self.training)
            return x

    net = Net().train()
    sd.sample(sd.ScoreModel(net, VP), (1, 2), solver=SOLVER, steps=2, seed=0)
    assert net.modes == [False] * 3
    assert net.training


def test_gradients_through_a_solve() -> None:
    """d x / d x_init of the exact flow is the ratio of standard deviations; checkpointing gives the
    same.
    """
    data = sd.exact.Gaussian([0.0, 0.0], 0.25)
    grads = []
    for grad in ("full", "checkpoint"):
        x = torch.tensor([[0.3, -0.8]], dtype=torch.float64, requires_grad=True)
        out = sd.sample(
            data.model(VP),
            (1, 2),
            solver=sd.solvers.RungeKutta4(),
            steps=60,
            x_init=x,
            t_start=0.9,
            t_end=0.2,
            grad=grad,
            dtype=torch.float64,
        )
        grads.append(torch.autograd.grad(out.x[0, 0], x)[0])
    var_t, var_s = (float(data.moments(VP, t)[1][0, 0]) for t in (0.9, 0.2))
    torch.testing.assert_close(
        grads[0],
        torch.tensor([[(var_s / var_t) ** 0.5, 0.0]], dtype=torch.float64),
        rtol=1e-5,
        atol=1e-9,
    )
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)
    assert not sd.sample(data.model(VP), (1, 2), solver=SOLVER, steps=2, seed=0).x.requires_grad


@pytest.mark.uses_global_rng
def test_a_device_that_is_not_the_models() -> None:
    with pytest.raises(
        ValueError,
        match=r"the model is on cpu and device is meta; move the model first: model.to\('meta'\)",
    ):
        sd.sample(
            sd.ScoreModel(torch.nn.Linear(2, 2), VP),
            (1, 2),
            solver=SOLVER,
            steps=2,
            seed=0,
            device="meta",
        )


def test_threads_do_not_mix() -> None:
    m, results = model(), {}

    def solve(seed: int) -> None:
        results[seed] = sd.sample(m, (8, 2), solver=SOLVER, steps=50, seed=seed).x

    threads = [threading.Thread(target=solve, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert torch.equal(
            results[seed], sd.sample(m, (8, 2), solver=SOLVER, steps=50, seed=seed).x
        )


FAMILIES = (
    sd.EulerMaruyama(),
    sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin()),
    sd.Heun(),
    sd.RK45(),
)


@pytest.mark.parametrize("solver", FAMILIES, ids=repr)
def test_a_sample_that_fails_names_itself_and_spares_its_neighbours(solver: sd.RK45) -> None:
    kw = {
        "solver": solver,
        "steps": None if solver.adaptive else 20,
        "seed": 0,
        "dtype": torch.float64,
    }
    label = {"label": torch.tensor([0.0, 1.0, 2.0])}
    with pytest.raises(
        sd.SolveError, match=r"sample 1 failed at t = 0\.\d+: the network's output is not finite"
    ) as caught:
        sd.sample(broken(0.4, 1.0), (3, 2), condition=label, **kw)
    out = sd.sample(broken(0.4, 1.0), (3, 2), condition=label, on_fail="return", **kw)
    healthy = sd.sample(broken(0.4, 9.0), (3, 2), condition=label, **kw)
    assert out.status.tolist() == [0, Status.NETWORK_NOT_FINITE, 0]
    assert torch.equal(out.x[[0, 2]], healthy.x[[0, 2]])
    assert torch.equal(caught.value.solution.x, out.x)
    assert bool(torch.isfinite(out.x).all())
    (failure,) = out.failures
    assert failure.sample == 1
    assert 0.3 < failure.t < 0.8  # the start of the step
    assert not out.success
    assert int(out.accepted[1]) < int(healthy.accepted[1])
    if not solver.adaptive:
        assert out.accepted[[0, 2]].tolist() == [20, 20]
        assert float(out.times[int(out.accepted[1])]) == failure.t
    assert healthy.success


def test_a_state_that_overflows_is_told_from_a_network_that_fails() -> None:
    out = sd.sample(
        broken(0.4, 1.0, 3e38),
        (2, 2),
        solver=SOLVER,
        steps=20,
        seed=0,
        condition={"label": torch.tensor([0.0, 1.0])},
        on_fail="return",
    )
    assert out.status.tolist() == [0, Status.STATE_NOT_FINITE]


def test_nan_in_the_last_evaluation_only() -> None:
    out = sd.sample(
        broken(0.002, 1.0),
        (2, 2),
        solver=SOLVER,
        steps=20,
        seed=0,
        condition={"label": torch.tensor([0.0, 1.0])},
        on_fail="return",
    )
    assert out.status.tolist() == [0, Status.NETWORK_NOT_FINITE]
    assert bool(torch.isfinite(out.x).all())
    with pytest.raises(sd.SolveError, match=r"t = 0\.001"):
        sd.sample(
            broken(0.002, 1.0),
            (2, 2),
            solver=SOLVER,
            steps=20,
            seed=0,
            condition={"label": torch.tensor([0.0, 1.0])},
        )


@pytest.mark.parametrize("solver", [sd.EulerMaruyama(), sd.RK45(1e-6, 1e-6)], ids=repr)
def test_max_nfe_is_never_exceeded(solver: sd.RK45) -> None:
    steps = None if solver.adaptive else 40
    out = sd.sample(
        model(), (3, 2), solver=solver, steps=steps, seed=0, max_nfe=30, on_fail="return"
    )
    assert out.status.tolist() == [Status.MAX_NFE] * 3
    assert int(out.nfe.max()) <= 30
    with pytest.raises(sd.SolveError, match="max_nfe is reached"):
        sd.sample(model(), (3, 2), solver=solver, steps=steps, seed=0, max_nfe=30)
    assert sd.sample(model(), (3, 2), solver=SOLVER, steps=29, seed=0, max_nfe=30).success
    assert not sd.sample(
        model(), (3, 2), solver=SOLVER, steps=30, seed=0, max_nfe=30, on_fail="return"
    ).success


def test_step_underflow_is_reported() -> None:
    """A drift like 1 / (t - 0.5) has no integral across 0.5: steps shrink with the distance to it,
    to nothing.
    """

    def net(x: Tensor, t: Tensor) -> Tensor:
        return 1 / (t - 0.5)[:, None].clamp(min=1e-30) + 0 * x

    out = sd.sample(
        sd.ScoreModel(net, VP),
        (1, 1),
        solver=sd.RK45(1e-6, 1e-6),
        seed=0,
        max_nfe=20_000,
        on_fail="return",
        dtype=torch.float64,
    )
    assert out.status.tolist() == [Status.STEP_TOO_SMALL]
    assert out.failures[0].t == pytest.approx(0.5, abs=1e-9)


X = torch.zeros(3, 2)
BAD = [
    ({"model": lambda x, t: x}, TypeError, "wrap the network"),
    ({"shape": (0, 2)}, ValueError, "positive ints"),
    ({"shape": (3, 2.5)}, ValueError, "positive ints"),
    ({"solver": sd.EulerMaruyama}, TypeError, r"write EulerMaruyama\(\)"),
    ({"solver": "euler-maruyama"}, TypeError, r"did you mean sdediff.solvers.EulerMaruyama\(\)"),
    ({"solver": "ddim"}, TypeError, r"did you mean sdediff.solvers.DDIM\(\)"),
    ({"solver": "dpm_solver++"}, TypeError, r"did you mean sdediff.solvers.DPMSolverPP\(\)"),
    ({"steps": None}, ValueError, "pass steps=N, or grid"),
    ({"steps": 0}, ValueError, "at least 1"),
    ({"steps": 2.0}, ValueError, "at least 1"),
    ({"grid": [1.0, 0.5]}, ValueError, "drop steps"),
    (
        {"steps": None, "grid": [1.0, 0.5], "t_end": 0.5},
        ValueError,
        "drop steps, t_start and t_end",
    ),
    (
        {"steps": None, "grid": [1.0, 0.5, 0.5, 0.1]},
        ValueError,
        "not strictly monotone: times 1 and 2 are 0.5 and 0.5",
    ),
    ({"steps": None, "grid": [1.0, 0.3, 0.5, 0.1]}, ValueError, "not strictly monotone"),
    ({"steps": None, "grid": [0.001, 0.5, 1.0]}, ValueError, "the grid must fall"),
    ({"steps": None, "grid": [1.0, float("nan")]}, ValueError, "not finite"),
    ({"steps": None, "grid": [1.0, 1e-5]}, ValueError, "outside the usable range"),
    ({"grid": "quadratc"}, ValueError, "did you mean 'quadratic'"),
    ({"grid": lambda n: torch.linspace(1, 0.1, n)}, ValueError, r"steps \+ 1 = 6 times"),
    ({"t_start": 1.5}, ValueError, "outside the usable range"),
    ({"t_end": 1e-5}, ValueError, "outside the usable range"),
    ({"t_start": 0.5}, ValueError, "needs x_init"),
    ({"last": "clean"}, ValueError, "last must be one of"),
    ({"on_fail": "ignore"}, ValueError, "on_fail must be one of"),
    ({"grad": True}, ValueError, "grad must be one of"),
    ({"seed": 0, "noise": sd.White([0] * 3, (2,))}, ValueError, "pass one of them"),
    ({"seed": [1, 2]}, ValueError, "got 2 of them"),
    ({"seed": -1}, ValueError, "non-negative"),
    ({"x_init": torch.zeros(2, 2)}, ValueError, r"shape \(3, 2\)"),
    ({"x_init": X.long()}, ValueError, "floating-point tensor"),
    ({"x_init": X / 0}, ValueError, "not finite"),
    ({"stochasticity": -1}, ValueError, "finite number >= 0"),
    ({"solver": sd.DDIM(), "stochasticity": 0.5}, ValueError, "stochasticity must be 0"),
    ({"stochasticity": lambda t: t - 0.5}, ValueError, "must be finite and >= 0.*got -0.499"),
    ({"stochasticity": lambda t: t[:2]}, ValueError, r"shaped as t, \(6,\); got shape \(2,\)"),
    ({"condition": {"y": torch.zeros(2)}}, ValueError, "leading dimension 3"),
    ({"condition": {"y": "3"}}, ValueError, "leading dimension 3"),
    ({"condition": {"y": 3}}, TypeError, "the network takes no condition 'y'; it takes none"),
    ({"batch_size": 0}, ValueError, "batch_size must be"),
    ({"max_nfe": 0}, ValueError, "max_nfe must be"),
    (
        {"solver": sd.RK45(), "steps": None, "max_nfe": 7},
        ValueError,
        "takes 8 evaluations to make its first step",
    ),
    ({"dtype": torch.float16}, ValueError, "float32 or torch.float64"),
    ({"solver": sd.RK45()}, ValueError, "chooses its own steps"),
    ({"solver": sd.RK45(), "steps": None, "grid": "uniform"}, ValueError, "chooses its own steps"),
    ({"solver": sd.DDPM.from_sde(VP, 5)}, ValueError, "a grid of its own"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_is_refused_before_the_network_is_called(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    calls = 0

    def net(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x

    arguments = {
        "model": sd.ScoreModel(net, VP),
        "shape": (3, 2),
        "solver": SOLVER,
        "steps": 5,
    } | change
    if "seed" not in arguments and "noise" not in arguments:
        arguments["seed"] = 0
    with pytest.raises(error, match=message) as caught:
        sd.sample(**arguments)  # type: ignore[arg-type]
    assert calls == 0
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sd.RK45(rtol=-1), "rtol must be"),
        (lambda: sd.RK45(0, 0), "cannot both be 0"),
        (lambda: sd.Langevin(snr=0), "snr must be"),
        (lambda: sd.Langevin(n_steps=-1), "n_steps must be"),
        (lambda: sd.PredictorCorrector(sd.RK45(), sd.Langevin()), "chooses its own steps"),
        (lambda: sd.PredictorCorrector(sd.DDIM(), sd.Langevin(), "both"), "sequence must be"),
    ],
)
def test_bad_solver_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
    with pytest.raises(TypeError, match="must be a solver such as"):
        sd.PredictorCorrector(sd.ReverseDiffusion, sd.Langevin())  # type: ignore[arg-type]


def test_compile_is_refused_where_the_batch_changes() -> None:
    model = sd.exact.Gaussian([0.0, 0.0], 1.0).model(sd.VP())
    for solver in (sd.RK45(), sd.AdaptiveSDE()):
        with pytest.raises(
            ValueError,
            match=r"samples leave the batch as they arrive.*take a solver with fixed steps",
        ):
            sd.sample(model, (2, 2), solver=solver, compile=True)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_samples() -> None:
    net = initialised(lambda: MLP(2, 16, 2), 0)
    model = sd.ScoreModel(net, sd.VP())
    plain, compiled = (
        sd.sample(model, (8, 2), steps=6, seed=0, compile=on) for on in (False, True)
    )
    torch.testing.assert_close(compiled.x, plain.x, rtol=1e-4, atol=1e-5)
    assert model.net is net

"""What crosses between the library and functions of users: dtypes, and tensors that both hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdediff as sd
from sdediff.predict import outputs

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
VP = sd.VP()
X = torch.linspace(-1, 1, 8, dtype=F64).reshape(4, 2)
CONDITION = {"level": torch.linspace(0, 1, 4, dtype=F64), "label": torch.arange(4)}


class Joint(nn.Module):
    """A network that joins x, t and a condition, as networks do that fail on mixed dtypes."""

    def __init__(self, dtype: torch.dtype, time: torch.dtype | None = None) -> None:
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, 4, 2, dtype=dtype)
        self.time, self.calls = time or dtype, 0
        with torch.no_grad():
            self.linear.weight.copy_(torch.linspace(-0.4, 0.5, 8).reshape(2, 4))
            self.linear.bias.zero_()

    def forward(self, x: Tensor, t: Tensor, level: Tensor, label: Tensor) -> Tensor:
        self.calls += 1
        assert t.dtype == self.time
        assert label.dtype == torch.int64
        return self.linear(torch.cat([x, t[:, None].to(x.dtype), level[:, None]], dim=1))  # type: ignore[no-any-return]


def chain_model(net: nn.Module) -> tuple[sd.DDPM, sd.ScoreModel]:
    chain = sd.DDPM.from_sde(VP, 5)
    return chain, sd.ScoreModel(net, chain.to_sde())


def bound(net: nn.Module, x: Tensor) -> Tensor:
    chain, model = chain_model(net)
    return sd.discrete.variational_bound(
        chain, model, x, bins=None, condition=CONDITION, seed=0
    ).total


def ddpm_loss(net: nn.Module, x: Tensor) -> Tensor:
    chain, model = chain_model(net)
    return sd.discrete.DDPMLoss(chain, "vlb")(
        model, x, CONDITION, generator=torch.Generator().manual_seed(0)
    )


def loss(objective: Any) -> Callable[[nn.Module, Tensor], Tensor]:
    def value(net: nn.Module, x: Tensor) -> Tensor:
        return objective(
            sd.ScoreModel(net, VP), x, CONDITION, generator=torch.Generator().manual_seed(0)
        )  # type: ignore[no-any-return]

    return value


def diagnosis(net: nn.Module, x: Tensor) -> Tensor:
    return torch.tensor(
        list(sd.diagnose(sd.ScoreModel(net, VP), x, condition=CONDITION).errors.values())
    )


USES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "sample": lambda net, x: (
        sd.sample(
            sd.ScoreModel(net, VP),
            (4, 2),
            steps=3,
            seed=0,
            condition=CONDITION,
            dtype=torch.promote_types(x.dtype, F32),
        ).x
    ),
    "encode": lambda net, x: sd.encode(sd.ScoreModel(net, VP), x, steps=3, condition=CONDITION).x,
    "adaptive": lambda net, x: (
        sd.encode(
            sd.ScoreModel(net, VP), x, solver=sd.solvers.RK23(1e-2, 1e-2), condition=CONDITION
        ).x
    ),
    "log_prob": lambda net, x: (
        sd.log_prob(sd.ScoreModel(net, VP), x, steps=3, condition=CONDITION).value
    ),
    "diagnose": diagnosis,
    "methods": lambda net, x: sd.ScoreModel(net, VP).data(x, 0.5, **CONDITION),
    "bound": bound,
    "DDPMLoss": ddpm_loss,
    "DenoisingScoreMatching": loss(sd.DenoisingScoreMatching()),
    "ImplicitScoreMatching": loss(sd.objectives.ImplicitScoreMatching()),
    "SlicedScoreMatching": loss(sd.objectives.SlicedScoreMatching()),
    "VariationalDiffusion": loss(sd.objectives.VariationalDiffusion()),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("net", "data"), [(F32, F64), (BF16, F32), (F32, BF16), (F64, F32), (F16, F16), (F32, F16)]
)
def test_the_network_sees_its_own_dtype_everywhere(
    use: str, net: torch.dtype, data: torch.dtype
) -> None:
    module = Joint(net)
    out = USES[use](module, X.to(data))
    assert module.calls
    assert out.dtype in ((F32, F64) if use != "methods" else (data,))
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("use", [use for use in USES if use not in ("sample", "diagnose")])
def test_half_precision_data_are_those_numbers_in_float32(use: str) -> None:
    half = X.to(BF16)
    found, whole = USES[use](Joint(F32), half), USES[use](Joint(F32), half.float())
    torch.testing.assert_close(found, whole.to(BF16) if use == "methods" else whole, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_function_without_parameters_sees_the_dtype_of_the_state(dtype: torch.dtype) -> None:
    seen: set[tuple[torch.dtype, ...]] = set()

    def net(x: Tensor, t: Tensor, level: Tensor, label: Tensor) -> Tensor:
        seen.add((x.dtype, t.dtype, level.dtype, label.dtype))
        return 0.5 * x

    model = sd.ScoreModel(net, VP)
    sd.sample(model, (4, 2), steps=2, seed=0, condition=CONDITION, dtype=dtype)
    sd.encode(model, X.to(dtype), solver=sd.solvers.RK23(1e-2, 1e-2), condition=CONDITION)
    sd.DenoisingScoreMatching()(
        model, X.to(dtype), CONDITION, generator=torch.Generator().manual_seed(0)
    )
    outputs(model, X.to(BF16 if dtype == F32 else dtype), torch.tensor(0.5, dtype=F64), CONDITION)
    assert seen == {(dtype, dtype, dtype, torch.int64)}


def test_time_dtype_and_integer_times_take_precedence() -> None:
    sd.sample(
        sd.ScoreModel(Joint(BF16, F32), VP, time_dtype=F32),
        (4, 2),
        steps=2,
        seed=0,
        condition=CONDITION,
    )
    integers = sd.ScoreModel(
        Joint(BF16, torch.int64), VP, time=sd.network_time.Timesteps(1000, rounded=True)
    )
    sd.sample(integers, (4, 2), steps=2, seed=0, condition=CONDITION)


def test_losses_of_half_precision_do_not_overflow() -> None:
    """An error of 300 has the square 9e4, above the largest float16; under autocast the output is
    bfloat16.
    """
    net = nn.utils.skip_init(nn.Linear, 2, 2, dtype=F16)
    nn.init.zeros_(net.weight)
    nn.init.constant_(net.bias, 300.0)
    noise = torch.zeros(4, 2, dtype=F16)
    found = sd.DenoisingScoreMatching()(
        sd.ScoreModel(lambda x, t: net(x), VP), X.to(F16), noise=noise, generator=torch.Generator()
    )
    torch.testing.assert_close(found, torch.full((4,), 9e4), rtol=1e-6, atol=0)
    whole = Joint(F32)
    with torch.autocast("cpu", dtype=BF16):
        mixed = loss(sd.DenoisingScoreMatching())(whole, X.float())
    assert mixed.dtype == F32
    torch.testing.assert_close(
        mixed, loss(sd.DenoisingScoreMatching())(whole, X.float()), rtol=2e-2, atol=1e-3
    )
    assert not torch.equal(mixed, mixed.to(BF16).to(F32))


def test_autocast_is_the_networks_alone() -> None:
    """Without a network's layers nothing of a solve, a likelihood or a loss changes under it."""
    model = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.2).model(VP)
    x = X.float()
    calls: list[Callable[[], Tensor]] = [
        lambda: sd.sample(model, (4, 2), solver=sd.ExponentialMultistep(3), steps=4, seed=0).x,
        lambda: sd.sample(model, (4, 2), solver=sd.solvers.SRA1(), steps=4, seed=0).x,
        lambda: sd.sample(model, (4, 2), solver=sd.RK45(1e-2, 1e-2), seed=0).x,
        lambda: sd.log_prob(model, x, steps=3, divergence="hutch++", seed=0).value,
        lambda: sd.objectives.SlicedScoreMatching()(
            model, x, generator=torch.Generator().manual_seed(0)
        ),
        lambda: sd.objectives.VariationalDiffusion()(
            model, x, generator=torch.Generator().manual_seed(0)
        ),
    ]
    for call in calls:
        plain = call()
        with torch.autocast("cpu", dtype=BF16):
            torch.testing.assert_close(call(), plain, rtol=0, atol=0)


# -- tensors that both hold ------------------------------------------------------------------------


def relu(x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
    return torch.relu_(x)


def paste(x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
    x[:, 0] = 1.0
    return 0.5 * x


def scaled_time(x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
    t.view(-1)[:1].mul_(2)
    return 0.5 * x


def scaled_condition(x: Tensor, t: Tensor, level: Tensor, label: Tensor) -> Tensor:
    level.mul_(2)
    return 0.5 * x


EDITS = {relu: "x", paste: "x", scaled_time: "t", scaled_condition: "level"}


@pytest.mark.parametrize(
    "solver",
    [sd.solvers.Euler(), sd.solvers.DPMSolverPP(), sd.EulerMaruyama(), sd.RK45(), sd.AdaptiveSDE()],
)
@pytest.mark.parametrize("edit", EDITS)
def test_a_network_that_writes_to_its_input_is_refused(
    solver: sd.Solver, edit: Callable[..., Tensor]
) -> None:
    steps = None if solver.adaptive else 4
    start, given = X.clone(), {name: value.clone() for name, value in CONDITION.items()}
    with pytest.raises(
        ValueError, match=f"the network writes to {EDITS[edit]} in place.*{EDITS[edit]}.clone()"
    ):
        sd.sample(
            sd.ScoreModel(edit, VP),
            (4, 2),
            solver=solver,
            steps=steps,
            seed=0,
            x_init=start,
            condition=given,
            dtype=F64,
        )
    torch.testing.assert_close([start, given["level"]], [X, CONDITION["level"]], rtol=0, atol=0)


@pytest.mark.parametrize("use", [use for use in USES if use != "log_prob"])
def test_the_refusal_is_everywhere(use: str) -> None:
    class Rough(Joint):
        def forward(self, x: Tensor, t: Tensor, level: Tensor, label: Tensor) -> Tensor:
            level.mul_(2)
            return super().forward(x, t, level, label)

    with pytest.raises(ValueError, match=r"the network writes to level"):
        USES[use](Rough(F64), X)


def test_under_inference_mode_the_rules_are_those_of_elsewhere() -> None:
    """A solve leaves that mode, whose tensors have no counters that tell of a write; a single call
    hands over copies.
    """
    tidy = sd.ScoreModel(lambda x, t: torch.relu(x), VP)
    rough = sd.ScoreModel(relu, VP)
    calls = [
        lambda model, x: sd.encode(model, x, solver=sd.solvers.Euler(), steps=4).x,
        lambda model, x: (
            sd.sample(model, (4, 2), solver=sd.solvers.DPMSolverPP(), steps=4, seed=0).x
        ),
    ]
    with torch.inference_mode():
        x = X.clone()
        for call in calls:
            found = call(tidy, x)
            with pytest.raises(ValueError, match="writes to x in place"):
                call(rough, x)
            torch.testing.assert_close(found, call(tidy, X.clone()), rtol=0, atol=0)
        torch.testing.assert_close(rough.score(x, 0.5), tidy.score(x, 0.5), rtol=0, atol=0)
        torch.testing.assert_close(x, X, rtol=0, atol=0)


SOLVERS = [
    sd.DDIM(),
    sd.solvers.DPMSolverPP(),
    sd.solvers.UniPC(),
    sd.ExponentialMultistep(3),
    sd.Heun(),
    sd.solvers.RungeKutta4(),
    sd.RK45(1e-3, 1e-3),
    sd.AdaptiveSDE(0.3, 0.3),
]


@pytest.mark.thin(13)
@pytest.mark.parametrize("predicts", ["data", "noise", "score", "v"])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_network_may_write_all_outputs_to_one_tensor(solver: sd.Solver, predicts: str) -> None:
    buffer = torch.zeros(4, 2)

    def reuse(x: Tensor, t: Tensor) -> Tensor:
        return torch.mul(x, 0.3, out=buffer) if x.shape == buffer.shape else 0.3 * x

    steps = None if solver.adaptive else 5
    a, b = (
        sd.sample(sd.ScoreModel(net, VP, predicts), (4, 2), solver=solver, steps=steps, seed=0).x
        for net in (reuse, lambda x, t: 0.3 * x)
    )
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_diagnose_keeps_both_outputs_of_a_network_that_reuses_its_tensor() -> None:
    buffer = torch.zeros(256, 2, dtype=F64)
    nets = (lambda x, t: torch.mul(x, 0.3, out=buffer), lambda x, t: 0.3 * x)
    one, other = (sd.diagnose(sd.ScoreModel(net, VP), X).errors for net in nets)
    assert one == other


def test_a_constraint_may_work_in_place() -> None:
    """Also where the data prediction is the network's output itself, which may be a buffer of the
    network's.
    """
    buffer = torch.full((4, 2), 2.0)
    model = sd.ScoreModel(lambda x, t: buffer, VP, "data")
    a = sd.sample(
        model.constrained(lambda x_0: x_0.clamp_(-1, 1)), (4, 2), solver=sd.DDIM(), steps=4, seed=0
    ).x
    torch.testing.assert_close(a, torch.ones(4, 2), rtol=0, atol=0)
    torch.testing.assert_close(buffer, torch.full((4, 2), 2.0), rtol=0, atol=0)


def test_drifts_and_scores_of_users_are_read_only() -> None:
    class Rough(sd.SDE):
        T = 1.0

        def drift(self, x: Tensor, t: Tensor) -> Tensor:
            return x.mul_(-1)

        def diffusion(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

    start = X.clone()
    with pytest.raises(ValueError, match="the drift of Rough writes to x in place"):
        sd.simulate(Rough(), start, steps=4, seed=0)
    torch.testing.assert_close(start, X, rtol=0, atol=0)
    for clock, lam, what in (
        (lambda t: t.mul_(2), 1.0, "time"),
        ("t", lambda t: t.mul_(2), "stochasticity"),
    ):
        model = sd.ScoreModel(lambda x, t: 0.3 * x, VP, time=clock)
        with pytest.raises(ValueError, match=f"{what} writes to t in place"):
            sd.sample(model, (4, 2), solver=sd.EulerMaruyama(), steps=3, seed=0, stochasticity=lam)
    loss = sd.DenoisingScoreMatching(lambda sde, t: t.mul_(2))
    with pytest.raises(ValueError, match="weighting writes to t in place"):
        loss(model, X, generator=torch.Generator())
    with pytest.raises(ValueError, match="log_prob writes to x in place"):
        sd.mcmc.run(
            sd.mcmc.RandomWalk(0.5), lambda x: -x.square_().sum(dim=1), start, steps=2, seed=0
        )
    with pytest.raises(ValueError, match="features writes to x in place"):
        sd.metrics.frechet_distance(start, start + 1, features=lambda x: x.mul_(2), floor=0)


@pytest.mark.thin(3)
@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize(
    "solver",
    [
        sd.solvers.Euler(),
        sd.solvers.DPMSolverPP(),
        sd.EulerMaruyama(),
        sd.RK45(),
        sd.AdaptiveSDE(),
        sd.solvers.SciPy(),
        sd.solvers.TorchDiffEq(),
    ],
    ids=repr,
)
def test_what_a_callback_does_to_its_snapshot_stays_there(
    solver: sd.Solver, progress: bool
) -> None:
    def spoil(snapshot: sd.solvers.Snapshot) -> None:
        for part in snapshot:
            if isinstance(part, Tensor):
                part.mul_(0)

    model = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.2).model(VP)
    steps = None if solver.adaptive or solver.external else 6
    a, b = (
        sd.sample(
            model,
            (4, 2),
            solver=solver,
            steps=steps,
            seed=0,
            callback=call,
            trajectory=True,
            progress=progress,
        )
        for call in (None, spoil)
    )
    torch.testing.assert_close(
        [b.x, b.trajectory, b.times, b.nfe], [a.x, a.trajectory, a.times, a.nfe], rtol=0, atol=0
    )


@pytest.mark.parametrize("grad", ["full", "checkpoint"])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_graph_that_torch_does_not_keep_is_refused(guard: Any, grad: Any) -> None:
    model = sd.exact.Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]).model(VP)
    calls: list[Callable[[], object]] = [
        lambda: sd.sample(model, (2, 2), steps=3, seed=0, grad=grad),
        lambda: sd.encode(model, X, steps=3, grad=grad),
        lambda: sd.decode(model, X, steps=3, grad=grad),
        lambda: sd.log_prob(model, X, steps=3, grad=grad),
        lambda: sd.simulate(VP, X, steps=3, seed=0, grad=grad),
    ]
    for call in calls:
        with (
            guard(),
            pytest.raises(
                ValueError, match=f"grad='{grad}' keeps the graph.*torch.{guard.__name__} is on"
            ),
        ):
            call()
    with torch.no_grad(), torch.enable_grad():
        assert sd.sample(
            model, (2, 2), steps=3, grad=grad, x_init=X[:2].float().requires_grad_()
        ).x.requires_grad

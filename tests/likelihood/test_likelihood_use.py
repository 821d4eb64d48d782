"""Gradients, networks of other kinds, bins, encoding, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sdediff as sd

F64 = torch.float64
VP = sd.VP()
GAUSSIAN = sd.exact.Gaussian([0.3, -0.5], [[0.25, 0.1], [0.1, 0.5]])
X = torch.tensor([[0.1, -0.8], [1.2, 0.4], [0.0, 0.0]], dtype=F64)


# -- gradients and networks ------------------------------------------------------------------------


class OfStd(torch.nn.Module):
    """The noise prediction of N(0, std^2) data, std a parameter."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = torch.nn.Parameter(torch.tensor(std, dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c[:, None].to(x) for c in (VP.alpha(t), VP.sigma(t)))
        return sigma * x / ((alpha * self.std) ** 2 + sigma**2)


@pytest.mark.thin(2)
@pytest.mark.parametrize("options", [{}, {"divergence": "hutchinson", "probes": 2}])
@pytest.mark.parametrize("grad", ["full", "checkpoint"])
def test_gradients(grad: str, options: dict[str, object]) -> None:
    """d log p / dx and d log p / d std in closed form, through prior, flow and divergence."""
    model, x = sd.ScoreModel(OfStd(0.6), VP), X.clone().requires_grad_()
    out = sd.log_prob(
        model, x, solver=sd.solvers.RungeKutta4(), steps=30, grad=grad, seed=0, **options
    )
    to_x, to_std = torch.autograd.grad(out.value.sum(), [x, model.net.std])

    std = torch.tensor(0.6, dtype=F64, requires_grad=True)
    y = X.clone().requires_grad_()
    alpha, sigma = (float(c) for c in (VP.alpha(VP.t_min), VP.sigma(VP.t_min)))
    end, last = float(VP.alpha(VP.t_max)), float(VP.sigma(VP.t_max))
    variance, at_end = (alpha * std) ** 2 + sigma**2, (end * std) ** 2 + last**2
    z = y * (at_end / variance).sqrt()
    value = VP.prior.log_prob(z) + (at_end / variance).log()  # two coordinates
    torch.testing.assert_close(out.value, value, rtol=0, atol=1e-5)
    expected = torch.autograd.grad(value.sum(), [y, std])
    torch.testing.assert_close(to_x, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(to_std, expected[1], rtol=1e-4, atol=1e-5)
    assert not sd.log_prob(model, x, solver=sd.solvers.RungeKutta4(), steps=2).value.requires_grad


def test_the_gradient_is_the_score() -> None:
    x = X.clone().requires_grad_()
    out = sd.log_prob(GAUSSIAN.model(VP), x, solver=sd.RK45(1e-7, 1e-7), grad="full")
    (slope,) = torch.autograd.grad((out.value + out.prior_gap).sum(), x)
    torch.testing.assert_close(slope, GAUSSIAN.score(VP, X, VP.t_min), rtol=1e-4, atol=1e-4)


class _Square(torch.autograd.Function):
    """x^2, without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0].clone().apply_(lambda v: v)


def test_a_backward_pass_without_vmap_is_taken_one_by_one() -> None:
    """apply_ cannot be vectorised; the result is the same."""
    results = []
    for square in (_Square.apply, torch.square):
        model = sd.ScoreModel(lambda x, t, square=square: x + 0.1 * square(x) + 0.2 * x.flip(1), VP)
        results.append(sd.log_prob(model, X, solver=sd.solvers.RungeKutta4(), steps=4))
    assert torch.equal(results[0].nfe, results[1].nfe)
    torch.testing.assert_close(results[0].value, results[1].value, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.uses_global_rng
def test_a_compiled_network() -> None:
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
    ).double()
    plain = sd.ScoreModel(lambda x, t: net(x), VP)
    compiled = torch.compile(net, backend="aot_eager")
    fast = sd.ScoreModel(lambda x, t: compiled(x), VP)
    for options in ({}, {"divergence": "hutchinson", "probes": 2, "seed": 0}):
        a, b = (
            sd.log_prob(m, X, solver=sd.solvers.RungeKutta4(), steps=4, **options)
            for m in (plain, fast)
        )
        torch.testing.assert_close(a.value, b.value, rtol=0, atol=1e-9)


def test_no_other_process_is_waited_for(tmp_path) -> None:
    """The network of DistributedDataParallel is called without it: its forward pass is never
    run.
    """
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        inner = OfStd(0.6)
        wrapped = torch.nn.parallel.DistributedDataParallel(inner)
        wrapped.forward = None
        model = sd.ScoreModel(wrapped, VP)
        out = sd.log_prob(model, X, solver=sd.solvers.RungeKutta4(), steps=5)
        torch.testing.assert_close(
            out.value,
            sd.log_prob(
                sd.ScoreModel(inner, VP), X, solver=sd.solvers.RungeKutta4(), steps=5
            ).value,
        )
        sd.encode(model, X)
        assert model.net is wrapped
    finally:
        torch.distributed.destroy_process_group()


def test_inference_mode() -> None:
    with torch.inference_mode():
        inside = sd.log_prob(GAUSSIAN.model(VP), X.clone()).value
    torch.testing.assert_close(inside, sd.log_prob(GAUSSIAN.model(VP), X).value)


def test_a_detached_output_is_refused_and_a_constant_one_is_not() -> None:
    """Without a gradient the divergence would silently be that of the linear part."""
    for sde in (VP, sd.VE()):
        with pytest.raises(ValueError, match="has no gradient"):
            sd.log_prob(sd.ScoreModel(lambda x, t: x.detach(), sde), X)
        out = sd.log_prob(sd.ScoreModel(lambda x, t: torch.zeros_like(x), sde), X)
        ratio = float(sde.alpha(sde.t_max) / sde.alpha(sde.t_min))
        torch.testing.assert_close(
            out.value, sde.prior.log_prob(ratio * X) + 2 * math.log(ratio), rtol=0, atol=1e-4
        )


def test_failures_are_named_and_leave_the_others() -> None:
    exact = GAUSSIAN.model(VP)

    def net(x: Tensor, t: Tensor, bad: Tensor) -> Tensor:
        return torch.where((bad & (t > 0.5))[:, None], torch.nan, exact.net(x, t))

    bad = torch.tensor([False, True, False])
    model = sd.ScoreModel(net, VP, "v", time_dtype=F64)
    out = sd.log_prob(model, X, condition={"bad": bad}, on_fail="return")
    assert out.value.isnan().tolist() == bad.tolist()
    assert 0.3 < out.failures[0].t < 0.5001
    assert out.failures[0].sample == 1
    with pytest.raises(sd.SolveError, match="sample 1 failed at t = 0"):
        sd.log_prob(model, X, condition={"bad": bad})


# -- bins ------------------------------------------------------------------------------------------


def discretized(law: sd.exact.Gaussian, sde: sd.LinearSDE, x: Tensor, width: float) -> Tensor:
    """-log_2 P(bin) / d for independent coordinates, of x_t / alpha at t_min."""
    std = (law.covariance.diagonal() + (sde.sigma(sde.t_min) / sde.alpha(sde.t_min)) ** 2).sqrt()
    z = (x - law.mean) / std
    half = 0.5 * width / std
    return -(torch.special.ndtr(z + half) - torch.special.ndtr(z - half)).log2().mean(dim=1)


@pytest.mark.parametrize("dequantization", ["uniform", "truncated-normal"])
def test_a_gaussian_with_bins(dequantization: str) -> None:
    """Against its probabilities of bins. Draws tighten the bound: E[bits] falls to the truth, from
    above, as 1 / draws.

    The expected excess of one draw is the mean of log(P) - log w, computed by quadrature for the
    uniform draw.
    """
    sde, law, width = (
        sd.VP(t_min=0.1),
        sd.exact.Gaussian([0.1, -0.2], torch.tensor([0.09, 0.25])),
        0.5,
    )
    x = torch.tensor([[0.5, -0.5], [0.0, 0.0], [-1.0, 0.5]], dtype=F64)
    truth = discretized(law, sde, x, width)
    found = {}
    for draws in (1, 40):
        out = sd.bits_per_dim(
            law.model(sde),
            x.repeat(120 // draws if draws == 1 else 20, 1),
            bins=sd.objectives.Bins(5),
            seed=0,
            draws=draws,
            dequantization=dequantization,
            solver=sd.solvers.RungeKutta4(),
            steps=8,
        )
        mean = out.value.reshape(-1, 3)
        found[draws] = (mean.mean(dim=0) - truth, mean.std(dim=0) / len(mean) ** 0.5)
        assert out.log_weights.shape == (draws, len(mean) * 3)
        assert out.nfe.tolist() == [32 * draws] * (3 * len(mean))
    (one, error), (many, small) = found[1], found[40]
    assert bool((many.abs() < 5 * small + 0.02).all())
    assert bool((one > many + 2 * error).any())
    assert bool((one > -5 * error).all())
    if dequantization == "uniform":
        u = (torch.arange(2000, dtype=F64) + 0.5) / 2000 - 0.5
        std = (
            law.covariance.diagonal() + (sde.sigma(sde.t_min) / sde.alpha(sde.t_min)) ** 2
        ).sqrt()
        z = (x - law.mean + width * u[:, None, None]) / std
        bits = (0.5 * z**2 + std.log() + 0.5 * math.log(2 * math.pi) - math.log(width)).mean(
            dim=(0, 2)
        ) / math.log(2)
        assert bool(((one + truth - bits).abs() < 5 * error + 1e-3).all())


def test_bits_of_a_hand_computed_case() -> None:
    """One draw: -(log_2 p(x + u) + log_2 width), u by the seed, p of x_t / alpha, width 2 / 255 by
    256 bins on [-1, 1].
    """
    x = torch.tensor([[2 * 100 / 255 - 1, 2 * 30 / 255 - 1]], dtype=F64)
    out = sd.bits_per_dim(GAUSSIAN.model(VP), x, seed=7, solver=sd.solvers.DOP853(1e-8, 1e-8))
    u = (
        torch.special.ndtr(sd.White(sd.seeds(7, 1), (2,), dtype=F64).at(0).normal("dequantization"))
        - 0.5
    )
    alpha = float(VP.alpha(VP.t_min))
    states = alpha * (x + 2 / 255 * u)
    log_p = GAUSSIAN.log_prob(VP, states, VP.t_min) + 2 * math.log(alpha)
    gap = sd.log_prob(GAUSSIAN.model(VP), states).prior_gap
    expected = -((log_p - gap) / math.log(2) + 2 * math.log2(2 / 255)) / 2
    torch.testing.assert_close(out.value, expected, rtol=0, atol=1e-6)
    assert out.seeds == sd.seeds(7, 1)


def test_each_sample_has_its_own_bins_noise() -> None:
    x = torch.tensor([[0.0, 1.0], [-1.0, 1.0], [0.0, 0.0]], dtype=F64)
    for options in (
        {},
        {"draws": 3},
        {"divergence": "hutchinson", "probes": 1, "probe": "gaussian"},
    ):
        whole = sd.bits_per_dim(
            GAUSSIAN.model(VP), x, bins=sd.objectives.Bins(3), seed=1, **options
        )
        alone = sd.bits_per_dim(
            GAUSSIAN.model(VP),
            x[1:2],
            bins=sd.objectives.Bins(3),
            seed=sd.seeds(1, 3)[1:2],
            **options,
        )
        torch.testing.assert_close(alone.log_weights, whole.log_weights[:, 1:2], rtol=0, atol=1e-9)


# -- encode and decode -----------------------------------------------------------------------------


@pytest.mark.thin(2)
def test_encode_is_the_exact_flow(sde: sd.LinearSDE) -> None:
    x = GAUSSIAN.sample(4, seed=0)
    z = sd.encode(GAUSSIAN.model(sde), x, solver=sd.RK45(1e-8, 1e-8))
    exact = GAUSSIAN.flow(sde, x, sde.t_min, sde.t_max)
    torch.testing.assert_close(z.x, exact, rtol=0, atol=3e-5 * sde.prior.std)
    back = sd.decode(GAUSSIAN.model(sde), exact, solver=sd.RK45(1e-8, 1e-8))
    torch.testing.assert_close(back.x, x, rtol=0, atol=3e-5)
    assert z.x.dtype == F64
    assert z.seeds is None


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (sd.DDIM(), 1),
        (sd.Heun(), 2),
        (sd.solvers.DPMSolverPP(), 2),
        (sd.solvers.DEIS(), 3),
        (sd.solvers.UniPC(), 3),
        (None, 3),
    ],
    ids=["DDIM", "Heun", "DPMSolverPP", "DEIS", "UniPC", "default"],
)
def test_solvers_climb_at_their_order(solver: sd.DDIM | None, order: int) -> None:
    """DDIM up is DDIM inversion: of order 1, as all others are of theirs on rising grids."""
    x = GAUSSIAN.sample(4, seed=0)
    exact = GAUSSIAN.flow(VP, x, VP.t_min, VP.t_max)
    errors = [
        float((sd.encode(GAUSSIAN.model(VP), x, solver=solver, steps=n).x - exact).abs().max())
        for n in (100, 200)
    ]
    assert math.log2(errors[0] / errors[1]) > order - 0.2


def test_ddim_inversion_by_hand() -> None:
    """x_s / alpha_s = x_t / alpha_t + (s/alpha difference) noise(x_t, t), from each time to the
    next.
    """
    model, x = GAUSSIAN.model(VP), X
    out = sd.encode(model, X, solver=sd.DDIM(), grid=[0.001, 0.2, 1.0], trajectory=True)
    for i, (t, s) in enumerate([(0.001, 0.2), (0.2, 1.0)]):
        ratio = float(VP.sigma(s) / VP.alpha(s) - VP.sigma(t) / VP.alpha(t))
        x = float(VP.alpha(s)) * (x / float(VP.alpha(t)) + ratio * model.noise(x, t))
        torch.testing.assert_close(out.trajectory[i + 1], x, rtol=1e-10, atol=1e-10)
    assert out.nfe.tolist() == [2] * 3


# -- what is refused -------------------------------------------------------------------------------


class Pairs(sd.solvers.Euler):
    """A solver of two rows each."""

    group = 2


BAD_LOG_PROB = [
    ({"x": X.long()}, "floating-point"),
    ({"x": X / 0}, "not finite"),
    ({"solver": sd.EulerMaruyama(), "steps": 5}, "goes along the probability flow.*draws some"),
    ({"solver": sd.AdaptiveSDE()}, "goes along the probability flow"),
    ({"solver": sd.DDIM(), "steps": 5}, "needs data"),
    ({"solver": sd.RK45(variable="sigma")}, "needs .*noise"),
    ({"divergence": "hutchinson", "probes": 0}, "probes must be an int of at least 1"),
    ({"divergence": "hutchinson", "probes": True}, "probes must be an int of at least 1"),
    ({"divergence": "hutch++", "probes": 2, "probe": "gaussian"}, "at least 3"),
    ({"divergence": "hutchinson", "probes": 3}, "no more than d = 2 orthogonal probes"),
    ({"divergence": "hutchinson", "probe": "sign"}, "probe must be one of"),
    ({"divergence": "Hutchinson"}, "did you mean 'hutchinson'"),
    ({"probes": 4}, "draws no probes"),
    ({"probes": torch.ones(4, 3, 2)}, "go with divergence='hutchinson'.*divergence='exact'"),
    (
        {"probes": torch.ones(4, 3, 2), "divergence": "hutchinson", "probe": "gaussian"},
        "no probe, .*probe='gaussian'",
    ),
    (
        {"probes": torch.ones(3, 2), "divergence": "hutchinson"},
        r"\(k, B, \*event\).*\(3, 2\) as in x; got shape \(3, 2\)",
    ),
    (
        {"probes": lambda x: torch.ones(0, *x.shape), "divergence": "hutchinson"},
        r"got shape \(0, 3, 2\)",
    ),
    ({"probes": torch.ones(1, 3, 2) / 0, "divergence": "hutchinson"}, "must be finite numbers"),
    ({"probes": lambda x: "four", "divergence": "hutchinson"}, "a tensor of numbers, got 'four'"),
    ({"x": torch.zeros(2, 3, 128, 128)}, r"18 GiB a sample.*take divergence='hutchinson'"),
    ({"x": torch.zeros(2, 3, 64, 64)}, r"1.12 GiB a sample.*4096 is the most"),
    ({"grid": [0.001, 0.5]}, "the grid must end there"),
    ({"grid": [1.0, 0.001]}, "the grid must rise"),
    ({"t_start": 1e-5}, "outside the usable range"),
    ({"steps": 0}, "steps must be"),
    ({"solver": sd.RK45(), "steps": 4}, "chooses its own steps"),
    ({"condition": {"y": torch.zeros(2)}}, "leading dimension 3"),
    ({"dtype": torch.float16}, "float32 or torch.float64"),
    ({"divergence": "hutchinson", "seed": [1]}, "got 1 of them"),
    ({"solver": Pairs(), "steps": 4}, "moves 2 rows together"),
]
BAD_BITS = [
    ({"x": (255 * X.abs()).to(torch.uint8)}, "scale bin numbers first"),
    ({"x": X / 0}, "not finite"),
    (
        {"bins": sd.objectives.Bins(3, 0, 1)},
        "must lie on the 3 values from 0 to 1, and run from .*declare how they were scaled",
    ),
    ({"bins": sd.objectives.Bins(4)}, "must lie on the 4 values"),
    ({"x": torch.full((3, 2), 0.1)}, "must lie on the 3 values"),
    ({"dequantization": "normal"}, "dequantization must be one of"),
    ({"draws": 0}, "draws must be"),
    ({"draws": 2, "divergence": "hutchinson"}, "needs divergence='exact'"),
    ({"solver": sd.DDIM(eta=1.0), "steps": 4}, "draws some"),
]


def refused(function, message: str, **arguments: object) -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the network was called")

    with pytest.raises((ValueError, TypeError), match=message):
        function(sd.ScoreModel(net, VP), **arguments)


@pytest.mark.parametrize("grad", ["full", "checkpoint"])
def test_evaluations_are_counted_at_the_network(grad: str) -> None:
    """Those too that a checkpointed step makes again for its own products."""
    calls: list[Tensor] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return 0.5 * x.sin()

    found = sd.log_prob(
        sd.ScoreModel(net, VP), X, solver=sd.solvers.RungeKutta4(), steps=3, grad=grad
    )  # type: ignore[arg-type]
    assert found.nfe.tolist() == [len(calls)] * len(X)


@pytest.mark.parametrize(("change", "message"), BAD_LOG_PROB, ids=range(len(BAD_LOG_PROB)))
def test_log_prob_refuses(change: dict[str, object], message: str) -> None:
    refused(sd.log_prob, message, **({"x": X} | change))


@pytest.mark.parametrize(("change", "message"), BAD_BITS, ids=range(len(BAD_BITS)))
def test_bits_per_dim_refuses(change: dict[str, object], message: str) -> None:
    refused(sd.bits_per_dim, message, **({"x": X.sign(), "bins": sd.objectives.Bins(3)} | change))


@pytest.mark.parametrize("function", [sd.encode, sd.decode])
def test_a_stochastic_solver_cannot_encode(function) -> None:
    for solver in (
        sd.EulerMaruyama(),
        sd.DDIM(eta=0.5),
        sd.solvers.Ancestral(),
        sd.DDPM.from_sde(VP, 5),
    ):
        with pytest.raises(ValueError, match="goes along the probability flow"):
            function(GAUSSIAN.model(VP), X, solver=solver, steps=5)
    way = "fall" if function is sd.decode else "rise"
    with pytest.raises(ValueError, match=f"the grid must {way}"):
        function(
            GAUSSIAN.model(VP),
            X,
            solver=sd.Heun(),
            grid=[1.0, 0.1] if way == "rise" else [0.1, 1.0],
        )


def test_no_prior_no_log_density() -> None:
    class Free(sd.SDE):
        def drift(self, x: Tensor, t: Tensor) -> Tensor:
            return -x

        def diffusion(self, t: Tensor) -> float:
            return 1.0

    model = sd.ScoreModel(lambda x, t: -x, Free(), predicts="score")
    with pytest.raises(ValueError, match="Free has no prior"):
        sd.log_prob(model, X)
    with pytest.raises(ValueError, match="no Gaussian kernel"):
        sd.bits_per_dim(
            model, X.sign(), bins=sd.objectives.Bins(3), dequantization="truncated-normal"
        )

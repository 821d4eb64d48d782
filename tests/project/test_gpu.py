"""A GPU computes what the CPU computes: the noise bit for bit, every solve to rounding. Only where
there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from all_methods import AT_LEAST, METHODS, Method, sde_of
from torch import Tensor, nn

import sdediff as sd
from sdediff.networks import UNet
from sdediff.solvers import Solver

GPU = "cuda"
F64 = torch.float64
DATA = sd.exact.GaussianMixture([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.0]], 0.3)
IMAGES = sd.exact.GaussianMixture(0.5 * torch.linspace(-1, 1, 2 * 192).reshape(2, 3, 8, 8), 0.3)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """TF32 would make float32's products differ in their third digit."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def same(there: Tensor, here: Tensor, tolerance: float = 0.0) -> None:
    assert there.device.type == GPU
    torch.testing.assert_close(there.cpu(), here, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("event", [(2,), (), (3, 32, 32)])
def test_white_noise_has_the_same_bits(event: tuple[int, ...], dtype: torch.dtype) -> None:
    here, there = (
        sd.White(sd.seeds(3, 5), event, dtype=dtype, device=device) for device in ("cpu", GPU)
    )
    nodes = [white.tree() for white in (here, there)]
    number = torch.tensor([[0, 1, 2, 3, 4], [9, 8, 7, 6, 5]])
    same(nodes[1].normal(number), nodes[0].normal(number))
    for step in (0, 1, here.length, 1000):
        same(there.at(step).normal("path"), here.at(step).normal("path"))
        same(there.at(step).normal("churn", 3), here.at(step).normal("churn", 3))


def pair(path: sd.solvers.BrownianPath, a: Tensor, b: Tensor) -> Tensor:
    return torch.stack(path.pair(a, b))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    "ask", [sd.solvers.BrownianPath.increment, sd.solvers.BrownianPath.over, pair]
)
def test_a_path_has_the_same_values(ask: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """To 2 units in the last place: over base intervals, at any times, and at each row's own; and
    for some of the rows.
    """
    ulp = 2 * torch.finfo(dtype).eps
    for event in ((2,), (3, 8, 8)):
        here, there = (
            sd.solvers.BrownianPath(sd.seeds(3, 5), event, 1.0, 0.0, dtype=dtype, device=device)
            for device in ("cpu", GPU)
        )
        own = torch.linspace(0.2, 0.9, 5, dtype=F64)
        for a, b in ((1.0, 63 / 64), (0.5, 0.25), (0.77, 0.1), (own, own * 0.7), (own, own + 0.1)):
            a, b = torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64)
            torch.testing.assert_close(ask(there, a, b).cpu(), ask(here, a, b), rtol=ulp, atol=0)
        rows = torch.tensor([3, 0])
        a, b = own[rows], own[rows] * 0.9
        torch.testing.assert_close(
            ask(there.take(rows), a, b).cpu(), ask(here.take(rows), a, b), rtol=ulp, atol=0
        )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: repr(method.solver))
def test_every_solver(method: Method) -> None:
    """float64: what differs is rounding, which a solve of some twenty steps does not amplify; same
    counts.
    """
    solver, results = method.solver, []
    steps = (
        None if solver.adaptive or solver.times is not None else max(12, AT_LEAST.get(solver, 1))
    )
    for device in ("cpu", GPU):
        model = DATA.model(sde_of(solver))
        results.append(
            sd.sample(model, (5, 2), solver=solver, steps=steps, seed=1, dtype=F64, device=device)
        )
    here, there = results
    same(there.x, here.x, 1e-8)
    assert torch.equal(there.nfe.cpu(), here.nfe)


FEW: list[Solver] = [
    sd.solvers.UniPC(),
    sd.EulerMaruyama(),
    sd.solvers.SRA1(),
    sd.solvers.Renoise(sd.Heun()),
    sd.RK45(),
    sd.AdaptiveSDE(1e-2, 1e-2),
]


@pytest.mark.parametrize("solver", FEW, ids=repr)
def test_images_in_float32(solver: Solver) -> None:
    steps = None if solver.adaptive else 20
    results = []
    for device in ("cpu", GPU):
        out = sd.sample(
            IMAGES.model(sd.VP()), (4, 3, 8, 8), solver=solver, steps=steps, seed=1, device=device
        )
        results.append(out)
    here, there = results
    same(there.x, here.x, 2e-3)


def narrow() -> tuple[nn.Module, Callable[[torch.device | str], sd.ScoreModel]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, (8, 16))
    return net, lambda device: sd.ScoreModel(net.to(device), sd.VP())


@pytest.mark.parametrize("solver", [sd.DDIM(), sd.RK45(1e-2, 1e-2)], ids=repr)
def test_a_network(solver: Solver) -> None:
    """A small U-Net, its weights on the device, and rows leaving its batch."""
    _, on = narrow()
    steps = None if solver.adaptive else 10
    here, there = (
        sd.sample(on(device), (3, 1, 8, 8), solver=solver, steps=steps, seed=0)
        for device in ("cpu", GPU)
    )
    same(there.x, here.x, 5e-3)


def test_a_bfloat16_network_keeps_the_state_in_float32() -> None:
    net, on = narrow()
    model = on(GPU)
    model.net = net.to(torch.bfloat16)
    out = sd.sample(model, (3, 1, 8, 8), solver=sd.solvers.UniPC(), steps=8, seed=0)
    assert (out.x.dtype, out.x.device.type, out.success) == (torch.float32, GPU, True)


@pytest.mark.parametrize("grad", ["full", "checkpoint"])
def test_gradients(grad: Any) -> None:
    found = []
    for device in ("cpu", GPU):
        weight = torch.tensor(0.7, dtype=F64, device=device, requires_grad=True)
        model = sd.ScoreModel(lambda x, t, weight=weight: weight * x, sd.VP())
        out = sd.sample(
            model,
            (3, 2),
            solver=sd.solvers.SRA1(),
            steps=6,
            seed=0,
            grad=grad,
            dtype=F64,
            device=device,
        )
        found.append(torch.autograd.grad(out.x.square().sum(), weight)[0])
    same(found[1], found[0], 1e-9)


@pytest.mark.parametrize(
    "solver",
    [
        sd.solvers.TorchDiffEq("dopri5"),
        sd.solvers.SciPy("RK45"),
        sd.solvers.TorchSDE("srk"),
        sd.solvers.TorchSDE("euler"),
    ],
    ids=repr,
)
def test_backends(solver: Solver) -> None:
    steps = None if solver.adaptive else 20
    here, there = (
        sd.sample(
            DATA.model(sd.VP()),
            (5, 2),
            solver=solver,
            steps=steps,
            seed=1,
            dtype=F64,
            device=device,
        )
        for device in ("cpu", GPU)
    )
    same(there.x, here.x, 1e-6)
    assert torch.equal(there.nfe.cpu(), here.nfe)


@pytest.mark.parametrize("solver", [sd.EulerMaruyama(), sd.solvers.SRA3()], ids=repr)
def test_steps_along_a_path(solver: Solver) -> None:
    results = []
    for device in ("cpu", GPU):
        noise = sd.solvers.BrownianPath(sd.seeds(1, 5), (2,), 1.0, 0.0, dtype=F64, device=device)
        kw = {"solver": solver, "steps": 20, "noise": noise, "dtype": F64}
        results.append(sd.sample(DATA.model(sd.VP()), (5, 2), device=device, **kw).x)  # type: ignore[arg-type]
    same(results[1], results[0], 1e-8)


@pytest.mark.parametrize(
    "options",
    [{}, {"divergence": "hutchinson", "probes": 2}, {"divergence": "hutch++", "probes": 3}],
)
def test_log_densities(options: dict[str, Any]) -> None:
    x = torch.tensor([[0.1, -0.8], [1.2, 0.4], [0.0, 0.0]], dtype=F64)
    here, there = (
        sd.log_prob(DATA.model(sd.VP()), x.to(device), seed=0, device=device, **options)
        for device in ("cpu", GPU)
    )
    same(there.value, here.value, 1e-8)
    assert torch.equal(there.nfe.cpu(), here.nfe)


@pytest.mark.parametrize(
    "kernel",
    [sd.mcmc.MALA(0.1), sd.mcmc.ULA(0.1), sd.mcmc.RandomWalk(0.5), sd.mcmc.Underdamped(0.1, 1.0)],
    ids=repr,
)
def test_chains(kernel: sd.mcmc.Kernel) -> None:
    def log_density(x: Tensor) -> Tensor:
        return -x.square().sum(dim=1) - 0.1 * x[:, 0] ** 4

    starts = (torch.zeros(4, 2, dtype=F64, device=device) for device in ("cpu", GPU))
    here, there = (sd.mcmc.run(kernel, log_density, start, steps=50, seed=0) for start in starts)
    same(there.samples, here.samples, 1e-8)


def test_a_sample_that_fails_leaves_its_neighbours() -> None:
    exact = DATA.model(sd.VP())

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        out = exact.net(x, t)
        return torch.where(((label == 1) & (t < 0.5).to(x.device))[:, None], math.nan, out)

    for solver in (sd.RK45(), sd.solvers.UniPC(), sd.EulerMaruyama()):
        kw: dict[str, Any] = {
            "solver": solver,
            "steps": None if solver.adaptive else 10,
            "seed": 0,
            "dtype": F64,
            "device": GPU,
        }
        condition = {"label": torch.tensor([0, 1, 0], device=GPU)}
        model = sd.ScoreModel(net, sd.VP(), exact.predicts)
        out = sd.sample(model, (3, 2), condition=condition, on_fail="return", **kw)
        whole = sd.sample(exact, (3, 2), **kw)
        assert out.status.cpu().tolist() == [0, int(sd.Status.NETWORK_NOT_FINITE), 0]
        torch.testing.assert_close(out.x[::2], whole.x[::2], rtol=0, atol=1e-12)


def test_training(tmp_path: Path) -> None:
    """The same losses as on the CPU from the same seed, and a checkpoint that loads there."""
    data = 0.3 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    losses: dict[str, list[float]] = {"cpu": [], GPU: []}
    for device, seen in losses.items():
        model = narrow()[1]("cpu")
        model = sd.fit(
            model,
            data,
            out=tmp_path / device,
            steps=20,
            batch_size=16,
            device=device,
            callback=lambda k, loss, seen=seen: seen.append(loss),
        )
    assert losses[GPU] == pytest.approx(losses["cpu"], rel=2e-3)
    assert sd.sample(sd.load(tmp_path / GPU).to(GPU), (2, 1, 8, 8), steps=3, seed=0).success


def test_what_is_given_goes_where_the_model_is() -> None:
    """States and conditions of the host, a model on the GPU: samples, bound and diagnosis as on the
    host.
    """

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.8, dtype=F64))

        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return self.weight * x * t[:, None] + 0.1 * label[:, None]

    chain = sd.DDPM.from_schedule("linear", 20)
    x, condition = (
        torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2),
        {"label": torch.tensor([0.0, 1.0, 2.0], dtype=F64)},
    )
    found = []
    for device in ("cpu", GPU):
        model = sd.ScoreModel(Scaled(), chain.to_sde(), "noise").to(device)
        kw: dict[str, Any] = {"condition": condition, "seed": 0}
        samples = sd.sample(model, (3, 2), x_init=x, t_start=0.5, steps=5, dtype=F64, **kw).x
        bound = sd.discrete.variational_bound(chain, model, x, bins=None, **kw)
        errors = list(sd.diagnose(model, x, condition=condition).errors.values())
        found.append((samples, bound.total, torch.tensor(errors, dtype=F64, device=device)))
    for here, there in zip(*found, strict=True):
        same(there, here, 1e-9)


def test_noise_elsewhere_is_refused() -> None:
    model, noise = DATA.model(sd.VP()), sd.White(range(3), (2,))
    with pytest.raises(
        ValueError,
        match="the noise is on cpu, and the states are on cuda: make it with device='cuda'",
    ):
        sd.sample(model, (3, 2), solver=sd.EulerMaruyama(), noise=noise, steps=3, device=GPU)

"""A solve with fixed steps never makes the host wait for the device, but for one look at the end.

Meta tensors play the device here: they have no data, so whatever looks at some is either noticed or
raises. Where there is a GPU, torch's own watch is asked too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from all_methods import AT_LEAST, METHODS, Method, sde_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdediff as sd
from sdediff.reverse import Reverse
from sdediff.solvers import Options, integrate
from sdediff.solvers.arithmetic import Like
from sdediff.solvers.integrate import _drive

FIXED = [
    pytest.param(method, id=repr(method.solver)) for method in METHODS if not method.solver.adaptive
]
LOOK, FETCH, SEND = "looks at a number", "fetches a tensor", "sends a tensor and waits"
aten = torch.ops.aten


class Watch(TorchDispatchMode):
    """Notes in ``waits`` what would make the host wait for the meta device, and answers that
    everything is 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        source = tensors[0].device.type if tensors else "cpu"
        if func is aten._local_scalar_dense.default and source == "meta":
            self.waits.append(LOOK)
            return tensors[0].dtype == torch.bool or 1
        if func in (aten._to_copy.default, aten.copy_.default):
            copied, target = tensors[-1], kwargs.get("device") or tensors[0].device
            route = copied.device.type, torch.device(target).type
            if route == ("meta", "cpu"):
                self.waits.append(FETCH)
                return torch.ones(copied.shape, dtype=kwargs.get("dtype") or copied.dtype)
            if route == ("cpu", "meta") and not (kwargs.get("non_blocking") or True in args[2:]):
                self.waits.append(SEND)
        elif source == "meta" and any(each.device.type == "cpu" and each.ndim for each in tensors):
            self.waits.append(SEND)  # an index, say: what is no number is moved first
        return func(*args, **kwargs)


class Drawn:
    """Noise that is there already, on a device."""

    def __init__(self, shape: tuple[int, ...], device: str) -> None:
        self.z = torch.ones(shape, device=device)

    def at(self, step: int) -> Drawn:
        return self

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        return self.z

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.z

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        return self.z * float((b - a).abs().sqrt())

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.z, self.z

    def take(self, rows: Tensor) -> Drawn:
        raise NotImplementedError


def task(method: Method) -> tuple[sd.ScoreModel, Tensor]:
    model = sd.ScoreModel(lambda x, t: x * t[:, None], sde_of(method.solver), predicts="noise")
    steps = max(6, AT_LEAST.get(method.solver, 1))
    times = (
        method.solver.times
        if method.solver.times is not None
        else torch.linspace(0.9, 0.01, steps + 1, dtype=torch.float64)
    )
    return model, times


@pytest.mark.thin(11)
@pytest.mark.parametrize("method", FIXED)
def test_steps_never_wait(method: Method) -> None:
    """Planning, every step, trajectory and callback; then whether all is finite, once."""
    model, times = task(method)
    x, seen = torch.ones(3, 2, device="meta"), []
    problem = Reverse(model, 3, 1.0 if method.solver.solves_sde else 0.0, like=Like.of(x))
    options = Options(
        trajectory=True, callback=lambda snapshot: seen.append(len(watch.waits)), max_nfe=10_000
    )
    with Watch() as watch:
        out = integrate(problem, method.solver, x, times, Drawn((3, 2), "meta"), options)
    assert out.success
    assert seen == [0] * (len(times) - 1)
    assert watch.waits == [LOOK]


@pytest.mark.parametrize(("last", "expected"), [("noisy", [LOOK]), ("denoise", [LOOK, LOOK])])
def test_a_whole_sampling_run_looks_at_its_end_alone(last: Any, expected: list[str]) -> None:
    model = sd.ScoreModel(lambda x, t: 0.5 * x, sd.VP())
    with Watch() as watch:
        sd.sample(
            model, (3, 2), solver=sd.solvers.UniPC(), steps=8, seed=0, last=last, device="meta"
        )
    assert [wait for wait in watch.waits if wait != SEND] == expected


def test_white_noise_is_sent_a_block_at_a_time() -> None:
    noise = sd.White(range(3), (2,), device="meta")
    with Watch() as watch:
        for step in range(2 * noise.length):
            noise.at(step).pair(torch.tensor(0.5), torch.tensor(0.25))
    # two blocks, two numbers k; from pinned memory and without waiting where the device is a GPU
    assert watch.waits == [SEND] * 4


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: float(x[0, 0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3, 2).copy_(x),
        lambda x: x[torch.tensor([2, 0])],
        lambda x: x[torch.tensor([True, False, True])],
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.allclose(x, x),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.unique(x),
        lambda x: torch.ones(3, 2).to(x.device),
        lambda x: x.copy_(torch.ones(3, 2)),
        lambda x: torch.ones(3, dtype=torch.float64).to(x),
    ],
)
def test_the_watch_sees(act: Callable[[Tensor], Any]) -> None:
    """Each of these makes the host wait for a GPU (or copies what it need not)."""
    x = torch.ones(3, 2, device="meta")
    with Watch() as watch:
        try:
            act(x)
        except (NotImplementedError, RuntimeError):  # no data
            return
    assert watch.waits


@pytest.mark.parametrize(
    "act", [lambda x: x * 2, lambda x: torch.tensor(2.0) * x, lambda x: x.add_(x, alpha=0.5)]
)
def test_the_watch_lets_pass(act: Callable[[Tensor], Any]) -> None:
    with Watch() as watch:
        act(torch.ones(3, 2, device="meta"))
        torch.arange(3.0).to("meta", non_blocking=True)
        assert float(torch.ones(2).sum()) == 2
    assert not watch.waits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("along", [False, True], ids=["noise", "path"])
@pytest.mark.parametrize("method", FIXED)
def test_steps_never_wait_for_a_gpu(method: Method, along: bool) -> None:
    """The same by torch's own watch, with the noise that `sample` draws, and along a path."""
    model, times = task(method)
    x = torch.ones(3, 2, device="cuda")
    white = sd.White(range(3), (2,), device="cuda")
    noise = sd.solvers.BrownianPath(range(3), (2,), 1.0, 0.0, device="cuda") if along else white
    problem = Reverse(model, 3, 1.0 if method.solver.solves_sde else 0.0, like=Like.of(x))
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        with torch.no_grad():
            run = _drive(
                problem, method.solver, x, times, noise, Options(trajectory=True), watch=False
            )
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert bool(torch.isfinite(run.x).all())

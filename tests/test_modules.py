"""Modules behind callables: their device, dtype and evaluation mode, in threads too."""

from __future__ import annotations

import _thread
import copy
import functools
import pickle
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdediff as sd
from sdediff.modules import evaluating, modules_behind


class Net(nn.Module):
    """A network with dropout, that notes the mode of each call and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(2, 2).double(), nn.Dropout(0.5)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.4, 0.1], [-0.2, 0.3]]))
        self.modes: list[bool] = []
        self.calls = 0
        self.meet: Callable[[], object] = lambda: None

    def forward(self, x: Tensor, t: Tensor, scale: float = 1.0) -> Tensor:
        self.meet()
        self.modes.append(self.training)
        self.calls += 1
        return scale * self.drop(self.linear(x))

    def method(self, x: Tensor, t: Tensor) -> Tensor:
        return self(x, t)


def make() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().train()


NET = make()


class Holder:
    """A callable object; the helper is reached through a method and a property."""

    def __init__(self, net: Any, other: Any = None) -> None:
        self.held, self.other = net, other

    @property
    def net(self) -> Any:
        return self.held

    def run(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t)  # type: ignore[no-any-return]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.run(x, t)


@dataclass(frozen=True, slots=True)
class Slotted:
    function: Callable[..., Tensor]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.function(x, t)


class Computed(Holder):
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return getattr(self, "he" + "ld")(x, t)  # type: ignore[no-any-return]


class Wrapper(nn.Module):
    """A module that keeps its network out of its registered parts."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.hidden = [net]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.hidden[0](x, t)  # type: ignore[no-any-return]


def uses_global(x: Tensor, t: Tensor) -> Tensor:
    return NET(x, t)  # type: ignore[no-any-return]


def decorated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def call(*args: Any) -> Tensor:
        return function(*args)

    return call


def default(x: Tensor, t: Tensor, net: Any = NET, *, again: Any = NET) -> Tensor:
    return net(x, t)  # type: ignore[no-any-return]


SPACE = types.SimpleNamespace(part=types.SimpleNamespace(net=NET), other=nn.ReLU())
LIST, TABLE = [NET], {"net": NET}
CALLS: dict[str, Callable[..., Tensor]] = {
    "partial": functools.partial(NET, scale=1.0),
    "nested partial": functools.partial(functools.partial(NET.method)),
    "in the arguments of a partial": functools.partial(lambda net, x, t: net(x, t), NET),
    "in the keywords of a partial": functools.partial(lambda x, t, net: net(x, t), net=NET),
    "lambda": lambda x, t: NET(x, t),
    "bound method": NET.method,
    "forward": NET.forward,
    "default": default,
    "decorator": decorated(uses_global),
    "a function that a function calls": lambda x, t: uses_global(x, t),
    "closure": (lambda net: lambda x, t: net(x, t))(NET),
    "object": Holder(NET),
    "method of an object": Holder(NET).run,
    "slots": Slotted(lambda x, t: NET(x, t)),
    "computed name": Computed(NET),
    "namespaces": lambda x, t: SPACE.part.net(x, t),
    "list": lambda x, t: LIST[0](x, t),
    "dict": lambda x, t: TABLE["net"](x, t),
    "unregistered": Wrapper(NET),
    "no_grad": torch.no_grad()(lambda x, t: NET(x, t)),
    "vmap": torch.vmap(NET),
    "another model": lambda x, t, other=sd.ScoreModel(uses_global, sd.VP()): other.noise(x, 0.5),  # noqa: B008
    "torch.compile": torch.compile(NET, backend="eager"),
    "compiled function": torch.compile(uses_global, backend="eager"),
    "data parallel": nn.DataParallel(NET),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_module_is_found_through_wrappers(call: Callable[..., Tensor]) -> None:
    model = sd.ScoreModel(call, sd.VP())
    assert model.dtype == torch.float64
    with evaluating(model):
        assert not NET.training
        assert not NET.drop.training
    assert NET.training
    assert NET.drop.training
    assert type(NET) is Net


@pytest.mark.parametrize("name", ["partial", "lambda", "object", "unregistered"])
def test_networks_behind_functions_are_sampled_without_dropout(name: str) -> None:
    a, b, c = (
        sd.sample(sd.ScoreModel(net, sd.VP()), (4, 2), steps=4, seed=0).x
        for net in (CALLS[name], CALLS[name], NET)
    )
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(a, c, rtol=0, atol=0)


def test_attributes_that_the_code_does_not_name_do_not_count() -> None:
    other = copy.deepcopy(NET).float()
    assert modules_behind(Holder(NET, other)).modules == (NET,)
    law = sd.exact.Gaussian([0.0], [[1.0]]).model(sd.VP())
    assert modules_behind(law.net).modules == ()


class Shy:
    """A proxy that cannot be looked at outside of its context."""

    @property
    def __class__(self) -> type:
        raise RuntimeError("outside of the context")

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        raise RuntimeError("outside of the context")


SHY, MANY = Shy(), list(range(10**6))


def test_a_search_is_short_and_looks_at_anything() -> None:
    def call(x: Tensor, t: Tensor) -> Tensor:
        return NET(x, t) if MANY and SHY is not None else x  # type: ignore[no-any-return]

    assert modules_behind(call).modules == (NET,)
    start = time.perf_counter()
    modules_behind(call)
    assert time.perf_counter() - start < 0.05


def test_modules_that_disagree_have_to_be_named() -> None:
    half, whole = copy.deepcopy(NET).float(), NET
    both = sd.ScoreModel(lambda x, t: half(x.float(), t) + whole(x.double(), t), sd.VP())
    with pytest.raises(
        ValueError, match=r"more than one dtype, torch.float32, torch.float64: .*network=module"
    ):
        sd.sample(both, (2, 2), steps=2, seed=0)
    named = sd.ScoreModel(both.net, sd.VP(), network=half)
    assert named.dtype == torch.float32
    sd.sample(named, (2, 2), steps=2, seed=0)
    assert not any(whole.modes[-2:])
    assert not any(half.modes[-2:])
    unseen = sd.ScoreModel(lambda x, t: globals()["N" + "ET"](x, t), sd.VP(), network=NET)
    assert unseen.dtype == torch.float64
    sd.sample(unseen, (2, 2), steps=2, seed=0)
    assert not any(NET.modes[-2:])
    assert "network" not in dict(unseen.named_children())
    with pytest.raises(TypeError, match="torch module that net calls"):
        sd.ScoreModel(uses_global, sd.VP(), network=uses_global)  # type: ignore[arg-type]


def test_to_and_train_reach_the_network_behind_a_function() -> None:
    net = make()
    model = sd.ScoreModel(lambda x, t: net(x, t), sd.VP())
    model.float()
    assert net.linear.weight.dtype == torch.float32
    model.eval()
    assert not net.drop.training
    model.train()
    assert net.drop.training
    model.to("meta")
    assert model.device.type == "meta"
    with pytest.raises(ValueError, match="move the model first"):
        sd.sample(model, (2, 2), steps=2, seed=0, device="cpu")


def run(*calls: Callable[[], Tensor]) -> list[Tensor]:
    """The calls in threads of their own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [task.result(60) for task in [pool.submit(call) for call in calls]]


@pytest.mark.parametrize("hidden", [False, True])
def test_samplers_in_threads_do_not_disturb_each_other(hidden: bool) -> None:
    net = make()
    model = sd.ScoreModel((lambda x, t: net(x, t)) if hidden else net, sd.VP())
    long, short = (
        lambda n=n: (
            sd.sample(model, (3, 2), solver=sd.solvers.Euler(), steps=n, seed=n, last="noisy").x
        )
        for n in (8, 3)
    )
    alone = [long(), short()]
    barrier = threading.Barrier(2)
    turns = threading.local()

    def meet() -> None:
        """The first calls of both overlap; then the short solve ends within the long one."""
        turns.n = getattr(turns, "n", 0) + 1
        if turns.n <= 3:
            barrier.wait(30)

    net.meet = meet
    together = run(long, short)
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    assert not any(net.modes)
    assert net.training
    assert net.drop.training
    assert net.calls == 22
    assert type(net) is Net


@pytest.mark.uses_global_rng
def test_a_thread_that_trains_keeps_its_dropout_while_another_samples() -> None:
    net = make()
    model = sd.ScoreModel(net, sd.VP())
    loss = sd.DenoisingScoreMatching()
    data = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)

    def train() -> Tensor:
        torch.manual_seed(3)
        return torch.stack([loss(model, data).detach() for _ in range(4)])

    def draw() -> Tensor:
        return sd.sample(model, (3, 2), solver=sd.solvers.Euler(), steps=4, seed=1, last="noisy").x

    alone = [train(), draw()]
    net.meet = functools.partial(threading.Barrier(2).wait, 30)
    torch.testing.assert_close(run(train, draw), alone, rtol=0, atol=0)
    assert sorted(net.modes) == [False] * 8 + [True] * 8


def test_compiled_modules_are_evaluated_until_the_last_call_leaves() -> None:
    net = make()
    compiled = torch.compile(net, backend="eager")
    first, second = evaluating(compiled), evaluating(functools.partial(compiled))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not net.training
    assert run(lambda: torch.tensor(net.training)) == [torch.tensor(False)]
    second.__exit__(None, None, None)
    assert net.training
    assert net.drop.training


def test_copies_made_during_a_call_are_of_the_own_class() -> None:
    with evaluating(NET):
        for twin in (copy.deepcopy(NET.drop), pickle.loads(pickle.dumps(NET.drop))):
            assert type(twin) is nn.Dropout
            assert twin.training
        NET.drop.eval()
        NET.drop.train()
    assert NET.drop.training


def test_a_registry_of_subclasses_sees_no_class_of_ours() -> None:
    class Registered(nn.Module):
        known: list[type] = []  # noqa: RUF012

        def __init_subclass__(cls, *, name: str) -> None:
            Registered.known.append(cls)

    class One(Registered, name="one"):
        pass

    module = One()
    with evaluating(module):
        assert not module.training
    assert module.training
    assert Registered.known == [One]


def test_checkpointed_steps_are_made_again_without_dropout() -> None:
    net = make()
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2).requires_grad_()
    grads = []
    for grad, call in (("full", net), ("checkpoint", net), ("checkpoint", lambda x, t: net(x, t))):
        out = sd.decode(
            sd.ScoreModel(call, sd.VP()), x, solver=sd.solvers.Euler(), steps=3, grad=grad
        ).x  # type: ignore[arg-type]
        grads += torch.autograd.grad(out.square().sum(), x)
    torch.testing.assert_close(grads[1:], grads[:1] * 2, rtol=0, atol=0)
    assert not any(net.modes)


def test_chains_and_features_are_evaluated_without_dropout() -> None:
    modes: list[bool] = []
    drop = nn.Dropout(0.5).train()

    def potential(x: Tensor) -> Tensor:
        modes.append(drop.training)
        return -0.5 * x.square().sum(dim=1)

    sd.mcmc.run(sd.mcmc.RandomWalk(0.5), potential, torch.zeros(2, 2), steps=2, seed=0)
    x = torch.linspace(-1, 1, 12).reshape(6, 2)
    sd.metrics.frechet_distance(
        x, x + 1, features=lambda x: (modes.append(drop.training), x)[1], floor=0
    )
    assert modes
    assert not any(modes)


def test_a_thread_that_python_did_not_start_counts_as_evaluating() -> None:
    """So do autograd's, which make a network's own checkpoints again within a solve."""
    net, modes, done = make(), [], threading.Event()

    def look() -> None:
        modes.append(net.training)
        done.set()

    for context in (evaluating(net), nullcontext()):
        with context:
            done.clear()
            _thread.start_new_thread(look, ())
            assert done.wait(30)
    assert modes == [False, True]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_modules_are_evaluated() -> None:
    scripted = torch.jit.script(nn.Sequential(make().float().linear, nn.Dropout(0.5)).train())
    model = sd.ScoreModel(lambda x, t: scripted(x), sd.VP())
    a, b = (sd.sample(model, (4, 2), steps=3, seed=0).x for _ in range(2))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert scripted.training
    assert scripted[1].training


def test_training_does_not_notice_that_its_network_is_sampled(tmp_path: Path) -> None:
    data = torch.linspace(-1, 1, 32).reshape(16, 2)

    def fitted(name: str) -> dict[str, Tensor]:
        model = sd.ScoreModel(make().float(), sd.VP())
        stop, draws = threading.Event(), []

        def draw() -> None:
            while not stop.is_set():
                draws.append(sd.sample(model, (2, 2), solver=sd.solvers.Euler(), steps=3, seed=0).x)

        thread = threading.Thread(target=draw)
        if name == "watched":
            thread.start()
        try:
            sd.fit(model, data, out=tmp_path / name, steps=30, batch_size=8, device="cpu")
        finally:
            stop.set()
            if name == "watched":
                thread.join()
                assert draws
        return dict(model.net.state_dict())

    torch.testing.assert_close(fitted("watched"), fitted("alone"), rtol=0, atol=0)


def test_a_mode_that_a_module_derives_from_another_is_set_there() -> None:
    class Follows(nn.Module):
        """Its mode is that of the network which it keeps to itself."""

        def __init__(self, net: nn.Module) -> None:
            vars(self)["inner"] = [net]
            super().__init__()

        @property
        def training(self) -> bool:  # type: ignore[override]
            return self.inner[0].training  # type: ignore[no-any-return]

        @training.setter
        def training(self, mode: bool) -> None:
            self.inner[0].training = mode

    net = make()
    follows = Follows(net)
    with evaluating(follows):
        assert not follows.training
        assert not net.training
    assert follows.training
    assert net.training
    assert type(follows) is Follows

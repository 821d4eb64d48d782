"""The folder of a run: one writer, nothing lost on the way, and everything that a model is made of
comes back.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small_runs import DATA, make, train
from torch import Tensor, nn

import sdediff as sd
from sdediff import describing, files
from sdediff.checkpoint import read_config
from sdediff.networks import MLP, initialised
from sdediff.states import module_state, read_tensors
from sdediff.training import Interrupted

NAMES = ("config.json", "losses.csv", "model.safetensors", "training.safetensors")


def small() -> MLP:
    return initialised(lambda: MLP(2, 8, 1, 2), 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def fit(net: nn.Module, out: Path, **options: object) -> sd.ScoreModel:
    arguments = {"steps": 3, "batch_size": 16, "device": "cpu"} | options
    return sd.fit(sd.ScoreModel(net, sd.VP()), DATA, out=out, **arguments)  # type: ignore[arg-type]


# -- the whole model comes back --------------------------------------------------------------------

FIELDS: dict[str, list[object]] = {
    "predicts": ["data", "v"],
    "sigma_data": [0.731, 1e-4],
    "data_std": [0.3, 0.6],
    "time": ["log_snr", "reversed", sd.network_time.Timesteps(500, shift=0.0, rounded=True)],
    "time_dtype": [torch.float64, torch.bfloat16],
    "learned_variance": [True, False],
    "normalizer": [sd.Normalizer([0.1, -0.2], [0.3, 1 / 3]), sd.Normalizer(0.0, 2.0)],
    "null": [{"label": 10}, {"label": torch.tensor(3)}],
    "network": ["", "leave", None],
    "constraint": [sd.Clip(-1.5, 1.25), sd.constraints.DynamicThreshold(0.9, 2.0)],
}


def built(**values: object) -> sd.ScoreModel:
    constraint = values.pop("constraint", None)
    net = small()
    if values.get("network") is not None:
        values["network"] = net.get_submodule(str(values["network"]))
    model = sd.ScoreModel(net, sd.VP(), **values)  # type: ignore[arg-type]
    return model if constraint is None else model.constrained(constraint)  # type: ignore[arg-type]


def test_every_field_of_a_model_has_an_example() -> None:
    """Whoever gives `ScoreModel` a field adds values of it here, and `sd.load` has to give them
    back.
    """
    assert set(FIELDS) == {*describing.fields_of(make()), "constraint"}


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in FIELDS.items() for value in values]
)
def test_a_field_comes_back(tmp_path: Path, field: str, value: object) -> None:
    model = built(**{field: value})
    loss = sd.DenoisingScoreMatching("uniform")
    if field == "learned_variance":  # which needs a network of twice the channels: described alone
        entry = json.loads(json.dumps(describing.describe(model)))["model"][field]
        assert describing.build(entry) is value
        return
    if value is torch.bfloat16:
        model.net.to(torch.bfloat16)
    trained = sd.fit(
        model, DATA, out=tmp_path / "run", steps=1, batch_size=4, device="cpu", loss=loss
    )
    again = sd.load(tmp_path / "run")
    assert type(again) is type(trained)
    assert hasattr(again, "constraint") == (field == "constraint")
    for name in FIELDS.keys() - {"network", *([] if field == "constraint" else ["constraint"])}:
        assert getattr(again, name) == getattr(trained, name), name
    assert again.declared_data_std == trained.declared_data_std
    assert again.network is (
        None if value is None or field != "network" else again.net.get_submodule(str(value))
    )
    assert again.dtype == trained.dtype


def test_a_network_whose_weights_would_be_lost_is_refused_before_any_work(tmp_path: Path) -> None:
    model = sd.ScoreModel(small(), sd.VP(), network=small())
    with pytest.raises(ValueError, match="network=MLP is not registered in net"):
        sd.fit(model, DATA, out=tmp_path / "run", steps=1, device="cpu")
    assert not contents(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_a_network_that_ships_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    trained = fit(small().to(dtype), tmp_path / "run")
    again = sd.load(tmp_path / "run")
    assert again.dtype == dtype
    for (name, one), (_, two) in zip(
        trained.net.named_buffers(), again.net.named_buffers(), strict=True
    ):
        assert one.dtype == two.dtype, name
    assert torch.equal(again.noise(DATA, 0.5), trained.noise(DATA, 0.5))


PROCESSES = [
    sd.VE(0.02, 30.0),
    sd.VP(0.2, 8.0, T=2.0, t_min=0.01),
    sd.SubVP(0.2, 8.0),
    sd.Cosine(),
    sd.EDM(0.01, 20.0),
    sd.RectifiedFlow(),
    sd.sde.InterpolatedVP((0.1, 0.2, 0.9), (0.2, 0.4, 1.0)),
    sd.sde.InterpolatedVE((0.1, 0.2, 0.9), (0.2, 0.4, 1.0)),
    sd.sde.LearnedVP(sd.sde.MonotoneSchedule(-6.0, 1.0, width=5)),
    sd.VE(0.02, 30.0).scaled(2.5),
]


def test_every_sde_that_ships_has_an_example() -> None:
    kinds = describing.KINDS["sde"].items()
    linear = {name for name, kind in kinds if issubclass(kind, sd.LinearSDE)}
    assert {type(sde).__name__ for sde in PROCESSES} == linear


@pytest.mark.thin(2)
@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_an_sde_comes_back(tmp_path: Path, sde: sd.LinearSDE) -> None:
    """Data of the SDE's own size, so that nothing is said of them."""
    data = DATA / DATA.std() * 0.5
    loss = sd.DenoisingScoreMatching("uniform")
    model = sd.ScoreModel(small(), sde, "data", time="log_snr")
    quiet = {"out": tmp_path / "run", "steps": 2, "batch_size": 4, "device": "cpu", "loss": loss}
    trained = _without_warnings(lambda: sd.fit(model, data, **quiet))  # type: ignore[arg-type]
    again = sd.load(tmp_path / "run")
    t = torch.linspace(sde.t_min, sde.t_max, 7, dtype=torch.float64)
    assert type(again.sde) is type(sde)
    assert torch.equal(again.sde.log_snr(t), trained.sde.log_snr(t))
    assert (again.sde.t_min, again.sde.t_max, again.sde.T) == (sde.t_min, sde.t_max, sde.T)


@dataclass(frozen=True)
class Mine(sd.LinearSDE):
    beta: float = 10.0

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta + 0 * t

    def g(self, t: Tensor) -> Tensor:
        return self.beta**0.5 + 0 * t


@pytest.mark.parametrize(
    ("trained", "passed", "said"),
    [
        (
            Mine(),
            Mine(3.0),
            r"was trained with Mine\(beta=10.0\), and the SDE passed to load is Mine\(beta=3.0\)",
        ),
        (sd.VP(), sd.VP(beta_max=10.0), r"was trained with VP with .*'beta_max': 20.0"),
    ],
    ids=["own", "built-in"],
)
def test_another_sde_than_that_of_the_training_is_noticed(
    tmp_path: Path, trained: sd.SDE, passed: sd.SDE, said: str
) -> None:
    sd.fit(
        sd.ScoreModel(small(), trained),
        DATA,
        out=tmp_path / "run",
        steps=1,
        batch_size=4,
        device="cpu",
    )
    with pytest.warns(UserWarning, match=said):
        assert sd.load(tmp_path / "run", sde=passed).sde == passed
    assert sd.load(tmp_path / "run", sde=trained).sde == trained  # warnings are errors here


def _without_warnings(call: Callable[[], sd.ScoreModel]) -> sd.ScoreModel:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def test_own_clocks_and_constraints_are_asked_for(tmp_path: Path) -> None:
    def clock(t: Tensor) -> Tensor:
        return 2 * t

    def mine(x_0: Tensor) -> Tensor:
        return x_0.clamp(-2, 2)

    net = small()
    model = sd.ScoreModel(net, sd.VP(), time=clock).constrained(mine)
    sd.fit(model, DATA, out=tmp_path / "run", steps=1, batch_size=4, device="cpu")
    with pytest.raises(
        ValueError, match=r"your own function of time; pass it: load\(.*time=\.\.\.\)"
    ):
        sd.load(tmp_path / "run", constraint=mine)
    with pytest.raises(
        ValueError, match=r"your own constraint mine; pass it: load\(.*constraint=\.\.\.\)"
    ):
        sd.load(tmp_path / "run", time=clock)
    again = sd.load(tmp_path / "run", time=clock, constraint=mine)
    assert again.time is clock
    assert again.constraint is mine


def test_values_are_described_with_what_they_hold() -> None:
    entry = describing.describe(
        sd.ScoreModel(small(), sd.sde.LearnedVP(sd.sde.MonotoneSchedule(width=3)))
    )["sde"]
    assert entry["parameters"]["schedule"] == {
        "class": "MonotoneSchedule",
        "parameters": {"width": 3},
    }
    own = describing.describe(
        sd.ScoreModel(small(), sd.sde.LearnedVP(nn.Sequential(nn.Identity())))
    )["sde"]
    assert own == {"class": "LearnedVP", "parameters": None}


# -- networks of every kind are kept, or refused before the first step -----------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.again = self.a

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.again(x)))
        return out


class Linear(nn.Module):
    """x times a parameter, between buffers that are one, views of one, and extra state."""

    def __init__(self, weight: Tensor | None = None, extra: object = None) -> None:
        super().__init__()
        table = torch.arange(1.0, 7.0)
        self.weight = nn.Parameter(torch.eye(2) if weight is None else weight)
        for name, value in (
            ("one", table),
            ("two", table),
            ("view", table[2:4]),
            ("other", table[3:]),
        ):
            self.register_buffer(name, value)
        self.extra = extra

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        weight = self.weight.real if self.weight.is_complex() else self.weight
        return x.to(weight.dtype) @ weight

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, state: object) -> None:
        self.extra = state


EXTRA = {"version": 1, "scale": [0.1, None, "x"], "amax": torch.tensor([1.0, 2.0])}


def test_tied_weights_stay_tied_and_are_kept_once(tmp_path: Path) -> None:
    trained = fit(initialised(Tied, 0), tmp_path / "run")
    net = initialised(Tied, 1)
    again = sd.load(tmp_path / "run", net=net)
    assert net.b.weight is net.a.weight
    assert torch.equal(again.noise(DATA, 0.5), trained.noise(DATA, 0.5))
    with safetensors.safe_open(tmp_path / "run" / "model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["a.bias", "a.weight", "b.bias"]
    resumed = fit(initialised(Tied, 2), tmp_path / "run", resume=True, steps=5)
    assert resumed.net.b.weight is resumed.net.a.weight  # type: ignore[union-attr]


def test_shared_buffers_and_extra_state_come_back(tmp_path: Path) -> None:
    fit(Linear(extra=EXTRA), tmp_path / "run")
    net = Linear()
    sd.load(tmp_path / "run", net=net)
    assert torch.equal(net.other, torch.arange(4.0, 7.0))
    assert torch.equal(net.view, torch.tensor([3.0, 4.0]))
    assert isinstance(net.extra, dict)
    assert torch.equal(net.extra.pop("amax"), EXTRA["amax"])  # type: ignore[arg-type]
    assert net.extra == {"version": 1, "scale": [0.1, None, "x"]}


def test_complex_parameters_are_trained_and_kept(tmp_path: Path) -> None:
    trained = fit(Linear(torch.eye(2, dtype=torch.complex64)), tmp_path / "run")
    net = Linear(torch.zeros(2, 2, dtype=torch.complex64))
    sd.load(tmp_path / "run", net=net)
    assert torch.equal(net.weight, trained.net.weight)  # type: ignore[union-attr]
    assert not torch.equal(net.weight, torch.eye(2, dtype=torch.complex64))


def test_frozen_parameters_stay_as_they_are(tmp_path: Path) -> None:
    net = small()
    net.enter.requires_grad_(False)
    first = {name: value.clone() for name, value in net.state_dict().items()}
    fit(net, tmp_path / "run", steps=5)
    again = sd.load(tmp_path / "run").net.state_dict()  # type: ignore[union-attr]
    assert torch.equal(again["enter.weight"], first["enter.weight"])
    assert not torch.equal(again["leave.1.weight"], first["leave.1.weight"])


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda net: torch.compile(net, backend="eager")],
    ids=["parallel", "compile"],
)
def test_wrappers_leave_no_trace_in_the_names(
    tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    plain = small()
    inside = nn.Sequential(plain.enter, plain.leave)
    inside[0] = wrap(inside[0])
    trained = fit(wrap(plain), tmp_path / "run")
    state, _ = read_tensors(tmp_path / "run" / "model.safetensors")
    assert state.keys() == plain.state_dict().keys()
    again = sd.load(tmp_path / "run")
    wrapped = sd.load(tmp_path / "run", net=wrap(small()))
    assert torch.equal(again.noise(DATA, 0.5), trained.noise(DATA, 0.5))
    assert torch.equal(wrapped.noise(DATA, 0.5), trained.noise(DATA, 0.5))
    assert sorted(module_state(inside)) == ["0.bias", "0.weight", "1.1.bias", "1.1.weight"]


def frozen() -> nn.Module:
    return MLP(2, 8, 1, 2).requires_grad_(False)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class Detached(MLP):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t).detach()


def old_weight_norm() -> nn.Module:
    net = Linear()
    # no leaf of the graph, as what an old weight_norm leaves on a module
    net.extra = net.weight * 2
    return net


@pytest.mark.parametrize(
    ("make_net", "message"),
    [
        (
            frozen,
            "every parameter of MLP is frozen, so there is nothing to train; net.requires_grad_",
        ),
        (
            Lazy,
            r"layer.weight of Lazy has no shape before the network is first called; call it once",
        ),
        (lambda: MLP(2, 8, 1, 2).to("meta"), r"on the meta device"),
        (nn.Identity, "Identity has no parameters"),
        (
            lambda: Linear(extra=object()),
            r"cannot be kept in a run folder: '.*_extra_state' holds a object",
        ),
        (lambda: Linear(extra={1: 2}), r"holds a dict"),
        (old_weight_norm, "cannot be copied, which averaging its weights needs"),
        (Detached, "the loss does not depend on a parameter"),
    ],
)
def test_what_cannot_be_trained_or_kept_is_refused_at_step_0(
    tmp_path: Path, make_net: Callable[[], nn.Module], message: str
) -> None:
    with torch.random.fork_rng():
        net = make_net()
    steps: list[int] = []
    with pytest.raises(ValueError, match=message):
        fit(net, tmp_path / "run", steps=30, callback=lambda k, _: steps.append(k))
    assert not steps
    assert not (tmp_path / "run" / "model.safetensors").exists()


# -- damage is noticed -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_a_flipped_bit_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    fit(initialised(lambda: MLP(2, 4, 1, 2), 0), tmp_path / "run")
    path = tmp_path / "run" / name
    whole = path.read_bytes()
    for place in range(0, len(whole), 1 + len(whole) // 150):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            read_tensors(path, sealed=True)
    read = {
        "model.safetensors": lambda: sd.load(tmp_path / "run"),
        "training.safetensors": lambda: fit(
            initialised(lambda: MLP(2, 4, 1, 2), 0), tmp_path / "run", resume=True
        ),
    }
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read[name]()
    path.write_bytes(whole)
    read[name]()


def test_files_of_two_runs_are_told_apart(tmp_path: Path) -> None:
    train(tmp_path / "one", steps=2)
    train(tmp_path / "two", steps=2, seed=1)
    for name in ("model.safetensors", "training.safetensors"):
        shutil.copy(tmp_path / "one" / name, tmp_path / "two" / name)
    with pytest.raises(
        ValueError, match=r"model.safetensors is of run \w+, and config.json beside it of run \w+"
    ):
        sd.load(tmp_path / "two")
    with pytest.raises(ValueError, match=r"training.safetensors is of run \w+"):
        train(tmp_path / "two", steps=4, seed=1, resume=True)


def edit(run: Path, change: Callable[[dict[str, object]], object]) -> None:
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(format=3),
            "has format 3, and this version of sdediff reads formats up to 2: load it with a newer",
        ),
        (lambda c: c.pop("format"), "it says no format"),
        (lambda c: c.update(format="2"), "it says the format '2'"),
        (lambda c: c.update(model=None), "model is null, where an object is expected"),
        (lambda c: c.update(sde=[]), r"sde is \[\]"),
        (lambda c: c["network"].pop("parameters"), "network needs a class"),
        (lambda c: c["network"].update({"class": 3}), "network needs a class"),
        (lambda c: c["model"].pop("predicts"), "model lacks predicts"),
        (lambda c: c["model"].update(predicts=["v"]), "damaged"),
        (lambda c: c["model"].update(sigma_data="wide"), "damaged"),
        (lambda c: c["model"].update(time_dtype={"dtype": "float12"}), "damaged"),
        (
            lambda c: c["model"].update(future=1),
            "has no future; load it with the version that wrote it",
        ),
        (
            lambda c: c["model"].update(constraint={"class": "Clp", "parameters": {}}),
            "did you mean 'Clip'",
        ),
        (
            lambda c: c["network"]["parameters"].update(depth=10**9),
            "does not fit the network MLP of config.json",
        ),
        (
            lambda c: c["network"]["parameters"].update(depth=1e9),
            "does not fit the network MLP of config.json",
        ),
        (
            lambda c: c["network"]["parameters"].update(width=10**9),
            "does not fit the network MLP of config.json",
        ),
        (
            lambda c: c["network"]["parameters"].update(width=10**30),
            "does not fit the network MLP of config.json",
        ),
        (
            lambda c: c["network"]["parameters"].update(frequencies=-1),
            "does not fit the network MLP of config.json",
        ),
        (
            lambda c: c["network"].update({"class": "UNet"}),
            "does not fit the network UNet of config.json",
        ),
        (
            lambda c: c["network"].update({"class": "UNet", "parameters": {"layers": 10**9}}),
            "does not fit the network UNet of config.json",
        ),
        (
            lambda c: c["network"].update({"class": "VP", "parameters": {}}),
            "names 'VP', which this version does not know",
        ),
    ],
)
def test_damaged_configurations_are_one_line(
    tmp_path: Path, finished: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    edit(run, change)
    with pytest.raises(ValueError, match=message) as caught:
        sd.load(run)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    train(run, steps=4)
    return run


def test_folders_of_format_1_load_and_go_on(tmp_path: Path) -> None:
    """As they were written: no run id, no checksum, a clock as its parameters, fewer fields."""
    data = DATA[:, :1].clone()

    def model() -> sd.ScoreModel:
        return sd.ScoreModel(
            initialised(lambda: MLP(1, 8, 1, 2), 0), sd.VP(), time=sd.network_time.Timesteps(500)
        )

    options = {"batch_size": 8, "device": "cpu", "steps": 6}
    with pytest.raises(Interrupted):
        sd.fit(
            model(),
            data,
            out=tmp_path / "run",
            checkpoint_every=2,
            callback=_stop,
            **(options | {"steps": 20}),
        )  # type: ignore[arg-type]
    for name in ("model.safetensors", "training.safetensors"):
        state, meta = read_tensors(tmp_path / "run" / name)
        safetensors.torch.save_file(state, tmp_path / "run" / name, {"step": meta["step"]})

    def first(config: dict) -> None:  # type: ignore[type-arg]
        config.pop("run")
        config["format"] = 1
        config["model"] = {"predicts": "noise", "sigma_data": 0.5, "learned_variance": False}
        config["model"]["time"] = {"n": 500, "shift": -1.0, "rounded": False}

    edit(tmp_path / "run", first)
    with pytest.warns(UserWarning, match="10 of 20 steps"):
        again = sd.load(tmp_path / "run")
    assert again.time == sd.network_time.Timesteps(500)
    sd.fit(model(), data, out=tmp_path / "run", resume=True, **(options | {"steps": 20}))  # type: ignore[arg-type]
    sd.fit(model(), data, out=tmp_path / "whole", **(options | {"steps": 20}))  # type: ignore[arg-type]
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def _stop(step: int, loss: float) -> None:
    if step == 10:
        signal.raise_signal(signal.SIGINT)


# -- nothing is lost on the way --------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_kill_at_any_moment_of_overwriting_leaves_the_old_run_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change of the file system in turn is the last one that happens."""
    train(tmp_path / "old", steps=2)
    train(tmp_path / "new", steps=3, seed=1, checkpoint_every=2)
    outcomes = []
    for last in range(100):
        run = Path(shutil.copytree(tmp_path / "old", tmp_path / f"run{last}"))
        calls = iter(range(1000))
        with monkeypatch.context() as patch:
            for module, name in (
                (os, "replace"),
                (os, "rename"),
                (os, "rmdir"),
                (os, "mkdir"),
                (os, "unlink"),
                (os, "chmod"),
            ):
                patch.setattr(module, name, _counted(getattr(module, name), calls, last))
            try:
                train(run, steps=3, seed=1, checkpoint_every=2, overwrite=True)
                done = True
            except Killed:
                done = False
        with _maybe_warned():
            seed = read_config(run)["training"]["seed"]
            outcomes.append(seed)
            assert torch.isfinite(sd.load(run).noise(DATA, 0.5)).all()
        train(run, steps=3, seed=1, checkpoint_every=2, overwrite=True)
        assert contents(run) == contents(tmp_path / "new")
        if done:
            break
    assert done
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {0, 1}


def _counted(function: Callable[..., object], calls: object, last: int) -> Callable[..., object]:
    def counted(*args: object, **kw: object) -> object:
        if next(calls) >= last:  # type: ignore[call-overload]
            raise Killed
        return function(*args, **kw)

    return counted


def _maybe_warned() -> object:
    import warnings

    context = warnings.catch_warnings()
    warnings.simplefilter("ignore")
    return context


def test_overwriting_keeps_the_old_run_until_the_first_checkpoint(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=2)
    before = contents(tmp_path / "run")
    seen: list[bool] = []

    def look(step: int, loss: float) -> None:
        seen.append(contents(tmp_path / "run") | {".lock": b""} == before | {".lock": b""})
        assert sd.load(tmp_path / "run").predicts == "edm"

    net = make()
    net.net.register_forward_hook(lambda *_: torch.full((16, 2), torch.nan, requires_grad=True))  # type: ignore[union-attr]
    with pytest.raises(FloatingPointError):
        sd.fit(
            net, DATA, out=tmp_path / "run", steps=40, batch_size=16, device="cpu", overwrite=True
        )
    train(tmp_path / "run", steps=30, overwrite=True, callback=look)
    assert seen == [True, True, True]
    assert contents(tmp_path / "run") != before


def test_resume_and_overwrite_together_touch_nothing(finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(ValueError, match="pass one of them"):
        train(finished, resume=True, overwrite=True)
    assert contents(finished) == before


def test_a_resumed_run_that_has_made_more_steps_than_asked_for_says_so(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=4)
    with pytest.warns(
        UserWarning,
        match="has made 4 steps already, and steps=3 asks for fewer: nothing is left to do",
    ):
        train(tmp_path / "run", steps=3, resume=True)


def test_resume_starts_where_nothing_is_there_yet(tmp_path: Path) -> None:
    train(tmp_path / "whole", steps=4)
    train(tmp_path / "none", steps=4, resume=True)
    (tmp_path / "begun").mkdir()
    # stopped before the first checkpoint
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "begun")
    train(tmp_path / "begun", steps=4, resume=True)
    assert (
        contents(tmp_path / "whole") == contents(tmp_path / "none") == contents(tmp_path / "begun")
    )
    (tmp_path / "whole" / "training.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"training.safetensors is missing"):
        train(tmp_path / "whole", steps=8, resume=True)


OTHERS: dict[str, dict[str, str]] = {
    "weights of another tool": {"model.safetensors": "theirs"},
    "a transformers model": {
        "config.json": '{"model_type": "bert"}',
        "model.safetensors": "theirs",
    },
    "a diffusers model": {
        "config.json": '{"_class_name": "UNet2DModel"}',
        "diffusion_pytorch_model.safetensors": "theirs",
    },
    "a diffusers pipeline": {"model_index.json": "{}", "unet/config.json": "{}"},
    "no JSON": {"config.json": "name: mine"},
    "a checkpoint": {"last.ckpt": "theirs"},
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}], ids=str)
def test_only_our_own_folders_are_written(
    tmp_path: Path, other: str, options: dict[str, bool]
) -> None:
    for name, text in OTHERS[other].items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(text)
    before = contents(tmp_path / "run")
    with pytest.raises(
        ValueError,
        match=r"run holds .*another tool wrote it.*nothing was touched: choose another folder",
    ):
        train(tmp_path / "run", **options)  # type: ignore[arg-type]
    assert contents(tmp_path / "run") == before


def test_a_folder_with_notes_is_written_and_an_empty_name_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(tmp_path / "run", steps=2)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    monkeypatch.chdir(tmp_path)
    for empty in ("", "  "):
        with pytest.raises(ValueError, match="out is empty"):
            train(empty, steps=2)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


# -- one writer, and signals -----------------------------------------------------------------------


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    def second(step: int, loss: float) -> None:
        for options in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(ValueError, match="is being written by another training"):
                train(tmp_path / "run", steps=5, seed=1, **options)

    train(tmp_path / "run", steps=10, callback=second)
    assert read_config(tmp_path / "run")["training"]["seed"] == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == list(NAMES)


@pytest.mark.thin(0)
def test_a_killed_writer_leaves_no_lock_and_no_rubbish_behind(tmp_path: Path) -> None:
    """kill -9 while the lock is held and temporary files lie about: the next writer goes on, and
    clears them away.
    """
    run = tmp_path / "run"
    train(run, steps=2)
    script = (
        "import os, signal, sys; from pathlib import Path; from sdediff.run_folder import "
        "locked; run = Path(sys.argv[1])\n"
        "with locked(run):\n"
        "    (run / '.model.safetensors.ab_d1234').write_bytes(b'half')\n"
        "    (run / '.staging').mkdir(); (run / '.staging' / 'config.json').write_text('{}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(run)], check=False, cwd=Path(__file__).parent.parent
    )
    assert killed.returncode == -signal.SIGKILL
    assert (run / ".lock").exists()
    (run / ".model.safetensors.of-mine").write_text("not ours")
    train(run, steps=4, resume=True)
    assert sorted(p.name for p in run.iterdir()) == [".model.safetensors.of-mine", *NAMES]


def test_a_temporary_file_beside_another_file_goes_when_it_is_old(tmp_path: Path) -> None:
    for name in (".x.npy.abcdefgh", ".x.npy.a_new_01"):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / ".x.npy.abcdefgh", (0, 0))
    files.write_atomically(tmp_path / "x.npy", b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x.npy.a_new_01", "x.npy"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_run_leave_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    def stop(step: int, loss: float) -> None:
        if step == 20:
            signal.raise_signal(number)
            if number != signal.SIGINT:  # a scheduler sends it twice
                signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after step 20") as caught:
        train(tmp_path / "run", callback=stop)
    assert caught.value.signum == number
    assert signal.getsignal(number) is before
    assert read_tensors(tmp_path / "run" / "training.safetensors")[1]["step"] == "20"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(tmp_path / "run", steps=20, callback=lambda *_: signal.raise_signal(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert read_tensors(tmp_path / "run" / "model.safetensors")[1]["step"] == "20"

"""Arguments of the public functions, each replaced by values of the wrong kind: what is said names
the argument.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sdediff as sd
from sdediff.data import load_data, split
from sdediff.networks import MLP, UNet

SDE = sd.VP()
LAW = sd.exact.Gaussian(torch.zeros(2), torch.eye(2))
MODEL = LAW.model(SDE)
X = torch.zeros(4, 2)
CHAIN = sd.DDPM.from_schedule("linear", 10)
NO_NUMBERS = {"str": "foo", "dict": {"a": 1}, "object": object(), "complex": 1j}
WRONG = {
    **NO_NUMBERS,
    "list": [1.0, 2.0],
    "nan": float("nan"),
    "tensor": torch.ones(3),
    "negative": -1,
}
FLAGS = {key: value for key, value in WRONG.items() if key != "negative"} | {"two": 2}
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, dict[str, Any]]]] = {
    "sample": (
        sd.sample,
        {"model": MODEL, "shape": (4, 2), "steps": 2, "seed": 0},
        {
            "device": WRONG,
            "callback": WRONG,
            "mask": NO_NUMBERS,
            "stochasticity": WRONG | {"list": [1.0, 2.0, 3.0]},
            "on_fail": WRONG,
            "trajectory": FLAGS,
            "progress": FLAGS,
            "compile": FLAGS,
            "steps": {"huge": 10**400},
            "t_start": {"huge": 10**400, "str": "foo"},
        },
    ),
    "simulate": (
        sd.simulate,
        {"sde": SDE, "x_0": X, "steps": 2, "seed": 0},
        {"callback": WRONG, "trajectory": FLAGS},
    ),
    "log_prob": (sd.log_prob, {"model": MODEL, "x": X}, {"device": WRONG, "progress": FLAGS}),
    "bits_per_dim": (
        sd.bits_per_dim,
        {"model": MODEL, "x": X, "bins": sd.objectives.Bins()},
        {"bins": WRONG, "x": NO_NUMBERS},
    ),
    "variational_bound": (
        sd.discrete.variational_bound,
        {"chain": CHAIN, "model": LAW.model(CHAIN.to_sde()), "x_0": X, "bins": None},
        {"chain": WRONG, "bins": WRONG},
    ),
    "ScoreModel": (
        sd.ScoreModel,
        {"net": MLP(2), "sde": SDE},
        {"learned_variance": FLAGS, "time_dtype": WRONG, "data_std": WRONG},
    ),
    "score": (MODEL.score, {"x": X, "t": 0.5}, {"x": NO_NUMBERS, "t": NO_NUMBERS}),
    "loss": (
        sd.DenoisingScoreMatching(),
        {"model": MODEL, "x_0": X},
        {"model": WRONG, "x_0": NO_NUMBERS, "generator": WRONG},
    ),
    "scaled": (SDE.scaled, {"factor": 2.0}, {"factor": {**WRONG, "bool": True}}),
    "perturb": (
        SDE.perturb,
        {"x_0": X, "t": 0.5, "noise": X},
        {"x_0": NO_NUMBERS, "noise": NO_NUMBERS},
    ),
    "posterior": (
        SDE.posterior,
        {"x_t": X, "x_0": X, "t": 0.5, "s": 0.1},
        {"x_t": NO_NUMBERS, "t": {"rows": [0.5, 0.6]}},
    ),
    "prior_gap": (
        SDE.prior_gap,
        {"mean": 0.0, "variance": 1.0},
        {"mean": NO_NUMBERS, "variance": NO_NUMBERS},
    ),
    "from_sde": (sd.DDPM.from_sde, {"sde": SDE, "N": 10}, {"sde": WRONG}),
    "from_schedule": (
        sd.DDPM.from_schedule,
        {"name": "linear", "N": 10},
        {"name": {"list": [1], "dict": {}}},
    ),
    "DDPMLoss": (
        sd.discrete.DDPMLoss,
        {"chain": CHAIN},
        {"sampler": WRONG, "bins": WRONG, "stratified": FLAGS, "kind": WRONG},
    ),
    "Coupled": (
        sd.objectives.Coupled,
        {},
        {"loss": {"class": sd.objectives.FlowMatching, **WRONG}},
    ),
    "denoising": (
        sd.DenoisingScoreMatching,
        {},
        {"stratified": FLAGS, "weighting": WRONG, "times": WRONG},
    ),
    "White": (
        sd.White,
        {"seeds": (1, 2), "event": (2,)},
        {"seeds": NO_NUMBERS, "event": NO_NUMBERS, "device": WRONG, "dtype": WRONG},
    ),
    "Prior": (sd.Prior, {"std": 1.0}, {"std": {**WRONG, "zero": 0}}),
    "UniPC": (
        sd.solvers.UniPC,
        {},
        {"sde": FLAGS, "lower_final": FLAGS, "startup": WRONG, "order": {**WRONG, "class": int}},
    ),
    "SciPy": (sd.solvers.SciPy, {}, {"method": WRONG}),
    "VE": (sd.VE, {}, {"t_min": {**WRONG, "function": lambda: 0.0}}),
    "InterpolatedVP": (
        sd.sde.InterpolatedVP,
        {"betas": (0.1, 0.2), "times": (0.5, 1.0)},
        {"betas": {"number": 1}, "times": {"number": 1}},
    ),
    "UNet": (
        UNet,
        {},
        {"widths": {"number": 1, "none": None}, "attention": {"none": None}, "dropout": WRONG},
    ),
    "load": (
        sd.load,
        {"run": "there/is/none"},
        {"run": {"list": [], "none": None}, "device": WRONG},
    ),
    "load_data": (
        load_data,
        {"spec": "digits"},
        {"spec": {"none": None}, "raw": FLAGS, "image_size": {**WRONG, "bool": True}},
    ),
    "split": (
        split,
        {"dataset": load_data("digits"), "held_out": 3},
        {"dataset": WRONG, "held_out": {"bool": True}, "seed": WRONG},
    ),
}
CASES = [
    pytest.param(call, name, value, id=f"{call}-{name}-{kind}")
    for call, (_, _, wrong) in CALLS.items()
    for name, values in wrong.items()
    for kind, value in values.items()
]


@pytest.mark.thin(48)
@pytest.mark.parametrize(("call", "name", "value"), CASES)
def test_a_wrong_argument_is_named(call: str, name: str, value: Any) -> None:
    function, right, _ = CALLS[call]
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b") as raised:
        function(**{**right, name: value})
    last = raised.traceback[-1]
    assert "raise" in str(last.statement), f"not said by the library: {last.path}"


FIT = (
    "out",
    "device",
    "mixed_precision",
    "callback",
    "about",
    "resume",
    "overwrite",
    "progress",
    "loss",
)


@pytest.mark.uses_global_rng
@pytest.mark.parametrize("name", FIT)
@pytest.mark.parametrize("value", [7.5, object()])
def test_fit_names_what_is_wrong_before_any_work(tmp_path: Path, name: str, value: Any) -> None:
    given = {"out": tmp_path / "run", "device": "cpu", name: value}
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        sd.fit(sd.ScoreModel(MLP(2), SDE), torch.randn(8, 2), steps=1, **given)
    assert not list(tmp_path.iterdir())


def test_ones_and_zeros_are_flags() -> None:
    assert sd.sample(MODEL, (2, 2), steps=2, seed=0, trajectory=1).trajectory is not None
    assert sd.solvers.UniPC(lower_final=0) == sd.solvers.UniPC(lower_final=False)


class Late(sd.LinearSDE):
    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return t.neg_().exp()

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return (1 - torch.exp(-2 * t)).sqrt()


@pytest.mark.parametrize(
    "make",
    [
        Late,
        lambda: sd.LinearSDE(f=lambda t: t.mul_(0) - 1, g=lambda t: 1.0),
        lambda: sd.LinearSDE(alpha=lambda t: t.neg_().exp(), log_snr=lambda t: -t),
    ],
)
def test_coefficients_read_the_time(make: Callable[[], sd.LinearSDE]) -> None:
    """A coefficient that edits t in place would shift the grid of the solve under it."""
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match="writes to t in place"):
        _ = make().alpha(t), make().f(t)


class Rates(sd.LinearSDE):
    def f(self, t: torch.Tensor) -> torch.Tensor:
        return -torch.ones_like(t)

    def g(self, t: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(t)


@pytest.mark.parametrize("name", ["T", "t_min", "t_max"])
@pytest.mark.parametrize("value", [None, "a", [1], torch.ones(2), 1j, -1.0, float("nan")])
@pytest.mark.parametrize(
    "how",
    [lambda value: value, lambda value: property(lambda self: value)],
    ids=["value", "property"],
)
def test_a_wrong_time_of_a_class_is_named(name: str, value: Any, how: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        _ = sd.ScoreModel(MODEL.net, type("Own", (Rates,), {name: how(value)})())


def test_what_is_no_method_and_no_prior_is_said() -> None:
    with pytest.raises(TypeError, match="Own: f must be a method"):
        type("Own", (Rates,), {"f": -1.0})()
    with pytest.raises(TypeError, match="the prior of Own must be a Prior"):
        sd.sample(
            sd.ScoreModel(MODEL.net, type("Own", (Rates,), {"prior": 1.0})()), (2, 2), steps=2
        )


@pytest.mark.parametrize("edit", [lambda x, t: t.add_(1), lambda x, t: t.__setitem__(0, 1.0)])
def test_a_network_that_edits_its_times_is_told(edit: Callable[..., Any]) -> None:
    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        edit(x, t)
        return x

    with pytest.raises(ValueError, match="writes to t in place"):
        sd.sample(sd.ScoreModel(net, SDE), (2, 2), steps=2, seed=0)


@pytest.mark.uses_global_rng
def test_a_network_that_cannot_be_copied_is_told_at_step_0(tmp_path: Path) -> None:
    net = MLP(2, width=8, depth=1)
    net.lock = threading.Lock()
    with pytest.raises(ValueError, match="MLP cannot be copied"):
        sd.fit(
            sd.ScoreModel(net, SDE), torch.randn(8, 2), out=tmp_path / "run", steps=1, device="cpu"
        )


@pytest.mark.uses_global_rng
def test_a_learned_schedule_in_other_units_is_trained_and_kept(tmp_path: Path) -> None:
    sde = sd.sde.LearnedVP(sd.sde.MonotoneSchedule(-8.0, 4.0, width=4)).scaled(3.0)
    model = sd.ScoreModel(MLP(2, width=8, depth=1), sde)
    first = sde.schedule.first.detach().clone()
    trained = sd.fit(
        model,
        3 * torch.randn(32, 2),
        out=tmp_path / "run",
        steps=3,
        batch_size=8,
        device="cpu",
        loss=sd.objectives.VariationalDiffusion(),
    )
    again = sd.load(tmp_path / "run")
    assert not torch.equal(trained.sde.schedule.first, first)
    torch.testing.assert_close(again.sde.alpha(0.3), trained.sde.alpha(0.3), rtol=0, atol=0)
    torch.testing.assert_close(again.sde.sigma(0.3), trained.sde.sigma(0.3), rtol=0, atol=0)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["sde"]["class"] == "Scaled"
    assert not hasattr(sd.VP().scaled(2.0), "schedule")


@pytest.mark.uses_global_rng
@pytest.mark.parametrize(
    ("section", "value"),
    [("training", "x"), ("training", [1]), ("constraint", "x"), ("constraint", 7)],
)
def test_damaged_sections_are_named(tmp_path: Path, section: str, value: Any) -> None:
    model = sd.ScoreModel(MLP(2, width=8, depth=1), SDE)
    sd.fit(model, torch.randn(8, 2), out=tmp_path / "run", steps=1, batch_size=4, device="cpu")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    (config["model"] if section == "constraint" else config)[section] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"is damaged: .*\b{section}\b"):
        sd.load(tmp_path / "run")

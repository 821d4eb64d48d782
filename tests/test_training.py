"""Training: resumable to the bit, safe to stop, and every file whole or absent."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from small_runs import DATA, make, train
from torch import Tensor, nn

import sdediff as sd
from sdediff.checkpoint import read_tensors
from sdediff.networks import MLP, UNet, network_for
from sdediff.trainer import averaged, batch
from sdediff.training import Interrupted


@pytest.mark.thin(0)
def test_training_lowers_the_loss_and_the_model_samples_the_data(tmp_path: Path) -> None:
    """On a narrow Gaussian 400 steps suffice to find mean and spread."""
    losses: list[float] = []
    data = 0.1 * torch.randn(500, 2, generator=torch.Generator().manual_seed(1)) + torch.tensor(
        [0.5, -0.3]
    )
    model = sd.ScoreModel(make().net, sd.VP(), "edm", sigma_data=0.4)
    model = sd.fit(
        model,
        data,
        out=tmp_path / "run",
        steps=400,
        lr=5e-3,
        device="cpu",
        callback=lambda k, loss: losses.append(loss),
    )
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    x = sd.sample(model, (2000, 2), steps=40, seed=0).x
    torch.testing.assert_close(x.mean(dim=0), torch.tensor([0.5, -0.3]), rtol=0, atol=0.05)
    assert float(x.std(dim=0).max()) < 0.2


def test_a_stopped_and_resumed_run_equals_one_that_was_not(tmp_path: Path) -> None:
    train(tmp_path / "whole", checkpoint_every=15)

    def stop(step: int, loss: float) -> None:
        if step == 20:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"stopped after step 20; .* go on with resume"):
        train(tmp_path / "parts", callback=stop)
    with pytest.warns(UserWarning, match=r"parts is unfinished: it has made 20 of 40 steps"):
        half = sd.sample(sd.load(tmp_path / "parts"), (2, 2), steps=3, seed=0)
    assert half.success
    train(tmp_path / "parts", resume=True)
    for name in ("model.safetensors", "training.safetensors"):
        whole, parts = (read_tensors(tmp_path / run / name) for run in ("whole", "parts"))
        assert whole[1] == parts[1]
        assert whole[1]["step"] == "40"
        for key, value in whole[0].items():
            assert torch.equal(value, parts[0][key]), key


def test_load_gives_back_the_averaged_model(tmp_path: Path) -> None:
    model = train(tmp_path / "run")
    loaded = sd.load(tmp_path / "run")
    x = torch.linspace(-1, 1, 8).reshape(4, 2)
    assert loaded.sde == model.sde
    assert loaded.predicts == "edm"
    assert torch.equal(loaded.score(x, 0.3), model.score(x, 0.3))
    last, _ = read_tensors(tmp_path / "run" / "training.safetensors")
    assert not torch.equal(last["net.enter.weight"], last["ema.enter.weight"])
    assert torch.equal(last["ema.enter.weight"], loaded.net.enter.weight)  # type: ignore[union-attr]


@pytest.mark.uses_global_rng
def test_average_follows_its_formula() -> None:
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.0)
    mean = averaged(net, 0.5)
    expected = None
    for k, value in enumerate([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]):
        net.weight.data.fill_(value)
        mean.update_parameters(net)
        decay = min(0.5, (1 + k) / (10 + k))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert mean.module.weight.item() == pytest.approx(expected, rel=1e-6)


def test_epochs_visit_every_sample_once() -> None:
    seen = torch.cat([batch(10, 4, 3, step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) == sorted(seen[10:].tolist())
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(batch(10, 25, 3, 0)[:4], seen[:4])


def test_own_networks_and_sdes_are_passed_to_load(tmp_path: Path) -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out

    class Slow(sd.VP):
        pass

    with torch.random.fork_rng():
        net, other = Mine(), Mine()
    sd.fit(sd.ScoreModel(net, Slow(0.1, 5.0)), DATA, out=tmp_path / "run", steps=3, device="cpu")
    with pytest.raises(ValueError, match=r"your own Slow; pass it: load\(.*sde=Slow\("):
        sd.load(tmp_path / "run")
    with pytest.raises(ValueError, match=r"your own Mine; pass it: load\(.*net=Mine\("):
        sd.load(tmp_path / "run", sde=Slow(0.1, 5.0))
    loaded = sd.load(tmp_path / "run", sde=Slow(0.1, 5.0), net=other)
    assert torch.equal(
        loaded.noise(DATA, 0.5), sd.ScoreModel(net, sd.VP(0.1, 5.0)).noise(DATA, 0.5)
    )


def test_conditions_reach_the_network_with_their_samples(tmp_path: Path) -> None:
    class Check(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor, double: Tensor) -> Tensor:
            pairs.append(double)
            return x * self.w

    pairs: list[Tensor] = []
    sd.fit(
        sd.ScoreModel(Check(), sd.VP()),
        DATA,
        out=tmp_path / "run",
        steps=4,
        batch_size=10,
        device="cpu",
        condition={"double": 2 * DATA},
    )
    for step, pair in enumerate(pairs[:4]):  # what comes after is the measurement of details
        assert torch.equal(pair, 2 * DATA[batch(50, 10, 0, step)])


@pytest.mark.uses_global_rng
def test_unet_takes_any_size_and_padding_is_cropped() -> None:
    net = UNet(3, widths=(8, 16, 16), attention=(False, False, True), groups=4)
    x = torch.randn(2, 3, 13, 9, generator=torch.Generator().manual_seed(0))
    out = net(x, torch.tensor([0.1, 0.9]))
    assert out.shape == x.shape
    wide = torch.nn.functional.pad(x, (0, 3, 0, 3), mode="replicate")
    torch.testing.assert_close(
        out, net.unet(wide, torch.tensor([100.0, 900.0])).sample[..., :13, :9]
    )
    assert isinstance(network_for((4,)), MLP)
    with pytest.raises(ValueError, match="bring your own"):
        network_for((2, 3, 4, 5))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": DATA.long()}, TypeError, "floating-point tensor"),
        ({"data": DATA.tolist()}, TypeError, "got list"),
        ({"data": DATA / torch.tensor([0.0, 1.0])}, ValueError, "50 values that are not finite"),
        ({"model": lambda x, t: x}, TypeError, "ScoreModel around a torch module"),
        ({"steps": 0}, ValueError, "steps must be positive"),
        ({"lr": float("nan")}, ValueError, "lr must be positive"),
        ({"device": "cuda:7"}, ValueError, "CUDA_VISIBLE_DEVICES chooses"),
        ({"ema": 1.0}, ValueError, "decay below 1"),
        ({"condition": {"y": DATA[:3]}}, ValueError, "with leading dimension 50"),
    ],
)
def test_bad_input_writes_nothing(
    tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments = {
        "model": make(),
        "data": DATA,
        "out": tmp_path / "run",
        "steps": 3,
        "device": "cpu",
    } | change
    with pytest.raises(error, match=message):
        sd.fit(**arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.thin(0)
def test_every_run_has_a_precision_of_its_own(tmp_path: Path) -> None:
    """accelerate alone keeps the first that its process asks for; and what it held before a run, it
    holds after.
    """
    from accelerate import Accelerator

    own = Accelerator(cpu=True, mixed_precision="bf16")
    losses = {}
    for name, precision in (("first", None), ("bf16", "bf16"), ("no", "no")):
        seen: list[float] = []
        train(
            tmp_path / name,
            mixed_precision=precision,
            callback=lambda k, loss, seen=seen: seen.append(loss),
        )
        losses[name] = seen
    assert losses["first"] == losses["no"]
    assert losses["bf16"] != losses["no"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)
    assert own.mixed_precision == "bf16"
    own.state._reset_state(reset_partial_state=True)


def test_an_existing_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=3)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="already holds a run; resume it, overwrite it"):
        train(tmp_path / "run", steps=5)
    with pytest.raises(ValueError, match="was trained with training batch_size = 16, not 8"):
        sd.fit(make(), DATA, out=tmp_path / "run", steps=5, batch_size=8, resume=True, device="cpu")
    other = {"loss": sd.DenoisingScoreMatching(), "batch_size": 16, "resume": True, "device": "cpu"}
    with pytest.raises(ValueError, match="with training loss stratified = True, not False; resume"):
        sd.fit(make(), DATA, out=tmp_path / "run", steps=5, **other)  # type: ignore[arg-type]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    train(tmp_path / "run", steps=5, overwrite=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != before


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another folder"):
        train(tmp_path / "file" / "run")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    model = train(tmp_path / "run", steps=20)
    before = (tmp_path / "run" / "training.safetensors").read_bytes()
    state = {"calls": 0}

    def poison(module: nn.Module, args: object, out: Tensor) -> Tensor:
        state["calls"] += 1
        return out * float("nan") if state["calls"] > 5 else out

    model = make()
    model.net.register_forward_hook(poison)  # type: ignore[union-attr]
    with pytest.raises(
        FloatingPointError,
        match=r"the loss is nan at step 26, of all 16 samples of its batch.*of step 20, stands",
    ):
        sd.fit(
            model, DATA, out=tmp_path / "run", steps=60, batch_size=16, resume=True, device="cpu"
        )
    assert (tmp_path / "run" / "training.safetensors").read_bytes() == before


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda run: (run / "config.json").write_text("{"), ValueError, "config.json is damaged"),
        (lambda run: (run / "config.json").write_text("[]"), ValueError, "damaged: it lacks sde"),
        (lambda run: (run / "config.json").unlink(), FileNotFoundError, "is no run folder"),
        (
            lambda run: (run / "model.safetensors").write_bytes(b"no"),
            ValueError,
            "model.safetensors is damaged",
        ),
        (
            lambda run: (run / "model.safetensors").unlink(),
            FileNotFoundError,
            "model.safetensors is missing",
        ),
        (
            lambda run: edit(run, "network", {"class": "MPL", "parameters": {}}),
            ValueError,
            "did you mean 'MLP'",
        ),
        (
            lambda run: edit(run, "sde", {"class": "VP", "parameters": {"beta": 3}}),
            ValueError,
            "config.json is damaged",
        ),
        (
            lambda run: edit(run, "network", {"class": "MLP", "parameters": {"dimension": 3}}),
            ValueError,
            "does not fit the network MLP",
        ),
    ],
)
def test_damaged_runs(tmp_path: Path, damage: object, error: type[Exception], message: str) -> None:
    train(tmp_path / "run", steps=2)
    damage(tmp_path / "run")  # type: ignore[operator]
    with pytest.raises(error, match=message) as caught:
        sd.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


def edit(run: Path, key: str, value: object) -> None:
    config = json.loads((run / "config.json").read_text())
    config[key] = value
    (run / "config.json").write_text(json.dumps(config))

"""A batch in parts, one after another or on several processes: the same gradient as of the whole;
and what a user sets himself.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradients import KINDS, gradients
from launched import launched
from small_runs import DATA, make, train
from torch import Tensor

import sdediff as sd
from sdediff.drawing import Draws, drawn
from sdediff.states import read_tensors
from sdediff.training import Optimization

HERE = Path(__file__).parent


def test_parts_of_a_batch_draw_the_numbers_of_the_whole() -> None:
    def loss(count: int) -> tuple[Tensor, Tensor]:
        u = drawn(count, None, lambda n, g: torch.rand(n, generator=g))
        noise = drawn(count, None, lambda n, g: torch.randn((n, 3), generator=g))
        return u, noise

    with torch.random.fork_rng():
        torch.manual_seed(5)
        whole = loss(7)
    draws = Draws(7, 5)
    for rows in (torch.tensor([0, 2, 4]), torch.tensor([1, 3]), torch.tensor([6, 5])):
        with draws.of(rows):
            for one, two in zip(loss(len(rows)), whole, strict=True):
                assert torch.equal(one, two[rows])


def same_loss_state(one: Path, two: Path) -> None:
    """What the losses of two runs have learned is the same."""
    first, second = (read_tensors(folder / "training.safetensors")[0] for folder in (one, two))
    known = [name for name in first if name.startswith("loss.")]
    assert known == [name for name in second if name.startswith("loss.")]
    for name in known:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k == "aware" else pytest.mark.slow) for k in KINDS]
)
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, kind: str) -> None:
    """And so is what a loss learns of its samples, of a whole batch at a time."""
    whole = gradients(tmp_path / "whole", kind=kind)
    parts = gradients(tmp_path / "parts", kind=kind, accumulate=4)
    same_loss_state(tmp_path / "whole", tmp_path / "parts")
    assert whole.shape == parts.shape
    assert float(whole.norm(dim=1).min()) > 0.01
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6 * float(whole.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_average_to_the_gradient_of_one(tmp_path: Path, kind: str) -> None:
    """On the same batches, times, noise and dropped conditions; of 15 samples one process has 8.
    What is looked at meanwhile is the same too.
    """
    launched(HERE / "tables" / "gradients.py", tmp_path, "two", 4, kind)
    one = gradients(tmp_path / "one", kind=kind)
    same_loss_state(tmp_path / "one", tmp_path / "two")
    tables = [(tmp_path / name / "validation.csv").read_text() for name in ("one", "two")]
    rows = [[line.split(",") for line in table.splitlines()] for table in tables]
    assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]]
    for row, other in zip(rows[0][1:], rows[1][1:], strict=True):
        assert float(row[2]) == pytest.approx(float(other[2]), rel=1e-5, abs=1e-6), row
    drawn = [np.load(tmp_path / name / "samples-step-00000004.npy") for name in ("one", "two")]
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=1e-5, atol=1e-5)
    said = [read_tensors(tmp_path / name / "model.safetensors")[1] for name in ("one", "two")]
    assert float(said[0]["detail_std"]) == pytest.approx(float(said[1]["detail_std"]), rel=1e-4)
    first, second = (torch.load(tmp_path / f"two-{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    assert first.shape == one.shape
    torch.testing.assert_close(first, one, rtol=0, atol=1e-6 * float(one.abs().max()))


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one(tmp_path: Path) -> None:
    launched(HERE / "tables" / "gradients.py", tmp_path, "parts", 6, "plain")
    assert (tmp_path / "parts-1.pt").is_file()
    gradients(tmp_path / "parts", steps=12, kind="plain", resume=True)
    gradients(tmp_path / "whole", steps=12, kind="plain")
    parts, whole = (
        read_tensors(tmp_path / name / "training.safetensors")[0] for name in ("parts", "whole")
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)


def test_details_are_measured_with_no_more_states_than_a_part_of_a_step(tmp_path: Path) -> None:
    sizes: list[int] = []
    model = make()

    def look(module: Any, args: tuple[Tensor, Tensor]) -> None:
        if not module.training:
            sizes.append(len(args[0]))

    model.net.register_forward_pre_hook(look)  # type: ignore[union-attr]
    options: Any = {"batch_size": 16, "device": "cpu", "optimization": Optimization(accumulate=4)}
    model = sd.fit(model, DATA, out=tmp_path / "run", steps=2, **options)
    assert set(sizes) == {4}
    assert model.detail_std == pytest.approx(sd.tuning.measure(model, DATA), rel=1e-4)


def test_a_run_is_complete_where_its_details_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **options: Any) -> float:
        raise torch.OutOfMemoryError("no memory\nis left")

    monkeypatch.setattr("sdediff.trainer.measure", fails)
    match = "details of the data were not measured .OutOfMemoryError: no memory.; the run in"
    with pytest.warns(UserWarning, match=match):
        model = train(tmp_path / "run", steps=3)
    assert model.detail_std is None
    assert torch.equal(sd.load(tmp_path / "run").noise(DATA, 0.5), model.noise(DATA, 0.5))


def test_more_parts_than_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch of 16 samples cannot be divided among 1 processes"):
        train(tmp_path / "run", optimization=Optimization(accumulate=17))
    with pytest.raises(ValueError, match="accumulate must be"):
        Optimization(accumulate=0)


# -- the user's optimizer and schedule -------------------------------------------------------------


def own(**options: Any) -> Optimization:
    return Optimization(
        partial(torch.optim.SGD, **{"lr": 0.1, "momentum": 0.9} | options),
        schedule=lambda step: 0.5**step,
    )


def test_steps_are_those_of_the_users_optimizer_and_schedule(tmp_path: Path) -> None:
    """SGD with momentum on one loss whose gradient is 1: the weight is known in closed form."""

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * self.w

    def loss(model: Any, x_0: Tensor, condition: Any = None) -> Tensor:
        return model.net.w.expand(len(x_0))

    model = sd.ScoreModel(Line(), sd.VP())
    sd.fit(
        model,
        DATA,
        out=tmp_path / "run",
        steps=3,
        loss=loss,
        optimization=own(),
        clip=5.0,
        device="cpu",
    )
    state, _ = read_tensors(tmp_path / "run" / "training.safetensors")
    # velocities 1, 1.9, 2.71; rates 0.1, 0.05, 0.025
    assert float(state["net.w"]) == pytest.approx(-(0.1 + 1.9 * 0.05 + 2.71 * 0.025), rel=1e-6)
    rows = (tmp_path / "run" / "losses.csv").read_text().splitlines()
    assert rows[0] == "step,loss,learning_rate,gradient_norm"
    assert [row.split(",")[2:] for row in rows[1:]] == [["0.1", "1"], ["0.05", "1"], ["0.025", "1"]]


def test_a_run_with_an_own_optimizer_is_resumed_to_the_bit_and_with_no_other(
    tmp_path: Path,
) -> None:
    train(tmp_path / "whole", steps=8, optimization=own())
    train(tmp_path / "parts", steps=5, optimization=own())
    for other in (own(momentum=0.8), None, Optimization(own().optimizer)):
        with pytest.raises(ValueError, match=r"was trained with training (optimizer|schedule)"):
            train(tmp_path / "parts", steps=8, optimization=other, resume=True)
    train(tmp_path / "parts", steps=8, optimization=own(), resume=True)
    for name in ("losses.csv", "model.safetensors"):
        one, two = ((tmp_path / run / name).read_bytes() for run in ("whole", "parts"))
        if name == "losses.csv":
            assert one == two
    one, two = (
        read_tensors(tmp_path / run / "training.safetensors")[0] for run in ("whole", "parts")
    )
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_what_is_no_optimizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="optimizer must be a function of parameters"):
        Optimization(optimizer="adam")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer must return a torch optimizer"):
        train(tmp_path / "run", optimization=Optimization(lambda parameters: None))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"optimizer remembers .*; take another optimizer"):
        train(tmp_path / "run", steps=2, optimization=Optimization(Listing))


class Listing(torch.optim.SGD):
    """An optimizer that remembers what cannot be kept."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)

    def step(self, closure: Any = None) -> Any:
        self.state[self.param_groups[0]["params"][0]]["history"] = ["a"]
        return super().step(closure)


# -- averages of several decays --------------------------------------------------------------------


@pytest.mark.thin(0)
def test_averages_of_several_decays_are_kept_and_loaded(tmp_path: Path) -> None:
    decays = (0.999, 0.2, 0.4)
    several = train(tmp_path / "several", steps=20, ema=decays)
    for decay in decays:
        train(tmp_path / str(decay), steps=20, ema=decay)
        one, two = sd.load(tmp_path / "several", ema=decay), sd.load(tmp_path / str(decay))
        for (name, value), (_, other) in zip(
            one.net.state_dict().items(),  # type: ignore[union-attr]
            two.net.state_dict().items(),  # type: ignore[union-attr]
            strict=True,
        ):
            assert torch.equal(value, other), name
        assert one.detail_std == several.detail_std is not None
    assert torch.equal(several.noise(DATA, 0.5), sd.load(tmp_path / "0.999").noise(DATA, 0.5))
    steady = {"ema": decays, "optimization": Optimization(schedule=lambda step: 1.0)}
    train(tmp_path / "whole", steps=9, **steady)
    train(tmp_path / "parts", steps=5, **steady)
    train(tmp_path / "parts", steps=9, resume=True, **steady)
    whole, parts = (
        read_tensors(tmp_path / name / "training.safetensors")[0] for name in ("whole", "parts")
    )
    assert sum(name.startswith("ema2.") for name in whole) > 3
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    with pytest.raises(ValueError, match=r"has no average of decay 0.7; it has 0.999, 0.2, 0.4"):
        sd.load(tmp_path / "several", ema=0.7)
    with pytest.raises(ValueError, match="several different ones"):
        sd.fit(make(), DATA, out=tmp_path / "x", ema=(0.9, 0.9))


# -- launch files ----------------------------------------------------------------------------------

LAUNCH = HERE.parent / "examples" / "launch"


def test_launch_files_are_read_by_accelerate() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    two = load_config_from_file(str(LAUNCH / "two_machines.yaml"))
    assert (two.num_machines, two.num_processes, two.main_process_port) == (2, 16, 29500)
    fsdp = load_config_from_file(str(LAUNCH / "fsdp.yaml"))
    assert (fsdp.distributed_type.value, fsdp.fsdp_config["fsdp_version"]) == ("FSDP", 2)


@pytest.mark.slow
def test_two_machines_train_the_run_of_one(tmp_path: Path) -> None:
    """Two launchers with the file of two machines, on this one: one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "accelerate.commands.launch"),
                *("--config_file", str(LAUNCH / "two_machines.yaml")),
                *("--machine_rank", str(rank), "--num_processes", "2", "--mixed_precision", "no"),
                *("--main_process_ip", "127.0.0.1", "--main_process_port", str(port)),
                *(str(HERE / "tables" / "gradients.py"), str(tmp_path), "two", "4", "plain"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for machine in machines:
        _, said = machine.communicate(timeout=500)
        assert machine.returncode == 0, said[-3000:]
    one = gradients(tmp_path / "one", kind="plain")
    for rank in (0, 1):
        two = torch.load(tmp_path / f"two-{rank}.pt")
        torch.testing.assert_close(two, one, rtol=0, atol=1e-6 * float(one.abs().max()))


@pytest.mark.slow
def test_the_own_loop_runs_under_the_file_of_fsdp(tmp_path: Path) -> None:
    """A dry run: on a CPU Accelerate divides nothing."""
    words = ["--config_file", LAUNCH / "fsdp.yaml", "--cpu", "--num_processes", "1"]
    script = HERE.parent / "examples" / "accelerate_loop.py"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", *map(str, words)),
            *(str(script), "--steps", "3", "--out", str(tmp_path / "loop")),
        ],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "loop" / "model.safetensors").is_file()

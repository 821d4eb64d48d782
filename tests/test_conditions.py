"""Conditions: one value for all samples, dropped in training, kept with the model."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import sdediff as sd
from sdediff.discrete import DDPMLoss, variational_bound
from sdediff.networks import MLP, initialised
from sdediff.objectives import Bins, ConditionDropout, Coupled
from sdediff.states import read_tensors
from sdediff.trainer import batch
from sdediff.training import Interrupted

X = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)
CHAIN = sd.DDPM.from_sde(sd.VP(), 5)


class Shift(nn.Module):
    """x + a table's row of the label, and a strength."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        rows = torch.arange(2.0 * (classes + 1)).reshape(classes + 1, 2) / 10
        self.table = nn.Parameter(rows)
        self.seen: list[Tensor] = []

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor, strength: float | Tensor = 1.0
    ) -> Tensor:
        self.seen.append(label.clone())
        strength = strength[:, None] if isinstance(strength, Tensor) else strength
        return 0.5 * x + strength * self.table[label]


def model(**given: object) -> sd.ScoreModel:
    return sd.ScoreModel(Shift(), sd.VP(), "v", **given)  # type: ignore[arg-type]


# -- one value for all -----------------------------------------------------------------------------

CALLS: dict[str, Callable[[sd.ScoreModel, dict[str, object]], Tensor]] = {
    "sample": lambda m, c: sd.sample(m, (5, 2), steps=4, seed=0, condition=c).x,  # type: ignore[arg-type]
    "sample adaptively": lambda m, c: (
        sd.sample(m, (5, 2), solver=sd.RK45(), batch_size=2, seed=0, condition=c).x  # type: ignore[arg-type]
    ),
    "encode": lambda m, c: sd.encode(m, X, steps=4, condition=c).x,  # type: ignore[arg-type]
    "decode": lambda m, c: sd.decode(m, X, steps=4, condition=c).x,  # type: ignore[arg-type]
    "log_prob": lambda m, c: sd.log_prob(m, X, steps=4, condition=c).value,  # type: ignore[arg-type]
    "bits_per_dim": lambda m, c: (
        sd.bits_per_dim(m, X, bins=Bins(10), steps=4, draws=2, seed=0, condition=c).value  # type: ignore[arg-type]
    ),
    "diagnose": lambda m, c: torch.tensor(list(sd.diagnose(m, X, condition=c).errors.values())),  # type: ignore[arg-type]
    "variational_bound": lambda m, c: (
        variational_bound(CHAIN, m, X, bins=None, condition=c, seed=0).total  # type: ignore[arg-type]
    ),
    "chains": lambda m, c: (
        sd.mcmc.run(sd.mcmc.MALA(0.1), sd.mcmc.at(m, 0.5, c), X.clone(), steps=3, seed=0).samples  # type: ignore[arg-type]
    ),
    "a prediction": lambda m, c: m.score(X, 0.3, **c),  # type: ignore[arg-type]
    "a loss": lambda m, c: _loss(sd.DenoisingScoreMatching(), m, X, c),
    "a loss on pairs": lambda m, c: _loss(Coupled(), m, torch.stack([X, -X], dim=1), c),
    "a loss that drops": lambda m, c: _loss(
        ConditionDropout(sd.DenoisingScoreMatching(), {"label": 3}, 0.5), m, X, c
    ),
    "the bound": lambda m, c: _loss(sd.objectives.VariationalDiffusion(), m, X, c),
    "DDPM's loss": lambda m, c: _loss(DDPMLoss(CHAIN), m, X, c),
}


def _loss(loss: object, m: sd.ScoreModel, x: Tensor, c: dict[str, object]) -> Tensor:
    found: Tensor = loss(m, x, c, generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
    return found.detach()


@pytest.mark.parametrize("call", CALLS)
def test_one_value_for_all_samples_is_that_value_for_each(call: str) -> None:
    rows = {"label": torch.full((5,), 2), "strength": torch.full((5,), 0.3, dtype=torch.float64)}
    other = {**rows, "label": torch.full((5,), 1)}
    m = model().double()
    found = CALLS[call](m, rows)
    for one in ({"label": 2, "strength": 0.3}, {"label": torch.tensor([2]), "strength": 0.3}):
        assert torch.equal(CALLS[call](m, one), found)
    assert not torch.equal(CALLS[call](m, other), found)


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        ({"label": torch.zeros(3)}, ValueError, r"leading dimension 5.*got .*shape \(3,\)"),
        ({"label": "two"}, ValueError, "one value for all samples.*got str"),
        ({"x": 2}, ValueError, "has the name of the argument in which the network takes states"),
        ({"lable": 2}, TypeError, "takes no condition 'lable' .did you mean"),
        ({"strength": 2.0}, TypeError, r"needs the condition 'label': pass condition=\{'label'"),
        ([2], TypeError, r"must be a dict .*condition=\{'label': y\} say; got list"),
    ],
)
@pytest.mark.parametrize("call", ["sample", "a loss", "fit"])
def test_conditions_that_the_network_cannot_be_handed(
    tmp_path: Path, call: str, condition: object, error: type[Exception], message: str
) -> None:
    m = model()
    calls = {
        "fit": lambda m, c: sd.fit(m, X.float(), out=tmp_path / "run", steps=1, condition=c),
        **CALLS,
    }
    with pytest.raises(error, match=message):
        calls[call](m, condition)  # type: ignore[arg-type]
    assert not m.net.seen  # type: ignore[union-attr]
    assert not (tmp_path / "run").exists()


# -- training --------------------------------------------------------------------------------------

DATA = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3
NULL = {"label": 3}


def train(out: Path, **given: object) -> sd.ScoreModel:
    words = {"steps": 40, "batch_size": 32, "device": "cpu", "condition": {"label": LABELS}}
    return sd.fit(model(null=NULL), DATA, out=out, **{**words, "drop": 0.25, **given})  # type: ignore[arg-type]


def test_a_share_of_the_samples_is_trained_without_its_condition(tmp_path: Path) -> None:
    """1280 draws of 0.25: six standard errors are 0.073, exceeded with probability 2e-9."""
    trained = train(tmp_path / "run")
    steps = trained.net.seen[:40]  # type: ignore[union-attr]
    seen = torch.stack(steps)
    assert float((seen == 3).float().mean()) == pytest.approx(0.25, abs=0.073)
    dropped = (seen == 3).sum(dim=1)  # sample by sample: all 32 of a step alike with 1e-4
    assert float(((dropped > 0) & (dropped < 32)).float().mean()) > 0.9
    for step, labels in enumerate(seen):
        kept = labels != 3
        whole = LABELS[batch(60, 32, 0, step)]
        assert torch.equal(labels[kept], whole[kept])


def test_a_stopped_and_resumed_run_drops_the_same_conditions(tmp_path: Path) -> None:
    def stop(step: int, loss: float) -> None:
        if step == 20:
            os.kill(os.getpid(), signal.SIGINT)

    train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", callback=stop)
    for other in ({"drop": 0.1}, {"drop": 0.0}, {"condition": {"label": LABELS, "strength": 1.0}}):
        with pytest.raises(ValueError, match="resume with the same settings"):
            train(tmp_path / "parts", resume=True, **other)
    train(tmp_path / "parts", resume=True)
    for name in ("model.safetensors", "training.safetensors"):
        whole, parts = (read_tensors(tmp_path / run / name)[0] for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole), name


def test_the_null_condition_comes_back_with_the_model(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", steps=3)
    loaded = sd.load(tmp_path / "run", net=Shift())
    assert loaded.null == NULL == trained.null
    assert loaded.constrained(sd.Clip(-1, 1)).null == NULL
    a, b = (sd.sample(m, (4, 2), steps=3, seed=0, condition=m.null).x for m in (trained, loaded))
    assert torch.equal(a, b)
    loss = ConditionDropout(sd.DenoisingScoreMatching(), NULL, 0.25)  # the same, in two words
    same = sd.fit(
        model(), DATA, out=tmp_path / "same", steps=3, batch_size=32, device="cpu", loss=loss,
        condition={"label": LABELS},
    )  # fmt: skip
    assert same.null == NULL
    assert sd.load(tmp_path / "same", net=Shift()).null == NULL


def test_a_dataset_hands_its_labels_to_the_network(tmp_path: Path) -> None:
    class Pairs(Dataset[object]):
        def __len__(self) -> int:
            return 60

        def __getitem__(self, i: int) -> object:
            return DATA[i], {"label": LABELS[i]}

    expected = train(tmp_path / "tensors", steps=5).net.table
    for data in (TensorDataset(DATA, LABELS), Pairs()):
        m = sd.fit(
            model(null=NULL), data, out=tmp_path / type(data).__name__, steps=5, batch_size=32,
            device="cpu", drop=0.25,
        )  # fmt: skip
        assert torch.equal(m.net.table, expected)  # type: ignore[union-attr]


def test_a_run_that_was_begun_before_there_were_classes_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    plain, classed = (
        sd.ScoreModel(initialised(lambda c=c: MLP(2, 8, 1, 2, c), 0), sd.VP()) for c in (None, 3)
    )
    sd.fit(plain, DATA, out=out, steps=2, device="cpu")
    config = json.loads((out / "config.json").read_text())
    for section, key in (("model", "null"), ("data", "condition")):
        del config[section][key]
    del config["network"]["parameters"]["classes"]
    (out / "config.json").write_text(json.dumps(config))
    again = sd.load(out)
    assert again.null is None
    sd.fit(plain, DATA, out=out, steps=4, device="cpu", resume=True)
    with pytest.raises(ValueError, match="was trained with network parameters"):
        sd.fit(classed, DATA, out=out, resume=True, condition={"label": LABELS}, steps=4)


def test_null_names_a_condition_of_the_network() -> None:
    """Where its signature tells; a network that takes anything is handed what is named."""
    with pytest.raises(TypeError, match=r"null: the network takes no condition 'lable' .did you"):
        sd.ScoreModel(CLASSED.net, sd.VP(), null={"lable": 3})
    with pytest.raises(TypeError, match="takes no condition 'label'; it takes none"):
        sd.ScoreModel(lambda x, t: x, sd.VP(), null={"label": 3})
    for net in (lambda x, t, **named: x, lambda *given: given[0]):
        assert sd.ScoreModel(net, sd.VP(), null={"anything": 3}).null == {"anything": 3}


CLASSED = sd.ScoreModel(MLP(2, 4, 1, classes=3), sd.VP(), null={"label": 3})
LAST = torch.where(torch.arange(len(LABELS)) == 0, 4, LABELS)  # a label that is no class


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"drop": 1.0}, ValueError, "drop must be the share of samples"),
        ({"drop": -0.1}, ValueError, "drop must be the share of samples"),
        ({"condition": {"label": LABELS / 0}}, ValueError, "'label' contains values that are not"),
        ({"condition": {"strength": LABELS}}, TypeError, "needs the condition 'label'"),
        ({"model": model()}, ValueError, r"drop needs to know.*null=\{'label': 10\}"),
        ({"model": model(null={"strength": 0})}, ValueError, r"null names \['strength'\]"),
        (
            {"model": CLASSED, "condition": {"label": LAST}},
            ValueError,
            "0 to 2, or 3 for none; got 4",
        ),
        ({"data": TensorDataset(DATA, LABELS)}, ValueError, "condition is passed too"),
        ({"data": TensorDataset(DATA, LABELS, LABELS)}, TypeError, r"pairs \(x, label\)"),
    ],
)
def test_bad_conditions_write_nothing(
    tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    words = {"model": model(null=NULL), "data": DATA, "condition": {"label": LABELS}, "drop": 0.1}
    with pytest.raises(error, match=message):
        sd.fit(**{**words, **change}, out=tmp_path / "run", steps=1, device="cpu")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("null", "error", "message"),
    [
        (10, TypeError, r"null must be a dict .*null=\{'label': y\} say; got int"),
        ({}, ValueError, "null is empty"),
        ({"t": 3}, ValueError, "has the name of the argument in which the network takes times"),
        ({"label": "none"}, TypeError, r"null\['label'\] must be a number, or a tensor"),
    ],
)
def test_a_null_that_is_none(null: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model(null=null)

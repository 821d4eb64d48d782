"""Networks that ship: shapes, what each sample's output depends on, and that they learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

import sdediff as sd
from sdediff.data import load_data
from sdediff.networks import MLP, NETWORKS, DiT, UNet, UNet1D, initialised, network_for

MAKE: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "MLP": (lambda **kw: MLP(3, 16, 2, 4, **kw), (3,)),
    "UNet": (lambda **kw: UNet(2, (8, 16), groups=4, **kw), (2, 7, 6)),
    "UNet1D": (lambda **kw: UNet1D(2, (8, 16, 16), 2, groups=4, **kw), (2, 21)),
    "DiT": (lambda **kw: DiT(2, 16, 2, 2, **kw), (2, 7, 6)),
}
ZERO = ("UNet1D", "DiT")
"""Networks whose output is 0 before any training."""


def made(name: str, *, shaken: bool = False, **given: object) -> nn.Module:
    """A small network; ``shaken``: with no weight left at 0."""

    def make() -> nn.Module:
        net = MAKE[name][0](**given)
        for parameter in net.parameters() if shaken else ():
            parameter.data += 0.1 * torch.randn(parameter.shape)
        return net

    return initialised(make, 0).eval()


def states(name: str, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *MAKE[name][1], generator=generator)
    return x, torch.rand(count, generator=generator), torch.arange(count) % 4


def test_the_table_has_every_network() -> None:
    assert set(MAKE) == set(NETWORKS)


@pytest.mark.parametrize("name", MAKE)
def test_a_sample_depends_on_its_own_state_time_and_label(name: str) -> None:
    """And on nothing else: with one of them changed all other samples stay as they are."""
    net = made(name, shaken=True, classes=3)
    x, t, label = states(name)
    out = net(x, t, label)
    assert out.shape == x.shape
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(x[order], t[order], label[order]), out[order])
    for i, changed in enumerate(
        [(x + torch.eye(4)[0].reshape(4, *[1] * (x.ndim - 1)), t, label),
         (x, t + torch.tensor([0.1, 0, 0, 0]), label),
         (x, t, torch.tensor([3, 1, 2, 3]))]
    ):  # fmt: skip
        other = net(*changed)
        torch.testing.assert_close(other[1:], out[1:])
        assert float((other[0] - out[0]).detach().abs().max()) > 1e-3, i


@pytest.mark.parametrize("name", ["UNet", "UNet1D", "DiT"])
def test_any_size_and_a_learned_variance(name: str) -> None:
    """What is padded is cropped: the output is that of the padded state."""
    net = made(name, shaken=True, out_channels=4)
    x, t, _ = states(name)
    out = net(x, t)
    assert out.shape == (4, 4, *x.shape[2:])
    sides = [-side % (4 if name == "UNet1D" else 2) for side in reversed(x.shape[2:])]
    more = [each for side in sides for each in (0, side)]
    assert any(more)
    whole = net(nn.functional.pad(x, more, mode="replicate"), t)
    torch.testing.assert_close(out, whole[(..., *map(slice, x.shape[2:]))])


def test_a_unet_with_patches_puts_pixels_back() -> None:
    """The layers see squares of pixels as channels; a second half of channels is one of pixels."""
    seen = []

    class Twice(nn.Module):
        def forward(self, x: Tensor, t: Tensor, class_labels: None) -> UNet2DOutput:
            seen.append(tuple(x.shape))
            return UNet2DOutput(torch.cat([x, 2 * x], dim=1))

    net = made("UNet", out_channels=4, patch=2)
    x, t, _ = states("UNet")  # 7 x 6 pixels, which are padded to 8 x 8
    assert net(x, t).shape == (4, 4, 7, 6)
    net.unet = Twice()
    assert torch.equal(net(x, t), torch.cat([x, 2 * x], dim=1))
    assert seen == [(4, 8, 4, 4)]


@pytest.mark.parametrize("name", ZERO)
def test_the_output_is_zero_at_first(name: str) -> None:
    x, t, label = states(name)
    assert not made(name, classes=3)(x, t, label).any()


def test_a_block_of_dit_is_the_identity_at_first_and_then_what_the_paper_says() -> None:
    net = made("DiT")
    x, t, _ = states("DiT")
    passed = []
    for block in net.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda module, given, out: passed.append((given[0], out)))
    net(x, t)
    assert len(passed) == 2
    assert all(torch.equal(h, out) for h, out in passed)
    block = made("DiT", shaken=True).blocks[1]  # type: ignore[index]
    h, c = x.flatten(1)[:, :80].reshape(4, 5, 16), x.flatten(1)[:, 60:76]
    terms = nn.functional.linear(c * c.sigmoid(), block.modulate[1].weight, block.modulate[1].bias)
    shift, scale, gate, shift_2, scale_2, gate_2 = terms[:, None].chunk(6, dim=-1)

    def plain(h: Tensor) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    expected = h + gate * block.attend((1 + scale) * plain(h) + shift)
    expected = expected + gate_2 * block.feed((1 + scale_2) * plain(expected) + shift_2)
    torch.testing.assert_close(block(h, c), expected)


def test_a_unet_without_patches_has_the_config_of_runs_from_before_them() -> None:
    assert "patch" not in made("UNet").config
    assert made("UNet", patch=2).config["patch"] == 2


def test_patches_go_back_where_they_came_from() -> None:
    """While the blocks are the identity, a pixel depends on its own patch alone."""
    net = made("DiT")
    nn.init.normal_(net.leave.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, arg-type]
    x, t = torch.zeros(1, 2, 6, 8), torch.zeros(1)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, t)[0].sum(0), x)[:, :, 0]  # type: ignore[no-untyped-call]
    reach = jacobian.abs().sum(2) > 0  # (6, 8) pixels of the output, (6, 8) of the input
    row, column = torch.arange(6) // 2, torch.arange(8) // 2
    same = (row[:, None] == row)[:, None, :, None] & (column[:, None] == column)[None, :, None]
    assert torch.equal(reach, same)


def test_tokens_are_a_set() -> None:
    net = made("DiT", shaken=True, tokens=5)
    x, t, _ = states("DiT")
    tokens = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(2))
    out = net(x, t, tokens=tokens)
    torch.testing.assert_close(net(x, t, tokens=tokens[:, [2, 0, 1]]), out)
    assert float((net(x, t, tokens=tokens.roll(1, 0)) - out).detach().abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("net", "given", "error", "message"),
    [
        (made("MLP"), {"label": torch.zeros(4).long()}, ValueError, "MLP has no classes: drop"),
        (made("UNet", classes=3), {}, ValueError, r"3 classes: pass condition=\{'label': 0\}"),
        (made("UNet1D", classes=3), {"label": torch.zeros(4)}, TypeError, r"\(B,\) integers; got"),
        (made("DiT", classes=3), {"label": torch.arange(4) + 1}, ValueError, "3 for none; got 4"),
        (made("DiT", classes=3), {"label": torch.arange(4) - 1}, ValueError, "0 to 2.*; got -1"),
        (made("DiT"), {"tokens": torch.zeros(4, 1, 5)}, ValueError, "takes no tokens"),
        (made("DiT", tokens=5), {"tokens": torch.zeros(4, 5)}, ValueError, r"\(B, n, 5\), got sha"),
        (made("DiT", tokens=5), {}, ValueError, r"takes tokens \(B, n, 5\), got none"),
    ],
)
def test_conditions_that_a_network_does_not_take(
    net: nn.Module, given: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    x, t, _ = states(type(net).__name__)
    with pytest.raises(error, match=message):
        net(x, t, **given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiT(width=30, heads=4), "width must be a multiple of 4 and of heads = 4, got 30"),
        (lambda: DiT(dropout=1.0), "dropout must lie in"),
        (lambda: UNet1D(widths=(8, 12)), "widths must be multiples of groups = 8"),
        (lambda: UNet(classes=0), "UNet: classes must be"),
        (
            lambda: network_for((2, 3), name="dit"),
            r"these are \(2, 3\): take unet1d",
        ),
        (lambda: network_for((2,), name="unt"), r"did you mean 'unet'"),
        (lambda: network_for((2, 3, 4, 5)), "bring your own"),
    ],
)
def test_networks_that_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", MAKE)
def test_a_run_folder_names_its_network(tmp_path: Path, name: str) -> None:
    x, _, label = states(name)
    more = {"tokens": 5} if name == "DiT" else {}
    condition = {"label": label, **({"tokens": torch.ones(4, 2, 5)} if more else {})}
    model = sd.ScoreModel(made(name, classes=3, **more), sd.VP(), "v")
    sd.fit(model, x, out=tmp_path / "run", steps=2, batch_size=2, device="cpu", condition=condition)
    again = sd.load(tmp_path / "run")
    assert type(again.net) is NETWORKS[name]
    assert torch.equal(again.v(x, 0.3, **condition), model.v(x, 0.3, **condition))


# -- they learn ------------------------------------------------------------------------------------


@pytest.mark.thin(0)
@pytest.mark.parametrize("name", [pytest.param("unet", marks=pytest.mark.slow), "dit", "unet1d"])
def test_a_short_training_lowers_the_loss_on_digits(tmp_path: Path, name: str) -> None:
    """The loss of the best linear guess is 1; as a signal a digit is 8 channels of length 8."""
    digits = load_data("digits")
    data = digits.x[:, 0] if name == "unet1d" else digits.x
    net = {
        "unet": lambda: UNet(1, (16, 32), classes=10),
        "dit": lambda: DiT(1, 64, 2, 2, classes=10),
        "unet1d": lambda: UNet1D(8, (16, 32), classes=10),
    }[name]
    losses: list[float] = []
    sd.fit(
        sd.ScoreModel(initialised(net, 0), sd.VP(), "edm", sigma_data=0.7),
        data,
        out=tmp_path / "run",
        steps=40,
        batch_size=64,
        lr=3e-3,
        warmup=5,
        loss=sd.DenoisingScoreMatching("edm", "logit-normal", stratified=True),
        condition={"label": digits.labels},  # type: ignore[dict-item]
        device="cpu",
        callback=lambda step, loss: losses.append(loss),
    )
    print(name, losses)
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_the_class_that_is_asked_for_is_drawn(tmp_path: Path, name: str) -> None:
    """600 steps on 8x8 digits, 20 of each class, judged by a classifier of real ones.

    By chance a share 0.1 of 200 is of the class asked for: 0.25 or more with probability 1e-9.
    """
    from sdediff.cli.quality import Judge
    from sdediff.data import split

    train, held_out = split(load_data("digits"), 360)
    judge = Judge.fit(train, held_out)
    nets = {"unet": lambda: UNet(classes=10), "dit": lambda: DiT(width=96, classes=10)}
    model = sd.ScoreModel(
        initialised(nets[name], 0), sd.VP(), "edm", sigma_data=0.7, null={"label": 10}
    )
    sd.fit(
        model,
        train.x,
        out=tmp_path / "run",
        steps=600,
        batch_size=64,
        lr=3e-3,
        ema=0.99,
        loss=sd.DenoisingScoreMatching("edm", "logit-normal", stratified=True),
        condition={"label": train.labels},  # type: ignore[dict-item]
        drop=0.1,
        device="cpu",
    )
    model = sd.load(tmp_path / "run")
    label = torch.arange(200) % 10
    x = sd.sample(model, (200, 1, 8, 8), steps=20, seed=0, condition={"label": label}).x
    drawn = torch.from_numpy(judge.probabilities(x).argmax(axis=1))
    asked = float((drawn == label).double().mean())
    x = sd.sample(model, (200, 1, 8, 8), steps=20, seed=0, condition=model.null).x
    free = torch.from_numpy(judge.probabilities(x).argmax(axis=1))
    print(name, "asked", asked, "null, same labels", float((free == label).double().mean()))
    assert asked > 0.6
    assert float((free == label).double().mean()) < 0.25
    assert len(free.unique()) > 5


@pytest.mark.parametrize("name", MAKE)
def test_labels_are_looked_at_before_the_network_is_asked(name: str) -> None:
    """Once a call, on every device: there an embedding would fail inside of a kernel."""
    net = made(name, classes=3)
    net.check_condition({"label": torch.arange(4)})  # type: ignore[operator]
    net.check_condition({})  # type: ignore[operator]
    made(name).check_condition({"label": torch.tensor([9])})  # type: ignore[operator]
    with pytest.raises(ValueError, match="or 3 for none; got 4"):
        sd.sample(sd.ScoreModel(net, sd.VP()), (2, *MAKE[name][1]), steps=1, condition={"label": 4})
    model = sd.ScoreModel(net, sd.VP(), null={"label": 3})
    label = torch.tensor([0, 4])
    with pytest.raises(ValueError, match="or 3 for none; got 4"):
        model(torch.zeros(2, *MAKE[name][1]), 0.5, label=label)


@pytest.mark.thin(0)
@pytest.mark.parametrize("name", ["MLP", "UNet1D"])
def test_a_network_of_classes_is_compiled_in_one_graph(name: str) -> None:
    net = made(name, shaken=True, classes=3)
    x, t, label = states(name)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, label), net(x, t, label))

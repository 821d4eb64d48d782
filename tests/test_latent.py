"""Models of latents against the same models of data, under linear encoders; and diffusers'
autoencoders as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdediff as sd
from sdediff import guidance, objectives, posterior
from sdediff.networks import MLP, Autoencoder, initialised

F64 = torch.float64
EVENT, D = (1, 2, 3), 6


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


TURN = torch.linalg.qr(randn(D, D, seed=1))[0]
MEANS = 1.5 * randn(3, D, seed=2)
STDS = torch.tensor([0.3, 0.5, 0.8], dtype=F64)
PIXELS = sd.exact.GaussianMixture(MEANS.reshape(3, *EVENT), STDS).model(sd.VP())
TURNED = sd.exact.GaussianMixture(MEANS @ TURN.T, STDS).model(sd.VP())
for model in (PIXELS, TURNED):  # the mean of a channel is not that of its coordinates
    model.declared_data_std = 1.0


def turn(x: Tensor) -> Tensor:
    return x.flatten(1) @ TURN.T.to(x)


def back(z: Tensor) -> Tensor:
    return (z @ TURN.to(z)).reshape(-1, *EVENT)


LATENT = sd.Latent(TURNED, turn, back, shape=(D,))


@dataclass(frozen=True)
class Turned:
    """The noise of a solve in pixels, as latents see it."""

    own: Any

    def at(self, step: int) -> Turned:
        return Turned(self.own.at(step))

    def take(self, rows: Tensor) -> Turned:
        return Turned(self.own.take(rows))

    def normal(self, stream: str, k: int = 0) -> Tensor:
        return turn(self.own.normal(stream, k))

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return turn(self.own.over(a, b, k))

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        return turn(self.own.increment(a, b))


@pytest.mark.parametrize("solver", [sd.DDIM(), sd.ExponentialMultistep(), sd.EulerMaruyama()])
def test_samples_are_those_of_pixels_under_an_orthogonal_encoder(solver: Any) -> None:
    """Under VP noise is isotropic, so that both solves are one, seen in two bases."""
    white = sd.White(sd.seeds(0, 8), EVENT, dtype=F64)
    given: Any = {"solver": solver, "steps": 12, "dtype": F64}
    x = sd.sample(PIXELS, (8, *EVENT), noise=white, **given).x
    z = sd.sample(LATENT, (8, D), noise=Turned(white), **given).x
    torch.testing.assert_close(LATENT.decode(z, batch_size=3), x, rtol=1e-10, atol=1e-10)


def loss(x: Tensor) -> Tensor:
    return (x[:, 0, 0] - 0.5).square().sum(dim=1)


MEASURED = posterior.Mask(torch.tensor([[True, False, True], [False, False, True]]), noise_std=0.5)
Y = torch.tensor([[0.4, -0.2, 0.7]], dtype=F64)
GUIDED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "Loss": lambda: (
        guidance.Loss(PIXELS, loss, 2.0),
        guidance.Loss(LATENT, lambda z: loss(LATENT.decode(z)), 2.0),
    ),
    "DPS": lambda: (
        posterior.DPS(PIXELS, MEASURED, Y),
        posterior.DPS(LATENT, posterior.Through(LATENT.decode, MEASURED), Y),
    ),
}


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_and_posteriors_in_pixels_go_through_the_decoder(name: str) -> None:
    x_init = randn(5, *EVENT, seed=3)
    pixels, latent = GUIDED[name]()
    given: Any = {"solver": sd.DDIM(), "steps": 10, "dtype": F64}
    x = sd.sample(pixels, x_init.shape, x_init=x_init, **given)
    z = sd.sample(latent, (5, D), x_init=turn(x_init), **given)
    plain = sd.sample(PIXELS, x_init.shape, x_init=x_init, **given)
    assert (x.x - plain.x).abs().max() > 0.05
    torch.testing.assert_close(back(z.x), x.x, rtol=1e-9, atol=1e-9)
    assert torch.equal(z.backward, x.backward)


def test_a_solver_that_knows_the_measurement_goes_through_the_decoder_too() -> None:
    white = sd.White(sd.seeds(0, 3), EVENT, dtype=F64)
    seen = posterior.Through(LATENT.decode, MEASURED)
    given: Any = {"steps": 8, "dtype": F64}
    x = sd.sample(
        PIXELS, (3, *EVENT), solver=posterior.PublishedDPS(MEASURED, Y), noise=white, **given
    )
    z = sd.sample(
        LATENT, (3, D), solver=posterior.PublishedDPS(seen, Y), noise=Turned(white), **given
    )
    torch.testing.assert_close(back(z.x), x.x, rtol=1e-9, atol=1e-9)


@pytest.mark.thin(0)
def test_inversion_and_densities_are_those_of_pixels_under_an_orthogonal_encoder() -> None:
    x = PIXELS.net.law.sample(4, seed=0)
    up = sd.encode(LATENT, LATENT.encode(x), solver=sd.DDIM(), steps=10).x
    expected = sd.encode(PIXELS, x, solver=sd.DDIM(), steps=10).x
    torch.testing.assert_close(back(up), expected, rtol=1e-9, atol=1e-9)
    given: Any = {"solver": sd.RK45(rtol=1e-7, atol=1e-7), "dtype": F64}
    found = sd.log_prob(LATENT, LATENT.encode(x), **given).value
    assert (found - sd.log_prob(PIXELS, x, **given).value).abs().max() < 1e-5


def test_log_densities_of_latents_and_data_differ_by_the_determinant() -> None:
    """z = A x with any A that has an inverse: log p(x) = log p(z) + log |det A|, at t = 0."""
    sizes = torch.linspace(0.5, 2.0, D, dtype=F64)
    A = TURN @ (sizes[:, None] * torch.linalg.qr(randn(D, D, seed=4))[0])
    root = randn(D, D, seed=5) / 3
    mean, covariance = randn(D, seed=6), root @ root.T + torch.eye(D, dtype=F64)
    sde = sd.VP(t_min=1e-5)
    law = sd.exact.Gaussian(A @ mean, A @ covariance @ A.T)
    latent = sd.Latent(law.model(sde), lambda x: x @ A.T, lambda z: z @ A.inverse().T)
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    x = mean + randn(5, D, seed=7) @ torch.linalg.cholesky(covariance).T
    z = latent.encode(x)
    torch.testing.assert_close(latent.decode(z), x)
    # the noise at t_min has a variance of 1e-6, and z of a quarter at least
    found = sd.log_prob(latent, z, solver=sd.RK45(rtol=1e-6, atol=1e-6), dtype=F64)
    of_data = found.value + found.prior_gap + torch.linalg.slogdet(A)[1]
    assert (of_data - normal.log_prob(x)).abs().max() < 1e-4


class Untouched(nn.Module):
    """A network that must not be called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the network was called")


NEVER = sd.ScoreModel(Untouched(), sd.VP(), data_std=1.0)
FREE = sd.ScoreModel(Untouched(), sd.VP())
"""Declares no scale of its data."""


# -- autoencoders of diffusers ---------------------------------------------------------------------


def kl_model(**options: Any) -> Any:
    diffusers = pytest.importorskip("diffusers", reason="its autoencoders")
    blocks = {"block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": 3}
    sizes = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    sizes["up_block_types"] = ("UpDecoderBlock2D",) * 2
    made = {"in_channels": 1, "out_channels": 1, **blocks, **sizes, **options}
    return initialised(lambda: diffusers.AutoencoderKL(**made), 0).eval()


def vq_model() -> Any:
    diffusers = pytest.importorskip("diffusers", reason="its autoencoders")
    made: Any = {"in_channels": 1, "out_channels": 1, "num_vq_embeddings": 8}
    blocks: Any = {"block_out_channels": (4,), "norm_num_groups": 2, "latent_channels": 3}
    return initialised(lambda: diffusers.VQModel(**made, **blocks), 0).eval()


PICTURES = randn(5, 1, 8, 8, seed=7).float()


@pytest.mark.thin(2)
@pytest.mark.parametrize("way", ["itself", "both", "methods"])
def test_a_diffusers_autoencoder_is_taken_as_it_is(way: str) -> None:
    """Scaled as pipelines do, latents = (z - shift) scale, in any batches, with its gradient."""
    vae = kl_model(scaling_factor=0.5, shift_factor=0.25)
    given = {"itself": (vae,), "both": (vae, vae), "methods": (vae.encode, vae.decode)}[way]
    latent = sd.Latent(FREE, *given, shape=(3, 4, 4))
    z = latent.encode(PICTURES, batch_size=2)
    with torch.no_grad():
        wanted = (vae.encode(PICTURES).latent_dist.mean - 0.25) * 0.5
    torch.testing.assert_close(z, wanted)
    assert not z.requires_grad
    assert not latent.decode(z).requires_grad
    z.requires_grad_()
    x = latent.decode(z, batch_size=2)
    plain = vae.decode(z / 0.5 + 0.25).sample
    torch.testing.assert_close(x, plain)
    one, two = (torch.autograd.grad(each.square().sum(), z)[0] for each in (x, plain))
    torch.testing.assert_close(one, two)
    assert [type(part) for part in latent.autoencoder.parts] == [type(vae)]


def test_a_quantizer_passes_the_gradient_straight_through() -> None:
    vae = vq_model()
    latent = sd.Latent(FREE, vae)
    z = latent.encode(PICTURES).requires_grad_()
    x = latent.decode(z)
    scale = vae.config.scaling_factor
    code = vae.quantize(z.detach() / scale)[0].detach().requires_grad_()
    plain = vae.decode(code, force_not_quantize=True).sample
    torch.testing.assert_close(x, plain)
    (one,) = torch.autograd.grad(x.square().sum(), z)
    (two,) = torch.autograd.grad(plain.square().sum(), code)
    torch.testing.assert_close(one, two / scale)


def test_the_scale_of_every_channel_is_heeded() -> None:
    """latents_mean and latents_std of a configuration: z = (E(x) - mean) scale / std."""

    class Given(nn.Module):
        config: ClassVar = {
            "latents_mean": [1.0, -1.0],
            "latents_std": [2.0, 0.5],
            "scaling_factor": 0.5,
        }

        def encode(self, x: Tensor) -> Tensor:
            return torch.cat([x, 2 * x], dim=1)

        def decode(self, z: Tensor) -> tuple[Tensor]:
            return (z[:, :1],)

    coder = Autoencoder(Given())
    z = coder.encode(PICTURES)
    both = torch.cat([(PICTURES - 1) * 0.25, (2 * PICTURES + 1) * 1.0], dim=1)
    torch.testing.assert_close(z, both)
    torch.testing.assert_close(coder.decode(z), PICTURES)


# -- latents of data -------------------------------------------------------------------------------


def normal_encoder(x: Tensor) -> torch.distributions.Normal:
    return torch.distributions.Normal(2 * x, 0.1 + x.abs())


def test_latents_are_drawn_by_their_own_seeds_in_any_batches() -> None:
    x = randn(7, 3)
    coder = Autoencoder(normal_encoder, lambda z: z)
    noise = sd.White(sd.seeds(3, 7), (3,), dtype=F64).at(0).normal("prior")
    drawn = [coder.encode(x, seed=3, batch_size=size) for size in (2, 7)]
    torch.testing.assert_close(drawn[0], 2 * x + (0.1 + x.abs()) * noise, rtol=0, atol=0)
    assert torch.equal(*drawn)
    assert torch.equal(coder.encode(x), 2 * x)


def test_no_more_than_a_batch_is_encoded_or_decoded_at_once() -> None:
    sizes: list[int] = []

    def seen(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    coder = Autoencoder(seen, seen)
    x = randn(10, 2)
    assert torch.equal(coder.decode(coder.encode(x, batch_size=4), batch_size=3), x)
    assert sizes == [4, 4, 2, 3, 3, 3, 1]


def test_latents_are_read_from_their_file(tmp_path: Path) -> None:
    x, path = randn(10, 2).float(), tmp_path / "z.npy"
    coder = Autoencoder(lambda x: 3 * x, lambda z: z)
    z = coder.encode(x, batch_size=4, out=path)
    assert isinstance(np.load(path, mmap_mode="r"), np.memmap)
    assert torch.equal(z, 3 * x)
    assert [each.name for each in tmp_path.iterdir()] == ["z.npy"]
    with pytest.raises(ValueError, match=r"\.npy"):
        coder.encode(x, out=tmp_path / "z.pt")


def test_modules_are_in_evaluation_mode_and_move_with_the_model() -> None:
    encode = initialised(lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), 0)
    decode = initialised(lambda: nn.Linear(2, 2), 1)
    latent = sd.Latent(NEVER, encode, lambda z: decode(z))
    encode.train()
    x = randn(4, 2).float()
    assert torch.equal(latent.encode(x), encode[0](x).detach())
    assert encode.training
    assert list(latent.autoencoder.parts) == [encode, decode]
    latent.to(F64)
    assert latent.encode(x).dtype == torch.float32  # that of x
    assert decode.weight.dtype == F64


def trained(out: Path, data: Tensor, loss: Any = None) -> sd.ScoreModel:
    net = initialised(lambda: MLP(2, width=16, depth=1), 0)
    latents = 3 * randn(64, 2, seed=8).float()
    model = sd.ScoreModel(net, sd.VP(), normalizer=sd.Normalizer.of(latents))
    latent = sd.Latent(model, lambda x: 3 * x, lambda z: z / 3, shape=(2,))
    given: Any = {"out": out, "steps": 5, "batch_size": 16, "loss": loss}
    fitted = sd.fit(latent, data, **given)
    assert fitted is latent
    return model


def test_training_on_live_latents_is_that_on_cached_ones(tmp_path: Path) -> None:
    """To the bit, where nothing is drawn; and the folder loads as the model of latents."""
    x = randn(64, 2, seed=8).float()
    coder = Autoencoder(lambda x: 3 * x, lambda z: z)
    cached = trained(tmp_path / "cached", 3 * x)
    inner = objectives.DenoisingScoreMatching(stratified=True)
    loss = objectives.Encoded(coder, inner, drawn=False)
    live = trained(tmp_path / "live", x, loss)
    loaded = sd.load(tmp_path / "live")
    for model in (live, loaded):
        assert model.normalizer == cached.normalizer
        assert model.data_std == cached.data_std
        for one, two in zip(cached.parameters(), model.parameters(), strict=True):
            assert torch.equal(one, two)


def test_drawn_latents_are_new_in_every_batch(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def inner(model: Any, x_0: Tensor, condition: Any = None) -> Tensor:
        seen.append(x_0)
        return model.net(x_0, torch.ones(len(x_0))).square().mean(dim=1)

    coder = Autoencoder(normal_encoder, lambda z: z)
    model = sd.ScoreModel(initialised(lambda: MLP(2, width=8, depth=1), 0), sd.VP())
    x = torch.full((8, 2), 0.5)
    for seed in (0, 0, 1):
        own: Any = {"out": tmp_path / f"{len(seen)}", "steps": 2, "batch_size": 8, "seed": seed}
        sd.fit(model, x, loss=objectives.Encoded(coder, inner), **own)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[4])
    assert torch.stack(seen).mean().item() == pytest.approx(1.0, abs=5 * 0.6 / 96**0.5)


def test_conditions_are_dropped_around_a_loss_of_live_latents() -> None:
    inner = objectives.Encoded(Autoencoder(lambda x: 3 * x, lambda z: z), drawn=False)
    loss = objectives.ConditionDropout(inner, null={"label": 0})
    x = randn(600, 2)
    assert torch.equal(loss.seen(x, lambda y: y - 1), x)
    assert torch.equal(loss.clean(x)[[0, -1]], 3 * x[[0, -1]])
    assert len(loss.clean(x)) == 512


# -- bad input -------------------------------------------------------------------------------------


X = randn(6, 4).float()


def of(encode: Any, decode: Any = None, **given: Any) -> sd.Latent:
    return sd.Latent(NEVER, encode, (lambda z: z) if decode is None else decode, **given)


HALF = of(lambda x: x[:, :2], shape=(2,))
CUT = of(lambda x: x, lambda z: z.detach())


class Both:
    """An encoder and a decoder, as one object."""

    encode = staticmethod(turn)
    decode = staticmethod(back)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no encoder": (lambda: of(3), "encode must be an object with a method encode"),
    "a class": (lambda: of(nn.Identity), "encode must be an object"),
    "no model": (lambda: sd.Latent(nn.Identity(), turn, back), "model must be a ScoreModel"),
    "an encoder of another shape": (
        lambda: of(lambda x: x[:, :2], shape=(3,)).encode(X),
        r"returns latents of shape \(2,\).*shape=\(3,\) is declared",
    ),
    "an encoder that drops samples": (lambda: of(lambda x: x[:2]).encode(X), "must return latents"),
    "an encoder of words": (lambda: of(lambda x: "z").encode(X), "must return latents"),
    "a decoder that drops samples": (
        lambda: of(lambda x: x, lambda z: z[:2]).decode(X),
        "must return data",
    ),
    "latents of another shape, decoded": (
        lambda: HALF.decode(X),
        r"latents have shape \(2,\), as declared; got \(4,\)",
    ),
    "data sampled": (lambda: sd.sample(HALF, (6, 4), steps=2), "states of a Latent are latents"),
    "data under guidance": (
        lambda: sd.sample(guidance.Loss(HALF, lambda z: z.sum(1)), (6, 4), steps=2),
        "states of a Latent are latents",
    ),
    "the density of data": (lambda: sd.log_prob(HALF, X), "states of a Latent are latents"),
    "data carried up": (lambda: sd.encode(HALF, X, steps=2), "states of a Latent are latents"),
    "data trained on": (
        lambda: sd.fit(HALF, X, out="never"),
        "fit takes data with loss=objectives.Encoded",
    ),
    "a normalizer of another shape": (
        lambda: sd.Latent(
            sd.ScoreModel(Untouched(), sd.VP(), normalizer=sd.Normalizer([0.0] * 3, [1.0] * 3)),
            turn,
            back,
            shape=(2,),
        ),
        "the normalizer has mean and std of shape",
    ),
    "a loss through a decoder without a gradient": (
        lambda: sd.sample(guidance.Loss(CUT, lambda z: CUT.decode(z).sum(1)), (6, 4), steps=2),
        "the decoder is not differentiable",
    ),
    "a posterior through one": (
        lambda: sd.sample(
            posterior.DPS(
                CUT, posterior.Through(CUT.decode, posterior.Linear(turn, noise_std=1.0)), X[:1]
            ),
            (6, 4),
            steps=2,
        ),
        "the decoder is not differentiable",
    ),
    "a measurement without a gradient": (
        lambda: sd.sample(
            posterior.DPS(
                NEVER,
                posterior.Nonlinear(lambda x: x.detach(), lambda y, f: -(y - f).square().sum(1)),
                X[:1],
            ),
            (6, 4),
            steps=2,
        ),
        "has no gradient: look in the measurement",
    ),
    "nothing to encode": (lambda: HALF.encode(X[:0]), "there are no samples"),
    "no function": (lambda: posterior.Through(MEASURED, turn), "Through"),
    "an encoder alone": (lambda: sd.Latent(NEVER, turn), "decode is missing"),
    "a method alone": (lambda: sd.Latent(NEVER, Both().encode), "decode is missing"),
    "a gradient in a file": (
        lambda: HALF.encode(X.clone().requires_grad_(), out="never.npy"),
        "which a file cannot keep: pass x.detach",
    ),
    "an Autoencoder and a decoder": (
        lambda: sd.Latent(NEVER, Autoencoder(turn, back), back),
        "encode is an Autoencoder",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_before_the_network_is_called(name: str) -> None:
    call, said = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=said):
        call()


def test_latents_of_another_scale_are_told(tmp_path: Path) -> None:
    x = randn(100, 4).float()
    with pytest.warns(UserWarning, match=r"latents: the standard deviation is [45]\."):
        of(lambda x: 5 * x).encode(x)
    of(lambda x: 2 * x).encode(x)
    scaled = sd.Normalizer.of(5 * x)
    net = initialised(lambda: MLP(4, width=8, depth=1), 0)
    model = sd.ScoreModel(net, sd.VP(), normalizer=scaled, data_std=1.0)
    latent = sd.Latent(model, lambda x: 5 * x, lambda z: z / 5)
    latent.encode(x)
    own: Any = {"steps": 1, "batch_size": 8}
    sd.fit(latent, 5 * x, out=tmp_path / "right", **own)
    with pytest.warns(UserWarning, match=r"data: the standard deviation is 0\.2\d*"):
        sd.fit(latent, x, out=tmp_path / "wrong", **own)

"""The loss of autoencoders against closed forms, and what is trained by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdediff as sd
from sdediff import objectives
from sdediff.degradation import Unchanged
from sdediff.networks import MLP, Autoencoder, initialised
from sdediff.objectives import Autoencoding

F64 = torch.float64
D, K = 4, 2


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Normal(nn.Module):
    """A linear encoder with its distribution, and a linear decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Linear(D, K), nn.Linear(D, K)
        self.back = nn.Linear(K, D)

    def encode(self, x: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.mean(x), self.log_std(x).exp())

    def decode(self, z: Tensor) -> Tensor:
        found: Tensor = self.back(z)
        return found


def made(net: nn.Module) -> sd.ScoreModel:
    return sd.ScoreModel(Autoencoder(net), Unchanged(), "data")


def normal() -> Normal:
    return initialised(Normal, 0).double()


X = randn(6, D, seed=1)


def test_the_divergence_is_that_of_torch_and_of_draws() -> None:
    net = normal()
    q, p = net.encode(X), torch.distributions.Normal(0.0, 1.0)
    found = Autoencoder(net).eval()(X).kl.detach()
    torch.testing.assert_close(found, torch.distributions.kl_divergence(q, p).sum(dim=1))
    count = 20_000
    z = q.mean.detach() + q.stddev.detach() * randn(count, len(X), K, seed=2)
    draws = (q.log_prob(z) - p.log_prob(z)).sum(dim=2).detach()
    # six means, each off by 5 standard errors once in 1.7 million
    assert ((draws.mean(dim=0) - found).abs() < 5 * draws.std(dim=0) / count**0.5).all()


def test_with_a_generator_latents_are_drawn_by_it_alone() -> None:
    model = made(normal()).train()

    def losses(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        found: Tensor = Autoencoding()(model, X, generator=generator).detach()
        return found

    before = torch.get_rng_state()
    assert torch.equal(losses(0), losses(0))
    assert not torch.equal(losses(0), losses(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loss_is_its_formula_at_the_latents_that_were_drawn() -> None:
    net, beta = normal(), 0.3
    model = made(net)
    for training in (True, False):
        model.train(training)
        generator = torch.Generator().manual_seed(0)
        found = Autoencoding(beta=beta)(model, X, generator=generator)
        q = net.encode(X)
        z = q.mean + training * q.stddev * randn(len(X), K, seed=0)
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
        wanted = ((X - net.decode(z)).square().sum(dim=1) + beta * kl.sum(dim=1)) / D
        torch.testing.assert_close(found, wanted)


def quantizer() -> Any:
    diffusers = pytest.importorskip("diffusers", reason="its VQModel")
    given: Any = {"in_channels": 1, "out_channels": 1, "num_vq_embeddings": 4}
    blocks: Any = {"block_out_channels": (2,), "norm_num_groups": 1, "latent_channels": 2}
    net = initialised(lambda: diffusers.VQModel(**given, **blocks), 0).double()
    net.quantize.embedding.weight.data.mul_(4)  # as they begin all codes are close to 0
    return net


def test_the_gradient_goes_straight_through_the_quantizer() -> None:
    """With e the code next to h = E(x): the encoder has the gradient in e of |x - D(e)|^2 / d, and
    that of |h - sg(e)|^2; the codes have a quarter of that of |sg(h) - e|^2, as diffusers has it.
    """
    vae, weight = quantizer(), 0.7
    model = made(vae)
    x = randn(3, 1, 4, 4, seed=3)
    loss = Autoencoding(commitment=weight)(model, x)
    encoder, codes = list(vae.encoder.parameters()), vae.quantize.embedding.weight
    found = torch.autograd.grad(loss.mean(), [*encoder, codes])
    h = vae.encode(x).latents
    flat = h.detach().permute(0, 2, 3, 1).reshape(-1, 2)
    index = torch.cdist(flat, codes.detach()).argmin(dim=1)
    assert len(index.unique()) > 1
    e = codes.detach()[index].reshape(3, 4, 4, 2).permute(0, 3, 1, 2).requires_grad_()
    data = (x - vae.decode(e, force_not_quantize=True).sample).square().mean()
    off = (h.detach() - e).square().mean()
    torch.testing.assert_close(loss.mean(), data + 1.25 * weight * off)
    (pull,) = torch.autograd.grad(data, e)
    slope = pull + weight * 2 * (h - e).detach() / e.numel()
    wanted = torch.autograd.grad(h, encoder, slope)
    for one, two in zip(found, wanted, strict=False):
        torch.testing.assert_close(one, two)
    moved = 0.25 * weight * 2 * (e - h).detach() / e.numel()
    of_codes = torch.zeros_like(codes).index_add(0, index, moved.permute(0, 2, 3, 1).reshape(-1, 2))
    torch.testing.assert_close(found[-1], of_codes)


class Plain(nn.Module):
    """A linear autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(D, K), nn.Linear(K, D)

    def encode(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(x)
        return found

    def decode(self, z: Tensor) -> Tensor:
        found: Tensor = self.up(z)
        return found


@pytest.mark.thin(0)
def test_a_linear_autoencoder_learns_the_principal_components(tmp_path: Path) -> None:
    """No linear autoencoder has a smaller error than the eigenvalues that are left out; it comes
    back from its folder, and is the encoder of a model of latents.
    """
    sizes = torch.tensor([1.5, 1.0, 0.4, 0.2])
    data = randn(512, D, seed=4).float() * sizes @ torch.linalg.qr(randn(D, D, seed=5))[0].float()
    model = made(initialised(Plain, 0))
    own: Any = {"steps": 300, "batch_size": 64, "lr": 0.03, "ema": 0.9}
    trained = sd.fit(model, data, out=tmp_path / "run", loss=Autoencoding(), **own)
    least = torch.linalg.eigvalsh(torch.cov(data.T, correction=0))[: D - K].sum() / D
    error = (trained.data(data, 0.0) - data).square().mean()
    assert least < error < 1.05 * least
    loaded = sd.load(tmp_path / "run", net=Autoencoder(initialised(Plain, 1)))
    assert isinstance(loaded.sde, Unchanged)
    inner = sd.ScoreModel(initialised(lambda: MLP(K, width=8, depth=1), 0), sd.VP())
    one, two = (sd.Latent(inner, each.net) for each in (trained, loaded))
    z = one.encode(data)
    assert torch.equal(z, two.encode(data))
    assert torch.equal(one.decode(z), two.decode(z))
    torch.testing.assert_close(one.decode(z), trained.data(data, 0.0))


@pytest.mark.slow
def test_a_diffusers_autoencoder_is_trained_and_comes_back(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="its AutoencoderKL")
    blocks: Any = {"block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": 2}
    blocks |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "in_channels": 1}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "out_channels": 1}

    def net() -> Autoencoder:
        return Autoencoder(initialised(lambda: diffusers.AutoencoderKL(**blocks), 0))

    x = randn(64, 1, 8, 8, seed=6).float().cumsum(dim=2).clamp(-1, 1)
    losses: list[float] = []
    own: Any = {
        "steps": 100,
        "batch_size": 16,
        "lr": 1e-2,
        "callback": lambda s, v: losses.append(v),
    }
    model = sd.ScoreModel(net(), Unchanged(), "data")
    trained = sd.fit(model, x, out=tmp_path / "run", loss=Autoencoding(), **own)
    assert losses[-1] < 0.7 * losses[0]
    loaded = sd.load(tmp_path / "run", net=net())
    assert torch.equal(trained.net.encode(x, seed=0), loaded.net.encode(x, seed=0))


def test_what_is_wrong_with_an_autoencoder_is_said_before_training() -> None:
    def fit(net: nn.Module, **given: Any) -> None:
        model = sd.ScoreModel(net, Unchanged(), "data", **given)
        sd.fit(model, X.float(), out="never", loss=Autoencoding(), steps=1)

    with pytest.raises(ValueError, match=r"Autoencoding trains an autoencoder.*network MLP"):
        fit(initialised(lambda: MLP(D, width=4, depth=1), 0))
    plain = initialised(Plain, 0)
    with pytest.raises(ValueError, match="Normalizer in front of it would be forgotten"):
        fit(Autoencoder(plain), normalizer=sd.Normalizer.of(X))
    with pytest.raises(ValueError, match=r"the decoder returns data of shape \(2,\).*\(4,\)"):
        fit(Autoencoder(plain.encode, lambda z: z))
    with pytest.raises(ValueError, match="beta must be"):
        Autoencoding(beta=-1.0)
    with pytest.raises(TypeError, match="Encoded: autoencoder must be one"):
        objectives.Encoded(lambda x: x)
    assert not Path("never").exists()

"""DDPM's losses and its variational bound against closed forms."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from gauss_hermite import gauss_hermite
from reparametrised import reparametrised
from torch import Tensor

import sdediff as sd
from sdediff.discrete.bound import prior_term

MEAN, VAR = 0.4, 0.3


def chain_of(variance: str, n: int = 8) -> sd.DDPM:
    return sd.DDPM.from_sde(sd.VP(), n, variance=variance)  # type: ignore[arg-type]


def quadrature() -> tuple[Tensor, Tensor, Tensor]:
    """(x_0, noise, weights) under which means over N(MEAN, VAR) data and noise of what is quadratic
    in them are exact.
    """
    z, w = gauss_hermite(4)
    x = (MEAN + VAR**0.5 * z).repeat_interleave(4, dim=0)
    return x, z.repeat(4, 1), (w[:, None] * w[None, :]).flatten()


def expected_terms(chain: sd.DDPM) -> list[float]:
    """The mean terms L_0, ..., L_{N-1} in nats of N(MEAN, VAR) data with the exact model, from Ho
    et al.'s formulas.
    """
    bar, terms, before_all = 1.0, [], []
    for beta in chain.betas:
        before_all.append(bar)
        bar *= 1 - beta
    bar = 1.0
    tildes = []
    for beta, before in zip(chain.betas, before_all, strict=True):
        bar = before * (1 - beta)
        tildes.append(beta * (1 - before) / (1 - bar))
    for i, (beta, before) in enumerate(zip(chain.betas, before_all, strict=True)):
        bar = before * (1 - beta)
        left = VAR * (1 - bar) / (bar * VAR + 1 - bar)  # E (x_0 - E[x_0 | x_i])^2
        if i == 0:
            v = tildes[1]
            terms.append(0.5 * (math.log(2 * math.pi * v) + left / v))
            continue
        v = beta if chain.variance == "beta" else tildes[i]
        off = (math.sqrt(before) * beta / (1 - bar)) ** 2 * left
        terms.append(0.5 * (math.log(v / tildes[i]) - 1 + tildes[i] / v + off / v))
    return terms


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_bound_of_gaussian_data_in_closed_form(variance: str) -> None:
    """Each term of L_vlb, by a quadrature that is exact for it."""
    chain = chain_of(variance)
    model, (x, noise, w) = sd.exact.Gaussian(MEAN, VAR).model(sd.VP()), quadrature()
    loss = sd.discrete.DDPMLoss(chain, "vlb")
    for i, term in enumerate(expected_terms(chain), 1):
        got = (loss(model, x, i=torch.full((16,), i), noise=noise) * w).sum()
        assert float(got) == pytest.approx(chain.N * term / math.log(2), rel=1e-9)
    last = float((prior_term(chain, x) * w).sum())
    bar = float(chain.alphas_bar[-1])
    assert last == pytest.approx(0.5 * (bar * (MEAN**2 + VAR) - bar - math.log(1 - bar)), rel=1e-9)


def test_variational_bound_estimates_the_closed_form() -> None:
    """Means over 4,000 samples within 5 standard errors (false alarm 6e-7 each); sample i by its
    seed alone.
    """
    chain, rows = chain_of("beta_tilde"), 4000
    model = sd.exact.Gaussian([MEAN], VAR).model(sd.VP())
    x = MEAN + VAR**0.5 * torch.randn(
        rows, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    bound = sd.discrete.variational_bound(chain, model, x, bins=None, seed=1, batch_size=1500)
    terms = torch.cat([bound.decoder[:, None], bound.transitions], dim=1)
    for i, term in enumerate(expected_terms(chain)):
        error = float(terms[:, i].std()) / rows**0.5
        assert float(terms[:, i].mean()) == pytest.approx(term, abs=5 * error)
    torch.testing.assert_close(bound.total, bound.prior + terms.sum(dim=1))
    torch.testing.assert_close(bound.bits_per_dim, bound.total / math.log(2))
    few = sd.discrete.variational_bound(
        chain, model, x[[7, 3]], bins=None, seed=[sd.seeds(1, rows)[i] for i in (7, 3)]
    )
    torch.testing.assert_close(few.total, bound.total[[7, 3]], rtol=1e-12, atol=0)


def test_decoder_is_a_distribution_over_the_bins() -> None:
    """Probabilities of all 16 values add up to one, wherever the mean lies and however narrow it
    is.
    """
    bins = sd.objectives.Bins(16)
    values = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None]
    mean = torch.tensor([[-3.0, -1.0, -0.3, 0.05, 0.99, 1.7]], dtype=torch.float64)
    for log_v in (-12.0, -6.0, -2.0, 3.0):
        total = (
            bins.log_prob(values, mean, torch.full((16, 6), log_v, dtype=torch.float64))
            .exp()
            .sum(dim=0)
        )
        torch.testing.assert_close(total, torch.ones(6, dtype=torch.float64), rtol=1e-12, atol=0)


def test_decoder_in_its_tails() -> None:
    """Against 40 digits, 60 standard deviations out on either side, with gradients that are
    finite.
    """
    bins, std = sd.objectives.Bins(256), 0.01
    x = torch.tensor([[0, 128, 255]], dtype=torch.float64) / 127.5 - 1
    mean = torch.tensor([[-0.4, 0.6, 0.4]], dtype=torch.float64).requires_grad_()
    got = bins.log_prob(x, mean, torch.full_like(x, 2 * math.log(std)))
    with mp.workdps(1200):
        for k in range(3):
            at, m, half = (
                mp.mpf(float(x[0, k])),
                mp.mpf(float(mean[0, k].detach())),
                mp.mpf(1) / 255,
            )
            upper = mp.mpf(1) if float(at) > 0.999 else mp.ncdf((at + half - m) / std)
            lower = mp.mpf(0) if float(at) < -0.999 else mp.ncdf((at - half - m) / std)
            assert float(got[0, k].detach()) == pytest.approx(
                float(mp.log(upper - lower)), rel=1e-9
            )
    (slope,) = torch.autograd.grad(got.sum(), mean)
    assert bool(torch.isfinite(slope).all())
    assert bool((slope * (x - mean.detach()) > 0).all())


def test_simple_loss_is_denoising_score_matching() -> None:
    """L_simple is the weighting sigma^2 at the chain's times, whatever the network predicts."""
    sde, law = sd.VP(), sd.exact.Gaussian([0.3, -0.5], [0.25, 0.5])
    chain, i = sd.DDPM.from_sde(sde, 50), torch.tensor([1, 20, 50])
    x, noise = torch.ones(3, 2, dtype=torch.float64), torch.full((3, 2), -0.7, dtype=torch.float64)
    for predicts in ("noise", "data", "score", "v", "flow", "edm"):
        model = reparametrised(law.model(sde), predicts)
        expected = sd.DenoisingScoreMatching("sigma2")(
            model, x, t=chain.level_times[i - 1], noise=noise
        )
        torch.testing.assert_close(
            sd.discrete.DDPMLoss(chain)(model, x, i=i, noise=noise), expected, rtol=1e-8, atol=1e-12
        )
    x_i = chain.perturb(x, i, noise)
    by_hand = (law.model(sde).noise(x_i, chain.level_times[i - 1]) - noise).square().mean(dim=1)
    torch.testing.assert_close(
        sd.discrete.DDPMLoss(chain)(law.model(sde), x, i=i, noise=noise),
        by_hand,
        rtol=1e-9,
        atol=1e-12,
    )


class Affine(torch.nn.Module):
    """Predicted noise a x, and r for the variance."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r = (
            torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.6, 0.2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([self.a * x, self.r.expand_as(x)], dim=1)


def test_hybrid_loss_trains_the_mean_by_the_simple_one_alone() -> None:
    """Value L_simple + weight L_vlb; gradient of the mean that of L_simple, of the variance that of
    weight L_vlb.
    """
    net = Affine()
    sde = sd.VP()
    model, chain = sd.ScoreModel(net, sde, learned_variance=True), chain_of("learned", 20)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, grads = {}, {}
    for kind in ("simple", "vlb", "hybrid"):
        loss = sd.discrete.DDPMLoss(chain, kind, vlb_weight=0.05)  # type: ignore[arg-type]
        value = loss(model, x, generator=torch.Generator().manual_seed(1)).mean()
        values[kind] = value.detach()
        grads[kind] = torch.autograd.grad(
            value, (net.a, net.r), allow_unused=True, materialize_grads=True
        )
    torch.testing.assert_close(values["hybrid"], values["simple"] + 0.05 * values["vlb"])
    torch.testing.assert_close(grads["hybrid"][0], grads["simple"][0])
    torch.testing.assert_close(grads["hybrid"][1], 0.05 * grads["vlb"][1])
    assert float(grads["vlb"][0]) != 0
    assert float(grads["simple"][1]) == 0
    assert float(grads["vlb"][1]) != 0


def test_learned_variance_is_best_at_the_optimal_one() -> None:
    """Unit Gaussian data: the reverse step has variance beta, r = 1; the mean bound is least
    there.
    """
    sde, chain = sd.VP(), chain_of("learned", 20)
    z, w = gauss_hermite(4)
    x, noise, w = z.repeat_interleave(4, dim=0), z.repeat(4, 1), (w[:, None] * w[None, :]).flatten()
    i = torch.full((16,), 10)

    def bound(r: float) -> float:
        def net(x: Tensor, t: Tensor) -> Tensor:
            return torch.cat([x * sde.sigma(t.double())[:, None], torch.full_like(x, r)], dim=1)

        model = sd.ScoreModel(net, sde, learned_variance=True, time_dtype=torch.float64)
        return float((sd.discrete.DDPMLoss(chain, "vlb")(model, x, i=i, noise=noise) * w).sum())

    assert bound(1.0) < min(bound(0.99), bound(1.01))
    assert bound(1.0) < bound(-1.0)


def test_loss_aware_levels_keep_the_mean() -> None:
    """p_i follows eq. 18, and the weights make the expected loss that of uniform levels,
    exactly.
    """
    sampler = sd.discrete.LossAware(4, history=2, uniform=0.01)
    torch.testing.assert_close(sampler.probabilities, torch.full((4,), 0.25, dtype=torch.float64))
    # the first are forgotten
    for values in ([5.0, 5.0, 5.0, 5.0], [1.0, 3.0, 0.5, 4.0], [2.0, 0.0, 0.5, 3.0]):
        sampler.record(torch.tensor([1, 2, 3, 4]), torch.tensor(values))
    size = torch.tensor([5.0, 9.0, 0.5, 25.0], dtype=torch.float64).div(2).sqrt()
    expected = 0.99 * size / size.sum() + 0.01 / 4
    torch.testing.assert_close(sampler.probabilities, expected)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    i, weights = sampler.levels(u)
    torch.testing.assert_close(
        torch.bincount(i, minlength=5)[1:].double() / 1e5, expected, rtol=0, atol=2e-5
    )
    losses = torch.tensor([3.0, 1.0, 4.0, 1.5], dtype=torch.float64)
    assert float((weights * losses[i - 1]).mean()) == pytest.approx(float(losses.mean()), rel=1e-4)


def test_loss_aware_learns_from_unweighted_losses_with_gradients() -> None:
    sampler = sd.discrete.LossAware(8, history=1)
    loss = sd.discrete.DDPMLoss(chain_of("beta_tilde"), sampler=sampler)
    model = sd.ScoreModel(lambda x, t: 0.5 * x, sd.VP())
    x = torch.ones(64, 2, dtype=torch.float64)
    with torch.no_grad():
        loss(model, x, generator=torch.Generator().manual_seed(0))
    assert int(sampler.counts.sum()) == 0
    loss(model, x, generator=torch.Generator().manual_seed(0))
    assert int(sampler.counts.sum()) == 64
    with torch.no_grad():
        sampler.counts += 1
        sampler.losses[:, 0] = torch.arange(1, 9)
    generator = torch.Generator().manual_seed(2)
    i, weights = loss.draw_levels(64, generator)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    assert len(weights.unique()) > 2
    expected = weights * sd.discrete.DDPMLoss(loss.chain)(model, x, i=i, noise=noise)
    value = loss(model, x, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(sampler.losses[i[-1] - 1, 0], value[-1] / weights[-1])


def test_levels_are_uniform_and_stratified() -> None:
    loss = sd.discrete.DDPMLoss(chain_of("beta_tilde"), stratified=True)
    i, weights = loss.draw_levels(80, torch.Generator().manual_seed(0))
    assert torch.bincount(i, minlength=9)[1:].tolist() == [10] * 8
    assert weights.tolist() == [1] * 80
    i, _ = sd.discrete.DDPMLoss(chain_of("beta_tilde")).draw_levels(
        80_000, torch.Generator().manual_seed(0)
    )
    counts = torch.bincount(i, minlength=9)[1:].double()
    # Chi-square with 7 degrees of freedom: above 50 with probability 1.4e-8.
    assert float(((counts - 1e4).square() / 1e4).sum()) < 50


def test_a_run_with_loss_aware_levels_resumes_to_the_bit(tmp_path) -> None:
    from sdediff.networks import MLP, initialised

    chain = sd.DDPM.from_schedule("linear", 16, variance="learned")
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = MLP(2, 8, 1), MLP(2, 8, 1)

        def forward(self, x, t):
            return torch.cat([self.first(x, t), self.second(x, t)], dim=1)

    def train(folder: str, steps: tuple[int, ...]) -> tuple[sd.ScoreModel, sd.discrete.LossAware]:
        for stop in steps:
            model = sd.ScoreModel(initialised(Both, 0), chain.to_sde(), learned_variance=True)
            sampler = sd.discrete.LossAware(16, history=2)
            loss = sd.discrete.DDPMLoss(chain, "hybrid", sampler=sampler)
            options = {"resume": stop != steps[0], "batch_size": 32, "device": "cpu", "warmup": 0}
            # The rate of a step depends on the number of steps: stopped by the callback's count,
            # not by another number.
            if stop != steps[-1]:
                with pytest.raises(KeyboardInterrupt):
                    sd.fit(
                        model,
                        data,
                        out=tmp_path / folder,
                        loss=loss,
                        steps=40,
                        callback=_interrupt,
                        **options,
                    )
            else:
                model = sd.fit(model, data, out=tmp_path / folder, loss=loss, steps=40, **options)
        return model, sampler

    (one, seen), (two, seen_twice) = train("whole", (40,)), train("stopped", (20, 40))
    assert int(seen.counts.min()) >= 2
    for name, value in one.net.state_dict().items():
        assert torch.equal(value, two.net.state_dict()[name]), name
    assert torch.equal(seen.losses, seen_twice.losses)
    again = sd.load(tmp_path / "whole", net=initialised(Both, 1))
    assert again.learned_variance
    assert again.sde == chain.to_sde()


def _interrupt(step: int, loss: float) -> None:
    import signal

    if step == 20:
        signal.raise_signal(signal.SIGINT)


VP_MODEL = sd.exact.Gaussian([0.0, 0.0], 1.0).model(sd.VP())
CHAIN = chain_of("beta_tilde")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sd.discrete.DDPMLoss(sd.VP()), TypeError, "takes a DDPM"),
        (lambda: sd.discrete.DDPMLoss(CHAIN, "simpel"), ValueError, "kind must be"),
        (lambda: sd.discrete.DDPMLoss(CHAIN, "hybrid"), ValueError, "take variance='learned'"),
        (
            lambda: sd.discrete.DDPMLoss(CHAIN, vlb_weight=0),
            ValueError,
            "vlb_weight must be a positive number",
        ),
        (
            lambda: sd.discrete.DDPMLoss(CHAIN, sampler=sd.discrete.LossAware(9)),
            ValueError,
            "the sampler is for 9 levels, the chain has 8",
        ),
        (
            lambda: sd.discrete.DDPMLoss(CHAIN)(
                sd.exact.Gaussian([0.0], 1.0).model(sd.Cosine()), torch.zeros(1, 1)
            ),
            ValueError,
            "to_sde",
        ),
        (
            lambda: sd.discrete.DDPMLoss(CHAIN)(VP_MODEL, torch.zeros(2, 2).long()),
            TypeError,
            r"use x.float\(\)",
        ),
        (
            lambda: sd.discrete.DDPMLoss(CHAIN)(
                VP_MODEL, torch.zeros(2, 2), i=torch.tensor([0, 1])
            ),
            ValueError,
            r"must lie in 1\.\.8",
        ),
        (
            lambda: sd.discrete.DDPMLoss(CHAIN)(
                VP_MODEL, torch.zeros(2, 2), i=torch.tensor([1, 2, 3])
            ),
            ValueError,
            r"int or \(B,\)",
        ),
        (
            lambda: sd.discrete.DDPMLoss(chain_of("learned"), "vlb")(VP_MODEL, torch.zeros(2, 2)),
            ValueError,
            "learned_variance=True",
        ),
        (
            lambda: sd.discrete.DDPMLoss(CHAIN, "vlb", bins=sd.objectives.Bins())(
                VP_MODEL, torch.full((2, 2), 0.3)
            ),
            ValueError,
            "must lie on the 256",
        ),
        (
            lambda: sd.discrete.variational_bound(
                CHAIN, VP_MODEL, torch.full((2, 2), 2.0), bins=sd.objectives.Bins()
            ),
            ValueError,
            "declare how",
        ),
        (
            lambda: sd.discrete.variational_bound(
                CHAIN, VP_MODEL, torch.full((2, 2), float("nan")), bins=None
            ),
            ValueError,
            "not finite",
        ),
        (
            lambda: sd.discrete.variational_bound(
                CHAIN, VP_MODEL, torch.zeros(2, 2), bins=None, batch_size=0
            ),
            ValueError,
            "batch_size",
        ),
        (
            lambda: sd.discrete.variational_bound(
                CHAIN, torch.nn.Identity(), torch.zeros(2, 2), bins=None
            ),
            TypeError,
            "wrap the network",
        ),
        (lambda: sd.objectives.Bins(1), ValueError, "at least 2"),
        (lambda: sd.objectives.Bins(4, 1.0, 0.0), ValueError, "low must be below high"),
        (lambda: sd.discrete.LossAware(0), ValueError, "N must be an int"),
        (lambda: sd.discrete.LossAware(4, uniform=0), ValueError, r"uniform must lie in \(0, 1\]"),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

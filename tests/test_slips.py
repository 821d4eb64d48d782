"""The slips of docs/discrete.md that texts on these models contain: the right form agrees with the
library and with a closed form, and the wrong form does not.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from labelled import labelled
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import scaled_dot_product_attention

import sdediff as sd
from sdediff import mcmc
from sdediff.guidance import ClassifierFree
from sdediff.metrics import frechet_distance, gaussian_frechet_distance
from sdediff.objectives import ConditionDropout

F64 = torch.float64
VE = sd.VE(sigma_min=0.1, sigma_max=3.0)
T = 0.4
SIGMA = float(VE.sigma(torch.tensor(T, dtype=F64)))
SPREAD = 0.7  # of the Gaussian data


def slope(target: tuple[float, float], noise: float = SIGMA) -> float:
    """What a network s(x_t) = a x_t learns from a target p x_0 + q z, by least squares, where x_t
    = x_0 + noise z and x_0 has the standard deviation SPREAD: a = E[target x_t] / E[x_t^2].
    """
    x_0, z = target
    return (x_0 * SPREAD**2 + z * noise) / (SPREAD**2 + noise**2)


def true_slope() -> float:
    """d score / dx of Gaussian data under `VE`."""
    model = sd.exact.Gaussian([0.0], SPREAD**2).model(VE)
    ends = torch.tensor([[0.0], [1.0]], dtype=F64)
    return float(model.score(ends, torch.tensor(T, dtype=F64)).diff(dim=0))


def test_the_target_is_the_gradient_and_not_its_negative() -> None:
    """E ||s - grad log p(x_t | x_0)||^2, and not E ||s + grad log p(x_t | x_0)||^2."""
    right = (0.0, -SIGMA / SIGMA**2)  # -(x_t - x_0) / sigma^2 = -z / sigma
    wrong = (0.0, SIGMA / SIGMA**2)
    assert slope(right) == pytest.approx(true_slope(), rel=1e-10)
    assert slope(wrong) == pytest.approx(-true_slope(), rel=1e-10)  # leads away from the data


def test_the_score_of_the_noise_is_divided_by_its_variance() -> None:
    """-(x~ - x) / sigma^2, and not -(x~ - x) / 2."""
    wrong = (0.0, -SIGMA / 2)
    assert slope((0.0, -1 / SIGMA)) == pytest.approx(true_slope(), rel=1e-10)
    assert slope(wrong) / true_slope() == pytest.approx(SIGMA**2 / 2, rel=1e-10)
    assert abs(SIGMA**2 / 2 - 1) > 0.5


def test_the_kernel_has_the_variance_sigma_squared() -> None:
    """N(x, sigma^2 I), and not N(x, sigma I)."""
    one = torch.ones(1, 1, dtype=F64)
    moved = VE.perturb(0 * one, torch.tensor(T, dtype=F64), one)
    assert float(moved) == pytest.approx(SIGMA, rel=1e-12)  # a standard normal is multiplied by it
    wrong = math.sqrt(SIGMA)
    assert abs(float(moved) - wrong) > 0.1
    target = (0.0, -wrong / SIGMA**2)  # the right gradient of noise that is wrong
    assert abs(slope(target, noise=wrong) / true_slope() - 1) > 0.2


def test_the_gradient_of_a_minibatch_counts_for_all_data() -> None:
    """SGLD: grad log prior + N / n sum over the batch, and not the bare sum."""
    count, batch, step = 60, 6, 0.004
    target = mcmc.Posterior(
        lambda x: -0.5 * x**2,
        lambda x, y: -0.5 * (y - x[:, None]) ** 2,
        torch.ones(count, dtype=F64),  # all alike, so that a minibatch has no variance
        batch,
    )
    start = torch.zeros(4000, dtype=F64)
    chains = mcmc.run(mcmc.SGLD(step), target, start, steps=1, burn_in=200, seed=0)
    found = float(chains.samples[-1].var())
    for share, same in ((count / batch, True), (1.0, False)):  # N / n, and forgotten
        precision = 1 + share * batch
        variance = 1 / precision / (1 - step * precision / 2)
        assert (abs(found / variance - 1) < 5 * math.sqrt(2 / 4000)) == same
        # The mean, N / (N + 1) or n / (n + 1), within five standard errors.
        off = abs(float(chains.samples[-1].mean()) - share * batch / precision)
        assert (off < 5 * math.sqrt(variance / 4000)) == same


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_a_term_of_the_bound_is_divided_by_the_variance_once(variance: Any) -> None:
    """beta^2 / (2 sigma^2 alpha (1 - alpha_bar)), with sigma^2 where texts have |Sigma|^2."""
    chain, i = sd.DDPM.from_schedule("linear", 50, variance=variance), 20
    x, noise, guess = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    one = torch.ones(8, dtype=F64)
    mean, _ = chain.posterior_from_noise(x, noise, i)
    model_mean, _ = chain.posterior_from_noise(x, guess, i)
    beta, bar, before = (
        float(value)
        for value in (chain.betas[i - 1], chain.alphas_bar[i - 1], chain.alphas_bar[i - 2])
    )
    sigma2 = beta if variance == "beta" else beta * (1 - before) / (1 - bar)
    std = math.sqrt(sigma2) * one
    term = kl_divergence(Normal(mean, std), Normal(model_mean, std))
    squared = (noise - guess).square()
    right = beta**2 / (2 * sigma2 * (1 - beta) * (1 - bar)) * squared
    wrong = beta**2 / (2 * sigma2**2 * (1 - beta) * (1 - bar)) * squared
    torch.testing.assert_close(term, right, rtol=1e-9, atol=0)
    assert float((wrong / term).min()) > 5


def test_metropolis_with_an_approximation_samples_the_approximation() -> None:
    """A = min(1, p(x*) / p(x)): the density of the acceptance is what is sampled."""
    start = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = {}
    for name, std in (("p", 1.0), ("g", 1.6)):
        chains = mcmc.run(
            mcmc.RandomWalk(2.0),
            lambda x, std=std: -0.5 * (x[:, 0] / std) ** 2,
            start,
            steps=1,
            burn_in=60,
            seed=1,
        )
        found[name] = float(chains.samples[-1].var())
    bound = 5 * math.sqrt(2 / 4000)
    assert abs(found["p"] - 1) < bound
    assert abs(found["g"] - 1) > 1  # near 1.6^2


def test_pixels_ask_and_words_answer() -> None:
    """Cross-attention: queries from the image, keys and values from the text. Exchanged, there is
    an answer for each word, which cannot be added to the pixels.
    """
    generator = torch.Generator().manual_seed(0)
    pixels, words = (torch.randn(2, n, 8, generator=generator) for n in (16, 5))
    right = scaled_dot_product_attention(pixels, words, words)
    assert (pixels + right).shape == (2, 16, 8)
    swapped = scaled_dot_product_attention(words, pixels, pixels)
    with pytest.raises(RuntimeError, match="must match the size"):
        pixels + swapped
    one_word = scaled_dot_product_attention(pixels, words[:, :1], words[:, :1])
    torch.testing.assert_close(one_word, words[:, :1].expand(2, 16, 8))  # all pixels hear it


def test_the_label_is_left_out_with_probability_one_tenth() -> None:
    """drop = 0.1 leaves the label out of a tenth of the samples; texts have it included in one."""
    seen: list[Tensor] = []

    def loss(model: sd.ScoreModel, x: Tensor, condition: Any = None, **rest: Any) -> Tensor:
        seen.append(condition["label"])
        return x.flatten(1).sum(dim=1)

    model = labelled([sd.exact.Gaussian([0.0], 1.0)] * 3, sd.VP())
    label = torch.ones(4000, dtype=torch.int64)
    given: dict[str, Any] = {"condition": {"label": label}}
    dropout = ConditionDropout(loss, null={"label": 2}, rate=0.1)
    dropout(model, torch.zeros(4000, 1), generator=torch.Generator().manual_seed(0), **given)
    left_out = float((seen[0] == 2).double().mean())
    bound = 5 * math.sqrt(0.09 / 4000)
    assert abs(left_out - 0.1) < bound
    assert abs(left_out - 0.9) > bound


def test_the_gradient_of_the_classifier_is_counted_once() -> None:
    """grad log p(x, y) = grad log p(x) + grad log p(y | x). Added to grad log p(x | y) the latter
    counts twice, which is guidance at scale 2.
    """
    laws = [sd.exact.Gaussian([mean], 0.3) for mean in (1.0, -1.0)]
    whole = sd.exact.GaussianMixture([[1.0], [-1.0]], math.sqrt(0.3))
    model = labelled([*laws, whole], sd.VP())
    x, t = torch.tensor([[0.4], [-0.2], [1.5]], dtype=F64), torch.tensor(0.3, dtype=F64)
    label, none = torch.zeros(3, dtype=torch.int64), torch.full((3,), 2)
    given, free = (model.score(x, t, label=each) for each in (label, none))
    classifier = given - free  # Bayes' theorem: grad log p(y | x)

    def guided(scale: float) -> Tensor:
        return ClassifierFree(model, scale, null={"label": 2}).score(x, t, label=label)

    torch.testing.assert_close(free + classifier, guided(1.0), rtol=1e-9, atol=1e-9)
    twice = given + classifier
    torch.testing.assert_close(twice, guided(2.0), rtol=1e-9, atol=1e-9)
    assert float((twice - given).abs().min()) > 0.05


def test_a_frechet_distance_is_better_where_it_is_lower() -> None:
    """The distance of worse samples is larger."""
    generator = torch.Generator().manual_seed(0)
    real, good = torch.randn(2, 500, 3, generator=generator, dtype=F64)
    values = [float(frechet_distance(real, x).value) for x in (real, good, good + 1, 3 * good)]
    assert values[0] < 1e-9 < values[1] < 0.2 < values[2] < values[3]


def test_a_frechet_distance_has_covariances_and_not_standard_deviations() -> None:
    """Equal means and standard deviations, other correlations: 4 - 2 (sqrt(1 + r) + sqrt(1 - r))
    with covariances, and 0 with standard deviations.
    """
    mean, r = torch.zeros(2, dtype=F64), 0.8
    alone, together = torch.eye(2, dtype=F64), torch.tensor([[1.0, r], [r, 1.0]], dtype=F64)
    right = gaussian_frechet_distance(mean, alone, mean, together)
    assert right == pytest.approx(4 - 2 * (math.sqrt(1 + r) + math.sqrt(1 - r)), rel=1e-9)
    stds = [c.diagonal().sqrt() for c in (alone, together)]
    assert float((stds[0] - stds[1]).square().sum()) == 0
    assert right > 0.4

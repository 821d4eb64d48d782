"""DDIM on subsequences, and back: the explicit inverse closes at order 1, the implicit one to its
tolerance.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from all_sdes import SDES
from pairwise import pairwise
from torch import Tensor

import sdediff as sd
from sdediff.reverse import Reverse
from sdediff.solvers import Solver, integrate

LAW = sd.exact.GaussianMixture([[-0.5, 0.3], [0.5, 0.0], [0.2, -0.5]], 0.5)


def along(sde: sd.LinearSDE, solver: Solver, x: Tensor, times: Tensor) -> sd.Solution:
    return integrate(Reverse(LAW.model(sde), len(x), 0.0), solver, x, times)


def grid(sde: sd.LinearSDE, n: int) -> Tensor:
    """Rising, even in log-SNR over its inner part."""
    levels = torch.linspace(
        float(sde.log_snr(0.05 * sde.T)),
        float(sde.log_snr(0.9 * sde.T)),
        n + 1,
        dtype=torch.float64,
    )
    return sde.time_of(levels)


def start(sde: sd.LinearSDE, t: Tensor) -> Tensor:
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return sde.perturb(LAW.sample(4, seed=0), float(t), z)


@pytest.mark.thin(2)
@pairwise("sde, tol", SDES, [1e-4, 1e-8, 1e-12])
def test_round_trip_closes_to_the_tolerance(sde: sd.LinearSDE, tol: float) -> None:
    times = grid(sde, 25)
    x = start(sde, times[0])
    there = along(sde, sd.solvers.InverseDDIM(tol), x, times)
    back = along(sde, sd.DDIM(), there.x, times.flip(0))
    off = float((back.x - x).abs().max() / (1 + x.abs().max()))
    # 25 steps, each within tol of its fixed point, times what the map makes of it
    assert off < 300 * tol + 1e-13
    assert off > 1e-4 * tol or tol < 1e-10
    assert int(there.nfe.max()) < 25 * 50


@pytest.mark.thin(1)
def test_explicit_round_trip_closes_at_order_one(sde: sd.LinearSDE) -> None:
    off = []
    for n in (40, 80, 160):
        times = grid(sde, n)
        x = start(sde, times[0])
        back = along(sde, sd.DDIM(), along(sde, sd.DDIM(), x, times).x, times.flip(0))
        off.append(float((back.x - x).norm()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(off)]
    assert slopes[-1] == pytest.approx(1, abs=0.25), (off, slopes)


def test_one_step_is_inverted_to_the_tolerance(sde: sd.LinearSDE) -> None:
    """Where the iteration contracts, DDIM's step from the result ends within tol (1 + largest) of
    where it should, times what it enlarges a difference by.
    """
    pair = grid(sde, 6)[2:4]
    x, larger = start(sde, pair[0]), float(sde.alpha(pair[0]) / sde.alpha(pair[1]))
    for tol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        y = along(sde, sd.solvers.InverseDDIM(tol), x, pair).x
        off = (along(sde, sd.DDIM(), y, pair.flip(0)).x - x).abs().amax(dim=1)
        assert bool((off <= larger * tol * (1 + y.abs().amax(dim=1))).all())


def test_samples_stop_by_themselves() -> None:
    """A sample's latent does not depend on its batch."""
    sde = sd.VP()
    times = grid(sde, 12)
    x = start(sde, times[0]) * torch.tensor([[0.1], [1.0], [3.0], [10.0]], dtype=torch.float64)
    whole = along(sde, sd.solvers.InverseDDIM(1e-5), x, times).x
    for i in range(4):
        torch.testing.assert_close(
            along(sde, sd.solvers.InverseDDIM(1e-5), x[[i]], times).x[0],
            whole[i],
            rtol=0,
            atol=1e-12,
        )


def test_a_step_that_does_not_contract_is_refused_in_words() -> None:
    sde = sd.VP()
    steep = sd.ScoreModel(lambda x, t: 40 * torch.sin(5 * x), sde)
    x = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(
        RuntimeError, match=r"after 20 iterations sample \d still moves by .* take more steps"
    ):
        integrate(
            Reverse(steep, 2, 0.0),
            sd.solvers.InverseDDIM(1e-8, 20),
            x,
            torch.tensor([0.01, 0.9], dtype=torch.float64),
        )


def test_ddim_on_a_subsequence_is_its_equation_12() -> None:
    """Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16 in alpha_bar alone, on an arbitrary
    subsequence of DDPM's levels.
    """
    chain = sd.DDPM.from_schedule("linear", 1000)
    few, sde = chain.respaced([3, 40, 41, 500, 1000]), chain.to_sde()
    model, eta = LAW.model(sde), 0.6
    noise = sd.White(sd.seeds(4, 3), (2,), dtype=torch.float64)
    x = sde.prior.from_noise(noise.at(0).normal("prior"))
    indices = [1000, 500, 41, 40, 3]
    bars = [float(chain.alphas_bar[i - 1]) for i in indices]
    for step, (i, bar, bar_s) in enumerate(zip(indices, bars, bars[1:], strict=False)):
        eps = model.noise(x, i / 1000)
        clean = (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
        spread = eta * math.sqrt((1 - bar_s) / (1 - bar)) * math.sqrt(1 - bar / bar_s)
        z = noise.at(step).over(few.times[step], few.times[step + 1])
        x = math.sqrt(bar_s) * clean + math.sqrt(1 - bar_s - spread**2) * eps + spread * z
    out = sd.sample(
        model,
        (3, 2),
        solver=sd.DDIM(eta),
        grid=few.times,
        seed=4,
        last="noisy",
        dtype=torch.float64,
    )
    torch.testing.assert_close(out.x, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sd.solvers.InverseDDIM(-1.0), "tol must be"),
        (lambda: sd.solvers.InverseDDIM(iterations=0), "iterations must be"),
        (
            lambda: along(
                sd.Cosine(t_max=1.0),
                sd.solvers.InverseDDIM(),
                torch.zeros(1, 2).double(),
                torch.tensor([0.5, 1.0]).double(),
            ),
            "alpha = 0",
        ),
        (
            lambda: sd.sample(LAW.model(sd.VP()), (1, 2), solver=sd.DDIM(5.0), steps=20),
            "eta = 5 asks for more noise",
        ),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

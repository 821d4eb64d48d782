"""Nothing has an absolute size: one problem in other units of length has the same solution, in
those units.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from pairwise import pairwise

import sdediff as sd
from sdediff.solvers import ExponentialPair, Solver, Step, expand
from sdediff.testing import check_sde

F64 = torch.float64
MEANS, STD = torch.tensor([[-1.0, 0.3], [1.0, 0.5], [0.2, -0.9]], dtype=F64), 0.2
FACTORS = (2.0**-20, 2.0**20)


def model(sde: sd.LinearSDE, c: float) -> sd.ScoreModel:
    """The exact model of a mixture in units of 1 / c, which declares its standard deviation."""
    return sd.exact.GaussianMixture(c * MEANS, c * STD, [0.2, 0.3, 0.5]).model(sde.scaled(c))


def ncsn(c: float) -> sd.NCSN:
    return sd.NCSN(
        tuple(c * s for s in (50.0, 10.0, 2.0, 0.4, 0.08)), step_size=c**2 * 1e-3, n_steps=3
    )


FIXED = [
    None,
    sd.solvers.Euler(),
    sd.Heun(variable="sigma"),
    sd.solvers.RungeKutta4(variable="angle"),
    sd.solvers.DormandPrince(variable="log_snr"),
    sd.DDIM(),
    sd.solvers.DPMSolver(),
    sd.solvers.DPMSolverPP(),
    sd.solvers.DPMSolverPPSinglestep(),
    sd.solvers.UniPC(),
    sd.solvers.DEIS(),
    sd.solvers.IPNDM(),
    sd.solvers.LMS(),
    sd.ExponentialMultistep(3, form=sd.solvers.Straight(0.1), variable="angle"),
    sd.solvers.ExponentialSinglestep(3),
    sd.EulerMaruyama(),
    sd.solvers.StochasticHeun(),
    sd.solvers.SRA1(),
    sd.ReverseDiffusion(),
    sd.solvers.Ancestral(),
    sd.solvers.SDEDPMSolverPP(),
    sd.solvers.SASolver(),
    sd.solvers.SEEDS(),
    sd.solvers.ERSDE(),
    sd.solvers.EulerTrapezoid(),
    sd.solvers.Renoise(sd.solvers.RungeKutta4()),
    sd.solvers.Restart(sd.Heun(variable="sigma"), between=(0.2, 0.5)),
    sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin()),
    sd.PredictorCorrector(sd.EulerMaruyama(), sd.Langevin(rule="song"), "corrector-first"),
    sd.PredictorCorrector(sd.DDIM(), sd.solvers.MetropolisLangevin()),
    sd.solvers.TorchDiffEq("rk4"),
    sd.solvers.TorchSDE("srk"),
]


@pytest.mark.thin(4)
@pytest.mark.parametrize("solver", FIXED, ids=repr)
def test_fixed_steps_scale_with_the_units(solver: sd.solvers.Euler | None) -> None:
    """Each on its default grid, under VE and sub-VP: 1e-12 of the largest entry."""
    for sde in (sd.VE(), sd.SubVP()):
        kw = {"solver": solver, "steps": 6, "seed": 3, "dtype": F64, "trajectory": True}
        here = sd.sample(model(sde, 1.0), (5, 2), **kw)
        for c in FACTORS:
            there = sd.sample(model(sde, c), (5, 2), **kw)
            torch.testing.assert_close(there.times, here.times, rtol=1e-12, atol=1e-12)
            for found, expected in (
                (there.x / c, here.x),
                (there.trajectory[3] / c, here.trajectory[3]),
            ):
                torch.testing.assert_close(
                    found, expected, rtol=0, atol=1e-12 * float(expected.abs().max())
                )


def test_lengths_that_the_user_gives_are_in_the_users_units() -> None:
    """The noise between which EDM's sampler churns, and the levels and the step of annealed
    Langevin dynamics (step c^2).
    """

    def churn(c: float) -> sd.Solution:
        solver = sd.solvers.Churn(sd.Heun(variable="sigma"), between=(0.05 * c, 5.0 * c))
        return sd.sample(model(sd.VE(), c), (5, 2), solver=solver, steps=8, seed=1, dtype=F64)

    def levels(c: float) -> sd.Solution:
        chain = ncsn(c)
        law = sd.exact.GaussianMixture(c * MEANS, c * STD)
        return sd.sample(law.model(chain.to_sde()), (5, 2), solver=chain, seed=1, dtype=F64)

    def auto(c: float) -> sd.Solution:
        sde = sd.VE().scaled(c)
        return sd.sample(
            model(sd.VE(), c),
            (5, 2),
            solver=sd.NCSN.from_sde(sde, 12, n_steps=2),
            seed=1,
            dtype=F64,
        )

    for draw in (churn, levels, auto):
        expected = draw(1.0).x
        for c in FACTORS:
            torch.testing.assert_close(
                draw(c).x / c, expected, rtol=0, atol=1e-12 * float(expected.abs().max())
            )
    assert not torch.allclose(
        churn(1.0).x,
        sd.sample(
            model(sd.VE(), 1.0), (5, 2), solver=sd.solvers.Churn(sd.Heun()), steps=8, seed=1
        ).x.double(),
    )


ADAPTIVE = {
    "default": lambda c: None,
    "RK23, atol": lambda c: sd.solvers.RK23(1e-3, 1e-3 * c),
    "RK45": lambda c: sd.RK45(),
    "RK45, atol, t": lambda c: sd.RK45(1e-3, 1e-4 * c, variable="t"),
    "Tsit5, sigma": lambda c: sd.solvers.Tsit5(1e-4, variable="sigma"),
    "DOP853, log-SNR": lambda c: sd.solvers.DOP853(1e-7, variable="log_snr"),
    "ExponentialPair": lambda c: ExponentialPair(3),
    "AdaptiveSDE": lambda c: sd.AdaptiveSDE(),
    "AdaptiveSDE, atol": lambda c: sd.AdaptiveSDE(0.1, 0.02 * c),
    "SciPy": lambda c: sd.solvers.SciPy("RK45", 1e-4),
    "TorchDiffEq, atol": lambda c: sd.solvers.TorchDiffEq("dopri5", 1e-4, 1e-4 * c),
}


@pytest.mark.thin(1)
@pairwise("sde, name", [sd.VE(), sd.SubVP()], ADAPTIVE)
def test_adaptive_steps_scale_with_the_units(sde: sd.LinearSDE, name: str) -> None:
    """A tolerance that is given is in the user's units, one that is not in those of the data: equal
    counts.
    """
    make = ADAPTIVE[name]
    here = sd.sample(model(sde, 1.0), (5, 2), solver=make(1.0), seed=3, dtype=F64)
    for c in FACTORS:
        there = sd.sample(model(sde, c), (5, 2), solver=make(c), seed=3, dtype=F64)
        for count in ("nfe", "accepted", "rejected", "status"):
            assert torch.equal(getattr(there, count), getattr(here, count)), (count, c)
        torch.testing.assert_close(
            there.x / c, here.x, rtol=0, atol=1e-12 * float(here.x.abs().max())
        )


@dataclass(frozen=True)
class OwnHeun(Solver):
    """A user's adaptive solver, which leaves atol to the library."""

    rtol: float = 1e-4
    atol: float | None = None

    adaptive = True
    error_order = 2
    evaluations = 2

    def step(self, problem, x, plan, noise, state):
        t, s = plan
        h, first = expand(s - t, x), problem.drift(x, t)
        last = problem.drift(x + h * first, s)
        return Step(x + h * (first + last) / 2, error=h * (last - first) / 2)


@pytest.mark.thin(0)
def test_an_adaptive_solver_of_the_users_own_scales_with_the_units() -> None:
    small, large = (
        sd.sample(model(sd.VE(), c), (8, 2), solver=OwnHeun(1e-2), seed=0, dtype=F64)
        for c in (1.0, 2.0**20)
    )
    torch.testing.assert_close(large.x / 2.0**20, small.x, rtol=1e-12, atol=0)
    assert large.nfe.tolist() == small.nfe.tolist()


@pytest.mark.thin(0)
def test_float32_scales_to_its_own_precision() -> None:
    for solver, steps in (
        (None, 20),
        (sd.RK45(1e-3), None),
        (sd.AdaptiveSDE(), None),
        (sd.EulerMaruyama(), 50),
    ):
        here = sd.sample(model(sd.VE(), 1.0), (16, 2), solver=solver, steps=steps, seed=0)
        for c in FACTORS:
            there = sd.sample(model(sd.VE(), c), (16, 2), solver=solver, steps=steps, seed=0)
            assert torch.equal(there.nfe, here.nfe)
            torch.testing.assert_close(
                there.x / c, here.x, rtol=0, atol=1e-5 * float(here.x.abs().max())
            )


OWN = {
    "kept variance": lambda c: sd.LinearSDE(f=lambda t: -5.0, g=lambda t: c * 10**0.5),
    "noisy data": lambda c: sd.LinearSDE(
        f=lambda t: -5.0, g=lambda t: c * 10**0.5, sigma_0=0.05 * c
    ),
    "constant alpha": lambda c: sd.LinearSDE(
        f=lambda t: 0.0, g=lambda t: c * 5 * (1 + t), sigma_0=0.01 * c
    ),
    "alpha and sigma": lambda c: sd.LinearSDE(
        alpha=lambda t: 1.0, sigma=lambda t: c * 0.01 * 3000**t
    ),
}


@pytest.mark.thin(1)
@pytest.mark.parametrize("name", OWN)
def test_an_sde_of_ones_own_has_no_absolute_size(name: str) -> None:
    """Its prior, the size of its data and its samples, from coefficients alone: a sigma of 1e-5 is
    no VP, a VP of g = 1e-6 is.
    """
    for c in (2.0**-30, 2.0**20):
        own, other = OWN[name](1.0), OWN[name](c)
        assert other.prior.std == pytest.approx(c * own.prior.std, rel=1e-13)
        assert other.data_std == pytest.approx(c * own.data_std, rel=1e-13)
        for solver, steps in ((sd.RK45(), None), (None, 8), (sd.EulerMaruyama(), 8)):
            here, there = (
                sd.sample(
                    sd.exact.GaussianMixture(k * MEANS, k * STD).model(sde),
                    (4, 2),
                    solver=solver,
                    steps=steps,
                    seed=0,
                    dtype=F64,
                )
                for k, sde in ((1.0, own), (c, other))
            )
            assert torch.equal(there.nfe, here.nfe)
            torch.testing.assert_close(
                there.x / c, here.x, rtol=0, atol=1e-12 * float(here.x.abs().max())
            )


def test_a_prior_is_the_law_that_the_process_keeps() -> None:
    """N(0, 1) for VP of any origin and length, N(0, sigma^2) under VE however small, N(0, 1) in
    VDM's units for a learned one.
    """
    kept = (
        sd.VP(),
        sd.Cosine(),
        sd.DDPM((1e-6,) * 3).to_sde(),
        sd.DDPM((1e-3,) * 10).to_sde(),
        sd.LinearSDE(**HALF),
    )
    assert [sde.prior.std for sde in kept] == [1.0] * 5
    for sde in (sd.VE(1e-9, 1e-6), sd.EDM(1e-9, 1e-6), sd.VE(1e-9, 1e-6).scaled(1e-9)):
        assert sde.prior.std == pytest.approx(float(sde.sigma(sde.t_max)), rel=1e-12)
        check_sde(sde, verbose=False)
    learned = sd.sde.LearnedVP(sd.sde.MonotoneSchedule(-3.0, 2.0))
    assert learned.prior.std**2 == pytest.approx(
        1 / torch.sigmoid(torch.tensor(3.0, dtype=F64)).item(), rel=1e-12
    )
    check_sde(learned, verbose=False)


def test_diagnose_looks_where_data_and_noise_are_of_one_size() -> None:
    """The same errors in all units; a chain that never reaches noise is answered, by the last of
    its levels.
    """
    x = sd.exact.GaussianMixture(MEANS, STD).sample(64, seed=0)
    for sde in (sd.VE(), sd.SubVP()):
        here = sd.diagnose(model(sde, 1.0), x)
        for c in FACTORS:
            there = sd.diagnose(model(sde, c), c * x)
            assert there.ok
            assert there.errors["noise"] == pytest.approx(here.errors["noise"], rel=1e-9)
    short = sd.DDPM((1e-3,) * 10).to_sde()
    found = sd.diagnose(sd.exact.GaussianMixture(MEANS, STD).model(short), x)
    assert "ends before noise has taken over" in found.data


HALF = {"alpha": lambda t: torch.exp(-0.5 * t), "sigma": lambda t: (-torch.expm1(-t)).sqrt()}


@pytest.mark.thin(0)
@pytest.mark.parametrize("sde", [sd.VE(), sd.SubVP()], ids=["VE", "SubVP"])
def test_log_densities_move_by_the_volume(sde: sd.LinearSDE) -> None:
    """log p(c x) = log p(x) - d log c, latents scale, and encode and decode are inverse."""
    x = torch.tensor([[0.9, 0.4], [-1.2, 0.3], [0.0, -0.5]], dtype=F64)
    kw = (
        {},
        {"solver": sd.solvers.RungeKutta4(), "steps": 12},
        {"divergence": "hutchinson", "probes": 1, "seed": 0},
    )
    for options in kw:
        here = sd.log_prob(model(sde, 1.0), x, **options)
        for c in FACTORS:
            there = sd.log_prob(model(sde, c), c * x, **options)
            assert torch.equal(there.nfe, here.nfe)
            torch.testing.assert_close(
                there.value + 2 * math.log(c), here.value, rtol=1e-12, atol=1e-11
            )
            torch.testing.assert_close(
                there.z / c, here.z, rtol=0, atol=1e-12 * float(here.z.abs().max())
            )
    c = 3e-4
    up = sd.encode(model(sde, c), c * x)
    torch.testing.assert_close(
        up.x / c, sd.encode(model(sde, 1.0), x).x, rtol=0, atol=1e-12 * float(here.z.abs().max())
    )
    torch.testing.assert_close(sd.decode(model(sde, c), up.x).x, c * x, rtol=0, atol=1e-3 * c)


def test_forward_simulation_scales() -> None:
    x = torch.tensor([[0.9, 0.4], [-1.2, 0.3]], dtype=F64)
    for solver, steps in ((sd.EulerMaruyama(), 10), (sd.solvers.SRA1(), 10)):
        here = sd.simulate(sd.VE(), x, solver=solver, steps=steps, seed=1, trajectory=True)
        there = sd.simulate(
            sd.VE().scaled(1e-6), 1e-6 * x, solver=solver, steps=steps, seed=1, trajectory=True
        )
        torch.testing.assert_close(there.trajectory / 1e-6, here.trajectory, rtol=1e-12, atol=1e-10)


LOSSES = {
    "sigma2": sd.DenoisingScoreMatching(),
    "edm": sd.DenoisingScoreMatching("edm", "logit-normal"),
    "log-normal": sd.DenoisingScoreMatching("edm", "log-normal", stratified=True),
    "likelihood": sd.DenoisingScoreMatching("likelihood", importance=True),
    "min-snr": sd.DenoisingScoreMatching(sd.objectives.MinSNR()),
    "flow": sd.objectives.FlowMatching(),
    "sliced": sd.objectives.SlicedScoreMatching(),
    "implicit": sd.objectives.ImplicitScoreMatching(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_scale(name: str) -> None:
    """By a power of c that the units of the error say: flows are lengths over time, squared; the
    others are pure numbers.
    """
    x = torch.tensor([[0.9, 0.4], [-1.2, 0.3], [0.0, -0.5]], dtype=F64)

    def losses(c: float) -> torch.Tensor:
        exact = model(sd.VE(), c)
        off = sd.ScoreModel(
            lambda x, t: 0.5 * exact.noise(x, t),
            exact.sde,
            "noise",
            time_dtype=F64,
            data_std=exact.data_std,
        )
        return LOSSES[name](off, c * x, generator=torch.Generator().manual_seed(0)).detach()

    here = losses(1.0)
    for c in FACTORS:
        power = 2 if name == "flow" else 0
        torch.testing.assert_close(
            losses(c) / c**power, here, rtol=1e-9, atol=1e-12 * float(here.abs().max())
        )


def test_scaled_sdes_are_sdes() -> None:
    for sde in (
        sd.VE().scaled(1e-4),
        sd.VP().scaled(40.0),
        sd.Cosine().scaled(0.5),
        sd.SubVP(beta_max=4.0).scaled(2.0),
        sd.LinearSDE(f=lambda t: -t, g=lambda t: 1 + t).scaled(3.0),
    ):
        check_sde(sde, verbose=False)
    twice = sd.VP().scaled(2.0).scaled(3.0)
    assert twice == sd.VP().scaled(6.0)
    assert repr(twice) == f"{sd.VP()!r}.scaled(6)"
    assert sd.VP().scaled(1) == sd.VP()
    for wrong in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="factor must be a positive number"):
            sd.VP().scaled(wrong)
    with pytest.raises(ValueError, match="needs alpha"):
        sd.DDPM.from_sde(sd.VP().scaled(2.0), 100)
    with pytest.raises(ValueError, match="alpha or sigma differs"):
        sd.sample(model(sd.VP(), 2.0), (2, 2), solver=sd.DDPM.from_sde(sd.VP(), 20), seed=0)


def test_the_size_of_the_data_is_declared_or_the_sdes() -> None:
    net = torch.nn.Identity()
    assert (
        sd.ScoreModel(net, sd.VP()).data_std
        == sd.ScoreModel(net, sd.VE()).data_std
        == sd.SubVP().data_std
        == 1
    )
    assert sd.EDM().data_std == pytest.approx(math.sqrt(0.002 * 80 / 0.5))
    assert sd.VE(2e-4, 1.0).data_std == pytest.approx(0.02)
    assert sd.ScoreModel(net, sd.VP(), data_std=3).data_std == 3
    assert (sd.ScoreModel(net, sd.VP()).sigma_data, sd.ScoreModel(net, sd.EDM()).sigma_data) == (
        0.5,
        0.5,
    )
    assert sd.ScoreModel(net, sd.VP(), data_std=3).sigma_data == 3
    law = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.4], [0.3, 0.7])
    assert law.data_std == pytest.approx(math.sqrt(float(law.data_moments()[1].diagonal().mean())))
    assert law.model(sd.VP()).data_std == law.data_std
    flat = sd.exact.LowRank([0.0, 0.0, 0.0], [[1.0], [0.0], [0.0]], 3.0)
    assert flat.model(sd.VP()).data_std == pytest.approx(math.sqrt(3))
    assert sd.exact.Gaussian([1.0, 2.0], 0.0).model(sd.VP()).data_std == 1  # a point has no size
    turned = sd.exact.GaussianMixture(
        [[-1.0, 0.0], [1.0, 0.5]], covariances=[[[0.5, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.2]]]
    )
    assert turned.data_std == pytest.approx(
        math.sqrt(float(turned.data_moments()[1].diagonal().mean()))
    )
    # two channels of four pixels
    images = sd.exact.Gaussian([[[1.0, 3.0], [1.0, 3.0]], [[0.0, 0.0], [0.0, 4.0]]], 0.25)
    assert images.data_std == pytest.approx(math.sqrt((0.25 + 1 + 0.25 + 3) / 2))
    drawn = images.sample(20_000, seed=0)
    about = drawn - drawn.mean(dim=(0, 2, 3), keepdim=True)
    assert images.data_std == pytest.approx(float(about.square().mean().sqrt()), rel=0.01)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="data_std must be positive and finite"):
            sd.ScoreModel(net, sd.VP(), data_std=wrong)


class Sigma(sd.LinearSDE):
    """A user's SDE whose time is its noise, as EDM's."""

    T = 80.0
    sigma_0 = 0.0
    t_min = 0.002

    def f(self, t):
        return 0 * t

    def g(self, t):
        return (2 * t).sqrt()


@pytest.mark.thin(0)
def test_the_default_grid_follows_the_sdes_clock() -> None:
    """Uniform in t where that is a fine clock, Karras et al.'s where one step would cross from
    noise to data.
    """
    uniform = (sd.VP(), sd.VE(), sd.VE(1e-3, 1e6), sd.SubVP(), sd.Cosine(), sd.RectifiedFlow())
    assert [sde.spacing for sde in (*uniform, sd.EDM(), Sigma(), Sigma().scaled(1e-4))] == [
        "uniform"
    ] * 6 + ["karras"] * 3
    law = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.2, [0.3, 0.7])
    for sde in (sd.EDM(), Sigma()):
        for solver in (
            sd.Heun(),
            sd.solvers.Churn(sd.Heun()),
            sd.solvers.SRA1(),
            sd.ReverseDiffusion(),
        ):
            found = sd.sample(law.model(sde), (4, 2), solver=solver, steps=9, seed=0)
            karras = sd.sample(
                law.model(sde), (4, 2), solver=solver, steps=9, seed=0, grid="karras"
            )
            assert torch.equal(found.x, karras.x)
    for sde in (
        sd.LinearSDE(f=lambda t: -5.0, g=lambda t: 10**0.5),
        sd.LinearSDE(f=lambda t: 0.0, g=lambda t: 10.0, t_min=1e-4),
    ):
        for solver, steps in (
            (sd.Heun(), 20),
            (sd.solvers.Churn(sd.Heun()), 20),
            (sd.EulerMaruyama(), 60),
        ):
            found = sd.sample(
                law.model(sde), (1000, 2), solver=solver, steps=steps, seed=0, dtype=F64
            ).x
            assert 0.94 < float(found.var(dim=0).mean().sqrt()) / law.data_std < 1.06, (sde, solver)
    even = sd.sample(law.model(sd.VP()), (4, 2), solver=sd.Heun(), steps=9, seed=0).times
    torch.testing.assert_close(even, torch.linspace(1, 1e-3, 10, dtype=F64))


def test_sampling_starts_at_the_noise_that_was_asked_for() -> None:
    """The cut of t_max is for a vanishing alpha alone."""
    assert sd.VE(0.01, 1e6).t_max == 1
    assert sd.EDM(0.002, 1e6).t_max == 1e6
    assert sd.LinearSDE(alpha=lambda t: 1 - t, sigma=lambda t: 1e6 * t).t_max == pytest.approx(
        1 / (1 + math.exp(-10)), abs=1e-7
    )
    law = sd.exact.Gaussian([3e5], 1.0)
    out = sd.sample(law.model(sd.VE(0.01, 3e7)), (2000, 1), solver=sd.RK45(1e-9), seed=0, dtype=F64)
    assert abs(float(out.x.mean()) - 3e5) < 5 / math.sqrt(2000)
    assert 0.9 < float(out.x.std()) < 1.1


def test_published_constants_hold_for_the_lengths_of_the_sde() -> None:
    """ER-SDE's phi is a function of sigma / alpha itself under VP and EDM, whatever the size of the
    data.
    """
    phi = lambda rho: rho * (torch.exp(rho**0.3) + 10)  # noqa: E731
    law = sd.exact.GaussianMixture(MEANS, STD)
    for sde in (sd.VP(), sd.EDM(), sd.VE(0.02, 30.0)):
        ours, theirs = (
            sd.sample(law.model(sde), (3, 2), solver=solver, steps=6, seed=0, dtype=F64).x
            for solver in (sd.solvers.ERSDE(3), sd.solvers.ERSDE(3, scale=phi))
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variable", ["t", "angle"])
def test_time_has_no_absolute_size_either(variable: str) -> None:
    """The same process in another unit of time takes the same steps."""
    law = sd.exact.GaussianMixture(MEANS, STD)
    found = []
    for T in (1.0, 2.0**-20, 2.0**20):
        sde = sd.VP(0.1 / T, 20 / T, T=T, t_min=1e-3 * T)
        out = sd.sample(
            law.model(sde), (4, 2), solver=sd.RK45(1e-4, variable=variable), seed=0, dtype=F64
        )
        found.append((out.nfe.tolist(), out.rejected.tolist()))
    assert found[0] == found[1] == found[2]

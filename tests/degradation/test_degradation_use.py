"""Cold diffusion as it is used: trained, kept in run folders, started, and misused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from command_line import command, refuse
from torch import nn

import sdediff as sd
from sdediff.solvers import expand

D = sd.degradation
F64 = torch.float64
IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
BLUR = D.Blur(4, 0.7, 3, complete=True)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t):
        return self.a * x + (1 - self.a) * expand(t, x)


def model_of(process, **options):
    return sd.ScoreModel(Tiny(), process, "data", **options)


fit = partial(sd.fit, batch_size=20, device="cpu", lr=1e-2, warmup=0)


# -- the start -------------------------------------------------------------------------------------


def test_a_start_has_the_law_that_it_says():
    """Its density against a normal of the whole image, its draws by their moments: 50,000 draws,
    and 5 standard errors (a false alarm in 10^5).
    """
    start = D.MixtureStart(
        (0.3, 0.7),
        ((1.0, -1.0), (-0.5, 0.5)),
        (((0.04, 0.01), (0.01, 0.09)), ((0.01, 0.0), (0.0, 0.02))),
        0.1,
    )
    log_probs = torch.zeros(2, 3, dtype=F64)
    x = torch.randn(3, 2, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    for k in range(2):
        mean = torch.tensor(start.means[k], dtype=F64).repeat_interleave(6)
        cov = torch.kron(torch.tensor(start.covariances[k], dtype=F64), torch.ones(6, 6, dtype=F64))
        cov = cov + 0.01 * torch.eye(12, dtype=F64)
        normal = torch.distributions.MultivariateNormal(mean, cov)
        log_probs[k] = normal.log_prob(x.flatten(1)) + torch.tensor(start.weights[k]).log()
    assert torch.allclose(start.log_prob(x), log_probs.logsumexp(dim=0), rtol=1e-6)
    count = 50_000
    z = torch.randn(count, 2, 1, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    drawn = start.from_noise(z)[:, :, 0]
    first = drawn[:, 0].mean(dim=1) > 0.2
    error = 5 / count**0.5
    assert abs(float(first.double().mean()) - 0.3) < error * 0.46
    for k, part in enumerate((drawn[first], drawn[~first])):
        root = 5 / len(part) ** 0.5
        cov = torch.tensor(start.covariances[k], dtype=F64)
        scale = cov.diag() + 0.01
        means = torch.tensor(start.means[k], dtype=F64)
        assert bool(((part.mean(dim=(0, 2)) - means).abs() < root * scale.sqrt()).all())
        flat = part.flatten(1)  # channel by channel, two places each
        wanted = torch.kron(cov, torch.ones(2, 2, dtype=F64)) + 0.01 * torch.eye(4, dtype=F64)
        bound = root * 2**0.5 * torch.outer(wanted.diag(), wanted.diag()).sqrt()
        assert bool(((flat.T.cov() - wanted).abs() < bound).all())


def test_a_fitted_start_is_where_sampling_begins_and_noise_breaks_its_symmetry():
    data = IMAGES + torch.linspace(-1, 1, 40)[:, None, None, None]
    process = BLUR.fitted(data, noise=0.002)
    colours = data.mean(dim=(1, 2, 3)).double()
    assert abs(process.start.means[0][0] - float(colours.mean())) < 1e-6
    assert abs(process.start.covariances[0][0][0] - float(colours.var(correction=0))) < 1e-5
    for noise in (0.0, 0.002):
        own = replace(process, start=replace(process.start, noise=noise))
        out = sd.sample(model_of(own), (500, 1, 8, 8), steps=4, seed=0, trajectory=True)
        within = float(out.trajectory[0].std(dim=(1, 2, 3)).mean())
        assert within == 0 if noise == 0 else abs(within / noise - 1) < 0.1
    again = sd.sample(model_of(own), (3, 1, 8, 8), steps=4, seed=0)
    assert torch.equal(again.x, out.x[:3])


# -- training --------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_distance_at_random_levels():
    process = D.Masking(3)
    model = model_of(process)
    loss = D.RestorationLoss()
    seen = []
    asked = replace_degrade(process, seen)
    values = loss(
        sd.ScoreModel(model.net, asked, "data"), IMAGES, generator=torch.Generator().manual_seed(0)
    )
    t, x_t = seen[-1]
    assert torch.allclose(values, (model.net(x_t, t.float()) - IMAGES).abs().mean(dim=(1, 2, 3)))
    assert {round(3 * float(each), 9) for each in t} == {1, 2, 3}
    even = D.RestorationLoss(stratified=True)
    _ = even(sd.ScoreModel(model.net, asked, "data"), IMAGES[:30], generator=torch.Generator())
    assert torch.bincount((3 * seen[-1][0]).round().long()).tolist() == [0, 10, 10, 10]


def replace_degrade(process, seen):
    """The process, which notes what it was asked for and what it gave."""

    class Asked(type(process)):
        def degrade(self, x_0, t, rows):
            found = super().degrade(x_0, t, rows)
            seen.append((t, found))
            return found

    return Asked(process.levels, process.std)


@pytest.mark.parametrize(
    "process",
    [BLUR.fitted(IMAGES, components=2), D.Masking(4), D.Downsampling(), D.Snow(4), D.Hot(sd.VP())],
    ids=lambda each: type(each).__name__,
)
def test_what_is_trained_comes_back_from_its_folder(process, tmp_path):
    trained = fit(
        model_of(process), IMAGES, out=tmp_path / "run", steps=3, loss=D.RestorationLoss()
    )
    loaded = sd.load(tmp_path / "run", net=Tiny())
    assert loaded.sde == process
    assert loaded.data_std == trained.data_std
    own = process.draw(IMAGES[:3], torch.Generator().manual_seed(0))
    options = {"steps": 4, "x_init": process(IMAGES[:3], 1.0, **own), "condition": own}
    first, second = (sd.sample(each, (3, 1, 8, 8), **options).x for each in (trained, loaded))
    assert torch.equal(first, second)
    assert float((first - IMAGES[:3]).abs().max()) > 1e-3


def test_a_function_of_ones_own_with_its_condition_and_the_networks(tmp_path):
    class Told(Tiny):
        def forward(self, x, t, label):
            return super().forward(x, t) + 0 * expand(label, x)

    def fade(x_0, t, mask, label):
        return torch.lerp(x_0, x_0 * mask, expand(t, x_0)) + 0 * expand(label, x_0)

    process = D.Function(fade, levels=5, own=["mask"])
    mask = (IMAGES > 0).float()
    beside = {"mask": mask, "label": torch.arange(40)}
    model = sd.ScoreModel(Told(), process, "data")
    fit(model, IMAGES, out=tmp_path, steps=2, loss=D.RestorationLoss(), condition=beside)
    with pytest.raises(ValueError, match="your own Function; pass it"):
        sd.load(tmp_path, net=Told())
    loaded = sd.load(tmp_path, net=Told(), sde=process)
    out = sd.sample(loaded, IMAGES.shape, steps=5, x_init=process(IMAGES, 1.0, **beside),
                    condition=beside)  # fmt: skip
    assert out.x.shape == IMAGES.shape


def test_a_normalizer_and_a_constraint_stand_around_a_degradation():
    data = 100 + 5 * IMAGES.double()
    normalizer = sd.Normalizer.of(data)
    model = model_of(D.Downsampling(2), normalizer=normalizer)
    inside = model_of(D.Downsampling(2))
    x_T = D.Downsampling(2)(normalizer.normalize(data), 1.0)
    outer = sd.sample(model, data.shape, steps=2, x_init=normalizer.denormalize(x_T), dtype=F64)
    inner = sd.sample(inside, data.shape, steps=2, x_init=x_T, dtype=F64)
    assert torch.allclose(outer.x, normalizer.denormalize(inner.x), rtol=1e-12)
    clipped = sd.sample(
        inside.constrained(sd.Clip(-0.1, 0.1)), data.shape, steps=2, x_init=x_T, dtype=F64,
        solver=D.NaiveSampling(),
    )  # fmt: skip
    assert float(clipped.x.abs().max()) == 0.1


def test_the_command_line_trains_and_generates_by_blur(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "x.npy"
    train = ("train", "--data", "digits", "--steps", 1, "--device", "cpu", "--quiet", "--out", run)
    draw = ("sample", run, "--out", out, "--count", 2, "--quiet")
    command(*train, "--sde", "blur")
    command(*draw, "--steps", 2)
    second = np.load(out)
    command(*draw, "--steps", 2, "--solver", "naive")
    assert second.shape == (2, 1, 8, 8)
    assert np.abs(np.load(out) - second).max() > 1e-3
    assert "pass --steps N" in refuse(capsys, *draw)
    assert "drop them" in refuse(capsys, *train, "--sde", "snow", "--times", "uniform")


# -- mistakes --------------------------------------------------------------------------------------


def random(x_0, t):
    generator = torch.Generator()
    generator.seed()
    return x_0 + torch.randn(x_0.shape, generator=generator)


def in_place(x_0, t):
    return x_0.mul_(0.5)


BROKEN = {
    "keep their shape": (D.Function(lambda x_0, t: x_0[..., ::2]), "shape and the dtype of x_0"),
    "return a tensor": (D.Function(lambda x_0, t: None), "returns? a tensor"),
    "be deterministic": (D.Function(random), "has to be deterministic"),
    "leave the data": (D.Function(in_place), "writes to x_0 in place"),
    "find their conditions": (D.Function(lambda x_0, t, e: x_0), "needs the condition 'e'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_degradations_have_to(what, tmp_path):
    """A ValueError before the first call of the network, and before a folder is written."""

    class Never(Tiny):
        def forward(self, x, t):
            raise AssertionError("the network was called")

    process, words = BROKEN[what]
    model = sd.ScoreModel(Never(), process, "data")
    before = IMAGES.clone()
    with pytest.raises((ValueError, TypeError), match=words):
        fit(model, IMAGES, out=tmp_path / "run", steps=1, loss=D.RestorationLoss())
    assert not (tmp_path / "run").exists()
    assert what == "leave the data" or torch.equal(IMAGES, before)
    with pytest.raises((ValueError, TypeError), match=words):
        sd.sample(model, (2, 1, 8, 8), steps=3, x_init=IMAGES[:2].clone())


def sampled(process=BLUR, shape=(2, 1, 8, 8), **options):
    return sd.sample(model_of(process), shape, **{"steps": 3, **options})


CENTRES = {"centre": torch.tensor([[0, 8], [1, 1]])}
MISTAKES = {
    "no start": (lambda: sampled(), "no law of fully degraded data.*fitted"),
    "uneven data": (lambda: D.Blur(1, 0.5, 3).fitted(IMAGES), "of one colour, or nearly"),
    "no start to fit": (lambda: D.Masking().fitted(IMAGES), "Masking has no field start"),
    "a function's start": (
        lambda: D.Function(lambda x, t: x).fitted(IMAGES), "Function has no field start",
    ),
    "other channels": (lambda: sampled(BLUR.fitted(IMAGES), (2, 3, 8, 8)), "of 1 channels"),
    "late": (lambda: BLUR(IMAGES, 1.1), "t = 1.1 is outside"),
    "early": (lambda: BLUR(IMAGES, torch.full((40,), -0.1)), "t = -0.1 is outside"),
    "a late start": (lambda: sampled(x_init=IMAGES[:2], t_start=2.0), "t = 2 is outside"),
    "a late loss": (
        lambda: D.RestorationLoss()(model_of(BLUR), IMAGES, t=torch.full((40,), 2.0)),
        "t = 2 is outside",
    ),
    "times of others": (lambda: BLUR(IMAGES, torch.zeros(3)), r"one for each sample"),
    "a centre outside": (
        lambda: sampled(D.Masking(), x_init=IMAGES[:2], condition=CENTRES), "centre must be pixels",
    ),
    "no centre": (lambda: sampled(D.Masking(), x_init=IMAGES[:2]), "needs the condition 'centre'"),
    "points": (lambda: BLUR(torch.zeros(3, 2), 1.0), "is for images"),
    "a mid start": (lambda: sampled(t_start=0.5), "needs x_init: the states at that time"),
    "DDIM": (lambda: sampled(x_init=IMAGES[:2], solver=sd.DDIM()), "it offers data, degrade"),
    "no degradation": (
        lambda: sd.sample(
            sd.ScoreModel(Tiny(), sd.VP()), (2, 2), steps=2, solver=D.TACoS(), seed=0
        ),
        "needs degrade",
    ),
    "forward": (lambda: sd.encode(model_of(BLUR), IMAGES, steps=2), "these times rise"),
    "simulated": (lambda: sd.simulate(BLUR, IMAGES, steps=2), "neither drift nor diffusion"),
    "noise": (lambda: sd.ScoreModel(Tiny(), BLUR), "predicts 'data'"),
    "a loss of noise": (
        lambda: D.RestorationLoss()(sd.ScoreModel(Tiny(), sd.VP(), "data"), IMAGES),
        "under a degradation",
    ),
    "denoising": (lambda: sd.DenoisingScoreMatching()(model_of(BLUR), IMAGES), "RestorationLoss"),
    "an even kernel": (lambda: D.Blur(size=4), "size must be odd"),
    "a schedule": (lambda: D.Blur(schedule="constnat"), "did you mean 'constant'"),
    "severity": (lambda: D.Snow(severity=5), "from 1 to 4"),
    "weights": (lambda: D.MixtureStart((0.5,), ((0.0,),), (((1.0,),),)), "sum to 1"),
}  # fmt: skip


def test_a_network_is_told_that_a_condition_is_the_process_s_own():
    """It was told to pass the condition that it had passed."""
    fading = D.Function(lambda x_0, t, target: torch.lerp(x_0, target, 0.5), own=["target"])
    model = sd.ScoreModel(lambda x, t, target: target, fading, "data")
    options = {"x_init": IMAGES[:2], "condition": {"target": IMAGES[:2]}, "steps": 2}
    with pytest.raises(TypeError, match="'target', which is the process's own"):
        sd.sample(model, (2, *IMAGES.shape[1:]), **options)


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_named(what):
    call, words = MISTAKES[what]
    with pytest.raises(ValueError, match=words):
        call()

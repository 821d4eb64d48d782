"""Networks of other code. An exact mixture is dressed as the network of each family, by that
family's published equations, and has to come out as the exact model.
"""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sdediff as sd
from sdediff.interop import (
    from_edm,
    from_flow_matching,
    from_guided_diffusion,
    from_k_diffusion,
    from_score_sde,
)
from sdediff.predict import outputs, target

F64 = torch.float64
MEANS, STD = torch.tensor([[-0.6, 0.2], [0.5, 0.4], [0.1, -0.7]], dtype=F64), 0.2
LAW = sd.exact.GaussianMixture(MEANS, STD)
X = torch.tensor([[0.3, -0.2], [-1.1, 0.8], [0.9, 0.1]], dtype=F64)


def exact(x, alpha, sigma):
    """(E[x_0 | x], E[noise | x]) where x = alpha x_0 + sigma noise, for alpha and sigma (B,)."""
    alpha, sigma = (torch.as_tensor(each, dtype=F64).reshape(-1, 1) for each in (alpha, sigma))
    variance = alpha**2 * STD**2 + sigma**2
    gap = alpha[..., None] * MEANS - x[:, None]
    share = torch.softmax(-0.5 * gap.square().sum(dim=2) / variance, dim=1)
    score = (share[..., None] * gap).sum(dim=1) / variance
    return (x + sigma**2 * score) / alpha, -sigma * score


def edm(x, sigma, class_labels=None):
    return exact(x, torch.ones_like(sigma), sigma)[0]


def k_inner(x, sigma):
    """F of D(x) = c_skip x + c_out F(c_in x), Karras et al. 2022, eq. 7 and Table 1."""
    size = (sigma**2 + 0.25).sqrt()[:, None]
    x = x * size
    return (edm(x, sigma) - 0.25 / size**2 * x) / (0.5 * sigma[:, None] / size)


def beta_integral(t):
    return 0.1 * t + 9.95 * t**2


def score_vp(x, labels):
    """-std score at t = labels / 999."""
    total = beta_integral(labels / 999)
    return exact(x, torch.exp(-0.5 * total), (-torch.expm1(-total)).sqrt())[1]


def score_subvp(x, labels):
    total = beta_integral(labels / 999)
    return exact(x, torch.exp(-0.5 * total), -torch.expm1(-total))[1]


def score_ve(x, sigma):
    return -exact(x, torch.ones_like(sigma), sigma)[1] / sigma[:, None]


def score_ve_levels(x, labels):
    """The score at one of 1000 levels, from the highest to the lowest, by an integer."""
    return score_ve(x, torch.linspace(math.log(50), math.log(0.01), 1000, dtype=F64).exp()[labels])


BETAS = {
    "song": torch.linspace(0.1 / 50, 20 / 50, 50, dtype=F64),
    "linear": torch.linspace(1e-3, 0.2, 100, dtype=F64),
    "cosine": 1
    - (lambda bar: bar[1:] / bar[:-1])(
        torch.cos((torch.linspace(0, 1, 101, dtype=F64) + 0.008) / 1.008 * math.pi / 2) ** 2
    ).clamp(min=0.001),
}


def chain(kind, returns="noise", scale=1.0):
    """A network of a chain, x_i = sqrt(bar_i) x_0 + sqrt(1 - bar_i) noise at i, handed scale i."""
    bar = (1 - BETAS[kind]).cumprod(0)

    def net(x, handed):
        i = (handed / scale).round().long()
        at = bar[i]
        data, noise = exact(x, at.sqrt(), (1 - at).sqrt())
        if returns == "previous":
            before = torch.where(i > 0, bar[i - 1], 1.0)[:, None]
            at = at[:, None]
            keep = (1 - before) * (at / before).sqrt() / (1 - at)
            return (1 - at / before) * before.sqrt() / (1 - at) * data + keep * x
        if returns == "both":
            return torch.cat([noise, torch.full_like(noise, 0.5)], dim=1)
        return data if returns == "data" else noise

    return net


def diffusion(kind, mean="EPSILON", var="FIXED_LARGE", rescale=False, steps=None):
    """What GaussianDiffusion, or SpacedDiffusion at ``steps``, says of itself."""
    betas, given = BETAS[kind], {}
    if steps is not None:
        kept = (1 - betas).cumprod(0)[steps]
        given = {"timestep_map": steps, "original_num_steps": len(betas)}
        betas = 1 - kept / torch.cat([torch.ones(1, dtype=F64), kept[:-1]])
    return SimpleNamespace(
        betas=betas.numpy(),
        model_mean_type=SimpleNamespace(name=mean),
        model_var_type=SimpleNamespace(name=var),
        rescale_timesteps=rescale,
        **given,
    )


def flow(path, first="x"):
    """The velocity d alpha E[data | x] + d sigma E[noise | x] of a path in its own time."""

    def velocity(x, t):
        with torch.enable_grad():
            time = t.double().requires_grad_()
            alpha, sigma = path(time)
            rates = [torch.autograd.grad(c.sum(), time, retain_graph=True)[0] for c in path(time)]
        data, noise = exact(x, alpha.detach(), sigma.detach())
        return rates[0][:, None] * data + rates[1][:, None] * noise

    if first == "x":
        return velocity
    return lambda t, x: velocity(x, t)


def cosine(t):
    return torch.sin(math.pi / 2 * t), torch.cos(math.pi / 2 * t)


class Matcher:
    """x = t data + (1 - t) noise + 0.1 more noise, as a flow matcher of torchcfm says it."""

    def compute_mu_t(self, x0, x1, t):
        return t * x1 + (1 - t) * x0

    def compute_sigma_t(self, t):
        return 0.1


def vp(t):
    total = beta_integral(1 - t)
    return torch.exp(-0.5 * total), (-torch.expm1(-total)).sqrt()


def linear(t):
    return t, 1 - t


def blurred(t):
    return t, ((1 - t) ** 2 + 0.01).sqrt()


class Scheduler:
    def __call__(self, t):
        return SimpleNamespace(**dict(zip(("alpha_t", "sigma_t"), cosine(t), strict=True)))


SPACED = [0, 7, 20, 41, 60, 85]
LEVELS = torch.arange(1, 101, 9, dtype=F64) / 100
EVERY = {
    "edm": (lambda: from_edm(edm), None),
    "k-diffusion": (lambda: from_k_diffusion(edm, sigma_min=0.01, sigma_max=20.0), None),
    "k-diffusion inner": (lambda: from_k_diffusion(k_inner, sigma_data=0.5), None),
    "score_sde VP": (lambda: from_score_sde(score_vp, sd.VP()), None),
    "score_sde sub-VP": (lambda: from_score_sde(score_subvp, sd.SubVP()), None),
    "score_sde VE": (lambda: from_score_sde(score_ve, sd.VE()), None),
    "score_sde VP levels": (
        lambda: from_score_sde(chain("song"), sd.VP(), N=50),
        torch.arange(1, 51, 7, dtype=F64) / 50,
    ),
    "score_sde VE levels": (
        lambda: from_score_sde(score_ve_levels, sd.VE(), N=1000),
        torch.arange(0, 1000, 111, dtype=F64) / 999,
    ),
    "guided": (
        lambda: from_guided_diffusion(
            chain("linear", "both"), diffusion("linear", var="LEARNED_RANGE")
        ),
        LEVELS,
    ),
    "guided cosine data rescaled": (
        lambda: from_guided_diffusion(
            chain("cosine", "data", 10.0), diffusion("cosine", "START_X", rescale=True)
        ),
        LEVELS,
    ),
    "guided spaced rescaled": (
        lambda: from_guided_diffusion(
            chain("linear", scale=10.0), diffusion("linear", rescale=True, steps=SPACED)
        ),
        (torch.tensor(SPACED, dtype=F64) + 1) / 100,
    ),
    "guided previous": (
        lambda: from_guided_diffusion(
            chain("linear", "previous"), diffusion("linear", "PREVIOUS_X")
        ),
        LEVELS,
    ),
    "flow": (lambda: from_flow_matching(flow(linear)), None),
    "flow time first": (lambda: from_flow_matching(flow(linear, "t")), None),
    "flow function": (lambda: from_flow_matching(flow(cosine), cosine), None),
    "flow scheduler": (lambda: from_flow_matching(flow(cosine), Scheduler()), None),
    "flow matcher": (lambda: from_flow_matching(flow(blurred), Matcher()), None),
    "flow SDE": (lambda: from_flow_matching(flow(vp), sd.VP()), None),
}
"""The model, and times from t_min to t_max at which its network is exact; None: at all times."""
families = pytest.mark.parametrize("family", EVERY)


@pytest.mark.thin(2)
@families
def test_a_network_of_other_code_is_the_exact_model(family: str) -> None:
    """Scores to 1e-8, and at the network's own times samples and likelihoods to 1e-5; so is what
    `diagnose` says, and what it says of every other declaration.
    """
    make, times = EVERY[family]
    model = make()
    truth = sd.ScoreModel(LAW.model(model.sde).score, model.sde, "score")
    if times is None:
        times = truth.sde.time_of(
            torch.linspace(*model.sde.log_snr([model.sde.t_min, model.sde.t_max]), 9, dtype=F64)
        ).clamp(model.sde.t_min, model.sde.t_max)
    for t in times[[0, len(times) // 2, -1]].tolist():
        x = float(model.sde.alpha(t) + model.sde.sigma(t)) * X
        torch.testing.assert_close(model.score(x, t), truth.score(x, t), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(model.data(x, t), truth.data(x, t), rtol=1e-6, atol=1e-6)
    own, other = (
        sd.sample(each, (4, 2), solver=sd.Heun(), grid=times.flip(0), seed=3, dtype=F64).x
        for each in (model, truth)
    )
    torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    own, other = (
        sd.log_prob(each, X, solver=sd.Heun(), grid=times).value for each in (model, truth)
    )
    torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    data = LAW.sample(300, seed=1)
    found = sd.diagnose(model, data)
    assert found.ok, str(found)
    for wrong in {"noise", "data", "v"} - {model.predicts}:
        again = sd.ScoreModel(
            model.net, model.sde, wrong, time=model.time, learned_variance=model.learned_variance
        )
        assert not sd.diagnose(again, data).ok


def test_the_learned_variance_and_the_chain_of_guided_diffusion() -> None:
    """exp(u log beta + (1 - u) log beta_tilde), u = (out + 1) / 2, at a step of a spaced chain."""
    says = diffusion("linear", var="LEARNED_RANGE", steps=SPACED)
    model = from_guided_diffusion(chain("linear", "both"), says)
    steps = sd.DDPM(says.betas, [(i + 1) / 100 for i in SPACED], "learned")
    found = sd.sample(model, (3, 2), solver=steps, seed=0)
    assert int(found.nfe[0]) == len(SPACED)
    t = torch.tensor((SPACED[3] + 1) / 100, dtype=F64)
    learned = outputs(model, X, t).extras["variance"]
    bar = torch.tensor(1 - says.betas).cumprod(0)
    beta, tilde = says.betas[3], says.betas[3] * (1 - bar[2]) / (1 - bar[3])
    torch.testing.assert_close(
        steps.log_variance(4, learned),
        (0.75 * math.log(beta) + 0.25 * tilde.log()).expand(3, 2),
    )


# -- time the other way round ----------------------------------------------------------------------


def test_diagnose_tells_a_network_that_was_trained_with_time_the_other_way_round() -> None:
    data = LAW.sample(300, seed=1)
    other, sde = flow(linear), sd.RectifiedFlow()
    found = sd.diagnose(sd.ScoreModel(other, sde, "flow"), data)
    assert (found.reversed, found.ok) == ("flow", False)
    assert "the other way round" in str(found)
    assert "'flow', time='reversed')" in str(found)
    ours = LAW.model(sde).flow
    found = sd.diagnose(sd.ScoreModel(ours, sde, "flow", time="reversed"), data)
    assert (found.reversed, found.ok) == ("flow", False)
    assert "'flow', time='t')" in str(found)
    noise = lambda x, t: LAW.model(sde).noise(x, 1 - t)  # noqa: E731
    found = sd.diagnose(sd.ScoreModel(noise, sde, "flow"), data)
    assert found.reversed == "noise"
    shifted = sd.ScoreModel(other, sde, "flow", time=sd.network_time.Timesteps(1, shift=0.0))
    assert "hands it the time of T - t" in str(sd.diagnose(shifted, data))
    right = sd.ScoreModel(other, sde, "flow", time="reversed")
    assert sd.diagnose(right, data).ok
    inner = from_k_diffusion(lambda x, sigma: k_inner(x, 80 - sigma), sigma_data=0.5)
    assert sd.diagnose(inner, data).reversed == "edm"
    inner = from_k_diffusion(k_inner, sigma_data=0.5)
    assert sd.diagnose(inner, data).reversed is None


def test_a_reversed_network_learns_the_velocity_from_noise_to_data() -> None:
    """Handed T - t, it has no loss where it returns data - noise."""
    x_0, noise, t = X, X.flip(0), torch.tensor(0.25, dtype=F64)
    seen = []

    def net(x, t):
        seen.append(t)
        return x_0 - noise

    model = sd.ScoreModel(net, sd.RectifiedFlow(), "flow", time="reversed")
    found = model(model.sde.perturb(x_0, t, noise), t)
    torch.testing.assert_close(found, target(model, x_0, noise, t), rtol=0, atol=0)
    torch.testing.assert_close(seen[0], torch.full((3,), 0.75, dtype=F64))


def test_a_network_with_reversed_time_keeps_its_variance() -> None:
    def net(x, t):
        return torch.cat([x, 2 * x], dim=1)

    model = sd.ScoreModel(net, sd.RectifiedFlow(), "flow", time="reversed", learned_variance=True)
    found = outputs(model, X, torch.tensor(0.5, dtype=F64))
    torch.testing.assert_close(found.value, -X)
    torch.testing.assert_close(found.extras["variance"], 2 * X)


def test_the_ends_of_paths() -> None:
    """cos(pi / 2) is rounded to 6e-17, which is no noise; that of a matcher stays in the data."""
    for path, sigma_0, t_min in ((cosine, 0.0, 1e-3), (Matcher(), 0.1, 0.0)):
        sde = from_flow_matching(flow(linear), path).sde
        assert (sde.sigma_0, sde.t_min) == (pytest.approx(sigma_0, abs=1e-15), t_min)
        assert sd.testing.check_sde(sde, verbose=False).passed


# -- labels and ranges -----------------------------------------------------------------------------


class Classes(nn.Module):
    """A denoiser of EDM for three classes; the class moves the data by its number."""

    label_dim, sigma_min, sigma_max, sigma_data = 3, 0.01, 50.0, 0.25

    def round_sigma(self, sigma):
        return (sigma * 1000).round() / 1000

    def forward(self, x, sigma, class_labels=None):
        shift = 0 if class_labels is None else (class_labels @ torch.arange(3.0).to(x))[:, None]
        return edm(x - shift, sigma) + shift


class Numbered(nn.Module):
    num_classes = 3

    def forward(self, x, t, y=None):
        return x + y[:, None]


def test_labels_are_conditions_whose_shape_is_checked() -> None:
    model = from_edm(Classes())
    assert (model.sde.sigma_min, model.sde.sigma_max, model.sigma_data) == (0.01, 50.0, 0.25)
    one = torch.nn.functional.one_hot(torch.tensor([0, 1, 2]), 3).to(F64)
    shift = torch.tensor([[0.0], [1.0], [2.0]], dtype=F64)
    found = model.data(X + shift, 0.5, class_labels=one)
    torch.testing.assert_close(found, edm(X, torch.full((3,), 0.5, dtype=F64)) + shift)
    torch.testing.assert_close(model.data(X, 0.5), edm(X, torch.full((3,), 0.5, dtype=F64)))
    with pytest.raises(ValueError, match=r"shape \(3, 3\), got \(3,\); one-hot: .*one_hot"):
        model.data(X, 0.5, class_labels=torch.tensor([0, 1, 2]))
    plain = Classes()
    plain.label_dim = 0
    with pytest.raises(ValueError, match="made without classes"):
        from_edm(plain).data(X, 0.5, class_labels=one)
    guided = from_guided_diffusion(Numbered(), diffusion("linear"))
    torch.testing.assert_close(guided(X, 0.5, y=torch.tensor([0, 1, 2])), X + shift)
    with pytest.raises(ValueError, match="is made for classes"):
        guided(X, 0.5)
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(3, 3\); class numbers"):
        guided(X, 0.5, y=one)


MATCHED = SimpleNamespace(ot_sampler=1, compute_mu_t=1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: from_edm("edm.pkl"), TypeError, "pass the file as weights='edm.pkl'"),
        (lambda: from_edm(edm, weights="a.pt"), TypeError, "net is function"),
        (lambda: from_edm(nn.Linear), TypeError, "not a class"),
        (lambda: from_edm(Classes(), weights={}), TypeError, "by net.load_state_dict"),
        (lambda: from_edm(Classes(), sigma_max=80), ValueError, "supports noise levels from 0.01"),
        (lambda: from_edm(Classes()).data(X, 60.0), ValueError, "outside the usable range"),
        (lambda: from_edm(edm, sigma_min=3, sigma_max=2), ValueError, "sigma_max must exceed"),
        (
            lambda: from_k_diffusion(SimpleNamespace(inner_model=1, __call__=edm), sigma_data=1),
            ValueError,
            "is a denoiser",
        ),
        (lambda: from_score_sde(score_vp, "vpsde"), TypeError, r"VP\(beta_min=0.1"),
        (lambda: from_score_sde(score_vp, sd.VP(), N=1), ValueError, "from_score_sde: N must"),
        (lambda: from_score_sde(score_vp, sd.SubVP(), N=1000), ValueError, "N is for VP and VE"),
        (lambda: from_guided_diffusion(chain("linear"), sd.VP()), TypeError, "lacks betas"),
        (
            lambda: from_guided_diffusion(chain("linear"), diffusion("linear", "VELOCITY")),
            ValueError,
            "got VELOCITY",
        ),
        (
            lambda: from_guided_diffusion(chain("linear"), diffusion("linear", var="LEARNED")),
            ValueError,
            "EPSILON and LEARNED",
        ),
        (lambda: from_flow_matching(flow(linear), "linear"), TypeError, "path must be a scheduler"),
        (lambda: from_flow_matching(flow(linear), MATCHED), ValueError, "optimal transport"),
        (
            lambda: from_flow_matching(flow(linear), lambda t: (1 - t, t)),
            ValueError,
            "goes from 1 to 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


# -- weights ---------------------------------------------------------------------------------------


class Score(nn.Module):
    """A network with score_sde's names."""

    def __init__(self, first="all_modules", width=4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            setattr(self, first, nn.ModuleList([nn.Linear(2, width), nn.Linear(width, 2)]))
        self.register_buffer("sigmas", torch.ones(3))
        self.first = first

    def forward(self, x, t):
        one, two = getattr(self, self.first)
        return two(torch.tanh(one(x)))


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def state_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def saved(kind, path):
    """A file of weights as other code writes it; the weights are 1.5 times those of Score()."""
    net = Score()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    state = state_of(net)
    old = {"model": {f"module.{k}": 0 * v for k, v in state.items()}, "step": 7}
    match kind:
        case "safetensors":
            path = path.with_suffix(".safetensors")
            pytest.importorskip("safetensors.torch").save_file(state, path)
            return path
        case "state":
            content = state
        case "parallel":
            content = {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}}
        case "k-diffusion":
            content = old | {"model_ema": state, "opt": {"lr": 0.1}}
        case "score_sde":
            shadow = [v for k, v in state.items() if k != "sigmas"]
            model = {f"module.{k}": v if k == "sigmas" else 0 * v for k, v in state.items()}
            content = {"model": model, "ema": {"decay": 0.9, "shadow_params": shadow}, "step": 7}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "state", "parallel", "k-diffusion", "score_sde"])
def test_weights_are_read_as_other_code_writes_them(kind: str, tmp_path) -> None:
    net, before = Score(), state_of(Score())
    model = from_score_sde(net, sd.VP(), weights=saved(kind, tmp_path / "weights.pt"))
    assert model.net is net
    for name, value in net.state_dict().items():
        factor = 1.0 if name == "sigmas" else 1.5
        torch.testing.assert_close(value, factor * before[name], rtol=0, atol=0)


def test_an_average_of_other_parameters_is_not_passed_over(tmp_path) -> None:
    path = saved("score_sde", tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="has 4 parameters, and the network 0 with requires_grad"):
        from_score_sde(Score().requires_grad_(False), sd.VP(), weights=path)


def test_the_names_of_a_denoiser_around_the_network_are_left_aside(tmp_path) -> None:
    class Denoiser(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner_model = inner

        def forward(self, x, sigma):
            return self.inner_model(x, sigma)

    net = Denoiser(Score())
    _ = from_k_diffusion(net, weights=saved("state", tmp_path / "weights.pt"))
    torch.testing.assert_close(
        net.inner_model.all_modules[0].bias, 1.5 * Score().all_modules[0].bias
    )


@pytest.mark.parametrize("name", ["net.pkl", "net.pth", "whole.pt"])
def test_a_pickle_that_would_run_code_is_refused_with_the_way_out(name: str, tmp_path) -> None:
    path, mark = tmp_path / name, tmp_path / "it ran"
    if name == "net.pkl":
        path.write_bytes(pickle.dumps({"ema": Trap(mark)}))
    else:
        torch.save(Trap(mark) if name == "net.pth" else Score(), path)
    holds = {"net.pth": "io.open", "whole.pt": "Score"}.get(name, "objects")
    with pytest.raises(ValueError, match=f"it holds .*{holds} beside tensors") as caught:
        from_edm(Score(), weights=path)
    assert not mark.exists()
    lines = str(caught.value).splitlines()
    at = lines.index("    import pickle, torch")
    assert ("pickle.load" if name == "net.pkl" else "torch.load") in lines[at + 1]
    assert lines[-1] == f"and pass weights={str(path.with_name(path.stem + '-weights.pt'))!r}"
    if name == "whole.pt":  # the way out, as it says
        torch.save({"net": Score()}, path)
        exec("\n".join(line.strip() for line in lines[at : at + 3]))
        from_edm(Score(), weights=path.with_name("whole-weights.pt"))


def test_weights_that_do_not_fit_say_what_they_look_like(tmp_path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"ema": state_of(Score("input_blocks"))}, path)
    net = Score()
    before = state_of(net)
    with pytest.raises(ValueError, match=r"\['ema'\] does not fit the network Score") as caught:
        from_score_sde(net, sd.VP(), weights=path)
    assert "it lacks 'all_modules.0.bias'" in str(caught.value)
    assert "looks like guided-diffusion: from_guided_diffusion" in str(caught.value)
    assert "the network looks like score_sde" in str(caught.value)
    torch.save(state_of(Score(width=5)), path)
    with pytest.raises(ValueError, match=r"'all_modules.0.bias' has the shape \(5,\) in place of"):
        from_score_sde(net, sd.VP(), weights=path)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match="holds no state dict"):
        from_score_sde(net, sd.VP(), weights=path)
    whole = path.read_bytes()
    for content in (b"PK not a file of weights", b"hello", b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="or damaged"):
            from_score_sde(net, sd.VP(), weights=path)
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        from_score_sde(net, sd.VP(), weights=tmp_path / "none.pt")
    pytest.importorskip("safetensors")
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="no safetensors file, or damaged"):
        from_score_sde(net, sd.VP(), weights=other)

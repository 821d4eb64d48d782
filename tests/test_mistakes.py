"""Slips that users make, each told by what was wrong and how to mend it."""

import copy
import json
import pickle
import re
import sys
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch

import sdediff as sd
from sdediff import networks, plots
from sdediff.predictions import PREDICTIONS
from sdediff.solvers import Solver, Step, expand
from sdediff.testing import SDEError, SolverError

VP = sd.VP()
MODEL = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.2).model(VP)
X = torch.linspace(-1, 1, 8).reshape(4, 2)


# -- a user's SDE ----------------------------------------------------------------------------------


class Typo(sd.LinearSDE):
    def __init__(self, beta=2.0):
        self.beta = beta
        super().__init__()

    def f(self, t):
        return -0.5 * self.bta

    def g(self, t):
        return self.beta**0.5


class TypoOfProperty(sd.LinearSDE):
    f = g = lambda self, t: 0 * t + 1

    @property
    def t_max(self):
        return self.Tee


class TypoOfDrift(sd.SDE):
    def drift(self, x, t):
        return -self.bta * x

    def diffusion(self, t):
        return 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: Typo().t_max,
        lambda: Typo().f(0.5),
        lambda: sd.sample(sd.ScoreModel(lambda x, t: x, Typo()), (2, 2), steps=2),
        lambda: sd.encode(sd.ScoreModel(lambda x, t: x, Typo()), X, steps=2),
    ],
)
def test_typo_in_a_coefficient_is_named(call):
    with pytest.raises(
        TypeError, match=r"Typo\.f\(t\) .*no attribute 'bta' \(did you mean 'beta'\?\)"
    ) as caught:
        call()
    assert "t_max" not in str(caught.value)
    assert isinstance(caught.value.__cause__, AttributeError)
    assert caught.value.__cause__.name == "bta" or "bta" in str(caught.value.__cause__)


def test_typo_in_a_property_is_named():
    with pytest.raises(TypeError, match=r"TypoOfProperty\.t_max .*no attribute 'Tee'"):
        TypoOfProperty().check_time(torch.tensor(0.5))


@pytest.mark.parametrize("sde", [Typo(), TypoOfDrift()], ids=lambda sde: type(sde).__name__)
def test_check_sde_says_a_typo_once(sde):
    with pytest.raises(SDEError) as caught:
        sd.testing.check_sde(sde, verbose=False)
    assert str(caught.value).count("'bta'") == 1
    assert len(caught.value.report.failures) > 1
    assert all(finding.name in str(caught.value) for finding in caught.value.report.failures)
    assert "bta" in str(caught.value.__cause__)


def made(kind, **given):
    """An SDE that declares these, and f and g unless told otherwise, in one of the ways that there
    are.
    """
    methods = {name: (lambda self, t: -1.0 + 0 * t) for name in given.pop("has", ("f", "g"))}
    if kind == "attributes":
        return type("Mine", (sd.LinearSDE,), {**methods, **given})()
    if kind == "dataclass":
        notes = dict.fromkeys(given, "float")
        return dataclass(frozen=True)(
            type("Mine", (sd.LinearSDE,), {"__annotations__": notes, **methods, **given})
        )()
    if kind == "dataclass with a check of its own":
        notes = dict.fromkeys(given, "float")
        body = {"__annotations__": notes, "__post_init__": lambda self: None, **methods, **given}
        return dataclass(frozen=True)(type("Mine", (sd.LinearSDE,), body))()
    if kind == "init":

        def init(self):
            sd.LinearSDE.__init__(self, **given)

        return type("Mine", (sd.LinearSDE,), {**methods, "__init__": init})()
    if kind == "init that calls no other":

        def alone(self):
            vars(self).update(given)

        return type("Mine", (sd.LinearSDE,), {**methods, "__init__": alone})()
    return sd.LinearSDE(**{name: (lambda t: -1.0 + 0 * t) for name in methods}, **given)


KINDS = [
    "attributes",
    "dataclass",
    "dataclass with a check of its own",
    "init",
    "init that calls no other",
    "functions",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"T": -1.0}, "T must be a positive number, got -1.0"),
        ({"T": float("inf")}, "T must be a positive number"),
        ({"t_min": 2.0}, r"t_min must lie in \[0, T\)"),
        ({"t_max": 2.0}, r"t_max must lie in \(t_min, T\]"),
        ({"t_min": 0.5, "t_max": 0.25}, r"t_max must lie in \(t_min, T\] = \(0.5, 1\]"),
        ({"sigma_0": -1.0}, "sigma_0 must be a finite number >= 0"),
        ({"has": ("f",)}, "gives f: give f and g, or alpha and sigma"),
        ({"has": ()}, "gives no coefficient"),
        ({"has": ("g", "sigma")}, "gives g and sigma: give f and g"),
    ],
)
def test_declarations_are_checked_however_they_are_made(kind, given, message):
    assert made(kind, T=2.0, t_min=0.25, t_max=1.5, sigma_0=0.5).T == 2.0
    with pytest.raises((ValueError, TypeError), match=message):
        made(kind, **given)


@dataclass(frozen=True)
class Mine(sd.LinearSDE):
    beta: float = 2.0

    def f(self, t):
        return -0.5 * self.beta

    def g(self, t):
        return self.beta**0.5


class Late(sd.VP):
    """A subclass of a dataclass that has more to say after its parent."""

    def __init__(self, power=2.0):
        super().__init__(beta_min=0.2)
        vars(self)["power"] = power

    def f(self, t):
        return -0.5 * self.beta(t) * t ** (self.power - 2.0)


@dataclass(frozen=True, slots=True)
class Slotted(sd.LinearSDE):
    beta: float = 2.0

    def f(self, t):
        return -0.5 * self.beta

    def g(self, t):
        return self.beta**0.5


@pytest.mark.parametrize("sde", [Mine(3.0), Late(2.0), Typo(3.0)], ids=repr)
def test_checked_sdes_are_copied_and_pickled(sde):
    for other in (copy.deepcopy(sde), copy.copy(sde), pickle.loads(pickle.dumps(sde))):
        assert vars(other) == vars(sde)
    with pytest.raises(ValueError, match="T must be a positive number"):
        replace(sd.VP(), T=-1.0)


def test_repr_has_the_parameters():
    assert repr(Typo(3.5)) == "Typo(beta=3.5)"
    assert repr(Mine(3.0)) == "Mine(beta=3.0)"
    assert repr(Late(3.0)) == "Late(power=3)"
    assert repr(Slotted(Fraction(5, 2))) == "Slotted(beta=2.5)"
    assert Slotted(3.0).t_max == Mine(3.0).t_max
    assert repr(sd.VP()) == "VP(beta_min=0.1, beta_max=20.0, T=1.0, t_min=0.001)"
    assert repr(sd.LinearSDE(f=lambda t: -1.0, g=lambda t: 1.0, T=2.0)) == "LinearSDE(T=2)"
    derived = made("functions")
    _ = derived.t_max, derived.t_min
    assert repr(derived) == "LinearSDE()"
    with pytest.raises(ValueError, match=r"of Mine\(beta=3.0\)"):
        Mine(3.0).check_time(torch.tensor(2.0))


# -- a user's solver -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loud(Solver):
    factor: float = 1.0

    needs = frozenset({"drift", "diffusion"})
    stochastic = solves_sde = True

    def step(self, problem, x, plan, noise, state):
        t, s = plan
        mean = x + expand(s - t, x) * problem.drift(x, t)
        return Step(mean + self.factor * problem.diffuse(noise.increment(t, s), t), mean)


@pytest.mark.thin(0)
@pytest.mark.parametrize(
    ("factor", "said"), [(1.2, "large by a factor 1.2"), (0.8, "small by a factor 0.8")]
)
def test_wrong_noise_is_named_by_its_factor(factor, said):
    with pytest.raises(SolverError, match=f"the noise is too {said}") as caught:
        sd.testing.check_solver(Loud(factor), verbose=False)
    assert "drift" not in str(caught.value)


@dataclass(frozen=True)
class LoudAncestral(Solver):
    """A step of a posterior's noise, which belongs to the method and not to the problem's
    lambda.
    """

    factor: float = 1.0
    drift: float = 1.0

    needs = frozenset({"data", "marginal", "kernel"})
    stochastic = True

    def step(self, problem, x, plan, noise, state):
        t, s = plan
        (alpha_t, sigma_t), (alpha_s, sigma_s) = problem.marginal(t), problem.marginal(s)
        std = self.factor * sigma_s / sigma_t * problem.kernel(t, s)[1]
        keep = (sigma_s**2 - (std / self.factor) ** 2).sqrt() / sigma_t
        data = problem.data(x, t)
        mean = (
            self.drift * expand(keep, x) * (x - expand(alpha_t, x) * data)
            + expand(alpha_s, x) * data
        )
        return Step(mean + expand(std, x) * noise.normal(), mean)


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    ("solver", "said", "unsaid"),
    [
        (
            LoudAncestral(1.2),
            "the spread 1.19 times what it should be: the size of the noise",
            "in the drift",
        ),
        (LoudAncestral(drift=1.2), "or a factor of x", "the noise is"),
        (
            type("Doubled", (Loud,), {"step": lambda self, *a: doubled(self, *a)})(),
            "in the drift",
            "the noise is",
        ),
    ],
    ids=["noise of a method", "drift of a method", "drift"],
)
def test_noise_is_blamed_for_the_spread_alone(solver, said, unsaid):
    with pytest.raises(SolverError) as caught:
        sd.testing.check_solver(solver, verbose=False)
    assert re.search(said, str(caught.value))
    assert unsaid not in str(caught.value)


def doubled(solver, problem, x, plan, noise, state):
    t, s = plan
    mean = x + 1.2 * expand(s - t, x) * problem.drift(x, t)
    return Step(mean + problem.diffuse(noise.increment(t, s), t), mean)


class Fails(Loud):
    def step(self, problem, x, plan, noise, state):
        return Step(problem.drfit(x, plan[0]))


class Bare(Solver):  # no dataclass, and its step returns a tensor
    needs = frozenset({"drift"})

    def step(self, problem, x, plan, noise, state):
        t, s = plan
        return x + expand(s - t, x) * problem.drift(x, t)


class Plain(Bare):
    def step(self, *args):
        return Step(super().step(*args))


@pytest.mark.parametrize("grad", ["none", "checkpoint"])
def test_a_step_that_is_no_step_is_told(grad):
    with pytest.raises(
        TypeError, match=r"Bare.step must return a Step, got Tensor; return Step\(x\)"
    ):
        sd.sample(MODEL, (4, 2), solver=Bare(), steps=5, seed=0, grad=grad)


def returns(what, **facts):
    return type(
        "Own", (Solver,), {"step": lambda self, problem, x, plan, noise, state: what(x), **facts}
    )()


@pytest.mark.parametrize(
    ("solver", "said"),
    [
        (
            returns(lambda x: Step(x[:2])),
            r"state of the shape and the dtype of x, \(4, 2\), torch.float32; got \(2, 2\)",
        ),
        (returns(lambda x: Step(x.double())), "got .*torch.float64"),
        (returns(lambda x: Step(x.numpy())), "a Step with a tensor as x, got ndarray"),
        (
            returns(Step, needs="drift"),
            r"Own.needs must be a set of names, frozenset\(\{'drift'\}\) say; got 'drift'",
        ),
        (returns(Step, needs=["drift"]), r"must be a set of names"),
        (returns(Step, adaptive=True, rtol=1e-3), r"Own is adaptive and lacks atol, error_order"),
        (
            type("Own", (Solver,), {})(),
            r"Own has no step: give step\(self, problem, x, plan, noise, state\)",
        ),
    ],
    ids=["shape", "dtype", "numpy", "needs a name", "needs a list", "adaptive", "no step"],
)
def test_what_a_solver_lacks_or_returns_amiss_is_told(solver, said):
    steps = None if solver.adaptive else 3
    with pytest.raises((TypeError, ValueError), match=said):
        sd.sample(MODEL, (4, 2), solver=solver, steps=steps, seed=0)


def test_a_solver_that_is_no_dataclass_is_told():
    with pytest.raises(SolverError) as caught:
        sd.testing.check_solver(Plain(), verbose=False)
    assert "Plain must be a frozen dataclass" in str(caught.value)
    assert "breaks a contract" in str(caught.value)


def test_a_number_of_levels_in_place_of_betas_is_told():
    with pytest.raises(
        TypeError, match=r"for 1000 levels write DDPM.from_schedule\('linear', 1000\)"
    ):
        sd.DDPM(1000)
    with pytest.raises(ValueError, match=r"where it is made, by DDPM.from_sde\(sde, N\)"):
        sd.sample(MODEL, (4, 2), solver=sd.DDPM.from_sde(VP, 10), steps=5)


def test_check_solver_says_an_error_once():
    with pytest.raises(SolverError) as caught:
        sd.testing.check_solver(Fails(), verbose=False)
    assert str(caught.value).count("drfit") == 1
    assert all(finding.name in str(caught.value) for finding in caught.value.report.failures)


@pytest.mark.parametrize("name", ["interop", "plots", "testing"])
def test_packages_that_are_imported_late_are_attributes_too(name, monkeypatch):
    monkeypatch.delattr(sd, name, raising=False)
    assert getattr(sd, name) is sys.modules[f"sdediff.{name}"]


def test_a_misspelt_package_is_told_before_a_class_of_nearly_its_name():
    with pytest.raises(AttributeError, match=r"'guidence' \(did you mean 'guidance'\?\)"):
        _ = sd.guidence


@pytest.mark.parametrize(
    ("need", "meant"),
    [
        ("diffuse", "diffusion"),
        ("spread", "diffusion"),
        ("log_snr", "marginal"),
        ("scores", "score"),
    ],
)
def test_unknown_needs_are_told_the_known_ones(need, meant):
    solver = type("Mine", (Loud,), {"needs": frozenset({"drift", need})})()
    for call in (
        lambda: sd.sample(MODEL, (2, 2), solver=solver, steps=2),
        lambda: sd.testing.check_solver(solver, verbose=False),
    ):
        with pytest.raises(
            ValueError,
            match=rf"names '{need}' \(did you mean '{meant}'\?\); known are drift, diffusion, "
            r"score",
        ):
            call()


def test_mean_of_a_step_is_its_state_by_default():
    step = Step(X, error=X)
    assert step.mean is X
    assert step[:4] == (X, X, (), X)
    assert Step(X, None, (X,)).mean is X
    assert Step(X, 2 * X)._replace(x=X).mean is not X
    assert isinstance(pickle.loads(pickle.dumps(Step(X))), Step)


def test_a_step_of_one_argument_is_enough_for_the_driver():
    class Euler(Solver):
        def step(self, problem, x, plan, noise, state):
            t, s = plan
            return Step(x + expand(s - t, x) * problem.drift(x, t))

    one = sd.sample(MODEL, (4, 2), solver=Euler(), steps=5, seed=0)
    assert torch.allclose(
        one.x,
        sd.sample(MODEL, (4, 2), solver=sd.solvers.Euler(variable="t"), steps=5, seed=0).x,
        atol=1e-5,
    )


# -- arguments -------------------------------------------------------------------------------------


def plain(x, t, **condition):
    return x


def called(net, **given):
    return lambda: sd.sample(sd.ScoreModel(net, VP, **given), (4, 2), steps=2, seed=0)


def fitted(**given):
    net = networks.initialised(lambda: networks.MLP(2, 4, 1), 0)
    return lambda: sd.fit(sd.ScoreModel(net, VP), X, out="nowhere", **{"steps": 1} | given)


def sampled(**given):
    return lambda: sd.sample(MODEL, (4, 2), **{"steps": 2, "seed": 0} | given)


@pytest.mark.uses_global_rng  # by losses, which draw their times from it
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            sampled(seed=torch.Generator()),
            r"seed must be .*Generator.*; pass generator.initial_seed\(\)",
        ),
        (
            sampled(seed=0.5),
            "seed must be one non-negative int, or one for each of the 4 samples, got 0.5",
        ),
        (sampled(seed=[0.2, 0.9, 1.0, 2.0]), "seed must be .*, got 0.2"),
        (sampled(seed=torch.tensor([0.2, 0.9, 1.0, 2.0])), "seed must be .*, got tensor"),
        (sampled(seed="abcd"), "seed must be .*, got 'a'"),
        (sampled(seed=[0, 1]), "one for each of the 4 samples; got 2"),
        (sampled(seed=[0, 1, 2, -1]), "seed must be .*, got -1"),
        (
            sampled(x_init=X, t_start=X),
            r"t_start must be a number, or one for each sample, \(B,\); got shape \(4, 2\)",
        ),
        (
            sampled(t_end=X[:, 0]),
            r"t_end must be a number, got a tensor of shape \(4,\); all samples",
        ),
        (sampled(x_init=X.to(torch.complex64)), "x_init must be a floating-point tensor"),
        (sampled(grid=torch.tensor([1.0, 0.5 + 1e-9j]), steps=None), "grid must be real"),
        (
            sampled(solver=sd.EulerMaruyama(), stochasticity=lambda t: t + 0.1j),
            r"stochasticity\(t\) must be real",
        ),
        (
            sampled(solver=sd.EulerMaruyama(), stochasticity=[1.0] * 9),
            "one number for each of the",
        ),
        (sampled(steps=None, grid="karras"), "grid='karras' takes steps=N: pass it too"),
        (sampled(steps=None, grid="karas"), "grid='karas'|no grid is called"),
        (sampled(steps=2.0), "steps must be an int of at least 1, got 2.0"),
        (sampled(condition=X), r"condition must be a dict .*got Tensor"),
        (called(lambda x, t, y: x), "y"),
        (
            lambda: sd.sample(sd.ScoreModel(plain, VP), (4, 2), steps=2, condition={"t": X}),
            "condition 't' .* takes times: rename",
        ),
        (
            lambda: sd.sample(sd.ScoreModel(plain, VP), (4, 2), steps=2, condition={"x": X}),
            "condition 'x' .* takes states: rename",
        ),
        (
            lambda: sd.sample(
                sd.ScoreModel(lambda sample, step, **c: sample, VP),
                (4, 2),
                steps=2,
                condition={"step": X},
            ),
            "condition 'step' .* takes times: rename",
        ),
        (lambda: sd.RK45(rtol=[1e-3, 1e-5]), r"RK45: rtol must be a number, got \[0.001, 1e-05\]"),
        (
            lambda: sd.RK45(atol=torch.tensor([1e-3, 1e-5])),
            r"RK45: atol must be a number, got a tensor of shape \(2,\)",
        ),
        (lambda: sd.RK45(rtol="1e-3"), "RK45: rtol must be a number, got '1e-3'"),
        (
            lambda: sd.solvers.Churn(sd.Heun(), between=2.0),
            r"Churn: between must be two numbers, \(low, high\)",
        ),
        (
            lambda: sd.sde.InterpolatedVP((0.1j, 0.2), (0.5, 1.0)),
            "InterpolatedVP: betas must be a sequence of numbers",
        ),
        (lambda: sd.DenoisingScoreMatching("epsilon"), r"weighting .*\(did you mean 'noise'\?\)"),
        (
            lambda: sd.DenoisingScoreMatching()(sd.ScoreModel(plain, VP), X, X),
            "condition must be a dict",
        ),
        (
            lambda: sd.DenoisingScoreMatching()(sd.ScoreModel(plain, VP), X, {"t": X}),
            "condition 't' .* rename",
        ),
        (fitted(seed=torch.Generator()), r"seed must be .*; pass generator.initial_seed\(\)"),
        (fitted(seed=0.5), "seed must be a non-negative int, got 0.5"),
        (fitted(condition=X), "condition must be a dict"),
        (fitted(condition={"t": X}), "condition 't' .* rename"),
        (sampled(grid=10, steps=None), "for so many steps write steps=10|write steps=10"),
        (sampled(dtype="float32"), "got 'float32'"),
        (
            lambda: sd.White(torch.Generator(), (2,)),
            r"seeds must be .*; pass generator.initial_seed\(\)",
        ),
        (lambda: sd.White([0.5], (2,)), "seeds must be an int of at least 0, got 0.5"),
        (
            lambda: sd.seeds(torch.Generator(), 3),
            r"seed must be .*; pass generator.initial_seed\(\)",
        ),
        (
            lambda: sd.ScoreModel(torch.nn.Linear, VP),
            r"net must be a network, not a class: write Linear\(...\)",
        ),
        (lambda: sd.ScoreModel(VP, torch.nn.Linear(2, 2)), r"the order is ScoreModel\(net, sde\)"),
        (lambda: sd.ScoreModel(plain, VP, time=np.int64(1000)), r"write Timesteps\(1000\)"),
        (
            lambda: sd.ScoreModel(MODEL, VP),
            r"net is a ScoreModel already: .*ScoreModel\(net=model.net",
        ),
        (
            called(lambda x, t: (x,)),
            r"got tuple; wrap it: lambda x, t, \*\*condition: net\(x, t, \*\*condition\)\[0\]",
        ),
        (called(lambda x, t: x.numpy()), "got ndarray; convert it to a tensor"),
        (called(lambda x, t: x[:, :1]), r"got shape \(4, 1\)$"),
        (called(lambda x, t: (t, x)), r"wrap it: .*\[1\]"),
        (called(lambda x, t: {"sample": x}), r"got dict; wrap it: .*\['sample'\]"),
        (
            called(lambda x, t: {"other": t}),
            "got dict; wrap it in a function that returns the prediction",
        ),
        (called(lambda x, t: None), "got NoneType; is there a return"),
        (called(lambda x, t: torch.cat([x, x], 1)), r"got shape \(4, 4\); .*learned_variance=True"),
        (
            called(lambda x, t: x, learned_variance=True),
            r"got shape \(4, 2\); .*drop learned_variance=True",
        ),
        (called(lambda x, t: x.to(torch.complex64)), "got complex numbers"),
        (
            lambda: plots.save_png(torch.zeros(1, 1, 2, 2), "x.png"),
            r"got Tensor; .*save_png\(image_grid\(x\), path\)",
        ),
        (
            lambda: sd.LinearSDE(f=lambda t: -1.0 + 1j * t, g=lambda t: 1.0).f(0.5),
            r"f\(t\) must be real",
        ),
        (lambda: VP.prior_gap(torch.tensor(1j), 1.0), "mean must be real"),
        (lambda: VP.alpha(torch.tensor(0.5 + 1j)), "t must be real"),
    ],
)
def test_slip_is_told(call, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    said = "; ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert re.search(message, said), said


ELSEWHERE = {
    "noise": "epsilon pred_noise eps_theta eps_pred predict_epsilon noise_prediction "
    "PredictionType.EPSILON Epsilon EpsPrediction",
    "data": "sample x_start x_0 pred_x0 pred_x_start pred_xstart START_X denoised x0_prediction D "
    "denoiser original_sample PredX0",
    "v": "v_prediction pred_v v-prediction predict_v V vpred v_parameterization",
    "flow": "velocity flow_prediction vector_field velocity_field flow-matching u_t",
    "score": "score_prediction score_fn pred_score grad_log_p",
    "edm": "F F_theta raw",
}


@pytest.mark.parametrize(("right", "names"), ELSEWHERE.items(), ids=ELSEWHERE)
def test_names_of_predictions_elsewhere_are_pointed_to_ours(right, names):
    for name in names.split():
        with pytest.raises(ValueError, match=rf"\(did you mean '{right}'[?,]") as caught:
            sd.ScoreModel(plain, VP, name)
        assert all(known in str(caught.value) for known in PREDICTIONS)


def test_what_no_library_says_has_no_hint():
    for name in ("zzz", 3, {}):
        with pytest.raises(ValueError, match="predicts must be one of") as caught:
            sd.ScoreModel(plain, VP, name)
        assert "did you mean" not in str(caught.value)


def test_edm_denoiser_predicts_data():
    """F of Karras et al. 2022 is "edm" and D = c_skip x + c_out F(c_in x) is "data" (eq. 7), under
    their SDE.
    """
    sde, s = sd.EDM(), 0.5

    def raw(x, t):
        return torch.sin(x)

    def denoiser(x, t):
        sigma = t.reshape(-1, 1)
        root = (sigma**2 + s**2).sqrt()
        return s**2 / root**2 * x + sigma * s / root * raw(x / root, t)

    one, other = sd.ScoreModel(raw, sde, "edm", sigma_data=s), sd.ScoreModel(denoiser, sde, "data")
    x, t = 3 * X.double(), torch.tensor([0.1, 1.0, 3.0, 20.0]).double()
    assert torch.allclose(one.score(x, t), other.score(x, t), rtol=1e-12)


@pytest.mark.filterwarnings("error")
def test_constant_data_are_told(tmp_path):
    model = sd.ScoreModel(networks.initialised(lambda: networks.MLP(2, 4, 1), 0), VP)
    with pytest.warns(UserWarning, match="the 4 samples are all the same"):
        sd.fit(model, torch.full((4, 2), 0.1), out=tmp_path, steps=1, device="cpu")


def test_fit_takes_numbers_of_other_libraries(tmp_path):
    numbers = {
        "steps": np.int64(2),
        "batch_size": torch.tensor(3),
        "lr": np.float32(0.25),
        "warmup": np.int16(1),
    }
    numbers |= {
        "ema": np.float64(0.5),
        "clip": np.float64(1.0),
        "seed": np.uint8(1),
        "checkpoint_every": np.int64(1),
    }
    weights = []
    for name, given in (
        ("a", numbers),
        ("b", {key: value.item() for key, value in numbers.items()}),
    ):
        model = sd.ScoreModel(networks.initialised(lambda: networks.MLP(2, 4, 1), 0), VP)
        weights.append(sd.fit(model, X, out=tmp_path / name, device="cpu", **given).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    config = json.loads((tmp_path / "a" / "config.json").read_text())["training"]
    assert config == json.loads((tmp_path / "b" / "config.json").read_text())["training"]

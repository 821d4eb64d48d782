"""Our solvers as a diffusers scheduler, held to the bit against `sample`, and against diffusers."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from fixed_solvers import FIXED

import sdediff as sd

diffusers = pytest.importorskip("diffusers", reason='needs pip install "sdediff[diffusers]"')

from sdediff.interop.configurations import check_version  # noqa: E402
from sdediff.interop.diffusers import Scheduler  # noqa: E402
from sdediff.interop.schedules import BETAS, PREDICTIONS, SPACINGS  # noqa: E402
from sdediff.tuning.unrolled import tabled, unrolled  # noqa: E402

LAW = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.3)
START = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
SOME = [
    sd.Heun(),
    sd.solvers.UniPC(3),
    sd.solvers.RungeKutta4(variable="angle"),
    sd.solvers.Ancestral(),
    sd.solvers.SDEDPMSolverPP(2),
    sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin()),
]
some = pytest.mark.parametrize("solver", SOME, ids=repr)


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def seed_of(seed=5):
    """The seed that a scheduler draws from `generator`."""
    return int(torch.randint(2**62, (1,), generator=generator(seed)))


class Network:
    """The exact prediction under a scheduler's process, at its timesteps, in float32."""

    def __init__(self, scheduler):
        self.schedule = scheduler._schedule
        sde, predicts = self.schedule.sde, self.schedule.predicts
        law = LAW.model(sde)
        self.model = sd.ScoreModel(self, sde, predicts, time=self.schedule.time, data_std=1.0)
        if self.schedule.constraint is not None:
            self.model = self.model.constrained(self.schedule.constraint)
        self.exact = getattr(law, predicts)

    def __call__(self, x, handed):
        t = self.schedule.time_at(handed)
        return self.exact(x.double(), t.clamp(self.schedule.sde.t_min, self.schedule.sde.t_max)).to(
            x.dtype
        )


def driven(scheduler, net, x=START, timesteps=None, change=None, **options):
    """What the loop of a pipeline makes of x."""
    for i, t in enumerate(scheduler.timesteps if timesteps is None else timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = net(scaled, t.double().expand(len(x)))
        x = scheduler.step(out, t, x, **options, return_dict=False)[0]
        x = x if change is None else change(i, x)
    return x


def same_as_sample(scheduler, steps=9, **given):
    """Assert that a loop is `sample` on the same grid, to the bit and in evaluations."""
    scheduler.set_timesteps(steps, **given)
    net = Network(scheduler)
    x = driven(scheduler, net, generator=generator())
    out = sd.sample(
        net.model,
        START.shape,
        solver=scheduler._running,
        grid=scheduler.times,
        x_init=START,
        seed=seed_of(),
        last="denoise",
    )
    assert torch.equal(x, out.x)
    assert out.nfe.tolist() == [len(scheduler.timesteps)] * 4
    return x


# -- the same as sample ----------------------------------------------------------------------------


def steps_for(solver):
    return 25 if "rule='song'" in repr(solver) else 5  # its betas must stay below 1


def unless_slow(values, fast):
    """All values, of which the default run takes those that are ``fast``."""
    return [each if fast(each) else pytest.param(each, marks=pytest.mark.slow) for each in values]


BRIEF = [solver for solver in FIXED if "startup" not in repr(solver) and "song" not in repr(solver)]


@pytest.mark.thin(3)
@pytest.mark.parametrize("solver", unless_slow(FIXED, BRIEF[::2].__contains__), ids=repr)
def test_every_solver_is_sample_to_the_bit_and_is_saved(solver, tmp_path):
    scheduler = Scheduler(beta_schedule="scaled_linear", solver=solver)
    same_as_sample(scheduler, steps_for(solver))
    scheduler.save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    assert again._solver == solver
    assert again.config["solver"] == scheduler.config["solver"]


def tuned(sde):
    """A solver that is a table: order 1 in data form, on a grid of its own."""
    inner = sde.time_of(torch.tensor([-6.0, -2.0, 0.5, 4.0], dtype=torch.float64))
    times = torch.cat([torch.tensor([sde.t_max], dtype=torch.float64), inner])
    scheme = unrolled(sd.solvers.DPMSolverPP(2, startup="published"), sde, times, denoise=True)
    return tabled(scheme, sde, 0.0, {"last": "denoise"})


def test_a_tuned_solver_goes_along_its_own_grid(tmp_path):
    made = Scheduler(beta_schedule="scaled_linear")
    solver = tuned(made._schedule.sde)
    solver.save(tmp_path / "tuned.json")
    scheduler = Scheduler.from_config(
        made.config, solver=sd.solvers.Tuned.load(tmp_path / "tuned.json")
    )
    scheduler.save_pretrained(tmp_path)
    scheduler = Scheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(5)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == 5
    net = Network(scheduler)
    x = driven(scheduler, net)
    out = sd.sample(net.model, START.shape, solver=solver, x_init=START, seed=0)
    assert torch.equal(x, out.x)
    assert out.nfe.tolist() == [5] * 4
    for wrong in ({"num_inference_steps": 6}, {"timesteps": [900, 500, 1]}):
        with pytest.raises(ValueError, match=r"of 5 evaluations: ask for num_inference_steps=5"):
            scheduler.set_timesteps(**wrong)
    with pytest.raises(ValueError, match="another process"):
        Scheduler(beta_schedule="linear", solver=solver).set_timesteps(5)


CONFIGS = {
    **{name: {"beta_schedule": name} for name in BETAS},
    "trained": {"trained_betas": torch.linspace(1e-3, 0.3, 40).tolist()},
    "zero snr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True, "beta_schedule": "scaled_linear"},
    "beta": {"use_beta_sigmas": True},
    "clipped": {"clip_sample": True},
    "thresholded": {"thresholding": True, "sample_max_value": 0.9},
    "grid": {"grid": "central"},
}


def check_config(name, predicts, solver):
    same_as_sample(Scheduler(**CONFIGS[name], prediction_type=predicts, solver=solver))


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_schedule_is_sample_to_the_bit(name):
    place = list(CONFIGS).index(name)
    predicts = ["v_prediction", "sample", "epsilon", "flow_prediction"][place % 4]
    check_config(name, predicts, SOME[place % len(SOME)])


@pytest.mark.slow
@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("name", CONFIGS)
@some
def test_every_prediction_and_schedule_is_sample_to_the_bit(name, predicts, solver):
    if name != "zero snr" or predicts != "epsilon":
        check_config(name, predicts, solver)


@pytest.mark.slow
@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("solver", FIXED, ids=repr)
def test_every_solver_with_every_prediction_is_sample_to_the_bit(solver, predicts):
    same_as_sample(Scheduler(prediction_type=predicts, solver=solver), steps_for(solver))


def test_noise_says_nothing_where_no_signal_is_left():
    options = {"rescale_betas_zero_snr": True, "solver": sd.solvers.UniPC(3)}
    scheduler = Scheduler(timestep_spacing="trailing", **options)
    with pytest.raises(ValueError, match="alpha = 0: no signal is left") as refusal:
        scheduler.set_timesteps(9)
    assert "timestep_spacing='leading' starts below" in refusal.value.__notes__[0]
    same_as_sample(Scheduler(timestep_spacing="leading", **options))


STARTING = [sd.solvers.UniPC(3), sd.solvers.Euler(), sd.EulerMaruyama(), *SOME[2:]]


@pytest.mark.thin(3)
@pytest.mark.parametrize("solver", unless_slow(STARTING, STARTING[:3].__contains__), ids=repr)
@pytest.mark.parametrize("predicts", ["v_prediction", "flow_prediction"])
def test_solvers_start_where_no_signal_is_left_or_just_below(solver, predicts):
    """Those that cannot start at alpha = 0 do so at log-SNR -20, and find the same law."""
    given = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = Scheduler(prediction_type=predicts, solver=solver, **given)
    scheduler.set_timesteps(60)
    sde = scheduler._schedule.sde
    start = float(sde.log_snr(scheduler.times[0]))
    assert start == -math.inf or abs(start + 20) < 1e-6
    x = torch.randn(400, 2, generator=generator(1))
    x = driven(scheduler, Network(scheduler), x, generator=generator())
    wanted = LAW.sample(400, seed=3)
    assert float((x.mean(0) - wanted.mean(0)).abs().max()) < 0.2
    assert float((x.std(0) / wanted.std(0) - 1).abs().max()) < 0.2


# -- grids, and diffusers on the same ones ---------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [1, 7, 50])
def test_timesteps_are_those_of_diffusers(spacing, n):
    given = {"timestep_spacing": spacing, "steps_offset": 1 if spacing == "leading" else 0}
    theirs = diffusers.DDIMScheduler(**given)
    theirs.set_timesteps(n)
    ours = Scheduler.from_config(theirs.config, solver=sd.DDIM(), clip_sample=False)
    ours.set_timesteps(n)
    wanted = theirs.timesteps if (spacing, n) != ("linspace", 1) else torch.tensor([999])
    torch.testing.assert_close(ours.timesteps, wanted.float(), rtol=0, atol=1e-3)


FLOWS = {
    "plain": ({}, {}),
    "shift": ({"shift": 3.0}, {}),
    "dynamic": ({"use_dynamic_shifting": True}, {"mu": 1.15}),
    "linear mu": ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.0}),
    "terminal": ({"shift": 2.0, "shift_terminal": 0.1}, {}),
    "karras": ({"use_karras_sigmas": True}, {}),
    "exponential": ({"shift": 2.0, "use_exponential_sigmas": True}, {}),
    "beta": ({"use_beta_sigmas": True}, {}),
    "sigmas": ({"shift": 3.0}, {"sigmas": [1.0, 0.7, 0.4, 0.1]}),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' own, of numpy 2
@pytest.mark.parametrize("name", FLOWS)
def test_flow_models_have_the_times_of_diffusers_and_ddim_is_their_euler(name):
    config, given = FLOWS[name]
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    n = None if "sigmas" in given else 8
    theirs.set_timesteps(n, **given)
    ours = Scheduler.from_config(theirs.config, solver=sd.DDIM())
    ours.set_timesteps(n, **given)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-6)
    net = Network(ours)
    torch.testing.assert_close(driven(ours, net), driven(theirs, net), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_flow_sigmas_of_multistep_schedulers():
    given = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    theirs = diffusers.UniPCMultistepScheduler(**given)
    ours = Scheduler.from_config(theirs.config, solver=sd.DDIM())
    for each in (theirs, ours):
        each.set_timesteps(9)
    assert float((ours.sigmas - theirs.sigmas).abs().max()) < 2e-6
    assert float((ours.timesteps - theirs.timesteps).abs().max()) < 1.001  # theirs are cut to ints


PEERS = {
    "DDIM": (sd.DDIM(), {"clip_sample": False}, "DDIMScheduler"),
    "Heun": (sd.Heun(variable="sigma"), {}, "HeunDiscreteScheduler"),
    "2M": (sd.solvers.DPMSolverPP(2), {}, "DPMSolverMultistepScheduler"),
    "UniPC": (
        sd.solvers.UniPC(2, startup="published"),
        {"solver_order": 2, "predict_x0": True},
        "UniPCMultistepScheduler",
    ),
}


@pytest.mark.thin(3)
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' own, of numpy 2
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", PEERS)
def test_peers_on_the_same_sigmas(name, predicts):
    solver, options, kind = PEERS[name]
    theirs = getattr(diffusers, kind)(
        beta_schedule="scaled_linear",
        prediction_type=predicts,
        timestep_spacing="leading",
        **options,
    )
    theirs.set_timesteps(20)
    times = torch.unique_consecutive(theirs.timesteps)
    ours = Scheduler.from_config(theirs.config, solver=solver)
    ours.set_timesteps(timesteps=times.tolist())
    net = Network(ours)
    assert len(ours.timesteps) == len(theirs.timesteps)
    start = START * theirs.init_noise_sigma
    theirs_x = driven(theirs, net, start)
    torch.testing.assert_close(driven(ours, net), theirs_x, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (sd.solvers.PNDM(), {}),
        (sd.solvers.PLMS(), {"skip_prk_steps": True}),
        (sd.solvers.PLMS(), {"skip_prk_steps": True, "steps_offset": 1}),
    ],
)
def test_pndm_is_diffusers_own(solver, options):
    """On the same times, down to the last beta; with as many evaluations where it ends above."""
    theirs = diffusers.PNDMScheduler(beta_schedule="scaled_linear", **options)
    theirs.set_timesteps(20)
    ours = Scheduler.from_config(theirs.config, solver=solver)
    net = Network(ours)
    x = driven(theirs, net)
    numbers = theirs._timesteps[::-1].tolist() + ([0] if options.get("steps_offset") else [])
    times = ours._schedule.time_at(torch.tensor(numbers, dtype=torch.float64))
    out = sd.sample(net.model, START.shape, solver=solver, grid=times, x_init=START, last="noisy")
    torch.testing.assert_close(out.x, x, rtol=0, atol=1e-5)
    assert out.nfe.tolist() == [len(theirs.timesteps) - (numbers[-2] != 1)] * 4


# -- starts midway, states that a pipeline changes, dtypes, generators -----------------------------

DETERMINISTIC = [*SOME[:3], sd.solvers.DPMSolverPP(2), sd.solvers.UniPC(3, startup="published")]


def tail(scheduler, first, x, seed):
    """`sample` from x over the rest of the grid."""
    step = scheduler._asked[first][0]
    return sd.sample(
        Network(scheduler).model,
        x.shape,
        solver=scheduler._running,
        grid=scheduler.times[step:],
        x_init=x,
        seed=seed,
        last="denoise",
    ).x


@pytest.mark.thin(5)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("solver", [*SOME, sd.DDIM(eta=0.7)], ids=repr)
def test_a_start_midway_is_sample_over_the_rest(solver, named):
    """By its index, or by its time alone, as pipelines without set_begin_index start."""
    if solver == sd.solvers.UniPC(3):
        solver = sd.solvers.UniPC(3, startup="published")
    scheduler = Scheduler(beta_schedule="scaled_linear", solver=solver)
    scheduler.set_timesteps(8)
    first = 3 * scheduler.order
    assert scheduler._asked[first][0] == 3
    if named:
        scheduler.set_begin_index(first)
    net, rest = Network(scheduler), scheduler.timesteps[first:]
    noise = torch.randn(4, 2, generator=generator(9))
    noisy = scheduler.add_noise(LAW.sample(4, seed=1).float(), noise, rest[:1].repeat(4))
    x = driven(scheduler, net, noisy, rest, generator=generator())
    assert torch.equal(x, tail(scheduler, first, noisy, seed_of()))
    assert scheduler.step_index == len(scheduler.timesteps)


def test_starts_that_are_none_are_refused():
    scheduler = Scheduler(solver=sd.Heun())
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(START, 0, START)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(1)
    with pytest.raises(
        ValueError, match=r"evaluation 1 is inside a step of Heun.*one of 0, 2, 4, 6"
    ):
        scheduler.step(START, 0, START)
    scheduler.set_begin_index(None)
    with pytest.raises(ValueError, match="timestep 3 is not where a step starts: those are 750, "):
        scheduler.step(START, 3, START)
    exact = Scheduler(solver=sd.solvers.UniPC(3))
    exact.set_timesteps(8)
    exact.set_begin_index(len(exact.timesteps) - 4)
    with pytest.raises(ValueError, match="cannot start midway: take startup='published'"):
        exact.step(START, 0, START)


def half_of(i, x):
    """A pipeline's blend: the first coordinate is overwritten."""
    return torch.stack([torch.full_like(x[:, 0], 0.1 * i), x[:, 1]], dim=1)


@pytest.mark.parametrize("solver", [sd.Heun(), sd.solvers.RungeKutta4(variable="angle")], ids=repr)
def test_a_state_changed_between_steps_is_the_state_of_the_next_step(solver):
    scheduler = Scheduler(solver=solver)
    scheduler.set_timesteps(5)
    n = scheduler.order

    def blend(i, x):
        return half_of(i // n, x) if i % n == n - 1 and i < 4 * n else x

    found = driven(scheduler, Network(scheduler), change=blend)
    model, x, times = Network(scheduler).model, START, scheduler.times
    for k in range(4):
        grid = times[k : k + 2]
        x = sd.sample(model, (4, 2), solver=solver, grid=grid, x_init=x, last="noisy", seed=0).x
        x = half_of(k, x)
    wanted = sd.sample(model, (4, 2), solver=solver, grid=times[-1:], x_init=x, seed=0).x
    assert torch.equal(found, wanted)


def test_a_change_between_the_stages_of_a_step_reaches_the_network_alone():
    scheduler = Scheduler(solver=sd.Heun())
    scheduler.set_timesteps(5)
    net, stage = Network(scheduler), itertools.cycle([False, True])
    found = driven(scheduler, net, change=lambda i, x: x + 1 if i in (0, 2, 4, 6) else x)
    scheduler.set_timesteps(5)
    assert torch.equal(found, driven(scheduler, lambda x, t: net(x + 1 if next(stage) else x, t)))


CHURN = sd.solvers.Churn(sd.Heun(variable="sigma"), churn=8.0)


def test_a_solver_that_adds_noise_before_it_evaluates_takes_a_change_as_one_at_that_noise():
    scheduler = Scheduler(solver=CHURN)
    scheduler.set_timesteps(9)
    net, x = Network(scheduler), START
    for t in scheduler.timesteps[:6]:
        x = scheduler.step(net(x, t.expand(4)), t, x, generator=generator()).prev_sample
    replay, changed = scheduler._replay, half_of(3, x)
    before = replay.x
    assert float((before - x).abs().max()) > 1e-2
    t = scheduler.timesteps[6]
    scheduler.step(net(changed, t.expand(4)), t, changed)
    torch.testing.assert_close(replay._first(replay.x), changed, rtol=0, atol=1e-5)
    assert torch.equal(replay.x[:, 1], before[:, 1])


@pytest.mark.thin(3)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@some
def test_half_precision_has_a_float32_state(solver, dtype):
    """Against a float32 loop whose network is rounded likewise: the state is not rounded."""
    scheduler = Scheduler(solver=solver)
    scheduler.set_timesteps(6)
    net, start = Network(scheduler), START.to(dtype)

    def rounded(x, t):
        return net(x.to(dtype).float(), t).to(dtype).to(x.dtype)

    half = driven(scheduler, rounded, start, generator=generator())
    scheduler.set_timesteps(6)
    full = driven(scheduler, rounded, start.float(), generator=generator())
    assert half.dtype == dtype
    assert torch.equal(half, full.to(dtype))


def test_a_loop_may_run_in_inference_mode():
    """ERSDE differentiates its scale of noise when it plans."""
    found = []
    for mode in (True, False):
        with torch.inference_mode(mode):
            scheduler = Scheduler(solver=sd.solvers.ERSDE(3, startup="published"))
            scheduler.set_timesteps(6)
            found.append(driven(scheduler, Network(scheduler), generator=generator()))
    assert torch.equal(*found)


def test_double_precision_stays():
    scheduler = Scheduler(solver=sd.Heun())
    scheduler.set_timesteps(5)
    assert driven(scheduler, Network(scheduler), START.double()).dtype == torch.float64


def test_generators_and_the_global_one():
    scheduler = Scheduler(solver=sd.solvers.Ancestral())
    net = Network(scheduler)

    def run(x=START, **options):
        scheduler.set_timesteps(6)
        return driven(scheduler, net, x, **options)

    each = run(generator=[generator(i) for i in range(4)])
    assert torch.equal(run(START[2:3], generator=[generator(2)]), each[2:3])
    assert torch.equal(tail(scheduler, 0, START, [seed_of(i) for i in range(4)]), each)
    shared = generator(3)
    first, second = run(generator=shared), run(generator=shared)
    assert not torch.equal(first, second)
    assert torch.equal(first, run(generator=generator(3)))
    with pytest.raises(ValueError, match="there are 2 generators for 4 samples"):
        run(generator=[generator(0)] * 2)


@pytest.mark.uses_global_rng
def test_without_a_generator_the_seed_comes_from_torch():
    scheduler = Scheduler(solver=sd.solvers.Ancestral())
    net, found = Network(scheduler), []
    for _ in range(2):
        torch.manual_seed(3)
        scheduler.set_timesteps(6)
        found.append(driven(scheduler, net))
    assert torch.equal(*found)


# -- what diffusers expects of a scheduler ---------------------------------------------------------


@pytest.mark.thin(2)
@some
def test_a_saved_scheduler_steps_as_before(solver, tmp_path):
    scheduler = Scheduler(solver=solver, beta_schedule="squaredcos_cap_v2", grid="log_snr")
    scheduler.save_pretrained(tmp_path)
    again, unused = Scheduler.from_pretrained(tmp_path, return_unused_kwargs=True, other=1)
    assert unused["other"] == 1
    third = Scheduler.from_pretrained(tmp_path, timestep_spacing="trailing", grid=None)
    assert third.config["timestep_spacing"] == "trailing"
    results = []
    for each in (scheduler, again):
        each.set_timesteps(6)
        results.append(driven(each, Network(scheduler), generator=generator()))
    assert torch.equal(*results)


@some
def test_both_kinds_of_output_are_the_same(solver):
    found = []
    for return_dict in (True, False):
        scheduler = Scheduler(solver=solver)
        scheduler.set_timesteps(6)
        out = scheduler.step(
            0.1 * START,
            scheduler.timesteps[0],
            START,
            generator=generator(),
            return_dict=return_dict,
        )
        found.append(out.prev_sample if return_dict else out[0])
    assert torch.equal(*found)
    assert found[0].shape == START.shape


def test_trained_betas_are_kept(tmp_path):
    scheduler = Scheduler(trained_betas=torch.tensor([0.1, 0.3]).numpy(), solver=sd.DDIM())
    scheduler.save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    torch.testing.assert_close(again.betas, torch.tensor([0.1, 0.3]))
    torch.testing.assert_close(again.alphas_cumprod, torch.tensor([0.9, 0.63]))


KINDS = sorted(Scheduler(solver=sd.DDIM()).compatibles, key=lambda kind: kind.__name__)
FEW = ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler")


@pytest.mark.parametrize(
    "kind", unless_slow(KINDS, lambda k: k.__name__ in FEW), ids=lambda k: k.__name__
)
def test_configurations_go_to_diffusers_classes_and_back(kind):
    given = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
    scheduler = Scheduler(solver=sd.solvers.UniPC(3), grid="karras", **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that call for torchsde, or are deprecated
        theirs = kind.from_config(scheduler.config)
    back = Scheduler.from_config(theirs.config)
    assert back._solver == sd.solvers.UniPC(3)
    assert {name: back.config[name] for name in (*given, "grid")} == {**given, "grid": "karras"}


def test_a_configuration_keeps_the_defaults_of_its_class():
    """A scheduler that was made says no class, and one that was loaded lacks its defaults."""
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    prior = diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0)
    for config in (flow.config, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}):
        ours = Scheduler.from_config(config, solver=sd.DDIM())
        assert ours.config["prediction_type"] == "flow_prediction"
        assert ours.config["base_image_seq_len"] == 256
        assert ours.config["shift"] == 3.0
    ours = Scheduler.from_config(prior.config, solver=sd.DDIM())
    assert ours.config["beta_schedule"] == "squaredcos_cap_v2"
    assert ours.config["timestep_spacing"] == "linspace"
    assert ours._schedule.constraint == sd.Clip(-5.0, 5.0)
    prior.set_timesteps(9)
    ours.set_timesteps(9)
    assert torch.equal(ours.timesteps, prior.timesteps.float())
    dpm = Scheduler.from_config({"_class_name": "DPMSolverMultistepScheduler"}, solver=sd.DDIM())
    assert dpm.config["timestep_spacing"] == "linspace"


@pytest.mark.parametrize("kind", ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_noise_is_added_as_diffusers_does(kind):
    theirs = getattr(diffusers, kind)()
    ours = Scheduler.from_config(theirs.config, solver=sd.DDIM())
    for each in (theirs, ours):
        each.set_timesteps(10)
    at = theirs.timesteps[3:4].repeat(4)
    noise = torch.randn(4, 2, generator=generator())
    if kind == "DDIMScheduler":
        found, wanted = ours.add_noise(START, noise, at), theirs.add_noise(START, noise, at)
    else:
        found, wanted = ours.scale_noise(START, at, noise), theirs.scale_noise(START, at, noise)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert ours.add_noise(START.half(), noise.half(), at[0]).dtype == torch.float16


def test_an_attribute_of_the_configuration_is_read_from_it():
    scheduler = Scheduler(solver=sd.DDIM())
    assert scheduler.config.beta_schedule == "linear"
    assert len(scheduler) == 1000
    assert scheduler.init_noise_sigma == 1.0
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = scheduler.nothing_of_the_kind


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_continuous_times_are_those_of_stable_video():
    """v under x_0 + sigma noise, up to sigma = 700, against diffusers' Euler on its Karras grid."""
    given = {
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "timestep_type": "continuous",
        "use_karras_sigmas": True,
        "sigma_min": 0.002,
        "sigma_max": 700.0,
        "timestep_spacing": "leading",
    }
    theirs = diffusers.EulerDiscreteScheduler(**given)
    ours = Scheduler.from_config(theirs.config, solver=sd.DDIM())
    for each in (theirs, ours):
        each.set_timesteps(25)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-4, atol=0)
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
    law = LAW.model(sd.EDM(0.002, 700.0))

    def net(scaled, t):
        sigma = (4 * t).exp()[:, None]
        x = scaled.double() * (1 + sigma**2).sqrt()
        data = law.data(x, sigma[:, 0].clamp(0.002, 700.0))
        return ((x - data) / sigma - sigma * data).div((1 + sigma**2).sqrt()).float()

    start = START * ours.init_noise_sigma
    wanted = driven(theirs, net, start)
    torch.testing.assert_close(driven(ours, net, start), wanted, rtol=0, atol=1e-4)
    better = Scheduler.from_config(theirs.config, solver=sd.solvers.UniPC(3, startup="published"))
    for n, each in ((100, theirs), (25, better)):
        each.set_timesteps(n)
    fine = driven(theirs, net, start)
    assert float((driven(better, net, start) - fine).abs().mean()) < 0.5 * float(
        (wanted - fine).abs().mean()
    )


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_edm_schedulers_are_our_solvers(kind, predicts):
    """F of an exact network, or minus F, on Karras sigmas and on exponential ones."""
    spacing = "karras" if predicts == "epsilon" else "exponential"
    theirs = getattr(diffusers, kind)(prediction_type=predicts, sigma_schedule=spacing)
    solver = sd.DDIM() if "Euler" in kind else sd.solvers.DPMSolverPP(2)
    ours = Scheduler.from_config(theirs.config, solver=solver)
    for each in (theirs, ours):
        each.set_timesteps(20)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-5)
    law = LAW.model(sd.EDM(0.002, 80.0))
    sign = {"epsilon": 1.0, "v_prediction": -1.0}[predicts]

    def net(scaled, t):
        sigma = (4 * t).exp()[:, None]
        root = (0.25 + sigma**2).sqrt()
        x = scaled.double() * root
        data = law.data(x, sigma[:, 0].clamp(0.002, 80.0))
        return (sign * (data - 0.25 / root**2 * x) / (sigma * 0.5 / root)).float()

    start = START * 80.0
    wanted = driven(theirs, net, start)
    torch.testing.assert_close(driven(ours, net, start), wanted, rtol=0, atol=1e-4)


# -- what is refused -------------------------------------------------------------------------------


class Uncertain(sd.Heun):
    """Heun's method, and a second evaluation only where the first is large."""

    def step(self, problem, x, plan, noise, state):
        moved = super().step(problem, x, plan, noise, state)
        return super().step(problem, x, plan, noise, state) if moved.x.abs().max() < 1 else moved


class Grouped(sd.DDIM):
    group = 4


WRONG = {
    "adaptive": ({"solver": sd.RK45()}, r"RK45\(\) is adaptive: how often .* UniPC\(3\), DDIM\(\)"),
    "external": (
        {"solver": sd.solvers.SciPy()},
        "SciPy.* another library's driver.*take a solver with fixed steps",
    ),
    "chain": (
        {"solver": sd.DDPM.from_schedule("linear", 10)},
        r"DDPM\(N=10.* is a chain with a grid of its own.*Ancestral\(\)",
    ),
    "groups": ({"solver": Grouped()}, "takes rows in groups of 4, which no pipeline makes"),
    "class": ({"solver": sd.Heun}, "solver must be a solver value, got <class"),
    "grid": ({"grid": "karas"}, "grid must be one of .* 'karas'.*did you mean 'karras'"),
    "prediction": (
        {"prediction_type": "velocity"},
        "prediction_type must be one of 'epsilon', 'sample', 'v_prediction', 'flow_prediction'",
    ),
    "betas": ({"beta_schedule": "scaled"}, "beta_schedule must be one of 'linear', "),
    "spacing": ({"timestep_spacing": "even"}, "timestep_spacing must be one of 'leading'"),
    "flow": ({"use_flow_sigmas": True}, "use_flow_sigmas goes with prediction_type='flow_pred"),
    "continuous": ({"timestep_type": "continuous"}, "known for prediction_type='v_prediction'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    given, words = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=words):
        Scheduler(**given)


WRONG_STEPS = {
    "none": ({}, "takes the number of steps, or timesteps, or sigmas: one of them"),
    "two": ({"timesteps": [9.0, 1.0], "sigmas": [3.0, 1.0]}, "or sigmas: one of them"),
    "zero": ({"num_inference_steps": 0}, "num_inference_steps must be"),
    "rising": ({"timesteps": [1.0, 9.0]}, "the timesteps must fall, between 999 and 0; got 1, 9"),
    "outside": ({"timesteps": [1000.0, 9.0]}, "the timesteps must fall, between 999 and 0"),
    "too many": ({"num_inference_steps": 1200}, r", ... \(1200 of them\): take fewer steps"),
    "empty": ({"sigmas": []}, "sigmas must be a sequence of numbers"),
}


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_wrong_timesteps_are_refused(name):
    given, words = WRONG_STEPS[name]
    with pytest.raises(ValueError, match=words):
        Scheduler(solver=sd.DDIM()).set_timesteps(**given)


def test_dynamic_shifting_needs_mu():
    scheduler = Scheduler(prediction_type="flow_prediction", use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="pass mu= to set_timesteps"):
        scheduler.set_timesteps(4)


@pytest.mark.parametrize("name", ["LCMScheduler", "CMStochasticIterativeScheduler"])
def test_configurations_that_are_not_known_are_refused(name):
    config = getattr(diffusers, name)().config
    for each in (config, {**config, "_class_name": name}):
        with pytest.raises(
            ValueError, match=f"'({name}|TCDScheduler)'.* not known here; known: .*DDIMSched"
        ):
            Scheduler.from_config(each, solver=sd.DDIM())
    with pytest.raises(ValueError, match="of 'no class of diffusers"):
        Scheduler.from_config({"colour": 3}, solver=sd.DDIM())
    with pytest.raises(TypeError, match=r"takes a configuration, pipe.scheduler.config say"):
        Scheduler.from_config("runwayml", solver=sd.DDIM())
    with pytest.raises(TypeError, match=r"no argument 'slover' .did you mean 'solver'"):
        Scheduler.from_config({}, slover=sd.DDIM())
    inverted = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    with pytest.raises(ValueError, match="invert_sigmas=True runs time backward"):
        Scheduler.from_config(inverted.config)


def test_a_solver_of_ones_own_has_to_be_passed_again(tmp_path):
    Scheduler(solver=Uncertain()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the saved solver Uncertain .* pass solver= to from_pre"):
        Scheduler.from_pretrained(tmp_path)
    assert Scheduler.from_pretrained(tmp_path, solver=Uncertain())._solver == Uncertain()


def test_a_solver_whose_evaluations_depend_on_the_network_is_found_out():
    scheduler = Scheduler(solver=Uncertain())
    scheduler.set_timesteps(5)
    with pytest.raises(RuntimeError, match="evaluates more or less often than on its dry run"):
        driven(scheduler, lambda x, t: x, 0.1 * START)


def test_an_old_diffusers_is_refused():
    check_version("0.30.0")
    with pytest.raises(ImportError, match=r"diffusers 0.27.2 is installed, .* install 0.30 or"):
        check_version("0.27.2")

"""Pipelines and networks of diffusers as models: their own results, and other solvers on them."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

import sdediff as sd
from sdediff.solvers.noise import StepNoise

diffusers = pytest.importorskip("diffusers", reason='needs pip install "sdediff[diffusers]"')

from sdediff.interop.diffusers import Scheduler  # noqa: E402

pytestmark = [
    pytest.mark.uses_global_rng,  # networks are initialised from it
    pytest.mark.filterwarnings("ignore"),  # diffusers and transformers warn of much
]
LAW = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.3)


def normal(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet(**options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
        **options,
    )


def dit():
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
    )
    for each in net.parameters():  # its last layers start at 0
        torch.nn.init.normal_(each, std=0.05)
    return net.eval()  # as loaded ones are; in training it drops classes


def grid_of(scheduler, n, **given):
    """The times of a scheduler's own n steps, and the size of noise at their start."""
    ours = Scheduler.from_config(scheduler.config)
    ours.set_timesteps(n, **given)
    return ours.times, ours.init_noise_sigma


def assert_same(found, wanted):
    """To 1e-5 of the largest entry: an untrained network lets states grow."""
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=1e-5)


class Drawn:
    """Noise whose normals were drawn beforehand: those of step i are the i-th."""

    def __init__(self, normals):
        self.normals = normals

    def at(self, step):
        return DrawnStep(self.normals[step])

    def take(self, rows):
        return Drawn([each[rows] for each in self.normals])


class DrawnStep(StepNoise):
    def __init__(self, normals):
        self.normals = normals

    def normal(self, stream, k=0):
        return self.normals

    def over(self, a, b, k=0):
        return self.normals


# -- a pipeline's own result -----------------------------------------------------------------------


def test_a_pipeline_without_conditions_is_our_ddim():
    pipe = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    start = normal(2, 3, 8, 8)
    wanted = pipe(2, torch.Generator().manual_seed(7), num_inference_steps=7, output_type="np")
    times, _ = grid_of(pipe.scheduler, 7)
    out = sd.sample(
        sd.from_diffusers(pipe), start.shape, solver=sd.DDIM(), grid=times, x_init=start
    )
    assert out.nfe.tolist() == [7, 7]
    found = (out.x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, torch.from_numpy(wanted.images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("clip", [False, True])
def test_ancestral_steps_are_our_ddpm(clip, variance):
    """With the same noise, and a clipped E[x_0 | x] where the configuration says so."""
    learned = variance == "learned_range"
    scheduler = diffusers.DDPMScheduler(variance_type=variance, clip_sample=clip)
    net = dit() if learned else unet(num_class_embeds=5)
    shape = (2, 4, 8, 8) if learned else (2, 3, 8, 8)
    labels = torch.tensor([1, 3])
    scheduler.set_timesteps(6)
    draws = torch.Generator().manual_seed(1)
    x = start = normal(*shape)
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = net(x, t.expand(2), class_labels=labels).sample
            x = scheduler.step(out, t, x, generator=draws).prev_sample
    model = sd.from_diffusers(net, scheduler)
    index = scheduler.timesteps.flip(0) + 1
    rule = {"fixed_small": "beta_tilde", "fixed_large": "beta", "learned_range": "learned"}
    betas = tuple(scheduler.betas.double().tolist())
    chain = sd.DDPM(betas, variance=rule[variance]).respaced(index.tolist())
    again = torch.Generator().manual_seed(1)
    noise = Drawn([torch.randn(shape, generator=again) for _ in range(6)])
    out = sd.sample(
        model, shape, solver=chain, x_init=start, noise=noise, condition={"class_labels": labels}
    )
    assert out.nfe.tolist() == [6, 6]
    assert_same(out.x, x)


def test_a_class_conditional_transformer_with_learned_variance_is_its_pipeline(monkeypatch):
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    pipe = diffusers.DiTPipeline(dit(), vae, diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    latents, decode = [], vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: latents.append(z) or decode(z))
    pipe([1, 3], 1.0, torch.Generator().manual_seed(7), num_inference_steps=5, output_type="np")
    model = sd.from_diffusers(pipe)
    assert model.extras == ("variance",)
    times, _ = grid_of(pipe.scheduler, 5)
    out = sd.sample(
        model,
        (2, 4, 8, 8),
        solver=sd.DDIM(),
        grid=times,
        x_init=normal(2, 4, 8, 8),
        condition={"class_labels": torch.tensor([1, 3])},
    )
    assert_same(out.x / vae.config.scaling_factor, latents[0])
    with torch.no_grad():
        assert_same(sd.Latent(model, vae).decode(out.x), decode(latents[0]).sample)


def with_image(network):
    """A network whose input has an image beside the noisy channels, as those of Stable Video."""

    def called(sample, timestep, image, encoder_hidden_states, added_time_ids):
        both = torch.cat([sample, image], dim=2)
        return network(both, timestep, encoder_hidden_states, added_time_ids=added_time_ids)

    return called


SHAPES = {"Flux": (1, 16, 4), "Stable Video": (1, 2, 4, 8, 8)}
PLAIN = {"Stable Video": {"max_guidance_scale": 1.0}}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SD", "SDXL", "SDXL under EDM", "SD3", "Flux", "Stable Video"])
def test_pipelines_of_latents_are_ours(name, tmp_path):
    """From what they hand their networks, without guidance."""
    pytest.importorskip("transformers", reason="pipelines need transformers")
    from tiny_pipelines import pipeline

    edm = name.endswith("EDM")  # as Playground has it
    pipe, given = pipeline(name.removesuffix(" under EDM"), tmp_path)
    if edm:
        pipe.scheduler = diffusers.EDMEulerScheduler()
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    calls = []
    watch = lambda module, args, kwargs: calls.append((args, kwargs))  # noqa: E731
    handle = network.register_forward_pre_hook(watch, with_kwargs=True)
    start = normal(*SHAPES.get(name, (1, 4, 8, 8)))
    wanted = pipe(
        **{**given, "guidance_scale": 1.0} if name not in PLAIN else {**given, **PLAIN[name]},
        latents=start,
        num_inference_steps=5,
        output_type="latent",
        return_dict=False,
    )[0]
    handle.remove()
    args, kwargs = calls[0]
    condition = {**kwargs, **(kwargs.get("added_cond_kwargs") or {})}
    condition = {
        key: value
        for key, value in condition.items()
        if isinstance(value, torch.Tensor) and key not in ("hidden_states", "timestep")
    }
    shared = {key: condition.pop(key) for key in ("img_ids", "txt_ids") if key in condition}
    source = partial(network, **shared) if shared else network
    if name == "Stable Video":
        condition["image"] = args[0][:, :, 4:]
        source = with_image(network)
    flow = {"sigmas": pipe.scheduler.sigmas[:-1].tolist()} if name == "Flux" else {}
    if flow:  # shifted already
        config = {**pipe.scheduler.config, "use_dynamic_shifting": False}
        times, size = grid_of(diffusers.FlowMatchEulerDiscreteScheduler(**config), None, **flow)
    else:
        times, size = grid_of(pipe.scheduler, 5)
    if edm:
        size = pipe.scheduler.init_noise_sigma  # theirs adds 1 to the variance, ours sigma_data^2
    model = sd.from_diffusers(source, pipe.scheduler)
    out = sd.sample(
        model,
        start.shape,
        solver=sd.DDIM(),
        grid=times,
        x_init=start * size,
        condition=condition,
    )
    assert_same(out.x, wanted.reshape_as(out.x))


# -- everything else goes with it ------------------------------------------------------------------


def exact(scheduler, name):
    """The exact network of a law under the process of a configuration, called as diffusers does."""
    schedule = Scheduler.from_config(scheduler.config)._schedule
    predict = getattr(LAW.model(schedule.sde), name)

    def network(sample, timestep, encoder_hidden_states=None, return_dict=True):
        t = schedule.time_at(timestep).clamp(schedule.sde.t_min, schedule.sde.t_max)
        out = predict(sample.double(), t).to(sample.dtype)
        return (out, None) if not return_dict else out

    return network


EXACT = {
    "noise": diffusers.DDIMScheduler(clip_sample=False),
    "data": diffusers.UniPCMultistepScheduler(prediction_type="sample"),
    "v": diffusers.DPMSolverMultistepScheduler(
        prediction_type="v_prediction", beta_schedule="scaled_linear"
    ),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.mark.thin(1)
@pytest.mark.parametrize("name", EXACT)
def test_solvers_and_likelihoods_run_on_every_prediction(name):
    """Adaptive, stochastic and multistep samples have the law's mean within 6 standard errors, and
    log-densities are its own up to what the prior is not the law at t = 1.
    """
    model = sd.from_diffusers(exact(EXACT[name], name), EXACT[name])
    x = LAW.sample(8, seed=1)
    found = sd.log_prob(model, x, solver=sd.RK45(1e-4, 1e-4)).value
    wanted = LAW.log_prob(model.sde, x, model.sde.t_min)
    assert float((found - wanted).abs().max()) < 0.02
    for solver, steps in (
        (None, 20),
        (sd.solvers.SDEDPMSolverPP(2), 40),
        (sd.RK45(1e-3, 1e-3), None),
    ):
        out = sd.sample(model, (400, 2), solver=solver, steps=steps, seed=0)
        assert float((out.x.mean(0) - torch.tensor([0.0, 0.25])).abs().max()) < 0.3


@pytest.mark.parametrize("name", EXACT)
def test_a_wrong_prediction_is_contradicted_by_diagnose(name):
    scheduler = EXACT[name]
    network = exact(scheduler, name)
    x = LAW.sample(256, seed=2).float()
    assert sd.diagnose(sd.from_diffusers(network, scheduler), x).ok
    if name == "flow":
        return
    told = {"noise": "v_prediction", "data": "epsilon", "v": "sample"}[name]
    wrong = sd.from_diffusers(network, {**scheduler.config, "prediction_type": told})
    found = sd.diagnose(wrong, x)
    assert not found.ok
    assert found.best == name


# -- how networks are called -----------------------------------------------------------------------


def asked_with(network, condition):
    """What a model hands its network."""
    model = sd.from_diffusers(network, EXACT["noise"])
    sd.sample(model, (2, 4), solver=sd.DDIM(), steps=1, last="noisy", condition=condition, seed=0)


def test_conditions_have_the_names_of_arguments_and_of_added_ones():
    asked = []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = {"addition_embed_type": "text_time", "guidance_embeds": True}

        def forward(
            self, hidden_states, timestep, guidance=None, mask=None, added_cond_kwargs=None, size=1
        ):
            asked.append((timestep, guidance, mask, added_cond_kwargs, size))
            return 0 * hidden_states

    condition = {
        "guidance": torch.full((2,), 3.0),
        "text_embeds": torch.ones(2, 5),
        "time_ids": torch.ones(2, 6),
    }
    asked_with(partial(Network(), size=2), condition)
    timestep, guidance, mask, added, size = asked[0]
    assert timestep.tolist() == [999.0, 999.0]
    assert guidance.tolist() == [3.0, 3.0]
    assert mask is None
    assert size == 2
    assert {name: tuple(each.shape) for name, each in added.items()} == {
        "text_embeds": (2, 5),
        "time_ids": (2, 6),
    }
    del condition["time_ids"], condition["guidance"]
    with pytest.raises(ValueError, match="lacks guidance, lacks time_ids") as refusal:
        asked_with(Network(), condition)
    assert "Network takes guidance, text_embeds, time_ids, mask, size, and needs" in str(
        refusal.value
    )
    with pytest.raises(ValueError, match=r"has guidence .did you mean 'guidance'.*: Network takes"):
        asked_with(Network(), {**condition, "guidence": torch.ones(2)})
    assert len(asked) == 1


CLASSES = {
    "DiT": (dit, {"class_labels"}),
    "UNet of classes": (lambda: unet(num_class_embeds=5), {"class_labels"}),
    "UNet": (unet, set()),
}


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_network_needs_follows_from_its_configuration(name):
    make, needed = CLASSES[name]
    model = sd.from_diffusers(make(), EXACT["noise"])
    assert set(model.net._needed) == needed


@pytest.mark.slow
def test_a_compiled_network_is_called_by_its_own_signature():
    net = unet()
    x = normal(1, 3, 8, 8)
    wanted = sd.from_diffusers(net, EXACT["noise"])(x, 0.5)
    compiled = torch.compile(net, backend="eager")
    assert torch.equal(sd.from_diffusers(compiled, EXACT["noise"])(x, 0.5), wanted)


def test_a_network_of_half_precision_gets_times_of_float32():
    net = unet().to(torch.bfloat16)
    half = sd.from_diffusers(net, EXACT["noise"])
    asked = []
    net.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs), with_kwargs=True
    )
    found = sd.sample(half, (1, 3, 8, 8), steps=2, seed=0)
    assert found.x.dtype == torch.float32
    assert asked[0]["sample"].dtype == torch.bfloat16
    assert asked[0]["timestep"].dtype == torch.float32  # 999 is no number of bfloat16


FLOW = diffusers.FlowMatchEulerDiscreteScheduler()
CONVENTIONS = {
    "SD3Transformer2DModel": (600.0, 1),
    "FluxTransformer2DModel": (0.6, 1),
    "Lumina2Transformer2DModel": (0.4, -1),
    "HiDreamImageTransformer2DModel": (600.0, -1),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_flow_networks_have_the_times_and_the_sign_of_their_pipelines(name):
    asked = []

    def forward(self, hidden_states, timestep):
        asked.append(timestep)
        return hidden_states

    network = type(name, (torch.nn.Module,), {"forward": forward})()
    model = sd.from_diffusers(network, FLOW)
    time, sign = CONVENTIONS[name]
    out = model(torch.ones(1, 2), 0.6)
    torch.testing.assert_close(asked[0], torch.tensor([time]))
    assert out.tolist() == [[sign, sign]]


def test_of_a_learned_logarithm_of_the_variance_the_prediction_alone_is_kept():
    scheduler = diffusers.DDPMScheduler(variance_type="learned", clip_sample=False)
    network = unet(out_channels=6)
    model = sd.from_diffusers(network, scheduler)
    x = normal(1, 3, 8, 8)
    with torch.no_grad():
        wanted = network(x, torch.tensor([499.0])).sample[:, :3]
        assert torch.equal(model(x, 0.5), wanted)
    assert model.extras == ()


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_edm_networks_see_scaled_states_and_a_quarter_of_log_sigma(predicts):
    scheduler = diffusers.EDMEulerScheduler(prediction_type=predicts)
    law = LAW.model(sd.EDM(0.002, 80.0))

    def network(sample, timestep):
        sigma = (4 * timestep.double()).exp()
        x = sample.double() / scheduler.precondition_inputs(1.0, sigma)[:, None]
        c = scheduler.precondition_outputs(torch.ones(2), torch.zeros(2), sigma)  # c_skip
        d = scheduler.precondition_outputs(torch.zeros(2), torch.ones(2), sigma)  # c_out
        return ((law.data(x, sigma) - c[:, None] * x) / d[:, None]).float()

    x = normal(2, 2)
    found = sd.from_diffusers(network, scheduler).data(x, 0.7)
    torch.testing.assert_close(found, law.data(x, 0.7), rtol=1e-4, atol=1e-5)


def test_a_network_that_learns_its_times_gets_integers():
    model = sd.from_diffusers(unet(time_embedding_type="learned", num_train_timesteps=1000), FLOW)
    with torch.no_grad():
        assert model(normal(1, 3, 8, 8), 0.5).shape == (1, 3, 8, 8)


TOKENS = {"encoder_hidden_states": (2, 5, 16)}
PATCHES = {"num_attention_heads": 2, "sample_size": 8, "patch_size": 2, "num_layers": 1}
NETWORKS = {
    "UNet1DModel": (
        {
            "block_out_channels": (32, 32),
            "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D"),
            "up_block_types": ("UpBlock1D", "UpBlock1DNoSkip"),
            "extra_in_channels": 64,
        },
        (2, 2, 16),
        {},
    ),
    "UNet3DConditionModel": (
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "cross_attention_dim": 16,
            "layers_per_block": 1,
            "attention_head_dim": 8,
        },
        (2, 4, 2, 8, 8),
        TOKENS,
    ),
    "Transformer2DModel": (
        PATCHES
        | {
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_embeds_ada_norm": 10,
            "norm_type": "ada_norm_zero",
            "norm_elementwise_affine": False,
        },
        (2, 4, 8, 8),
        {"class_labels": ()},
    ),
    "PixArtTransformer2DModel": (
        PATCHES
        | {
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 8,
            "cross_attention_dim": 24,
            "caption_channels": 16,
            "norm_num_groups": 1,
            "use_additional_conditions": True,
        },
        (2, 4, 8, 8),
        TOKENS | {"resolution": (2, 2), "aspect_ratio": (2, 1)},
    ),
    "PriorTransformer": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "embedding_dim": 16,
            "num_layers": 1,
            "num_embeddings": 5,
        },
        (2, 16),
        TOKENS | {"proj_embedding": (2, 16)},
    ),
    "AuraFlowTransformer2DModel": (
        {
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 16,
        },
        (2, 4, 8, 8),
        TOKENS,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_other_classes_are_called_as_they_are(name):
    """With all that their configurations ask for."""
    config, shape, sizes = NETWORKS[name]
    torch.manual_seed(0)
    network = getattr(diffusers, name)(**config).eval()
    x = normal(*shape)
    condition = {
        key: normal(*size) if size else torch.tensor([1, 3]) for key, size in sizes.items()
    }
    flows = name.startswith("Aura")
    scheduler = FLOW if flows else diffusers.DDIMScheduler(clip_sample=False)
    model = sd.from_diffusers(network, scheduler)
    assert set(model.net._needed) >= set(condition) - {"encoder_hidden_states"}
    added = {key: condition[key] for key in ("resolution", "aspect_ratio") if key in condition}
    plain = {key: value for key, value in condition.items() if key not in added}
    nested = {"added_cond_kwargs": added} if added else {}
    states = "sample" if name.startswith("UNet") else "hidden_states"
    handed = torch.full((2,), 0.5 if flows else 499.0)
    with torch.no_grad():
        found = model(x, 0.5, **condition)
        wanted = network(**{states: x}, timestep=handed, **plain, **nested, return_dict=False)[0]
    assert torch.equal(found, wanted[:, : shape[1]])


# -- pipelines on disk -----------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    pipe = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path / "pipe")
    return pipe, tmp_path / "pipe"


def test_a_saved_pipeline_is_the_one_in_memory(saved):
    pipe, folder = saved
    wanted = sd.from_diffusers(pipe)
    x = normal(2, 3, 8, 8)
    for each in (folder, str(folder)):
        found = sd.from_diffusers(each)
        assert found.constraint == wanted.constraint == sd.Clip()
        assert torch.equal(found.data(x, 0.5), wanted.eval().data(x, 0.5))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert torch.equal(sd.from_diffusers(folder).data(x, 0.5), wanted.data(x, 0.5))
    config = {**pipe.scheduler.config, "clip_sample": False, "prediction_type": "v_prediction"}
    assert sd.from_diffusers(folder, config).predicts == "v"


def renamed(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.bin"))


def reindexed(**parts):
    def change(folder):
        index = folder / "model_index.json"
        told = {**json.loads(index.read_text()), **parts}
        index.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))

    return change


BROKEN = {
    "pickle": (
        renamed,
        r"no safetensors, but config.json, .*\.bin.*weights_only=True.*save_pretra",
    ),
    "no index": (
        lambda folder: (folder / "model_index.json").unlink(),
        "has a model_index.json: it",
    ),
    "no network": (reindexed(unet=None), "has no unet, transformer or prior, its parts are sched"),
    "two": (reindexed(unet_2=["diffusers", "UNet2DModel"]), "has unet and unet_2, its parts"),
    "code": (
        reindexed(unet=["my_code", "Network"]),
        "that unet is Network of my_code, which is no net",
    ),
    "class": (reindexed(unet=["diffusers", "Nought"]), "Nought of diffusers, which is no network"),
    "pipeline": (
        reindexed(unet=["diffusers", "DiffusionPipeline"]),
        "DiffusionPipeline of diffusers, which is no network of diffusers 0.*load it yourself",
    ),
    "no scheduler": (
        lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
        "has no scheduler/scheduler_config.json: pass scheduler=",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_folders_that_are_no_safe_pipeline_are_refused(saved, name):
    _, folder = saved
    change, words = BROKEN[name]
    change(folder)
    with pytest.raises(ValueError, match=words):
        sd.from_diffusers(folder)


def test_an_unknown_folder_is_refused_without_a_look_at_the_net():
    with pytest.raises(ValueError, match=r"someone/model is no folder .* it is not there; a pipe"):
        sd.from_diffusers("someone/model")


# -- what is refused -------------------------------------------------------------------------------


class Autoencoder(torch.nn.Module):
    def forward(self, sample, posterior=False):
        return sample


class Pipeline:
    def __init__(self, **parts):
        self.components = parts
        self.scheduler = EXACT["noise"]


REFUSED = {
    "no scheduler": ((torch.nn.Identity(),), r"goes with a scheduler .*; got None"),
    "a name": ((unet, "ddim"), r"a scheduler of diffusers, or its configuration.*; got 'ddim'"),
    "a class": ((diffusers.UNet2DModel, EXACT["noise"]), "takes a pipeline, .*got <class"),
    "nothing": ((None,), "takes a pipeline, the folder of one, or a network"),
    "no times": (
        (Autoencoder(), EXACT["noise"]),
        "Autoencoder takes no times: .* but sample, post",
    ),
    "no states": ((lambda x, t: x, EXACT["noise"]), "takes no states: it has no argument 'sample'"),
    "schedule": (
        (unet, diffusers.LCMScheduler()),
        "is of 'LCMScheduler', .* known: Scheduler, DDIM",
    ),
    "config": ((unet, {"colour": 3}), "no class of diffusers"),
    "rho": ((unet, diffusers.EDMEulerScheduler(rho=3.0)), "known with rho = 7 here, got rho = 3"),
    "two": ((Pipeline(transformer=unet, transformer_2=unet),), "has transformer and transformer_2"),
    "none": (
        (Pipeline(vae=unet, unet=None),),
        "has no unet, transformer or prior, its parts are va",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_sources_are_refused(name):
    given, words = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=words):
        sd.from_diffusers(*given)

"""ControlNets as conditions: equal to the base at the start, to diffusers' own pipeline, trained
with the base locked, at scales and in intervals of noise levels.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

import sdediff as sd
from sdediff.guidance import ClassifierFree, Control
from sdediff.interop import Controlled
from sdediff.network_time import Timesteps
from sdediff.networks import Captioned, TextEncoder, Tokenizer

diffusers = pytest.importorskip("diffusers", reason='needs pip install "sdediff[diffusers]"')

import tiny_pipelines as tiny  # noqa: E402

from sdediff.interop.diffusers import Scheduler  # noqa: E402

pytestmark = [
    pytest.mark.uses_global_rng,  # networks are initialised from it
    pytest.mark.filterwarnings("ignore"),  # diffusers and transformers warn of much
]
SCHEDULER = diffusers.DDIMScheduler(**tiny.BETAS, clip_sample=False, steps_offset=1)
X, STATES = tiny.normal(2, 4, 8, 8), tiny.normal(2, 6, 8, seed=1)
IMAGE, OTHER = (tiny.normal(2, 3, 16, 16, seed=k).clamp(0, 1) for k in (2, 3))
TEXT = {"encoder_hidden_states": STATES}


def controlnet(base, seed=1, std=0.3, **options):
    """A ControlNet of the base, its zero convolutions moved unless ``std`` is 0."""
    torch.manual_seed(seed)
    given = {"conditioning_channels": 3, "conditioning_embedding_out_channels": (4, 8), **options}
    net = diffusers.ControlNetModel.from_unet(base, **given)
    zeros = (*net.controlnet_down_blocks, net.controlnet_mid_block)
    for last in (*zeros, net.controlnet_cond_embedding.conv_out) if std else ():
        nn.init.normal_(last.weight, std=std)
    return net


def models(**controls):
    """(the model of the base alone, the same base with ControlNets)."""
    base = tiny.unet()
    alone = sd.from_diffusers(copy.deepcopy(base), SCHEDULER)
    made = {name: controlnet(base, **given) for name, given in controls.items()}
    return alone, sd.from_diffusers(base, SCHEDULER, controls=made)


# -- the network -----------------------------------------------------------------------------------


def test_at_the_start_it_is_the_base_to_the_bit():
    alone, model = models(edges={"std": 0.0})
    wanted = alone.noise(X, 0.5, **TEXT)
    assert torch.equal(model.noise(X, 0.5, **TEXT, edges=IMAGE), wanted)
    given = {"steps": 4, "seed": 0}
    found = sd.sample(model, (2, 4, 8, 8), condition={**TEXT, "edges": IMAGE}, **given)
    assert torch.equal(found.x, sd.sample(alone, (2, 4, 8, 8), condition=TEXT, **given).x)


def test_residuals_are_scaled_and_added():
    """Two ControlNets: h + s_1 r_1 + s_2 r_2, each sample with scales of its own, by hand."""
    _, model = models(edges={}, depth={"seed": 2})
    net = model.net
    base, edges, depth = (
        each.network for each in (net.network, net.controls["edges"], net.controls["depth"])
    )
    t = torch.full((2,), 300.0)
    one, two = torch.tensor([0.5, 2.0]), torch.tensor([0.0, -1.0])
    residuals = []
    for control, image, scale in ((edges, IMAGE, one), (depth, OTHER, two)):
        down, mid = control(X, t, STATES, image, return_dict=False)
        residuals.append([r * scale[:, None, None, None] for r in (*down, mid)])
    *down, mid = (a + b for a, b in zip(*residuals, strict=True))
    wanted = base(
        X,
        t,
        STATES,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    ).sample
    found = net(X, t, **TEXT, edges=IMAGE, depth=OTHER, edges_scale=one, depth_scale=two)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert float((found - net(X, t, **TEXT, edges=IMAGE, depth=OTHER)).abs().max()) > 0.01


# -- scale and interval ----------------------------------------------------------------------------


def test_scale_1_is_the_network_and_scale_0_the_base_to_the_bit():
    alone, model = models(edges={})
    plain, base = model.noise(X, 0.5, **TEXT, edges=IMAGE), alone.noise(X, 0.5, **TEXT)
    assert torch.equal(Control(model, 1.0, "edges").noise(X, 0.5, **TEXT, edges=IMAGE), plain)
    assert torch.equal(Control(model, 0.0, "edges").noise(X, 0.5, **TEXT, edges=IMAGE), base)
    each = torch.tensor([0.0, 1.0])
    found = Control(model, each, "edges").noise(X, 0.5, **TEXT, edges=IMAGE)
    torch.testing.assert_close(found, torch.stack([base[0], plain[1]]), rtol=0, atol=1e-6)
    wanted = model.noise(X, 0.5, **TEXT, edges=IMAGE, edges_scale=0.25)
    found = Control(model, lambda t: t / 2, "edges").noise(X, 0.5, **TEXT, edges=IMAGE)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    found = Control(model, 0.5, "edges").noise(X, 0.5, **TEXT, edges=IMAGE, edges_scale=0.5)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_an_interval_ends_at_breaks_beyond_which_the_base_is_alone():
    alone, model = models(edges={})
    control = Control(model, 1.0, "edges", (-2.0, 2.0))
    late, early = control.breaks
    levels = model.sde.log_snr(torch.tensor([early, late], dtype=torch.float64))
    torch.testing.assert_close(levels, torch.tensor([-2.0, 2.0]).double(), rtol=0, atol=1e-6)
    for t, inside in ((late / 2, False), ((late + early) / 2, True), (early + 0.1, False)):
        found = control.noise(X, t, **TEXT, edges=IMAGE)
        wanted = model.noise(X, t, **TEXT, edges=IMAGE) if inside else alone.noise(X, t, **TEXT)
        assert torch.equal(found, wanted)
    times = []
    condition = {**TEXT, "edges": IMAGE}
    note = lambda snapshot: times.append(float(snapshot.t))  # noqa: E731
    sd.sample(control, (2, 4, 8, 8), steps=8, seed=0, condition=condition, callback=note)
    assert {round(each, 6) for each in control.breaks} <= {round(each, 6) for each in times}


def test_each_of_several_has_its_own_scale_and_interval():
    _, model = models(edges={}, depth={"seed": 2})
    both = Control(Control(model, 0.5, "edges"), 2.0, "depth", (-3.0, 3.0))
    assert len(both.breaks) == 2
    given = {**TEXT, "edges": IMAGE, "depth": OTHER}
    found = both.noise(X, 0.3, **given)
    wanted = model.noise(X, 0.3, **given, edges_scale=0.5, depth_scale=2.0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    found = both.noise(X, 0.9, **given)
    wanted = model.noise(X, 0.9, **given, edges_scale=0.5, depth_scale=0.0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


# -- pipelines -------------------------------------------------------------------------------------


def pipeline(several=False):
    base = tiny.unet()
    nets = [controlnet(base, seed) for seed in ((1, 2) if several else (1,))]
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionControlNetPipeline(
        unet=base,
        vae=tiny.vae(),
        scheduler=SCHEDULER,
        controlnet=nets if several else nets[0],
        **parts,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def result(pipe, image, scale, **options):
    given = tiny.embeds(8) | tiny.SIZE | {"image": image, "controlnet_conditioning_scale": scale}
    steps = {"num_inference_steps": 5, "output_type": "latent", "generator": tiny.generator()}
    return pipe(**given, **steps, guidance_scale=3.0, **options).images


def assert_solves(model, wanted, null, **condition):
    """Our DDIM steps from the same noise, to 1e-5 of the largest entry."""
    ours, embeds = Scheduler.from_config(SCHEDULER.config), tiny.embeds(8)
    ours.set_timesteps(5)
    none = {"encoder_hidden_states": embeds["negative_prompt_embeds"][0], **null}
    out = sd.sample(
        ClassifierFree(model, 3.0, none),
        (1, 4, 8, 8),
        solver=sd.DDIM(),
        grid=ours.times,
        x_init=torch.randn(1, 4, 8, 8, generator=tiny.generator()),
        condition={"encoder_hidden_states": embeds["prompt_embeds"], **condition},
    )
    assert out.nfe.tolist() == [10]
    size = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(out.x / size, wanted / size, rtol=0, atol=1e-5)


def test_a_pipelines_result_with_both_predictions_controlled():
    pipe = pipeline()
    wanted = result(pipe, IMAGE[:1], 0.7)
    assert_solves(Control(sd.from_diffusers(pipe), 0.7), wanted, {}, control=IMAGE[:1])
    other = result(pipe, OTHER[:1], 0.7)
    assert float((wanted - other).abs().max()) > 1e-2  # the control says something


def test_a_pipelines_result_in_guess_mode_where_one_prediction_is_controlled():
    pipe = pipeline()
    wanted = result(pipe, IMAGE[:1], 0.7, guess_mode=True)
    guess = partial(pipe.controlnet, guess_mode=True)
    model = Control(sd.from_diffusers(pipe, controls={"edges": guess}), 0.7, "edges")
    condition = {"edges": IMAGE[:1], "edges_scale": 1.0}
    assert_solves(model, wanted, {"edges_scale": 0.0}, **condition)


def test_a_pipelines_result_with_two_controlnets():
    pipe = pipeline(several=True)
    wanted = result(pipe, [IMAGE[:1], OTHER[:1]], [0.7, 0.4])
    model = Control(Control(sd.from_diffusers(pipe), 0.7, "control_0"), 0.4, "control_1")
    assert_solves(model, wanted, {}, control_0=IMAGE[:1], control_1=OTHER[:1])


def test_a_saved_pipeline_has_its_controlnet(tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    model, given = sd.from_diffusers(tmp_path / "pipe"), {**TEXT, "control": IMAGE}
    wanted = sd.from_diffusers(pipe).noise(X, 0.5, **given)
    assert torch.equal(model.noise(X, 0.5, **given), wanted)


# -- training --------------------------------------------------------------------------------------

WORDS = Tokenizer.of(["a seven", "a two"])


def captioned():
    """A base for images (1, 8, 8) with a text encoder."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=2,
    )
    return unet, TextEncoder(WORDS.vocabulary, WORDS.length, 8, 1)


def controlled():
    unet, encoder = captioned()
    own = controlnet(
        unet, std=0.0, conditioning_channels=1, conditioning_embedding_out_channels=(4,)
    )
    return Captioned(Controlled(unet, {"edges": own}), encoder.requires_grad_(False))


@pytest.mark.thin(0)
def test_the_controlnet_alone_is_trained_saved_and_loaded(tmp_path):
    """The base and its encoder are what they were, to the bit; they have no gradients, and no state
    of the optimizer.
    """
    net, data = controlled(), torch.randn(8, 1, 8, 8)
    model = sd.ScoreModel(net, sd.VP(), time=Timesteps(1000), null={"text": WORDS.null})
    before = copy.deepcopy(net.state_dict())
    condition = {"text": WORDS(["a seven", "a two"] * 4), "edges": data.abs()}
    given = {"steps": 3, "batch_size": 8, "drop": 0.5}
    trained = sd.fit(model, data, condition=condition, out=tmp_path / "run", **given)
    after = trained.net.state_dict()
    own = {name for name in after if name.startswith("net.controls.")}
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - own)
    assert sum(not torch.equal(after[name], before[name]) for name in own) > len(own) / 2
    frozen = [p for name, p in net.named_parameters() if name not in own]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    kept = sd.checkpoint.read_run(
        tmp_path / "run", "training.safetensors", sd.checkpoint.read_config(tmp_path / "run")
    )[0]
    learned = {name.split(".")[1] for name in kept if name.startswith("optimizer.")}
    assert len(learned) == len([p for name, p in net.named_parameters() if name in own])
    loaded = sd.load(tmp_path / "run", net=controlled())
    few = {name: value[:2] for name, value in condition.items()}
    assert torch.equal(loaded.noise(data[:2], 0.5, **few), trained.noise(data[:2], 0.5, **few))


def test_the_base_stays_in_evaluation_mode():
    net = controlled().train()
    assert net.net.controls["edges"].training
    assert not net.net.network.training


# -- what does not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"block_out_channels": (4, 16)}, r"block_out_channels = \(4, 16\), not \(4, 8\)"),
        ({"in_channels": 3}, "in_channels = 3, not 4"),
        ({"layers_per_block": 2}, "layers_per_block = 2, not 1"),
        ({"cross_attention_dim": 6}, "cross_attention_dim = 6, not 8"),
    ],
)
def test_a_controlnet_of_another_base_is_named(changed, match):
    base = tiny.unet()
    config = {key: value for key, value in base.config.items() if key[0] != "_"} | changed
    other = diffusers.UNet2DConditionModel(**config)
    with pytest.raises(ValueError, match=f"'edges' is made for another network.*{match}"):
        Controlled(base, {"edges": controlnet(other)})


@pytest.mark.thin(0)
def test_what_is_no_controlnet_is_named():
    base = tiny.unet()
    with pytest.raises(TypeError, match="no argument 'controlnet_cond'"):
        Controlled(base, {"edges": base})
    with pytest.raises(TypeError, match="by the names of their images"):
        Controlled(base, controlnet(base))
    with pytest.raises(ValueError, match="name of a condition"):
        Controlled(base, {"my edges": controlnet(base)})
    with pytest.raises(TypeError, match="takes no residuals"):
        Controlled(diffusers.UNet2DModel(norm_num_groups=4), {"edges": controlnet(base)})


def calls_of(network):
    calls = []
    network.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (IMAGE[:, :1], r"'edges' must be an image of shape \(B, 3, 16, 16\).*\(2, 1, 16, 16\)"),
        (IMAGE[..., :8], r"\(B, 3, 16, 16\) for states of shape \(4, 8, 8\)"),
        (IMAGE[0], "leading dimension"),
        (None, "lacks 'edges'"),
    ],
)
def test_an_image_that_does_not_fit_is_named_before_any_network_is_called(image, match):
    _, model = models(edges={})
    calls = calls_of(model.net.network) + calls_of(model.net.controls["edges"])
    condition = TEXT if image is None else {**TEXT, "edges": image}
    with pytest.raises(ValueError, match=match):
        sd.sample(model, (2, 4, 8, 8), steps=2, condition=condition)
    with pytest.raises(ValueError, match=match):
        model.noise(X, 0.5, **condition)
    assert not calls


def test_an_image_that_does_not_fit_is_named_before_training(tmp_path):
    model = sd.ScoreModel(controlled(), sd.VP(), time=Timesteps(1000))
    condition = {"text": WORDS(["a two"] * 4), "edges": torch.randn(4, 1, 16, 16)}
    with pytest.raises(ValueError, match=r"'edges' must be an image of shape \(B, 1, 8, 8\)"):
        sd.fit(model, torch.randn(4, 1, 8, 8), condition=condition, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_call_without_the_image_is_named_by_the_operator():
    _, model = models(edges={})
    with pytest.raises(ValueError, match=r"no condition 'edge'.*did you mean.*edges"):
        Control(model, 1.0, "edge").noise(X, 0.5, **TEXT, edges=IMAGE)

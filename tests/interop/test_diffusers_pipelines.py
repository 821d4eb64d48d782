"""Tiny pipelines of diffusers, built from configurations without a download, with our solvers."""

from __future__ import annotations

import pytest
import torch

import sdediff as sd

diffusers = pytest.importorskip("diffusers", reason='needs pip install "sdediff[diffusers]"')
pytest.importorskip("transformers", reason="pipelines need transformers")

from tiny_pipelines import generator, normal, pipeline  # noqa: E402

from sdediff.interop.diffusers import Scheduler  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.uses_global_rng,  # networks are initialised from it
    pytest.mark.filterwarnings("ignore"),  # diffusers and transformers warn of much
]

SOLVERS = [
    sd.Heun(),
    sd.solvers.UniPC(3, startup="published"),
    sd.solvers.RungeKutta4(variable="angle"),
    sd.solvers.Ancestral(),
    sd.solvers.SDEDPMSolverPP(2),
    sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin()),
]
STEPS = 5

NAMES = ("SD", "SD image to image", "SD inpainting", "SDXL", "SD3", "Flux", "Stable Video")


def result(pipe, given, steps=STEPS, seed=3, **more):
    kind = "pt" if "Prior" in type(pipe).__name__ else "latent"
    torch.manual_seed(seed)  # SD3, Flux and Stable Video do not hand the generator to the scheduler
    out = pipe(
        **given,
        **more,
        num_inference_steps=steps,
        generator=generator(seed),
        output_type=kind,
        return_dict=False,
    )[0]
    assert bool(torch.isfinite(out).all())
    return out


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("name", [*NAMES, "unCLIP prior"])
def test_pipelines_run_with_our_solvers(name, solver, tmp_path):
    """As often as the scheduler lists, the same for the same generator."""
    pipe, given = pipeline(name, tmp_path)
    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, solver=solver)
    first = result(pipe, given)
    assert pipe.scheduler.step_index == len(pipe.scheduler.timesteps)
    assert torch.equal(result(pipe, given), first)
    assert not torch.equal(result(pipe, given, seed=4), first)


@pytest.mark.parametrize("name", NAMES)
def test_our_ddim_is_the_pipelines_own_scheduler(name, tmp_path):
    """DDIM, Euler under sigma / alpha and Euler under rectified flow are one method."""
    pipe, given = pipeline(name, tmp_path)
    wanted = result(pipe, given)
    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, solver=sd.DDIM())
    torch.testing.assert_close(result(pipe, given), wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_pipeline_is_sample_to_the_bit(solver, tmp_path):
    """Stable Diffusion with guidance, against `sample` on its U-Net."""
    pipe, given = pipeline("SD", tmp_path)
    scheduler = pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, solver=solver)
    start = normal(1, 4, 8, 8)
    found = result(pipe, given, latents=start)
    both = torch.cat([given["negative_prompt_embeds"], given["prompt_embeds"]])

    def guided(x, t):
        out = pipe.unet(torch.cat([x, x]), t[0], encoder_hidden_states=both).sample
        plain, told = out.chunk(2)
        return plain + 3.0 * (told - plain)

    schedule = scheduler._schedule
    model = sd.ScoreModel(guided, schedule.sde, schedule.predicts, time=schedule.time)
    seed = int(torch.randint(2**62, (1,), generator=generator()))
    with torch.no_grad():
        out = sd.sample(
            model,
            start.shape,
            solver=solver,
            grid=scheduler.times,
            x_init=start,
            seed=seed,
            last="denoise",
        )
    assert torch.equal(found, out.x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_pipeline_in_half_precision(dtype, tmp_path):
    pipe, given = pipeline("SD", tmp_path)
    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, solver=SOLVERS[1])
    wanted = result(pipe, given, latents=normal(1, 4, 8, 8))
    pipe.to(dtype)
    half = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    found = result(pipe, half, latents=normal(1, 4, 8, 8).to(dtype))
    assert found.dtype == dtype
    assert float((found.float() - wanted).abs().mean()) < 0.05 * float(wanted.abs().mean())


def test_a_pipeline_is_saved_with_its_solver_and_loaded(tmp_path):
    pipe, given = pipeline("SD", tmp_path)
    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, solver=SOLVERS[1], grid="log_snr")
    pipe.save_pretrained(tmp_path / "pipe")
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "pipe", **absent)
    again.set_progress_bar_config(disable=True)
    assert again.scheduler._solver == SOLVERS[1]
    assert torch.equal(result(again, given), result(pipe, given))

"""Tiny pipelines of diffusers, built from configurations without a download."""

from __future__ import annotations

import json

import diffusers
import torch
import transformers


def normal(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def unet(in_channels=4, **options):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=2,
        **options,
    )


def vae(channels=4, **options):
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        **options,
    )


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

SIZE = {"height": 16, "width": 16}


def embeds(width, *, pooled=0, negative=True):
    """Embeddings of a prompt, those of a negative one beside them."""
    shapes = {"prompt_embeds": (1, 6, width)}
    if pooled:
        shapes["pooled_prompt_embeds"] = (1, pooled)
    given = {name: normal(*shape) for name, shape in shapes.items()}
    if negative:
        given |= {f"negative_{name}": normal(*shape, seed=8) for name, shape in shapes.items()}
    return given


def stable_diffusion(kind):
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    given = embeds(8) | {"guidance_scale": 3.0}
    image, mask = normal(1, 3, 16, 16).clamp(-1, 1) / 2 + 0.5, torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    if kind == "StableDiffusionPipeline":
        given |= SIZE
    else:
        given |= {"image": image, "strength": 0.6}
    if kind == "StableDiffusionInpaintPipeline":
        given |= {"mask_image": mask, **SIZE}
    make = getattr(diffusers, kind)
    return make(
        unet=unet(), vae=vae(), scheduler=scheduler, **parts, requires_safety_checker=False
    ), given


def stable_diffusion_xl():
    net = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        **BETAS, steps_offset=1, timestep_spacing="leading"
    )
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = diffusers.StableDiffusionXLPipeline(unet=net, vae=vae(), scheduler=scheduler, **parts)
    return pipe, embeds(8, pooled=8) | SIZE


def stable_diffusion_3():
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
    )
    parts = [f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")]
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=net,
        vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **dict.fromkeys(parts),
    )
    return pipe, embeds(16, pooled=16) | SIZE


def flux():
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = diffusers.FluxPipeline(
        transformer=net,
        vae=vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        **parts,
    )
    return pipe, embeds(16, pooled=16, negative=False) | SIZE


def unclip_prior(folder):
    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", "h", "o", "r", "s", "e</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8
    )
    text = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        projection_dim=8,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    prior = diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        embedding_dim=8,
        num_layers=1,
        num_embeddings=8,
    )
    prior.clip_std.data.fill_(1.0)
    pipe = diffusers.KandinskyV22PriorPipeline(
        prior=prior,
        image_encoder=vision(),
        text_encoder=transformers.CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        scheduler=diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0),
        image_processor=transformers.CLIPImageProcessor(crop_size=16, size=16),
    )
    return pipe, {"prompt": "horse", "guidance_scale": 3.0}


def vision():
    torch.manual_seed(0)
    return transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=8,
            projection_dim=8,
            intermediate_size=8,
            num_attention_heads=2,
            num_hidden_layers=1,
            image_size=16,
            patch_size=4,
        )
    )


def stable_video():
    torch.manual_seed(0)
    net = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8,
        num_attention_heads=2,
        projection_class_embeddings_input_dim=24,
        addition_time_embed_dim=8,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        **BETAS,
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    pipe = diffusers.StableVideoDiffusionPipeline(
        unet=net,
        vae=diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            latent_channels=4,
        ),
        image_encoder=vision(),
        feature_extractor=transformers.CLIPImageProcessor(crop_size=16, size=16),
        scheduler=scheduler,
    )
    return pipe, {
        "image": normal(1, 3, 16, 16).clamp(0, 1),
        "num_frames": 2,
        **SIZE,
    }


def pipeline(name, folder):
    made = {
        "SD": lambda: stable_diffusion("StableDiffusionPipeline"),
        "SD image to image": lambda: stable_diffusion("StableDiffusionImg2ImgPipeline"),
        "SD inpainting": lambda: stable_diffusion("StableDiffusionInpaintPipeline"),
        "SDXL": stable_diffusion_xl,
        "SD3": stable_diffusion_3,
        "Flux": flux,
        "unCLIP prior": lambda: unclip_prior(folder),
        "Stable Video": stable_video,
    }
    pipe, given = made[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, given

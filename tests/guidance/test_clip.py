"""CLIP guidance end to end with a tiny model from a configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdediff as sd
from sdediff.guidance import Loss, clip_loss

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.uses_global_rng  # by building and loading networks
WORDS = ["<|startoftext|>", "<|endoftext|>", *"abcdefgh", *(f"{each}</w>" for each in "abcdefgh")]
DRAW = torch.Generator().manual_seed(0)
IMAGES = torch.rand(3, 3, 16, 16, generator=DRAW) * 2 - 1


def tiny() -> Any:
    """A CLIP of 16 x 16 images with random weights."""
    own = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.CLIPConfig(
        text_config={**own, "num_attention_heads": 2, "vocab_size": len(WORDS), "eos_token_id": 1},
        vision_config={**own, "num_attention_heads": 2, "image_size": 16, "patch_size": 4},
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.CLIPModel(config)


def tokenizer() -> Any:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[])


@pytest.fixture(scope="module")
def clip() -> Any:
    return tiny()


def test_a_name_loads_the_model_and_its_tokenizer(clip: Any, tmp_path: Any) -> None:
    """The documented call, from a folder; the loss is that of transformers' own call on one
    cut-out that is the whole image.
    """
    clip.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loss = clip_loss(str(tmp_path), text="abe", cuts=1, least=1.0)
    processor = transformers.CLIPImageProcessor(
        do_resize=False, do_center_crop=False, do_rescale=False
    )
    pixels = processor(images=list((IMAGES + 1) / 2), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = clip(**tokenizer()("abe", return_tensors="pt"), pixel_values=pixels)
        cosine = found.logits_per_image[:, 0] / clip.logit_scale.exp()
        torch.testing.assert_close(loss(IMAGES), 1 - cosine, rtol=0, atol=1e-5)


def test_samples_are_led_to_the_target_by_any_solver(clip: Any) -> None:
    """The mean loss falls with the scale, of samples of white data; their target is an image."""
    loss = clip_loss(clip, image=IMAGES[0], cuts=4)
    model = sd.exact.Gaussian(torch.zeros(3, 16, 16), 0.3).model(sd.VP())
    given: Any = {"solver": sd.DDIM(), "steps": 5, "seed": 0}
    ends = []
    for scale in (0.0, 200.0):
        out = sd.sample(Loss(model, loss, scale, gradient="data"), (2, 3, 16, 16), **given)
        with torch.no_grad():
            ends.append(float(loss(out.x).mean()))
    assert ends[1] < 0.5 * ends[0]
    assert not loss.training
    through = Loss(model, clip_loss(clip, text="abe", tokenizer=tokenizer(), cuts=2), 5.0)
    for solver, steps in ((sd.solvers.Recurrence(sd.DDIM()), 2), (sd.RK45(1e-1, 1e-1), None)):
        out = sd.sample(through, (2, 3, 16, 16), solver=solver, steps=steps, seed=0)
        assert bool(torch.isfinite(out.x).all())
        assert out.backward is not None
        assert out.backward.tolist() == out.nfe.tolist()


def test_the_cut_outs_of_a_sample_depend_on_its_seed_alone(clip: Any) -> None:
    loss = clip_loss(clip, image=IMAGES[0], cuts=3)
    seed = torch.tensor([5, 6, 5])
    with torch.no_grad():
        whole, part = loss(IMAGES, seed), loss(IMAGES[1:], seed[1:])
        torch.testing.assert_close(part, whole[1:], rtol=0, atol=1e-6)
        torch.testing.assert_close(loss(IMAGES, seed * 0), loss(IMAGES), rtol=0, atol=1e-6)
        assert bool((loss(IMAGES, seed + 1) - whole).abs().min() > 1e-6)
    model = sd.exact.Gaussian(torch.zeros(3, 16, 16), 0.3).model(sd.VP())
    guided = Loss(model, loss, 5.0, gradient="data")
    given: Any = {"solver": sd.DDIM(), "steps": 3}
    out = sd.sample(guided, (3, 3, 16, 16), seed=[1, 2, 3], condition={"seed": seed}, **given)
    one = sd.sample(guided, (1, 3, 16, 16), seed=[2], condition={"seed": seed[1:2]}, **given)
    torch.testing.assert_close(one.x, out.x[1:2], rtol=0, atol=1e-4)


def test_cut_outs_are_squares_inside_the_image(clip: Any) -> None:
    """Of an image that is its own coordinates: the corners of each cut-out are those of a square
    of the sizes allowed, in one channel or three.
    """
    loss = clip_loss(clip, image=IMAGES[0], cuts=50, least=0.25, low=0.0)
    y, x = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    found = loss.cut(loss.checked(torch.stack([x, y, y])[None] / 40), None) * 40
    width, height = (
        found[:, 0, 0, -1] - found[:, 0, 0, 0],
        found[:, 1, -1, 0] - found[:, 1, 0, 0],
    )
    torch.testing.assert_close(width, height, rtol=0, atol=0.3)
    side = width * 16 / 15
    assert 0.25 * 24 - 0.5 <= float(side.min()) < 9
    assert 20 < float(side.max()) <= 24.5
    assert loss(torch.zeros(2, 1, 8, 8)).shape == (2,)


def test_bad_input_says_what_is_wrong(clip: Any) -> None:
    with pytest.raises(ValueError, match="give one target"):
        clip_loss(clip)
    with pytest.raises(ValueError, match="give one target"):
        clip_loss(clip, text="a", image=IMAGES[0])
    with pytest.raises(TypeError, match="a text needs the model's tokenizer"):
        clip_loss(clip, text="a")
    with pytest.raises(TypeError, match=r"must be a transformers\.CLIPModel"):
        clip_loss(torch.nn.Linear(2, 2), image=IMAGES[0])
    with pytest.raises(ValueError, match=r"images \(B, C, H, W\) of 1 or 3 channels"):
        clip_loss(clip, image=IMAGES[0])(torch.zeros(2, 5, 8, 8))
    for wrong in ({"cuts": 0}, {"least": 1.5}, {"low": 1.0}):
        with pytest.raises(ValueError, match="clip_loss"):
            clip_loss(clip, image=IMAGES[0], **wrong)  # type: ignore[arg-type]

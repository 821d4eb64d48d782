"""Texts as conditions: numbers of words, vectors, the null text, and captions of digits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sdediff as sd
from sdediff.captions import Captions, slant, stroke_width
from sdediff.guidance import ClassifierFree
from sdediff.networks import Captioned, TextEncoder, Tokenizer

pytestmark = [
    pytest.mark.uses_global_rng,  # networks are initialised from it
]
TEXTS = ["a thin seven", "a thick slanted two", ""]
WORDS = Tokenizer.of(TEXTS)


class Attending(nn.Module):
    """A network with the arguments of diffusers' that adds the mean of what it attends to."""

    def __init__(self, width=4):
        super().__init__()
        self.last = nn.Linear(width, 2)

    def forward(
        self, sample, timestep, encoder_hidden_states, encoder_attention_mask=None, shift=None
    ):
        kept = torch.ones(encoder_hidden_states.shape[:2])
        kept = kept if encoder_attention_mask is None else encoder_attention_mask.to(kept)
        mean = (encoder_hidden_states * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        out = sample * timestep[:, None] + self.last(mean)
        return out if shift is None else out + shift


def captioned(encoder=None):
    torch.manual_seed(0)
    return Captioned(Attending(), encoder or TextEncoder(WORDS.vocabulary, WORDS.length, 4, 1, 2))


def model_of(net, null=None):
    return sd.ScoreModel(net, sd.VP(), "noise", null={"text": WORDS.null} if null is None else null)


# -- words to numbers ------------------------------------------------------------------------------


def test_a_text_is_its_words_after_a_beginning():
    assert WORDS.words == ("a", "seven", "slanted", "thick", "thin", "two")
    assert WORDS(TEXTS).tolist() == [[1, 2, 6, 3, 0], [1, 2, 5, 4, 7], [1, 0, 0, 0, 0]]
    assert torch.equal(WORDS("A  THIN seven"), WORDS(TEXTS[:1]))
    assert torch.equal(WORDS.null, WORDS([""])[0])
    assert WORDS([]).shape == (0, 5)
    assert WORDS.vocabulary == 8
    assert Tokenizer.of("a thin seven") == Tokenizer.of(["a thin seven"])


@pytest.mark.parametrize(
    ("text", "match"),
    [("a thinn seven", "'thinn'.*did you mean.*thin"), ("a a a a a", "5 words.*takes 4")],
)
def test_a_text_that_is_none_is_named(text, match):
    with pytest.raises(ValueError, match=match):
        WORDS(["a", text])


def test_what_is_no_text_is_named():
    for takes in (WORDS, Tokenizer.of):
        with pytest.raises(TypeError, match="takes texts; got 3, int"):
            takes(["a", 3])


@pytest.mark.parametrize(
    ("words", "length", "match"), [(("a", "a"), 3, "twice"), (("a",), 0, "of its own")]
)
def test_a_tokenizer_that_is_none_is_named(words, length, match):
    with pytest.raises(ValueError, match=match):
        Tokenizer(words, length)


# -- texts as conditions ---------------------------------------------------------------------------


def test_numbers_vectors_and_a_mask_are_one_condition():
    """Numbers go through the encoder, vectors go in as they are, and a mask to both."""
    net, x, t = captioned(), torch.randn(3, 2), torch.full((3,), 0.4)
    model, ids = model_of(net), WORDS(TEXTS)
    vectors = net.encoder(ids)
    by_numbers = model.noise(x, 0.4, text=ids)
    assert torch.equal(by_numbers, model.noise(x, 0.4, text=vectors))
    assert torch.equal(by_numbers, net.net(x, t, vectors))
    mask = ids != 0
    wanted = net.net(x, t, vectors, encoder_attention_mask=mask)
    assert torch.equal(model.noise(x, 0.4, text=vectors, text_mask=mask), wanted)
    assert not torch.equal(wanted, by_numbers)
    shift = torch.ones(3, 2)
    assert torch.equal(model.noise(x, 0.4, text=ids, shift=shift), by_numbers + shift)


def test_the_text_model_of_transformers_is_an_encoder():
    transformers = pytest.importorskip("transformers", reason='needs pip install "sdediff[clip]"')
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=WORDS.vocabulary,
        hidden_size=4,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=8,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    clip = transformers.CLIPTextModel(config)
    net, ids = captioned(clip), WORDS(TEXTS)
    mask = ids != 0
    x = torch.randn(3, 2)
    states = clip(input_ids=ids, attention_mask=mask).last_hidden_state
    wanted = net.net(x, torch.full((3,), 0.4), states, encoder_attention_mask=mask)
    assert torch.equal(model_of(net).noise(x, 0.4, text=ids, text_mask=mask), wanted)
    with pytest.raises(ValueError, match=r"token 9.*knows 0 to 7"):
        sd.sample(model_of(net), (1, 2), steps=2, condition={"text": torch.full((1, 5), 9)})


class Spy:
    """The noise loss, and the texts that it saw."""

    def __init__(self):
        self.texts = []

    def __call__(self, model, x_0, condition=None):
        self.texts.append(condition["text"].clone())
        return sd.DenoisingScoreMatching()(model, x_0, condition)


def test_encoder_and_network_are_trained_dropped_saved_and_loaded(tmp_path):
    """`fit` trains the encoder with the network by the noise loss, drops a share of the texts, and
    a run folder has both.
    """
    data, ids = torch.randn(40, 2), WORDS(TEXTS[:2]).repeat(20, 1)
    model, spy = model_of(captioned()), Spy()
    before = copy.deepcopy(model.net.state_dict())
    given = {"condition": {"text": ids}, "steps": 25, "batch_size": 40, "lr": 1e-2}
    trained = sd.fit(model, data, loss=spy, drop=0.3, out=tmp_path / "run", **given)
    after = trained.net.state_dict()
    assert {name.split(".")[0] for name in after} == {"net", "encoder"}
    assert not any(torch.equal(after[name], before[name]) for name in after if "bias" not in name)
    nulls = torch.cat(spy.texts).eq(WORDS.null).all(dim=1)
    assert 230 < int(nulls.sum()) < 370  # of 1000; 300 +- 4.8 standard deviations
    fresh = captioned()
    loaded = sd.load(tmp_path / "run", net=fresh)
    assert torch.equal(loaded.null["text"], WORDS.null)
    x, given = torch.randn(3, 2), {"text": WORDS(TEXTS)}
    assert torch.equal(loaded.noise(x, 0.5, **given), trained.noise(x, 0.5, **given))


def test_latent_diffusions_loss_is_the_default_loss():
    """E |noise - net(alpha x_0 + sigma noise, t, encoder(text))|^2 (Rombach et al. 2022, eq. 3)."""
    net, x_0, noise = captioned(), torch.randn(3, 2), torch.randn(3, 2)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    model, ids = model_of(net), WORDS(TEXTS)
    found = sd.DenoisingScoreMatching()(model, x_0, {"text": ids}, t=t, noise=noise)
    alpha, sigma = model.sde.alpha(t)[:, None].float(), model.sde.sigma(t)[:, None].float()
    predicted = net.net(alpha * x_0 + sigma * noise, t.float(), net.encoder(ids))
    wanted = ((predicted - noise) ** 2).mean(dim=1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_guidance_leads_from_the_null_text():
    model, x = model_of(captioned()), torch.randn(3, 2)
    own, none = (model.noise(x, 0.5, text=ids) for ids in (WORDS(TEXTS), WORDS([""] * 3)))
    found = ClassifierFree(model, 3.0).noise(x, 0.5, text=WORDS(TEXTS))
    torch.testing.assert_close(found, none + 3 * (own - none), rtol=1e-4, atol=1e-5)


# -- what is no text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mask", "match"),
    [
        (torch.zeros(2, 0, dtype=torch.int64), None, "no token to attend to"),
        (torch.ones(2, 3, dtype=torch.int64), torch.tensor([[1, 1, 0], [0, 0, 0]]), "no token to"),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 4), "text_mask must be of shape"),
        (torch.ones(2, dtype=torch.int64), None, "numbers of tokens"),
        (torch.ones(2, 3), None, "vectors"),
        (torch.full((2, 3), -1), None, "token -1"),
    ],
)
def test_a_text_that_is_no_condition_is_named_before_sampling(text, mask, match):
    condition = {"text": text} | ({} if mask is None else {"text_mask": mask})
    with pytest.raises((ValueError, TypeError), match=match):
        sd.sample(model_of(captioned()), (2, 2), steps=2, condition=condition)


@pytest.mark.parametrize(
    ("null", "match"),
    [
        (torch.zeros(0, dtype=torch.int64), r"null has 'text' of shape \(0,\)"),
        (torch.zeros(3, dtype=torch.int64), r"null has 'text' of shape \(3,\).*\(5,\)"),
        (torch.full((5,), 40), "null does not do.*token 40"),
    ],
)
def test_a_tokenizer_without_the_null_text_is_named_before_training(null, match, tmp_path):
    model = model_of(captioned(), {"text": null})
    given = {"condition": {"text": WORDS(TEXTS)}, "steps": 2, "drop": 0.1}
    with pytest.raises(ValueError, match=match):
        sd.fit(model, torch.randn(3, 2), out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_null_text_is_told_to_name_one(tmp_path):
    model = sd.ScoreModel(captioned(), sd.VP())
    with pytest.raises(ValueError, match="drop needs to know"):
        sd.fit(
            model,
            torch.randn(3, 2),
            condition={"text": WORDS(TEXTS)},
            drop=0.1,
            out=tmp_path / "run",
        )


def test_a_masked_null_text_without_a_token_is_named(tmp_path):
    """As a tokenizer without special tokens makes it: numbers to fill up with, and a mask of 0."""
    ids = WORDS(TEXTS[:2])
    null = {"text": torch.zeros(5, dtype=torch.int64), "text_mask": torch.zeros(5)}
    model = model_of(captioned(), null)
    condition = {"text": ids, "text_mask": (ids != 0).float()}
    with pytest.raises(ValueError, match=r"null does not do.*no token to attend to"):
        sd.fit(model, torch.randn(2, 2), condition=condition, drop=0.1, out=tmp_path / "run")


# -- captions --------------------------------------------------------------------------------------


def bar(width, lean, length=36.0, side=64):
    """A bar of known width and slant, its edges smooth over a pixel: its middle line is j = j' -
    lean (i - i').
    """
    i, j = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    i, j = i - (side - 1) / 2, j - (side - 1) / 2
    across = (j + lean * i) / (1 + lean**2) ** 0.5  # distance from the middle line
    ink = (0.5 + width / 2 - across.abs()).clamp(0, 1) * (0.5 + length / 2 - i.abs()).clamp(0, 1)
    return (2 * ink - 1)[None, None]


@pytest.mark.parametrize("width", [2.0, 3.5, 6.0])
@pytest.mark.parametrize("lean", [-0.5, 0.0, 0.3])
def test_a_bar_has_its_width_and_slant(width, lean):
    """Of a stroke of length l the ends take away a share w / l, as the docstring says."""
    x = bar(width, lean)
    along = 36.0 * (1 + lean**2) ** 0.5
    wanted = width / (1 + width / along)
    assert float(stroke_width(x)) == pytest.approx(wanted, rel=0.05)
    assert float(slant(x)) == pytest.approx(lean, abs=1e-3)


def test_shear_is_what_slant_measures():
    """Of ink sheared by k columns a row it is k more, to rounding: the second moments say so."""
    v = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sheared = torch.zeros(1, 20, 60, dtype=torch.float64)
    for row in range(20):
        sheared[:, row, 20 + 19 - row : 40 + 19 - row] = v[:, row]
    before, after = (slant(2 * each[:, None] - 1) for each in (v, sheared))
    torch.testing.assert_close(after, before + 1, rtol=0, atol=1e-12)


def test_captions_say_and_are_read():
    x = torch.cat([bar(w, s) for w, s in [(2.0, -0.5), (4.0, 0.0), (7.0, 0.5)]]).float()
    captions = Captions((3.0, 4.5), (-0.2, 0.2))
    texts = captions(x, torch.tensor([7, 1, 0]))
    assert texts == ["a thin backward seven", "a medium upright one", "a thick slanted zero"]
    assert [each.tolist() for each in Captions.read(texts)] == [[0, 1, 2], [0, 1, 2], [7, 1, 0]]
    many = torch.cat([bar(w, 0.1 * w) for w in torch.linspace(1.5, 6, 30).tolist()])
    width, lean = Captions.of(many).kinds(many)
    assert width.bincount().tolist() == lean.bincount().tolist() == [10, 10, 10]


def test_what_is_no_image_has_no_captions():
    with pytest.raises(ValueError, match="images"):
        slant(torch.randn(3, 2))

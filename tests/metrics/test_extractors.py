"""Features from files: which file it has to be, that nothing but tensors is read, and what the
networks are handed.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from sdediff import metrics
from sdediff.metrics import extractors

PUBLISHED = "weights-inception-2015-12-05-6726825d.pth"


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of tensors that are those of no network."""
    file = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(2)}, file)
    return file


def test_a_missing_file_is_named_with_where_it_comes_from() -> None:
    for given in ({"features": "inception"}, {"features": "inception", "weights": "no.pth"}):
        with pytest.raises(ValueError, match=f"{PUBLISHED}, from the release v0.2.0") as error:
            metrics.extractor(**given)
        assert "pass weights=PATH" in str(error.value)
    with pytest.raises(ValueError, match=r"there is no file no.safetensors: expected model.safe"):
        metrics.extractor("no.safetensors")
    with pytest.raises(ValueError, match="did you mean 'inception'"):
        metrics.extractor("incepton")


def test_a_file_is_checked_before_it_is_read(weights: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch, "load", None)
    for given in ({"features": weights}, {"features": "inception", "weights": weights}):
        with pytest.raises(ValueError, match=f"has SHA-256 {digest(weights)}, and 6726825d0af5"):
            metrics.extractor(**given)
        with pytest.raises(ValueError, match=f"and {64 * 'a'} was expected"):
            metrics.extractor(**given, sha256=64 * "a")
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        metrics.extractor(weights, sha256="6726825d")
    with pytest.raises(ValueError, match=f"is {digest(weights)}: compare it with that of its pub"):
        metrics.extractor("dinov2", weights=weights)


def test_the_known_hash_begins_as_the_published_name_ends() -> None:
    """torch.hub's convention: a name ends with the first digits of its file's SHA-256."""
    known = extractors._KNOWN["inception"]
    assert len(known) == 64
    assert PUBLISHED.removesuffix(".pth").endswith(f"-{known[:8]}")


class Harm:
    """A pickle that would write a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def test_nothing_but_tensors_is_read(tmp_path: Path) -> None:
    file, place = tmp_path / "w.pth", tmp_path / "harm"
    torch.save({"a": Harm(place)}, file)
    with pytest.raises(ValueError, match=r"cannot read .* as tensors alone"):
        metrics.extractor(file, sha256=digest(file))
    file.write_bytes(pickle.dumps(Harm(place)))
    with pytest.raises(ValueError, match=r"cannot read .* as tensors alone"):
        metrics.extractor(file, sha256=digest(file))
    assert not place.exists()
    torch.save([torch.zeros(2)], file)
    with pytest.raises(ValueError, match="holds list: expected tensors by name"):
        metrics.extractor(file, sha256=digest(file))


def test_functions_are_features() -> None:
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    made = metrics.extractor(lambda z: z.sum(dim=1), logits=lambda z: z[:, 0])
    features, logits = made.both(x)
    assert torch.equal(features, x.sum(dim=1))
    assert torch.equal(logits, x[:, 0])
    assert metrics.extractor(made) is made
    assert torch.equal(metrics.extractor()(x), x.flatten(1))
    with pytest.raises(ValueError, match="weights go with features"):
        metrics.extractor(lambda z: z, weights="w.pth")
    with pytest.raises(ValueError, match="logits go with a function"):
        metrics.extractor("inception", logits=lambda z: z)
    with pytest.raises(TypeError, match="features must be"):
        metrics.extractor(3)
    with pytest.raises(ValueError, match=r"expected \(5, k\)"):
        metrics.extractor(lambda z: z)(x)


def test_pictures_are_what_published_values_are_for() -> None:
    x = torch.tensor([-1.5, -1.0, -0.999, 0.0, 0.999, 1.0, 2.0]).reshape(1, 1, 1, 7)
    made = extractors._pictures(x)
    assert made.dtype == torch.uint8
    assert made.shape == (1, 3, 1, 7)
    assert made[0, 2, 0].tolist() == [0, 0, 0, 128, 255, 255, 255]
    with pytest.raises(ValueError, match="images"):
        extractors._pictures(torch.zeros(4, 2))


@pytest.mark.slow
@pytest.mark.uses_global_rng  # by building networks
def test_inception_of_a_file_is_the_network_of_torch_fidelity(tmp_path: Path) -> None:
    kind = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Untrained(kind.FeatureExtractorInceptionV3):  # type: ignore[name-defined, misc]
        def load_state_dict(self, *_: Any) -> None:
            """Keep the random weights."""

    file = tmp_path / "w.pth"
    torch.save({}, file)
    layers = ["2048", "logits_unbiased"]
    network = Untrained("untrained", layers, feature_extractor_weights_path=str(file))
    torch.save(network.state_dict(), file)
    made = metrics.extractor("inception", weights=file, sha256=digest(file))
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = ((x + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    for got, expected in zip(made.both(x), network(pictures), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.uses_global_rng  # by building networks
def test_dinov2_of_a_file_is_the_network_of_hugging_face(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity.feature_extractor_dinov2")
    from safetensors.torch import save_file
    from torch.nn.functional import interpolate
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=12, patch_size=14, image_size=518
    )
    network = Dinov2Model(config).eval()
    file = tmp_path / "model.safetensors"
    save_file(network.state_dict(), file)
    made = metrics.extractor(file, sha256=digest(file))
    # pictures of one colour, which all ways to resize leave as they are
    colours = torch.tensor([[0.0, 0.5, 1.0], [-1.0, 0.2, 0.8]])
    x = colours[:, :, None, None].expand(-1, -1, 32, 32)
    levels = ((x + 1) * 127.5).round() / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    with torch.no_grad():
        expected = network(interpolate((levels - mean) / std, size=(224, 224)))
    torch.testing.assert_close(made(x), expected.last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)
    assert made.both(x)[1] is None

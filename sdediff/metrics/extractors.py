"""Networks whose features samples are compared by: torch-fidelity's, with weights from a file that
the user gives. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from sdediff._extras import require
from sdediff.metrics.samples import apply
from sdediff.solvers.given import callback_of, check_name, described

__all__ = ["Extractor", "Features", "extractor", "feature_function"]

Features = Literal["inception", "dinov2"] | Path | str | Callable[[Tensor], Tensor]
"""A network by name, the file of its weights, or a function (B, *event) -> (B, d)."""

_INCEPTION: Final = "weights-inception-2015-12-05-6726825d.pth"
_FILES: Final = {
    "inception": f"{_INCEPTION}, from the release v0.2.0 of torch-fidelity on GitHub "
    "(toshas/torch-fidelity)",
    "dinov2": "model.safetensors of facebook/dinov2-large, from Hugging Face; FD-DINOv2 is "
    "published for that size, and small, base and giant work too",
}
"""What the file is called, and where that name comes from."""
_KNOWN: Final = {"inception": "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"}
"""SHA-256 of published files."""
_LAYERS: Final = {384: 12, 768: 12, 1024: 24, 1536: 40}
"""Layers of DINOv2 by its width."""
_GIANT: Final = 1536
_PATCH: Final = 14


@dataclass(frozen=True, eq=False)
class Extractor:
    """Features of samples, and logits where there is a classifier too.

    ``name``: what reports call it.
    ``both``: a function from samples (B, *event) to features (B, d) and logits (B, K) or None. A
    call of the extractor returns the features alone.
    ``has_logits``: whether there are logits, which the inception score needs.
    """

    name: str
    both: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    has_logits: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        return self.both(x)[0]


def extractor(
    features: Features | None = None,
    *,
    weights: str | Path | None = None,
    sha256: str | None = None,
    logits: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
) -> Extractor:
    """The network by whose features samples are compared.

    ``features``: ``"inception"``, the network of the FID, or ``"dinov2"``, that of FD-DINOv2, both
    from torch-fidelity (extra ``metrics``), with the file ``weights``; or the path of that file
    alone, a ``.safetensors`` being DINOv2's; or a function (B, *event) -> (B, d), a network for
    your own kind of data say; or None, for the values of the samples.
    ``weights``: the file. docs/command-line.md says where it is published.
    ``sha256``: the SHA-256 that the file has to have, 64 hexadecimal digits; by default that of
    torch-fidelity's published file of Inception. Another file needs it.
    ``logits``: a classifier (B, *event) -> (B, K) beside a function, for the inception score.
    ``device``: where the network of a file lies.

    The networks of a file take images (B, C, H, W) of 1 or 3 channels in [-1, 1], which become the
    8-bit pictures that published values are for. ValueError where a file is not given, missing,
    not the one that was meant or not weights, before any code of it could run: its SHA-256 is
    checked first, and it is read as tensors alone. TypeError for features of another kind.
    """
    if features is None or callable(features):
        return _of_functions(features, weights, logits)
    if not isinstance(features, str | Path):
        raise TypeError(
            'features must be "inception", "dinov2", the path of their weights or a function from '
            f"(B, *event) to (B, d), got {described(features)}"
        )
    if logits is not None:
        raise ValueError("logits go with a function as features: the networks here have their own")
    kind, file = _kind(features, weights)
    content = _checked(kind, file, sha256)
    tensors = _tensors(content, file)
    try:
        network = _BUILDERS[kind](tensors)
    except (RuntimeError, KeyError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{file} does not hold the weights of {kind} ({first}): take {_FILES[kind]}"
        ) from error
    network = network.eval().requires_grad_(False).to(device)

    def both(x: Tensor) -> tuple[Tensor, Tensor | None]:
        found = network(_pictures(x).to(device))
        return found[0], found[1] if len(found) > 1 else None

    return Extractor(kind, both, has_logits=kind == "inception")


def feature_function(
    features: Features | None, device: torch.device | str | None = None
) -> Callable[[Tensor], Tensor] | None:
    """Functions and None as they are, and what `extractor` makes of the rest."""
    if features is None or callable(features):
        return features
    return extractor(features, device=device)


def _of_functions(
    features: Callable[[Tensor], Tensor] | None,
    weights: str | Path | None,
    logits: Callable[[Tensor], Tensor] | None,
) -> Extractor:
    """An extractor of the user's own functions."""
    if weights is not None:
        raise ValueError(
            'weights go with features="inception" or "dinov2": a function has its own weights'
        )
    callback_of("logits", logits, "from (B, *event) to (B, K)")
    if isinstance(features, Extractor) and logits is None:
        return features

    def both(x: Tensor) -> tuple[Tensor, Tensor | None]:
        found = x.flatten(1) if features is None else apply("features", features, x, len(x))
        return found, None if logits is None else apply("logits", logits, x, len(x))

    name = "values" if features is None else getattr(features, "__name__", type(features).__name__)
    return Extractor(name, both, has_logits=logits is not None)


def _kind(features: str | Path, weights: str | Path | None) -> tuple[str, Path]:
    """Which network it is, and the file of its weights."""
    if str(features) in _FILES:
        kind = str(features)
        if weights is None:
            raise ValueError(
                f'features="{kind}" needs the file of its weights, and nothing is downloaded: pass '
                f"weights=PATH of {_FILES[kind]}"
            )
        file = Path(weights)
    elif Path(features).suffix in (".pth", ".pt", ".safetensors") and weights is None:
        kind = "dinov2" if Path(features).suffix == ".safetensors" else "inception"
        file = Path(features)
    else:
        check_name("features", str(features), tuple(_FILES))
        raise ValueError(f"features={str(features)!r} is a file already: drop weights")
    if not file.is_file():
        raise ValueError(f"there is no file {file}: expected {_FILES[kind]}; pass weights=PATH")
    return kind, file


def _checked(kind: str, file: Path, sha256: str | None) -> bytes:
    """What is in the file, if it is the one that was meant."""
    expected = _KNOWN.get(kind) if sha256 is None else str(sha256).lower()
    if expected is not None and not re.fullmatch("[0-9a-f]{64}", expected):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if expected is None:
        raise ValueError(
            f"the SHA-256 of {file} is {found}: compare it with that of its publisher, and pass "
            f'sha256="..."; none is known here for {_FILES[kind]}'
        )
    if found != expected:
        raise ValueError(
            f"{file} has SHA-256 {found}, and {expected} was expected: it is damaged or another "
            f"file; take {_FILES[kind]}, or pass sha256= of the one that you mean"
        )
    return content


def _tensors(content: bytes, file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing else is read."""
    try:
        if file.suffix == ".safetensors":
            found: Any = require("safetensors.torch", "metrics").load(content)
        else:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:  # readers raise what they like on a damaged file
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot read {file} as tensors alone ({first})") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"{file} holds {type(found).__name__}: expected tensors by name")
    return found


def _inception(tensors: dict[str, Tensor]) -> Any:
    """torch-fidelity's Inception. It reads files as pickles: it is handed one of our own, of the
    tensors that were read.
    """
    kind = require("torch_fidelity.feature_extractor_inceptionv3", "metrics")
    own = io.BytesIO()
    torch.save(tensors, own)
    own.seek(0)
    return kind.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=own
    )


def _dinov2(tensors: dict[str, Tensor]) -> Any:
    """torch-fidelity's DINOv2 around the network of Hugging Face: its own takes no file, and asks
    the network for code.
    """
    base = require("torch_fidelity.feature_extractor_dinov2", "metrics")
    transformers = require("transformers", "metrics")
    width = tensors["embeddings.cls_token"].shape[-1]
    places = tensors["embeddings.position_embeddings"].shape[1] - 1
    config = transformers.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=_LAYERS[width],
        num_attention_heads=width // 64,
        patch_size=_PATCH,
        image_size=_PATCH * round(places**0.5),
        use_swiglu_ffn=width == _GIANT,
    )
    model = transformers.Dinov2Model(config)
    model.load_state_dict(tensors)

    class Given(base.FeatureExtractorDinoV2):  # type: ignore[name-defined, misc]
        """Its pictures and scales, around a network that is there already."""

        def __init__(self) -> None:
            root = require("torch_fidelity.feature_extractor_base", "metrics")
            root.FeatureExtractorBase.__init__(self, "dinov2-vit-l-14", ["dinov2"])
            self.feature_extractor_internal_dtype = torch.float32
            self.model = _ClassToken(model)

    return Given()


class _ClassToken(torch.nn.Module):
    """The normalised class token (B, d), which is what DINOv2 calls its output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        token: Tensor = self.model(pixel_values=x).pooler_output
        return token


_BUILDERS: Final[dict[str, Callable[[dict[str, Tensor]], Any]]] = {
    "inception": _inception,
    "dinov2": _dinov2,
}


def _pictures(x: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 of images in [-1, 1]; what is outside is clipped, as where it is shown."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"samples have shape {tuple(x.shape)}, and these features are of images (B, C, H, W) "
            "with 1 or 3 channels: pass a function for other data as features"
        )
    pictures = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pictures.expand(-1, 3, -1, -1)

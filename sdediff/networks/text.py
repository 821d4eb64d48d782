"""Texts as conditions: words to numbers, numbers to vectors, and a network that attends to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdediff.calls import let_check
from sdediff.solvers.given import integer, nearest

__all__ = ["Captioned", "TextEncoder", "Tokenizer"]

_PADDING, _START, _SPECIAL = range(3)


@dataclass(frozen=True)
class Tokenizer:
    """Texts as numbers of their words: (B, length) int64.

    ``words`` is the vocabulary; word i has the number i + 2. Each text begins with the number 1 and
    is filled up with 0, so that the empty text, ``null``, is one too. Words are what spaces
    separate, in small letters. ``length`` counts the beginning. A ValueError names a word that is
    not in the vocabulary, and a text that is too long.
    """

    words: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        least = "of at least 1: a text begins with a token of its own"
        _ = integer("Tokenizer: length", self.length, 1, kind=f"an int {least}")
        if not all(isinstance(word, str) for word in self.words):
            raise TypeError(f"Tokenizer: words must be strings, got {self.words!r}")
        if len(set(self.words)) < len(self.words):
            raise ValueError("Tokenizer: words has a word twice")

    @classmethod
    def of(cls, texts: str | Iterable[str]) -> Tokenizer:
        """The tokenizer of the words of some texts, as long as the longest of them."""
        parts = [part for _, part in _split(texts)]
        words = sorted({word for part in parts for word in part})
        return cls(tuple(words), 1 + max(map(len, parts), default=0))

    @property
    def vocabulary(self) -> int:
        """How many numbers there are: of words, the beginning and what texts are filled up with."""
        return len(self.words) + _SPECIAL

    @property
    def null(self) -> Tensor:
        """The numbers of the empty text, (length,)."""
        return self([""])[0]

    def __call__(self, texts: str | Iterable[str]) -> Tensor:
        """The numbers of texts, (B, length)."""
        known = {word: i + _SPECIAL for i, word in enumerate(self.words)}
        rows = []
        for text, parts in _split(texts):
            for word in parts:
                if word not in known:
                    raise ValueError(
                        f"the tokenizer does not know the word {word!r} of {text!r}"
                        f"{nearest(word, known)}; it knows {', '.join(self.words)}"
                    )
            if len(parts) >= self.length:
                raise ValueError(
                    f"{text!r} has {len(parts)} words, and the tokenizer takes {self.length - 1}"
                )
            numbers = [_START, *(known[word] for word in parts)]
            rows.append(numbers + [_PADDING] * (self.length - len(numbers)))
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, self.length)


def _split(texts: str | Iterable[str]) -> list[tuple[str, list[str]]]:
    """Texts, each with its words."""
    given = [texts] if isinstance(texts, str) else list(texts)
    for text in given:
        if not isinstance(text, str):
            raise TypeError(f"the tokenizer takes texts; got {text!r}, {type(text).__name__}")
    return [(text, text.lower().split()) for text in given]


class TextEncoder(nn.Module):
    """A small transformer over the tokens of texts: (B, L) numbers to (B, L, width) vectors.

    ``vocabulary`` and ``length`` are those of a `Tokenizer`. Every token attends to every other,
    those that fill a text up too, as in the text encoder of Stable Diffusion.
    """

    def __init__(
        self, vocabulary: int, length: int, width: int = 64, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            name: integer(f"TextEncoder: {name}", value, 1)
            for name, value in (
                ("vocabulary", vocabulary),
                ("length", length),
                ("width", width),
                ("depth", depth),
                ("heads", heads),
            )
        }
        if width % heads:
            raise ValueError(f"TextEncoder: width must be a multiple of heads = {heads}")
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def get_input_embeddings(self) -> nn.Embedding:
        """The vectors of the words, under the name that text models of transformers have."""
        return self.words

    def forward(self, text: Tensor) -> Tensor:
        """Vectors (B, L, width) of the numbers (B, L) of words."""
        out: Tensor = self.layers(self.words(text) + self.places[: text.shape[1]])
        return out


class Captioned(nn.Module):
    """``net`` under the condition of a text, which ``encoder`` reads and which is trained with it:

        net(x, t, text) = net(x, t, encoder_hidden_states=encoder(text))

    ``text`` is (B, L) numbers of tokens, int64, or (B, L, width) vectors, which go in as they are.
    ``text_mask`` (B, L), if given, says which tokens there are: the encoder gets it as
    ``attention_mask``, and the network as ``encoder_attention_mask``. Other conditions go to the
    network. ``encoder`` returns vectors, or an object with ``last_hidden_state``, as those of
    transformers do. ``net`` is diffusers' ``UNet2DConditionModel``, or has its arguments.

    The text is a condition like any other: the empty one is the model's ``null``,
    ``ScoreModel(net, sde, null={"text": tokenizer.null})``, for ``fit(drop=0.1)`` and
    `sdediff.guidance.ClassifierFree`. (Rombach et al. 2022, arXiv 2112.10752, section 3.3.)

    A ValueError or TypeError says, before a network is called, if a text has no token, or a number
    that is none of the encoder's.
    """

    def __init__(self, net: Callable[..., Any], encoder: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.encoder = encoder

    def check_condition(
        self, condition: Mapping[str, Tensor], event: tuple[int, ...] | None = None
    ) -> None:
        """A ValueError or TypeError unless the text is one for the encoder."""
        text, mask = condition.get("text"), condition.get("text_mask")
        if text is not None:
            self._check(text, mask)
        rest = {k: v for k, v in condition.items() if k not in ("text", "text_mask")}
        let_check(self.net, rest, event)

    def _check(self, text: Tensor, mask: Tensor | None) -> None:
        floating = text.is_floating_point()
        if text.dtype == torch.bool or text.ndim != (3 if floating else 2):
            raise TypeError(
                "text must be numbers of tokens, int64 (B, L), or vectors (B, L, width); got "
                f"{text.dtype} of shape {tuple(text.shape)}"
            )
        if not text.shape[1] or (mask is not None and not bool(mask.bool().any(dim=1).all())):
            raise ValueError(
                "a text has no token to attend to: a tokenizer for the empty text has to set one "
                "at its beginning or end (add_special_tokens=True)"
            )
        if mask is not None and mask.shape != text.shape[:2]:
            raise ValueError(
                f"text_mask must be of shape {tuple(text.shape[:2])}, got {tuple(mask.shape)}"
            )
        inputs = getattr(self.encoder, "get_input_embeddings", None)
        if floating or inputs is None or not len(text):
            return
        least, most, count = int(text.min()), int(text.max()), inputs().num_embeddings
        if least < 0 or most >= count:
            raise ValueError(
                f"text has the token {least if least < 0 else most}, and the encoder knows 0 to "
                f"{count - 1}: are tokenizer and encoder made for each other?"
            )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        /,
        text: Tensor,
        text_mask: Tensor | None = None,
        **condition: Tensor,
    ) -> Any:
        """The network's output at states x (B, *event) and network times t (B,)."""
        masks = {} if text_mask is None else {"attention_mask": text_mask}
        states = text if text.is_floating_point() else self.encoder(text, **masks)
        states = getattr(states, "last_hidden_state", states)
        seen = {} if text_mask is None else {"encoder_attention_mask": text_mask}
        return self.net(x, t, encoder_hidden_states=states, **seen, **condition)

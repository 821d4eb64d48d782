"""Losses beside an autoencoder: its own, and one of latents that are made as they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from sdediff.calls import Condition
from sdediff.drawing import drawn
from sdediff.masks import mean_over
from sdediff.modules import evaluating
from sdediff.networks.autoencoder import Autoencoder, Reconstruction
from sdediff.objectives.denoising import DenoisingScoreMatching
from sdediff.objectives.objective import Batch, Loss, Objective, check_loss
from sdediff.protocols import Model
from sdediff.solvers.given import NotNegative, flag

__all__ = ["Autoencoding", "Encoded"]

_LOOKED_AT: Final = 512
"""Samples by which `fit` judges the scale of latents."""


@dataclass(frozen=True)
class Autoencoding(Loss):
    """The loss of an autoencoder, 1 / d (|x - x^|^2 + beta KL(q(z | x) || N(0, I))) + commitment c.

    x^ = D(z), with z drawn from q(z | x) where the encoder returns a distribution, else z = E(x)
    and KL = 0; d is the number of coordinates of an event. c is the loss that a quantizer returns
    beside x^: with e the code next to E(x) and sg without a gradient, means over coordinates of
    |sg(E(x)) - e|^2 and, weighted by 0.25, |E(x) - sg(e)|^2 (van den Oord et al. 2017, arXiv
    1711.00937, eq. 3); diffusers' VQModel weighs the first by 0.25 and the second by 1. With beta =
    2 s^2 the first part is 2 s^2 / d times the negative evidence bound of a decoder N(x^, s^2),
    less a constant (Kingma and Welling 2014, arXiv 1312.6114, eq. 10). Rombach et al. 2022 (arXiv
    2112.10752) weigh KL by 1e-6.

    The model is ``ScoreModel(Autoencoder(vae), degradation.Unchanged(), "data")``; `sd.load` brings
    it back, its ``net`` goes into `Latent`.
    """

    takes: ClassVar[tuple[str, ...]] = ()
    beta: NotNegative = 1e-2
    commitment: NotNegative = 1.0

    def check(self, model: Model, x_0: Tensor, condition: Condition | None = None) -> None:
        """Raise a ValueError unless the model's network is an autoencoder of such data."""
        net: Any = getattr(model, "net", None)
        if not hasattr(net, "encode") or not hasattr(net, "decode"):
            raise ValueError(
                "Autoencoding trains an autoencoder, ScoreModel(Autoencoder(vae), "
                f"degradation.Unchanged(), 'data') say; got the network {type(net).__name__}"
            )
        if getattr(model, "normalizer", None) is not None:
            raise ValueError(
                "Autoencoding: an autoencoder is handed data as they are, so that a Normalizer in "
                "front of it would be forgotten where it encodes: normalise the data themselves"
            )
        with torch.no_grad(), evaluating(net):  # in which nothing is drawn
            found: Reconstruction = net(x_0)
        if found.sample.shape != x_0.shape:
            raise ValueError(
                f"the decoder returns data of shape {tuple(found.sample.shape[1:])} for data of "
                f"shape {tuple(x_0.shape[1:])}: pad the data, or mend the decoder"
            )

    def losses(self, batch: Batch) -> Tensor:
        model: Any = batch.model
        batch = batch.prepared()
        found: Reconstruction = model.net(batch.x_0, generator=batch.generator)
        losses = mean_over((found.sample - batch.x_0).square(), batch.mask)
        if found.kl is not None:
            losses = losses + self.beta / batch.x_0[0].numel() * found.kl
        if found.commitment is not None:
            losses = losses + self.commitment * found.commitment
        return losses


@dataclass(frozen=True)
class Encoded(Loss):
    """A loss of latents, z = E(x), of data x that are encoded anew in every batch.

    It is called with data as they are; the model's `Normalizer` is that of the latents. ``drawn``:
    latents are drawn from q(z | x) where the encoder returns a distribution; otherwise they are its
    mean, and training is that on ``autoencoder.encode(x)``, made once. No gradient reaches the
    encoder, which is in evaluation mode.
    """

    takes: ClassVar[tuple[str, ...]] = ()
    autoencoder: Autoencoder
    loss: Objective = field(default_factory=lambda: DenoisingScoreMatching(stratified=True))
    drawn: bool = True

    def __post_init__(self) -> None:
        if not hasattr(self.autoencoder, "encode"):
            raise TypeError(
                "Encoded: autoencoder must be one, Autoencoder(vae) or latent.autoencoder say; got "
                f"{self.autoencoder!r}"
            )
        check_loss("Encoded", self.loss)
        _ = flag("Encoded: drawn", self.drawn)

    def clean(self, data: Tensor) -> Tensor:
        """Latents of some of the data."""
        rows = torch.linspace(0, len(data) - 1, min(len(data), _LOOKED_AT)).long()
        return self.autoencoder.encode(data[rows], seed=0 if self.drawn else None)

    def seen(self, batch: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
        """The data as they are."""
        return batch

    def losses(self, batch: Batch) -> Tensor:
        if batch.mask is not None:
            raise ValueError("Encoded: what exists of latents is not known: leave mask out")
        seed = None
        count = len(batch.x_0)
        if self.drawn:
            seed = drawn(
                count, batch.generator, lambda n, g: torch.randint(2**62, (n,), generator=g)
            ).tolist()
        z = self.autoencoder.encode(batch.x_0, batch_size=count, seed=seed)
        normalizer = getattr(batch.model, "normalizer", None)
        x_0 = z if normalizer is None else normalizer.normalize(z)
        condition: Any = batch.condition
        random: Any = {} if batch.generator is None else {"generator": batch.generator}
        return self.loss(batch.model, x_0, condition, **random)

    def check(self, model: Model, x_0: Tensor, condition: Condition | None = None) -> None:
        """Let the loss inside look at latents before `fit` begins."""
        if hasattr(self.loss, "check"):
            self.loss.check(model, x_0, condition)

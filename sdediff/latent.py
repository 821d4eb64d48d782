"""Models of latents: an encoder and a decoder around any model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sdediff.networks.autoencoder import Autoencoder
from sdediff.normalizer import coordinate_moments
from sdediff.operator import Operator
from sdediff.protocols import Model, facts
from sdediff.suitability import off_scale

__all__ = ["Autoencoder", "Latent"]

_ENOUGH = 64
"""Numbers of a channel from which its spread can be told."""


class Latent(Operator):
    """``model``, whose states are latents, with the encoder and the decoder around it:

        z = E(x),    z_0 ~ model,    x = D(z_0)

    (Rombach et al. 2022, arXiv 2112.10752, section 3.) It is the same model: `sample`, `encode`,
    `log_prob`, guidance and posteriors treat latents as they treat data, and are in their units.

        out = sd.sample(latent, (16, 4, 8, 8), steps=20, seed=0)
        pictures = latent.decode(out.x)
        noise = sd.encode(latent, latent.encode(pictures)).x

    ``log_prob(latent, z)`` is the log-density of latents. The log-density of x is another number,
    and does not exist for a decoder that is not one to one. ``encode`` and ``decode`` are those of
    `networks.Autoencoder`, which is taken too: a diffusers autoencoder as it is, or functions.
    ``shape`` is the shape of one latent. With it, states of another shape, such as data, raise
    ValueError.

    Mean and scale of the latents are those of the model's `Normalizer`, one number a channel:
    ``ScoreModel(net, sde, normalizer=Normalizer.of(z))`` for z of ``Autoencoder(vae).encode(x)``.
    ``fit(latent, z)`` trains the model on latents z, made once;
    ``fit(latent, x, loss=objectives.Encoded(latent.autoencoder))`` encodes every batch of data x
    anew.

    What is asked of data goes through the decoder: ``guidance.Loss(latent, lambda z:
    f(latent.decode(z)))``, and ``posterior.DPS(latent, posterior.Through(latent.decode,
    measurement), y)``.
    """

    def __init__(
        self,
        model: Model,
        encode: Any,
        decode: Any = None,
        *,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model)
        made = isinstance(encode, Autoencoder)
        if made and not (decode is None and shape is None):
            raise TypeError(
                "Latent: encode is an Autoencoder, which has its decoder and its shape: pass it "
                "alone, or Latent(model, encode, decode, shape=...)"
            )
        self.autoencoder = encode if made else Autoencoder(encode, decode, shape=shape)
        known = facts(model).normalizer
        if known is not None and self.shape is not None:
            known.check(self.shape)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one latent, where it is declared."""
        shape: tuple[int, ...] | None = self.autoencoder.shape
        return shape

    @property
    def learner(self) -> Model:
        """The model that training changes: the one inside."""
        learner: Model = getattr(self.model, "learner", self.model)
        return learner

    @property
    def constraint(self) -> Any:
        """Of the model inside, which run folders keep; None without one."""
        return getattr(self.model, "constraint", None)

    def check_event(self, event: Sequence[int]) -> None:
        """Raise a ValueError unless states may have this shape: one that is not that of latents."""
        if self.shape is not None and tuple(event) != self.shape:
            raise ValueError(
                f"states of a Latent are latents, of shape {self.shape}, got {tuple(event)}: "
                "latents of data x are latent.encode(x), and fit takes data with "
                "loss=objectives.Encoded(latent.autoencoder)"
            )

    def encode(
        self,
        x: Tensor,
        *,
        batch_size: int = 64,
        seed: int | None = None,
        out: str | Path | None = None,
    ) -> Tensor:
        """Latents (N, *shape) of data x (N, *event): `Autoencoder.encode`.

        A UserWarning says where their standard deviation is far from that which the model is for.
        """
        z: Tensor = self.autoencoder.encode(x, batch_size=batch_size, seed=seed, out=out)
        self._look_at(z)
        return z

    def decode(self, z: Tensor, *, batch_size: int = 64) -> Tensor:
        """Data (N, *event) of latents z (N, *shape): `Autoencoder.decode`."""
        x: Tensor = self.autoencoder.decode(z, batch_size=batch_size)
        return x

    def _look_at(self, z: Tensor) -> None:
        """Warn where latents are not of the scale that the model declares."""
        known = facts(self.model)
        if known.normalizer is not None:
            known.normalizer.check(z.shape[1:])
        if known.declared_data_std is None and known.normalizer is None:
            return
        found = coordinate_moments(z.detach())
        if known.normalizer is not None:
            found = known.normalizer.moments(found)
        if z[:, 0].numel() >= _ENOUGH and (wrong := off_scale(known.data_std, found.data_std)):
            warnings.warn(f"latents: {wrong}", stacklevel=3)

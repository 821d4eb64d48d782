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
    """A model of latents with the encoder E and the decoder D of an autoencoder around it:

        z = E(x),    z_0 ~ model,    x = D(z_0)

    (Rombach et al. 2022, arXiv 2112.10752, section 3.) For `sample`, `encode`, `log_prob`, guidance
    and posteriors it is the same model as the one inside: their states are latents.

        out = sd.sample(latent, (16, 4, 8, 8), steps=20, seed=0)
        pictures = latent.decode(out.x)
        noise = sd.encode(latent, latent.encode(pictures)).x

    ``model``: a model whose states are latents (N, *shape).
    ``encode``, ``decode``: two functions or networks. In place of both, pass one object with these
    methods, such as an autoencoder of diffusers, or a `networks.Autoencoder`.
    ``shape``: the shape of one latent, optional. If it is given, states of another shape, such as
    data, raise ValueError.

    To give latents the scale that the SDE is made for, use a `Normalizer`, with a mean and a
    standard deviation for each channel: ``ScoreModel(net, sde, normalizer=Normalizer.of(z))`` for
    z = ``Autoencoder(vae).encode(x)``. ``fit(latent, z)`` trains the model on latents z that were
    computed before. ``fit(latent, x, loss=objectives.Encoded(latent.autoencoder))`` encodes every
    batch of data x anew.

    Guidance and measurements of data go through the decoder: ``guidance.Loss(latent, lambda z:
    f(latent.decode(z)))``, and ``posterior.DPS(latent, posterior.Through(latent.decode,
    measurement), y)``. ``log_prob(latent, z)`` is the log-density of latents. The log-density of x
    is another number, and does not exist for a decoder that is not one to one.
    """

    _same_law = True

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
        """The shape of one latent; None if it was not declared."""
        shape: tuple[int, ...] | None = self.autoencoder.shape
        return shape

    @property
    def learner(self) -> Model:
        """The model inside, which `fit` trains."""
        learner: Model = getattr(self.model, "learner", self.model)
        return learner

    @property
    def constraint(self) -> Any:
        """The constraint of the model inside, which is saved in run folders; None without one."""
        return getattr(self.model, "constraint", None)

    def check_event(self, event: Sequence[int]) -> None:
        """Raise ValueError if the event of states is not the shape of latents."""
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
        seed: int | Sequence[int] | None = None,
        out: str | Path | None = None,
    ) -> Tensor:
        """Latents (N, *shape) of data x (N, *event): `Autoencoder.encode`.

        A UserWarning says if their standard deviation is more than 3 times off the one that the
        model declares.
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

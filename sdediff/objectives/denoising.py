"""Denoising score matching in continuous time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.masks import kept, mask_of, mean_over
from sdediff.objectives.timed import Timed, check_loss_call
from sdediff.objectives.weightings import factor
from sdediff.predict import outputs, target
from sdediff.protocols import Model, sigma_data
from sdediff.solvers import expand
from sdediff.solvers.arithmetic import at_least_float32

__all__ = ["DenoisingScoreMatching", "FlowMatching"]


@dataclass(frozen=True)
class DenoisingScoreMatching(Timed):
    """w(t) / d ||score_model(x_t, t) - grad log p(x_t | x_0)||^2, one random t in [t_min, t_max] a
    sample.

    x_t = alpha x_0 + sigma noise, so that the target is -noise / sigma (Vincent 2011; Song et al.
    2021, arXiv 2011.13456, eq. 7); d is the number of coordinates of an event. `Timed` has
    ``weighting``, ``times``, ``stratified`` and ``importance``.

    The error is formed in the network's own output and rescaled, so that its value does not depend
    on what the network predicts.
    """

    def __call__(
        self,
        model: Model,
        x_0: Tensor,
        condition: Mapping[str, Tensor] | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Losses of the samples x_0 (B, *event), (B,).

        ``t`` (B,) and ``noise`` (shape of x_0) are drawn where they are not given, on the host from
        ``generator`` (default: torch's own), so that a seed gives the same loss on every device.
        ``mask`` says which coordinates exist, True or 1: (B, *event), or its first dimensions, or 1
        in place of some. The others are 0 in x_0 and noise, and the mean is over those that exist.
        """
        model = check_loss_call(model, x_0, generator)
        sde = model.sde
        if "kernel" not in sde.offers:
            raise ValueError(
                f"denoising score matching needs a Gaussian kernel, which {sde!r} does not have: "
                "use a LinearSDE, "
                "or SlicedScoreMatching, which needs none"
            )
        time, weights = self.given(model, x_0, t, generator)
        x_0 = at_least_float32(x_0)
        if noise is None:
            noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype).to(x_0.device)
        mask = mask_of(mask, x_0)
        x_0, noise = kept(x_0, mask), kept(noise, mask)
        x_t = sde.perturb(x_0, time, noise)
        error = outputs(model, x_t, time, condition, mask).value - target(model, x_0, noise, time)
        scale = weights * factor(self.weighting, sde, model.predicts, time, sigma_data(model))
        losses = mean_over(error.square(), mask)
        return torch.as_tensor(expand(scale, losses)) * losses


@dataclass(frozen=True)
class FlowMatching(DenoisingScoreMatching):
    """1 / d ||flow(x_t, t) - d x_t / dt||^2 with x_t = alpha x_0 + sigma noise (Lipman et al. 2023,
    arXiv 2210.02747, eq. 9).

    Denoising score matching in another weighting, w = g^4 / 4, for any linear SDE and whatever the
    network predicts; under `RectifiedFlow` the target is noise - x_0 (Liu et al. 2023, arXiv
    2209.03003, eq. 1). Give ``noise`` where it is coupled to the data, as `reflow` makes them.
    """

    weighting: str = "flow"

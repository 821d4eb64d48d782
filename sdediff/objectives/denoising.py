"""Denoising score matching in continuous time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sdediff.model import ScoreModel
from sdediff.names import nearest
from sdediff.sde import LinearSDE
from solvers import expand, rowwise

__all__ = ["TIMES", "WEIGHTINGS", "DenoisingScoreMatching"]

Weighting = Callable[[LinearSDE, Tensor], Tensor]
Times = Callable[[Tensor], Tensor]

WEIGHTINGS: Final[dict[str, Callable[[LinearSDE, Tensor, float], Tensor]]] = {
    "sigma2": lambda sde, t, _: sde.sigma(t) ** 2,
    "likelihood": lambda sde, t, _: sde.g(t) ** 2,
    "edm": lambda sde, t, data: sde.sigma(t) ** 2 * (1 + (sde.sigma(t) / (data * sde.alpha(t))) ** 2),
}
"""Weights w(t) of the squared score error: sigma^2 (Song et al. 2021, arXiv 2011.13456: the squared error of the noise), g^2
(Song et al. 2021, arXiv 2101.09258: maximum likelihood) and sigma^2 (1 + sigma^2 / (alpha sigma_data)^2) (Karras et al. 2022,
Table 1: the squared error of the preconditioned network's own output)."""

TIMES: Final[dict[str, Times]] = {
    "uniform": lambda u: u,
    "logit-normal": lambda u: torch.sigmoid(-1.0 + 1.2 * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))),
}
"""Densities of t, as the share of [t_min, t_max] that a uniform u becomes. ``logit-normal`` (location -1, scale 1.2) puts weight
where signal and noise are of one size and details form."""


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """w(t) / d ||score_model(x_t, t) - grad log p(x_t | x_0)||^2, one random t in [t_min, t_max] a sample.

    x_t = alpha x_0 + sigma noise, so that the target is -noise / sigma (Vincent 2011; Song et al. 2021, arXiv 2011.13456, eq. 7);
    d is the number of coordinates of an event. ``weighting`` is ``"sigma2"``, ``"likelihood"``, ``"edm"`` or a function w(sde, t)
    of float64 host times (B,). ``times`` is the density of t, under which the objective is a mean: ``"uniform"``,
    ``"logit-normal"`` or a function from a uniform u (B,) to the share of the range. ``stratified`` takes u = (i + u_i) / B in
    random order: each t has the same law as before, and the mean over a batch varies less.

    The error is formed in the network's own output and rescaled, so that its value does not depend on what the network predicts.
    """

    weighting: str | Weighting = "sigma2"
    times: str | Times = "uniform"
    stratified: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name, value, known in (("weighting", self.weighting, WEIGHTINGS), ("times", self.times, TIMES)):
            if not callable(value) and value not in known:
                hint = nearest(value, known)
                raise ValueError(f"{name} must be one of {', '.join(known)} or a function, got {value!r}{hint}")

    def __call__(
        self,
        model: ScoreModel,
        x_0: Tensor,
        condition: Mapping[str, Tensor] | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Losses of the samples x_0 (B, *event), (B,).

        ``t`` (B,) and ``noise`` (shape of x_0) are drawn where they are not given, on the host from ``generator`` (default: torch's
        own), so that a seed gives the same loss on every device.
        """
        if x_0.ndim < 1 or not x_0.is_floating_point():
            raise TypeError(
                f"x_0 must be a floating-point tensor (B, *event), got {x_0.dtype} of shape {tuple(x_0.shape)}; use x.float()"
            )
        sde = model.sde
        if "kernel" not in sde.offers:
            raise ValueError(
                f"denoising score matching needs a Gaussian kernel, which {sde!r} does not have: use a LinearSDE, "
                "or draw x_t by sdediff.simulate and match a score that you know"
            )
        time = self.draw_times(sde, len(x_0), generator) if t is None else sde.check_time(t.detach().cpu().double())
        if time.shape != x_0.shape[:1]:
            raise ValueError(f"t must have shape ({len(x_0)},), one time a sample, got {tuple(time.shape)}")
        if noise is None:
            noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype).to(x_0.device)
        x_t = sde.perturb(x_0, time, noise)
        error = model.evaluate(x_t, time, condition) - model.target(x_0, noise, time)
        if isinstance(self.weighting, str):
            weight = WEIGHTINGS[self.weighting](sde, time, model.sigma_data)
        else:
            weight = self.weighting(sde, time)
        scale = weight * model.conversion("score", time)[1] ** 2
        losses = rowwise(error).square().mean(dim=1)
        return expand(scale, losses) * losses

    def draw_times(self, sde: LinearSDE, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Times (count,), float64 on the host."""
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        if self.stratified:
            u = (torch.randperm(count, generator=generator) + u) / count
        share = TIMES[self.times](u) if isinstance(self.times, str) else self.times(u)
        return sde.t_min + (sde.t_max - sde.t_min) * share

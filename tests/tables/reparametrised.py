"""Networks that return any prediction of a law that is known."""

from __future__ import annotations

from torch import Tensor

import sdediff as sd
from sdediff.predict import target


def reparametrised(exact: sd.ScoreModel, predicts: str) -> sd.ScoreModel:
    """A model whose network returns the prediction ``predicts`` of an exact model."""
    model = sd.ScoreModel(lambda x, t: x, exact.sde, predicts, sigma_data=0.7)

    def net(x: Tensor, t: Tensor) -> Tensor:
        time = t.double()
        if predicts == "edm":  # undo the scaling of the input
            alpha, sigma = exact.sde.alpha(time), exact.sde.sigma(time)
            x = x * (sigma**2 + (0.7 * alpha) ** 2).sqrt()[:, None]
        return target(model, exact.data(x, time), exact.noise(x, time), time)

    model.net = net
    return model

"""One network seen as a score, as noise, as data or as a velocity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from sdediff.names import nearest
from sdediff.sde import LinearSDE
from sdediff.sde.coefficient import as_time
from solvers import expand

__all__ = ["PREDICTIONS", "ScoreModel"]

Pair = tuple[Tensor, Tensor]


def _edm(sde: LinearSDE, t: Tensor, sigma_data: float) -> Pair:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    root = (sigma**2 + (sigma_data * alpha) ** 2).sqrt()
    return sigma / (sigma_data * root), -sigma_data * alpha / root


def _flow(sde: LinearSDE, t: Tensor, _: float) -> Pair:
    f, sigma = sde.f(t), sde.sigma(t)
    return f * sde.alpha(t), f * sigma + sde.g(t) ** 2 / (2 * sigma)


PREDICTIONS: Final[dict[str, Callable[[LinearSDE, Tensor, float], Pair]]] = {
    "noise": lambda sde, t, _: (torch.zeros_like(t), torch.ones_like(t)),
    "data": lambda sde, t, _: (torch.ones_like(t), torch.zeros_like(t)),
    "score": lambda sde, t, _: (torch.zeros_like(t), -1 / sde.sigma(t)),
    "v": lambda sde, t, _: (-sde.sigma(t), sde.alpha(t)),
    "flow": _flow,
    "edm": _edm,
}
"""What each prediction is, as (p, q) of p x_0 + q noise where x_t = alpha x_0 + sigma noise.

``v`` is alpha noise - sigma x_0 (Salimans and Ho 2022), ``flow`` the time derivative of alpha x_0 + sigma noise, ``edm`` the
output of a network preconditioned as by Karras et al. 2022 (arXiv 2206.00364, Table 1), after division of x by alpha.
"""

_ALIASES: Final = {"eps": "noise", "x0": "data"}


class ScoreModel(nn.Module):
    """A network and the SDE it belongs to.

    ``net(x, t, **condition)`` takes states (B, *event) and times (B,), in the state's dtype and never rounded, and returns a tensor
    of the shape of x (or an object with that tensor as ``.sample``, as diffusers' networks do). ``predicts`` says what it returns:
    ``noise`` (or ``eps``), ``data`` (``x0``), ``score``, ``v``, ``flow``, or ``edm``, where the network sees x divided by
    sqrt(sigma^2 + alpha^2 sigma_data^2), so that its input and output have unit variance for data of standard deviation
    ``sigma_data``. All of these are affine in x_0 and noise, so each is computed from any other.

    The methods take t as a number or one number a sample, inside the SDE's usable range, and ``**condition`` for the network.
    """

    def __init__(self, net: Callable[..., Any], sde: LinearSDE, predicts: str = "noise", *, sigma_data: float = 0.5) -> None:
        super().__init__()
        if not callable(net):
            raise TypeError(f"net must be callable as net(x, t), got {net!r}")
        if isinstance(sde, type) or not isinstance(sde, LinearSDE):
            hint = f"pass an instance, {sde.__name__}()" if isinstance(sde, type) else "pass VP(), say"
            raise TypeError(f"sde must be a LinearSDE, got {sde!r}; {hint}")
        predicts = _ALIASES.get(predicts, predicts)
        if predicts not in PREDICTIONS:
            raise ValueError(f"predicts must be one of {', '.join(PREDICTIONS)}, got {predicts!r}{nearest(predicts, PREDICTIONS)}")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data!r}")
        self.net, self.sde, self.predicts, self.sigma_data = net, sde, predicts, float(sigma_data)

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are; the host if it has none."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def conversion(self, target: str, t: Tensor) -> Pair:
        """(A, B) such that the prediction ``target`` is A x + B output, for float64 host times () or (B,)."""
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        p, q = PREDICTIONS[self.predicts](self.sde, t, self.sigma_data)
        p_to, q_to = PREDICTIONS[target](self.sde, t, self.sigma_data)
        det = alpha * q - sigma * p
        return (p_to * q - q_to * p) / det, (q_to * alpha - p_to * sigma) / det

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should return at alpha x_0 + sigma noise, for float64 host times () or (B,)."""
        p, q = PREDICTIONS[self.predicts](self.sde, t, self.sigma_data)
        return expand(p, x_0) * x_0 + expand(q, x_0) * noise

    def output(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        """The network's own output at states x (B, *event) and float64 host times t, () or (B,), in the dtype of x."""
        if self.predicts == "edm":
            alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
            given = x / expand((sigma**2 + (self.sigma_data * alpha) ** 2).sqrt(), x)
        else:
            given = x
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), x.dtype)
        times = t.to(x.dtype).to(x.device).expand(x.shape[0])
        try:
            out = self.net(given.to(dtype), times, **(condition or {}))
        except (RuntimeError, ValueError, TypeError) as error:
            names = "".join(f", {name}" for name in condition or {})
            error.add_note(
                f"the network was called as net(x, t{names}) with x of shape {tuple(x.shape)}, {dtype}: does it take that?"
            )
            raise
        out = getattr(out, "sample", out)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"{type(out).__name__}"
            raise ValueError(f"the network must return a tensor of the shape of its input {tuple(x.shape)}, got {got}")
        return out.to(x.dtype)

    def convert(self, out: Tensor, x: Tensor, t: Tensor, target: str) -> Tensor:
        """The prediction ``target`` from the network's output."""
        a, b = self.conversion(target, t)
        scaled = expand(b, x) * out
        return scaled if not bool(a.any()) else scaled + expand(a, x) * x

    def predict(self, target: str, x: Tensor, t: Tensor | float, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        """The prediction ``target`` at (x, t), one evaluation of the network."""
        if target not in PREDICTIONS:
            raise ValueError(f"no prediction is called {target!r}{nearest(target, PREDICTIONS)}; known: {', '.join(PREDICTIONS)}")
        time = self.sde.check_time(as_time(t))
        if time.ndim and time.shape[0] != x.shape[0]:
            raise ValueError(f"t must be a number or (B,) with B = {x.shape[0]} as in x, got shape {tuple(time.shape)}")
        return self.convert(self.output(x, time, condition), x, time, target)

    def score(self, x: Tensor, t: Tensor | float, **condition: Tensor) -> Tensor:
        """grad log p_t(x), (B, *event)."""
        return self.predict("score", x, t, condition)

    def noise(self, x: Tensor, t: Tensor | float, **condition: Tensor) -> Tensor:
        """E[noise | x_t = x] = -sigma score."""
        return self.predict("noise", x, t, condition)

    def data(self, x: Tensor, t: Tensor | float, **condition: Tensor) -> Tensor:
        """E[x_0 | x_t = x] = (x + sigma^2 score) / alpha."""
        return self.predict("data", x, t, condition)

    def v(self, x: Tensor, t: Tensor | float, **condition: Tensor) -> Tensor:
        """alpha E[noise | x] - sigma E[x_0 | x]."""
        return self.predict("v", x, t, condition)

    def flow(self, x: Tensor, t: Tensor | float, **condition: Tensor) -> Tensor:
        """The velocity of the probability flow, f x - g^2 score / 2."""
        return self.predict("flow", x, t, condition)

"""SDEs and networks in closed form for the golden table: no draws, no training, all float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import sdediff as sd

PREDICTS = ("noise", "data", "score", "v", "flow", "edm")

EVENTS = {"points": (2,), "images": (1, 2, 2)}


class Cubic(sd.LinearSDE):
    """The user's SDE of the README: f and g are given, all else follows by quadrature."""

    def beta(self, t: Tensor) -> Tensor:
        return 0.1 + 19.9 * t**3

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def g(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()


class Warped(sd.LinearSDE):
    """A user's SDE by alpha and log_snr, with noise on the data: f and g follow by autograd."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-1.5 * t**2)

    def log_snr(self, t: Tensor) -> Tensor:
        return 8 - 12 * torch.sin(1.2 * t)


class Pull(sd.SDE):
    """dx = -(x + sin(x) / 2) dt + (1 + t / 2) dw, which has no Gaussian kernel."""

    prior = sd.Prior(1.0)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return -(x + 0.5 * torch.sin(x))

    def diffusion(self, t: Tensor) -> Tensor:
        return 1 + 0.5 * t


# Ends at which a prediction loses digits, alpha or sigma being near 0, are cut.
LINEAR: dict[str, sd.LinearSDE] = {
    "VP": sd.VP(),
    "VE": sd.VE(0.05, 10.0),
    "SubVP": sd.SubVP(t_min=0.05),
    "EDM": sd.EDM(0.02, 10.0),
    "Cosine": sd.Cosine(t_min=0.02, t_max=0.98),
    "RectifiedFlow": sd.RectifiedFlow(t_min=0.02, t_max=0.98),
    "Cubic": Cubic(t_min=0.02),
    "Warped": Warped(),
    "VP.scaled(3)": sd.VP().scaled(3.0),
    "LearnedVP": sd.sde.LearnedVP(sd.sde.MonotoneSchedule(-7.0, 7.0, width=8)),
    "InterpolatedVP": sd.DDPM.from_schedule("cosine", 20).respaced(range(1, 20)).to_sde(),
}
SDES: dict[str, sd.SDE] = {**LINEAR, "Pull": Pull()}

# From alpha = 0, or to sigma = 0.
ENDS: dict[str, sd.LinearSDE] = {
    "RectifiedFlow(t_max=1)": sd.RectifiedFlow(t_min=0.02, t_max=1.0),
    "Cosine(t_max=1)": sd.Cosine(t_min=0.02, t_max=1.0),
    "Cubic(t_min=0)": Cubic(t_min=0.0),
}

LENGTHS = {"VP.scaled(3)": 3.0}


class Closed(nn.Module):
    """A network that predicts what ``predicts`` says. With S^2 = (alpha c)^2 + sigma^2 it has

        E[noise | x_t = x] = sigma x / S^2 - alpha c / (2 S) tanh(W x / S + b + shift),

    which is near that of data from N(0, c^2) and cancels nowhere. W and b are sines and cosines of
    their indices, c is 0.8 lengths. ``shift`` and ``bad`` are conditions: where ``bad`` is 1 the
    output is NaN from t < 0.4 T on. ``learned``: twice the channels, the second half of which says
    how large a variance is.
    """

    nudge = 0.0
    """The output is multiplied by 1 + nudge cos(its index), as if by an error of rounding."""

    def __init__(
        self,
        sde: sd.SDE,
        predicts: str,
        d: int = 2,
        *,
        length: float = 1.0,
        learned: bool = False,
    ) -> None:
        super().__init__()
        self.sde, self.predicts, self.length, self.learned = sde, predicts, length, learned
        i = torch.arange(d, dtype=torch.float64)
        self.weight = nn.Parameter(torch.sin(1.3 * i[:, None] + 2.1 * i + 0.5))
        self.bias = nn.Parameter(0.3 * torch.cos(1.7 * i))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        shift: Tensor | None = None,
        bad: Tensor | None = None,
    ) -> Tensor:
        rows = x.flatten(1)
        out = self.linear(rows, t, shift) if hasattr(self.sde, "alpha") else self.score(rows, shift)
        out = out * (1 + self.nudge * torch.cos(torch.arange(rows.shape[1], dtype=out.dtype)))
        if bad is not None:
            broken = (bad > 0) & (t < 0.4 * self.sde.T)
            out = torch.where(broken[:, None], torch.nan, out)
        out = out.to(x.dtype).reshape(x.shape)
        return torch.cat([out, torch.tanh(x)], dim=1) if self.learned else out

    def score(self, x: Tensor, shift: Tensor | None) -> Tensor:
        """Of a law that the general SDE might have, at all times."""
        return -(x - 0.4 * self.inside(x, shift))

    def inside(self, y: Tensor, shift: Tensor | None) -> Tensor:
        """The hidden tanh, of states without a unit."""
        moved = self.bias if shift is None else self.bias + shift[:, None]
        return torch.tanh(y @ self.weight.T + moved)

    def linear(self, x: Tensor, t: Tensor, shift: Tensor | None) -> Tensor:
        """The prediction, by its definition, under an SDE with a kernel."""
        sde: sd.LinearSDE = self.sde  # type: ignore[assignment]
        alpha, sigma = (part.to(x)[:, None] for part in (sde.alpha(t), sde.sigma(t)))
        half, c = 0.5 * self.length, 0.8 * self.length
        root = ((half * alpha) ** 2 + sigma**2).sqrt()
        if self.predicts == "edm":
            x = x * root
        scale = ((c * alpha) ** 2 + sigma**2).sqrt()
        wave = 0.5 * c / scale * self.inside(x / scale, shift)
        data = alpha * c**2 / scale**2 * x + sigma * wave
        noise = sigma / scale**2 * x - alpha * wave
        match self.predicts:
            case "noise":
                return noise
            case "data":
                return data
            case "score":
                return -noise / sigma
            case "v":
                return alpha * noise - sigma * data / self.length**2
            case "flow":
                f, g = (part.to(x)[:, None] for part in (sde.f(t), sde.g(t)))
                return f * x + g**2 * noise / (2 * sigma)
        return sigma / (half * root) * data - half * alpha / root * noise


def closed(name: str, predicts: str, d: int = 2, **options: object) -> sd.ScoreModel:
    """The model of that network under the SDE of that name; ``options`` are `ScoreModel`'s."""
    sde, length = SDES[name], LENGTHS.get(name, 1.0)
    learned = bool(options.get("learned_variance", False))
    net = Closed(sde, predicts, d, length=length, learned=learned)
    half = 0.5 * length
    return sd.ScoreModel(net, sde, predicts, sigma_data=half, **options)  # type: ignore[arg-type]


def fixed(*shape: int, phase: float = 0.0, size: float = 1.0) -> Tensor:
    """Numbers that look random and are none: float64, of mean square size^2."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (size * 2**0.5 * torch.sin(2.399963 * (i + 1) * (1 + 0.1 * i) + phase)).reshape(shape)

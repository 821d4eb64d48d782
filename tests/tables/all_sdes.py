"""The SDEs that tests go through: the built-in ones, and two of a user's own."""

from __future__ import annotations

import torch

import sdediff as sd


class Cubic(sd.LinearSDE):
    """A user's SDE by f and g: alpha and sigma come from quadrature."""

    T = 1.5

    def f(self, t):
        return -0.5 * (0.1 + 5 * t**3)

    def g(self, t):
        return (0.3 + 4 * t**2).sqrt()


class Warped(sd.LinearSDE):
    """A user's SDE by alpha and log_snr, with noise on the data: f and g come from autograd."""

    def alpha(self, t):
        return torch.exp(-1.5 * t**2)

    def log_snr(self, t):
        return 8 - 12 * torch.sin(1.2 * t)


SDES = {
    "VE": sd.VE(0.02, 30.0),
    "VP": sd.VP(),
    "SubVP": sd.SubVP(),
    "VP-other": sd.VP(0.2, 8.0, T=2.0, t_min=0.01),
    "Cosine": sd.Cosine(),
    "EDM": sd.EDM(0.01, 20.0),
    "RectifiedFlow": sd.RectifiedFlow(),
    "user, f and g": Cubic(),
    "user, alpha and log_snr": Warped(),
}

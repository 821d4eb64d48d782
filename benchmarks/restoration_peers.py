"""Restorations by azula and deepinv, with our network as their denoiser.

Each is at the settings that it recommends, and at the best of a few sizes of its scale by the error
that only a benchmark knows. Their clocks are their own: uniform times from 1 to 0 of the same SDE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """States (B, *event), what was seen of them, and how many evaluations there are. Steps are
    uniform in t, or in log-SNR.
    """

    model: Any
    seen: Any
    y: Tensor
    x: Tensor
    steps: int
    by_log_snr: bool = False


@dataclass
class Count:
    """Calls of the network, and passes back through it."""

    forward: int = 0
    backward: int = 0


Found = tuple[str, str, Callable[[Count], Tensor]]
"""The method, its setting ("" if it is the recommended one), and the restoration."""


class _Passes(torch.autograd.Function):
    """The identity; each pass back is counted."""

    @staticmethod
    def forward(x: Tensor, count: Count) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.count = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.count.backward += 1
        return grad, None


class _Network(nn.Module):
    """E[x_0 | alpha x_0 + sigma n], counted."""

    def __init__(self, model: Any, count: Count) -> None:
        super().__init__()
        self.model, self.count = model, count

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.count.forward += 1
        sde = self.model.sde
        t = t.detach().double().reshape(-1).cpu().clamp(sde.t_min, sde.t_max)
        found = self.model.data(x.float(), t.expand(len(x)))
        return _Passes.apply(found, self.count)  # type: ignore[no-untyped-call, no-any-return]


def installed(name: str) -> Any:
    """The library, or None."""
    try:
        return import_module(name)
    except ImportError:
        return None


def peers(
    problem: Problem, libraries: tuple[str, ...] = ("azula", "deepinv")
) -> Iterator[tuple[str, list[Found] | None]]:
    """Name and version of each library, and its methods; None where it is not installed. deepinv
    takes pictures only.
    """
    for name in libraries:
        if installed(name) is None:
            yield name, None
        else:
            yield f"{name} {version(name)}", _METHODS[name](problem)


def _azula(problem: Problem) -> list[Found]:
    """Flat states and outcomes; A is a matrix, of which PGDM gets the pseudo-inverse."""
    guidance = import_module("azula.guidance")
    denoise, sample = import_module("azula.denoise"), import_module("azula.sample")
    covariance = import_module("azula.linalg.covariance")
    shape, std = problem.x.shape, float(problem.seen.noise_std)
    size = math.prod(shape[1:])
    H = problem.seen.forward(torch.eye(size).reshape(-1, *shape[1:])).flatten(1).T
    inverse, y = torch.linalg.pinv(H, rtol=1e-3), problem.y.flatten(1)

    class Denoiser(denoise.Denoiser):  # type: ignore[misc, name-defined]
        def __init__(self, count: Count) -> None:
            super().__init__()
            self.net, self.sde = _Network(problem.model, count), problem.model.sde

        def time(self, t: Tensor) -> Tensor:
            t = t.double()
            if not problem.by_log_snr:
                return t
            first, last = (self.sde.log_snr(end) for end in (self.sde.t_min, self.sde.t_max))
            spaced = self.sde.time_of(first + t * (last - first))
            return torch.where(t > 0, spaced, 0.0)

        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            t = self.time(t)
            return self.sde.alpha(t).float(), self.sde.sigma(t).float()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            found = self.net(x_t.reshape(shape), self.time(t)).flatten(1)
            return denoise.DiracPosterior(mean=found)

    def A(x: Tensor) -> Tensor:
        return x @ H.T

    def solve(sampler: Any) -> Tensor:
        torch.manual_seed(0)
        found: Tensor = sampler(sampler.init((shape[0], size)))
        return found.reshape(shape)

    options = {"steps": problem.steps, "silent": True}

    def denoiser(kind: str, **own: Any) -> Callable[[Count], Tensor]:
        return lambda count: solve(
            sample.DDIMSampler(getattr(guidance, kind)(Denoiser(count), y, A, **own), **options)
        )

    def sampler(kind: str, *more: Any, **own: Any) -> Callable[[Count], Tensor]:
        return lambda count: solve(
            getattr(guidance, kind)(Denoiser(count), y, A, *more, **own, **options)
        )

    noise = covariance.IsotropicCovariance(torch.tensor(std**2))
    found: list[Found] = [
        ("MMPS", "", denoiser("MMPSDenoiser", cov_y=noise)),
        ("MMPS", "5 iterations", denoiser("MMPSDenoiser", cov_y=noise, iterations=5)),
        ("PGDM", "", sampler("PGDMSampler", lambda v: v @ inverse.T)),
        ("DPS", "", sampler("DPSSampler")),
        ("DiffPIR", "", denoiser("DiffPIRDenoiser", var_y=std**2)),
    ]
    found += [("DPS", f"zeta={z:g}", sampler("DPSSampler", zeta=z)) for z in (0.3, 3.0, 10.0)]
    found += [
        ("DiffPIR", f"lmbda={z:g}", denoiser("DiffPIRDenoiser", var_y=std**2, lmbda=z))
        for z in (0.3, 1.0, 3.0)
    ]
    return found


def _deepinv(problem: Problem) -> list[Found]:
    """Pictures from 0 to 1, as they have them."""
    dinv: Any = SimpleNamespace(
        physics=import_module("deepinv.physics"),
        sampling=import_module("deepinv.sampling"),
        L2=import_module("deepinv.optim.data_fidelity").L2,
        Denoiser=import_module("deepinv.models").Denoiser,
    )
    seen, shape = problem.seen, problem.x.shape
    physics = dinv.physics.LinearPhysics(
        A=seen.forward,
        A_adjoint=lambda v: seen.adjoint(v, shape[1:]),
        noise_model=dinv.physics.GaussianNoise(float(seen.noise_std) / 2),
    )
    y = (problem.y + seen.forward(torch.ones_like(problem.x))) / 2

    class Denoiser(dinv.Denoiser):  # type: ignore[misc, name-defined]
        def __init__(self, count: Count) -> None:
            super().__init__()
            self.net, self.sde = _Network(problem.model, count), problem.model.sde

        def forward(self, x: Tensor, sigma: Any, *_: Any, **__: Any) -> Tensor:
            level = 2 * torch.as_tensor(sigma).double().flatten()[:1].cpu()
            t = self.sde.time_of((-2 * level.log()).clamp(-9.9, 9.0))
            alpha = self.sde.alpha(t).to(x)
            return (self.net(alpha * (2 * x - 1), t) + 1) / 2

    def dps(**own: Any) -> Callable[[Count], Tensor]:
        def run(count: Count) -> Tensor:
            rng = torch.Generator().manual_seed(0)
            made = dinv.sampling.DPS(Denoiser(count), num_steps=problem.steps + 1, rng=rng, **own)
            return 2 * made(y, physics, x_init=tuple(shape)).float() - 1

        return run

    def diffpir(**own: Any) -> Callable[[Count], Tensor]:
        def run(count: Count) -> Tensor:
            torch.manual_seed(0)
            made = dinv.sampling.DiffPIR(Denoiser(count), dinv.L2(), max_iter=problem.steps, **own)
            return 2 * made(y, physics).float() - 1

        return run

    found: list[Found] = [("DPS", "", dps()), ("DiffPIR", "", diffpir())]
    found += [("DPS", f"weight={w:g}", dps(weight=w)) for w in (0.1, 0.3, 3.0)]
    found += [
        ("DPS, annealed", f"weight={w:g}", dps(guidance="annealed", weight=w)) for w in (0.3, 1.0)
    ]
    found += [("DiffPIR", f"lambda={z:g}", diffpir(lambda_=z)) for z in (1.0, 3.0, 25.0)]
    return found


_METHODS: dict[str, Callable[[Problem], list[Found]]] = {"azula": _azula, "deepinv": _deepinv}

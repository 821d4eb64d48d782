"""Samplers of diffusers, k-diffusion and azula, each by its own code, on a network that is known.

Every Gaussian kernel has one probability flow in y = x / alpha and s = sigma / alpha, so that all
of them can be run on the same noise levels: ``alpha`` and ``sigma`` (n + 1,), from the start to the
end of the grid, none of which is 0. `versions` says which libraries are installed.

*fault* names what is wrong in a sampler's own code; it is shown beside its figures. A sampler with
a fault may still be the best of its library, at few steps for example, and then counts as that.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

LIBRARIES = ("diffusers", "k-diffusion", "azula", "torchsde", "torchdiffeq", "torchode")
"""What may be measured beside us, by its name on PyPI."""
Net = Callable[[Tensor, Any, Any], Tensor]
"""(x, alpha, sigma) -> E[x_0 | x]."""
Run = Callable[[Net, Tensor, Tensor, Tensor], Tensor]
"""(network, x at the start, alpha, sigma) -> x at the end."""


class Sampler(NamedTuple):
    """A sampler of another library."""

    library: str
    name: str
    run: Run
    evaluations: int = 1  # of a step
    fault: str = ""


def versions() -> dict[str, str | None]:
    """The version of each library, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


# -- k-diffusion -----------------------------------------------------------------------------------


@contextmanager
def _stand_in(name: str) -> Iterator[None]:
    """An empty module of that name where it cannot be imported, for as long as this lasts."""
    try:
        importlib.import_module(name)
        yield
        return
    except (ImportError, RuntimeError):  # RuntimeError: torchvision built for another torch
        pass
    names = [name.rsplit(".", n)[0] for n in range(name.count(".") + 1)]
    for each in names:
        sys.modules[each] = ModuleType(each)
        sys.modules[each].__path__ = []
    try:
        yield
    finally:
        for each in names:
            del sys.modules[each]


@functools.cache
def k_diffusion() -> Any:
    """k-diffusion's module ``sampling`` alone. Its package imports CLIP, clean-fid, jsonmerge and
    others for training; of the two files that sampling needs, one imports torchvision, for
    pictures.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        raise ModuleNotFoundError("No module named 'k_diffusion'", name="k_diffusion")
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["k_diffusion"] = package
    with _stand_in("torchvision.transforms.functional"):
        found = importlib.import_module("k_diffusion.sampling")
    for name in [each for each in sys.modules if each.partition(".")[0] == "k_diffusion"]:
        del sys.modules[name]
    return found


def _scaled(net: Net) -> Callable[[Tensor, Tensor], Tensor]:
    """The network in y and s, as k-diffusion has it."""
    return lambda y, s: net(y, 1.0, float(s.flatten()[0]))


def _by_k_diffusion(name: str, **given: Any) -> Run:
    def run(net: Net, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        sample = getattr(k_diffusion(), f"sample_{name}")
        s = (sigma / alpha).to(x)
        y = sample(_scaled(net), x / alpha[0].to(x), s, disable=True, **given)
        return alpha[-1].to(x) * y

    return run


def _independent(name: str) -> Run:
    """One that asks for the noise of each step once: normals, which cost less than its trees."""

    def run(net: Net, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        draw = k_diffusion().default_noise_sampler(x)
        return _by_k_diffusion(name, noise_sampler=draw)(net, x, alpha, sigma)

    return run


THROWN = "draws normals at every step and does not use them"
THIRD = "its third-order term lacks a factor 2: order 2"
_K_ODE = (
    Sampler("k-diffusion", "euler", _by_k_diffusion("euler"), 1, THROWN),
    Sampler("k-diffusion", "heun", _by_k_diffusion("heun"), 2, THROWN),
    Sampler("k-diffusion", "dpm_2", _by_k_diffusion("dpm_2"), 2, THROWN),
    Sampler("k-diffusion", "lms", _by_k_diffusion("lms")),
    Sampler("k-diffusion", "dpmpp_2m", _by_k_diffusion("dpmpp_2m")),
    Sampler("k-diffusion", "dpmpp_2s", _by_k_diffusion("dpmpp_2s_ancestral", eta=0.0), 2),
)
_K_SDE = (
    Sampler("k-diffusion", "euler_ancestral", _by_k_diffusion("euler_ancestral")),
    Sampler("k-diffusion", "dpm_2_ancestral", _by_k_diffusion("dpm_2_ancestral"), 2),
    Sampler("k-diffusion", "dpmpp_2s_ancestral", _by_k_diffusion("dpmpp_2s_ancestral"), 2),
    Sampler("k-diffusion", "dpmpp_sde", _by_k_diffusion("dpmpp_sde"), 2),
    Sampler("k-diffusion", "dpmpp_2m_sde", _independent("dpmpp_2m_sde")),
    Sampler("k-diffusion", "dpmpp_3m_sde", _independent("dpmpp_3m_sde"), 1, THIRD),
)


# -- diffusers -------------------------------------------------------------------------------------


def diffusers_scheduler(kind: str, **given: Any) -> Any:
    """A scheduler of that kind, which keeps its warnings to itself."""
    library = importlib.import_module("diffusers")
    library.utils.logging.set_verbosity_error()
    return getattr(library, f"{kind}Scheduler")(**given)


def _by_diffusers(kind: str, **given: Any) -> Run:
    """A scheduler whose noise levels are replaced by the grid. Its states are those of an SDE that
    preserves variance.
    """

    def run(net: Net, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        scheduler = diffusers_scheduler(kind, prediction_type="sample", **given)
        scheduler.set_timesteps(len(sigma) - 1)
        scheduler.sigmas = sigma / alpha
        size = torch.hypot(alpha, sigma)
        a, b = (alpha / size).tolist(), (sigma / size).tolist()
        state = x / size[0].to(x)
        for i, t in enumerate(scheduler.timesteps):
            state = scheduler.step(net(state, a[i], b[i]), t, state, return_dict=False)[0]
        return size[-1].to(x) * state

    return run


NO_LIMIT = "the sign of its third-order term is wrong: does not converge"
_END = {"final_sigmas_type": "sigma_min"}  # or the last step is one of order 1


def _lower(kind: str, name: str, fault: str = "", **given: Any) -> Iterator[Sampler]:
    """With and without lower orders in the last steps."""
    for lower in (False, True):
        run = _by_diffusers(kind, lower_order_final=lower, **given)
        yield Sampler("diffusers", name + (", lower at the end" if lower else ""), run, 1, fault)


def _dpm(name: str, order: int, fault: str = "", algorithm: str = "dpmsolver++") -> list[Sampler]:
    given = {"solver_order": order, "algorithm_type": algorithm, **_END}
    return [*_lower("DPMSolverMultistep", name, fault, **given)]


_DIFFUSERS_ODE = (
    *_dpm("DPM++ 2M", 2),
    *_dpm("DPM++ 3M", 3, THIRD),
    *_dpm("DPM 2M", 2, algorithm="dpmsolver"),
    *_dpm("DPM 3M", 3, THIRD, algorithm="dpmsolver"),
    *_lower("DPMSolverSinglestep", "DPM++ 2S", solver_order=2, **_END),
    *_lower("UniPCMultistep", "UniPC 2", solver_order=2, **_END),
    *_lower("UniPCMultistep", "UniPC 3", solver_order=3, **_END),
    *_lower("UniPCMultistep", "UniPC 3 bh1", solver_order=3, solver_type="bh1", **_END),
    *_lower("DEISMultistep", "DEIS 2", solver_order=2),
    *_lower("DEISMultistep", "DEIS 3", solver_order=3),
)
_DIFFUSERS_SDE = (
    *_dpm("SDE-DPM++ 2M", 2, algorithm="sde-dpmsolver++"),
    *_dpm("SDE-DPM++ 3M", 3, NO_LIMIT, algorithm="sde-dpmsolver++"),
    Sampler("diffusers", "SA-Solver, tau 1", _by_diffusers("SASolver", tau_func=lambda t: 1.0)),
    Sampler("diffusers", "SA-Solver, tau 0.4", _by_diffusers("SASolver", tau_func=lambda t: 0.4)),
)


# -- azula -----------------------------------------------------------------------------------------


def _by_azula(name: str, **given: Any) -> Run:
    """A sampler whose time runs along the grid in equal steps."""

    def run(net: Net, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        denoise = importlib.import_module("azula.denoise")
        steps = len(sigma) - 1

        class Denoiser(denoise.Denoiser):  # type: ignore[misc, name-defined]
            def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
                i = ((1 - t) * steps).round().long()
                return alpha[i].to(x), sigma[i].to(x)

            def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
                here = (float(c) for c in self.schedule(t))
                return denoise.DiracPosterior(mean=net(x_t, *here))

        make = getattr(importlib.import_module("azula.sample"), f"{name}Sampler")
        sampler = make(Denoiser(), steps=steps, silent=True, dtype=torch.float64, **given)
        found: Tensor = sampler(x)
        return found

    return run


SLIP = "has sigma_t where sigma_s is meant: order 1"
_AZULA_ODE = (
    Sampler("azula", "Euler", _by_azula("Euler")),
    Sampler("azula", "Heun", _by_azula("Heun"), 2),
    *(
        Sampler("azula", f"{kind}{order}", _by_azula(kind, order=order), 1, fault)
        for kind, fault in {"zAB": "", "vAB": "", "zEAB": "", "xEAB": "", "REAB": SLIP}.items()
        for order in (2, 3)
    ),
)
_AZULA_SDE = (
    Sampler("azula", "DDPM", _by_azula("DDPM")),
    Sampler("azula", "Ito", _by_azula("Ito")),
    Sampler("azula", "PC", _by_azula("PC"), 2),
)

_ODE = {"k-diffusion": _K_ODE, "diffusers": _DIFFUSERS_ODE, "azula": _AZULA_ODE}
_SDE = {"k-diffusion": _K_SDE, "diffusers": _DIFFUSERS_SDE, "azula": _AZULA_SDE}


def samplers(*, stochastic: bool) -> list[Sampler]:
    """Those of the libraries that are installed."""
    there = versions()
    every = _SDE if stochastic else _ODE
    return [each for library in every if there[library] for each in every[library]]


def solve(
    sampler: Sampler, net: Net, x: Tensor, alpha: Tensor, sigma: Tensor, seed: int = 0
) -> Tensor:
    """The end of the grid from ``x``; what the sampler draws from the global generator is that of
    the seed, and the generator is left as it was.
    """
    with torch.random.fork_rng([]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return sampler.run(net, x, alpha, sigma)

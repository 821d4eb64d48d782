"""Which configurations of diffusers' schedulers are known, and what each implies."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from sdediff._extras import require

__all__ = ["KNOWN", "arguments", "check_version", "completed", "diffusers"]

_OLDEST: Final = (0, 30)


def check_version(version: str) -> None:
    """An ImportError unless this version of diffusers drives schedulers as this one is made for."""
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ImportError(
            f"diffusers {version} is installed, whose pipelines do not hand sigmas and begin "
            f'indices to schedulers; install {oldest} or newer: pip install "sdediff[diffusers]"'
        )


diffusers: Any = require("diffusers", "diffusers")
check_version(diffusers.__version__)

_CHAINS: Final = (
    "DDIMScheduler DDIMParallelScheduler DDPMScheduler DDPMParallelScheduler PNDMScheduler "
    "LMSDiscreteScheduler EulerDiscreteScheduler EulerAncestralDiscreteScheduler "
    "HeunDiscreteScheduler KDPM2DiscreteScheduler KDPM2AncestralDiscreteScheduler "
    "DPMSolverMultistepScheduler DPMSolverSinglestepScheduler DPMSolverSDEScheduler "
    "DEISMultistepScheduler UniPCMultistepScheduler SASolverScheduler"
).split()
KNOWN: Final[dict[str, dict[str, Any]]] = {
    "Scheduler": {},
    **{name: {} for name in _CHAINS},
    "UnCLIPScheduler": {"timestep_spacing": "linspace"},
    "FlowMatchEulerDiscreteScheduler": {"prediction_type": "flow_prediction"},
    "FlowMatchHeunDiscreteScheduler": {"prediction_type": "flow_prediction"},
    "EDMEulerScheduler": {"timestep_type": "continuous"},
    "EDMDPMSolverMultistepScheduler": {"timestep_type": "continuous"},
}
"""Classes whose configurations are known, and what they imply without saying it."""


def arguments(kind: Any) -> dict[str, Any]:
    """The arguments of a scheduler class, with their defaults."""
    parameters = inspect.signature(kind.__init__).parameters.items()
    return {name: given.default for name, given in parameters if given.default is not given.empty}


def _class_of(config: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The class of a configuration that does not say it, as that of a scheduler which was made
    and not loaded: the one with the most arguments that are all there.
    """
    keys = {key for key in config if not key.startswith("_")}
    if "solver" in keys:
        return "Scheduler"
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    taken = {name: arguments(getattr(diffusers, name)).keys() for name in names}
    sizes = {name: len(each) for name, each in taken.items() if each}
    fitting = [name for name in sizes if keys >= taken[name]]
    best = max(fitting, key=lambda name: (sizes[name], name in KNOWN), default="")
    if keys <= own.keys() and sizes.get(best) != len(keys):
        return "Scheduler"  # some of its arguments
    return best or f"no class of diffusers {diffusers.__version__}"


def completed(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of its ``_class_name``, and with what that class implies.
    ``own`` are the arguments of our `Scheduler`.

    Raises ValueError where the class is not known.
    """
    name = config.get("_class_name") or _class_of(config, own)
    if name not in KNOWN:
        raise ValueError(
            f"the configuration is of {name!r}, whose process is not known here; known: "
            f"{', '.join(KNOWN)}"
        )
    if name == "Scheduler":
        return dict(config)
    defaults = arguments(getattr(diffusers, name))
    given = {key: value for key, value in config.items() if key != "_use_default_values"}
    found = {**defaults, **KNOWN[name], **given}
    if found.get("invert_sigmas"):
        raise ValueError("invert_sigmas=True runs time backward, which is not known here")
    if found.get("rho", 7.0) != 7.0:
        raise ValueError(f"Karras sigmas are known with rho = 7 here, got rho = {found['rho']!r}")
    if "sigma_schedule" in found:
        found["use_exponential_sigmas"] = found["sigma_schedule"] == "exponential"
    return found

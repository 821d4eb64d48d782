"""What a scheduler configuration of diffusers says: an SDE, a prediction, network times, a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sdediff.constraints import Clip, Constraint, DynamicThreshold
from sdediff.discrete import DDPM
from sdediff.discrete.schedules import schedule, zero_terminal_snr
from sdediff.network_time import NetworkTime, Timesteps, read_network_time
from sdediff.sde import EDM, LinearSDE, RectifiedFlow
from sdediff.solvers.given import check_choice, integer
from sdediff.solvers.grid import GRIDS, LogSNR

__all__ = ["BETAS", "PREDICTIONS", "SPACINGS", "Raw", "Schedule", "schedule_of"]

PREDICTIONS: Final = {
    "epsilon": "noise",
    "sample": "data",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
"""diffusers' names of predictions, and ours."""
SPACINGS: Final = ("leading", "trailing", "linspace")


def _between(name: str) -> Callable[[float, float, int], Tensor]:
    return lambda low, high, n: schedule(name, n, beta_start=low, beta_end=high)


BETAS: Final[dict[str, Callable[[float, float, int], Tensor]]] = {
    "linear": _between("linear"),
    "scaled_linear": _between("scaled-linear"),
    "squaredcos_cap_v2": lambda low, high, n: schedule("cosine", n),
    "sigmoid": _between("sigmoid-betas"),
}
"""Betas (n,) by diffusers' names, from beta_start, beta_end and n."""


@dataclass(frozen=True)
class Schedule:
    """An SDE with what a pipeline's network predicts under it, the times that it is handed, and
    grids as a configuration asks for them.
    """

    sde: LinearSDE
    predicts: str | Raw
    time: NetworkTime
    constraint: Constraint | None
    config: Mapping[str, Any]

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is handed at times t, float64."""
        return read_network_time(self.time, self.sde, t)

    def time_at(self, handed: Tensor) -> Tensor:
        """The times at which the network is handed that: the inverse of `network_time`."""
        if isinstance(self.time, Timesteps):
            t: Tensor = (handed.double() - self.time.shift) * (float(self.sde.T) / self.time.n)
            return t
        return (4 * handed.double()).exp()

    def level(self, t: Tensor) -> Tensor:
        """diffusers' sigma at times t: sigma / alpha, or under rectified flow sigma."""
        sigma = self.sde.sigma(t)
        return sigma if self.flows else sigma / self.sde.alpha(t)

    def scale(self, t: Tensor) -> Tensor:
        """What states are multiplied by before the network sees them, at times t."""
        one = torch.ones_like(t)
        return self.predicts.scale(self.level(t)) if isinstance(self.predicts, Raw) else one

    @property
    def flows(self) -> bool:
        """Whether the process is rectified flow."""
        return self.predicts == "flow"

    def times(
        self,
        n: int | None,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        mu: float | None,
        grid: str | None,
    ) -> Tensor:
        """The n times of a grid, from noise to data, float64.

        ``timesteps`` are network times, ``sigmas`` are levels, a 0 at the end aside, which flow
        models shift. One of these or ``n`` is given; ``grid`` is a name in `GRIDS`, in place of
        the configuration's spacing.
        """
        given = sigmas if timesteps is None else timesteps
        if (timesteps is not None and sigmas is not None) or (given is None) == (n is None):
            raise ValueError(
                "set_timesteps takes the number of steps, or timesteps, or sigmas: one of them"
            )
        if timesteps is not None:
            return self._checked(self.time_at(_vector("timesteps", timesteps)))
        if sigmas is not None:
            levels = _vector("sigmas", sigmas)
            return self._at_levels(levels[:-1] if levels[-1] == 0 else levels, mu)
        count = integer("num_inference_steps", n, 1)
        if grid is not None:
            high, low = self._ends(mu)
            if count == 1:
                return torch.stack([high])
            snr = LogSNR(self.sde.log_snr, self.sde.time_of, bounded=True)
            return self._checked(GRIDS[grid](count - 1, float(high), float(low), snr))
        return self._checked(self._spaced(count, mu))

    def _spaced(self, n: int, mu: float | None) -> Tensor:
        """n times as the configuration spaces them."""
        config = self.config
        named = next((name for name in _RESPACED if config[f"use_{name}_sigmas"]), None)
        named = "exponential" if named is None and config["use_lu_lambdas"] else named
        if self.flows:
            if config["use_flow_sigmas"]:
                sigmas = torch.linspace(1, 1 / self._n, n + 1, dtype=torch.float64)[:-1]
            else:
                high, low = (1.0, 1 / self._n)
                if not config["use_dynamic_shifting"]:  # diffusers shifts the ends twice
                    high, low = (_shifted(s, config["shift"]) for s in (high, low))
                sigmas = torch.linspace(high, low, n, dtype=torch.float64)
            sigmas = self._shift(sigmas, mu)
            if named is None:
                return sigmas
            return _RESPACED[named](float(sigmas[0]), float(sigmas[-1]), n)
        if named is not None or not isinstance(self.time, Timesteps):
            high, low = self.level(self._ends(mu)).tolist()
            return self._at_levels(_RESPACED[named or "karras"](min(high, 4096.0), low, n), mu)
        return self.time_at(_STEPS[config["timestep_spacing"]](self._n, n, config["steps_offset"]))

    @property
    def _n(self) -> int:
        return int(self.time.n) if isinstance(self.time, Timesteps) else 0

    def _ends(self, mu: float | None) -> Tensor:
        """The noisiest and the cleanest time of grids."""
        if self.flows:
            return self._shift(torch.tensor([1.0, 1 / self._n], dtype=torch.float64), mu)
        ends = torch.tensor([self.sde.t_max, self.sde.t_min], dtype=torch.float64)
        if isinstance(self.time, Timesteps):
            wanted = [self.config["sigma_max"], self.config["sigma_min"]]
            for i, sigma in enumerate(wanted):
                ends[i] = ends[i] if sigma is None else self._clamped(torch.tensor(sigma).double())
        return ends

    def _clamped(self, level: Tensor) -> Tensor:
        """The time of a level sigma / alpha, or the end of the range that it lies beyond."""
        return self.sde.time_of(-2 * level.log()).clamp(self.sde.t_min, self.sde.t_max)

    def _at_levels(self, levels: Tensor, mu: float | None) -> Tensor:
        if self.flows:
            return self._checked(self._shift(levels, mu))
        return self._checked(self._clamped(levels))

    def _shift(self, sigmas: Tensor, mu: float | None) -> Tensor:
        """sigma -> s sigma / (1 + (s - 1) sigma), s the configured shift, or that which ``mu``
        says.
        """
        config = self.config
        if config["use_dynamic_shifting"]:
            if mu is None:
                raise ValueError(
                    "this configuration has use_dynamic_shifting: pass mu= to set_timesteps"
                )
            shift = math.exp(mu) if config["time_shift_type"] == "exponential" else mu
        else:
            shift = config["flow_shift" if config["use_flow_sigmas"] else "shift"]
        sigmas = _shifted(sigmas, shift)
        end = config["shift_terminal"]
        return 1 - (1 - sigmas) / (1 - sigmas[-1]) * (1 - end) if end else sigmas

    def _checked(self, times: Tensor) -> Tensor:
        """The times; a ValueError unless they fall and lie in the range of the SDE."""
        low, high = self.sde.t_min, self.sde.t_max
        inside = bool((times <= high * (1 + 1e-6)).all() and (times >= low * (1 - 1e-6)).all())
        if not inside or bool((times.diff() >= 0).any()):
            ends = self.network_time(torch.tensor([high, low], dtype=torch.float64)).tolist()
            got = ", ".join(f"{t:g}" for t in self.network_time(times[:8]).tolist())
            got += f", ... ({len(times)} of them)" if len(times) > 8 else ""
            raise ValueError(
                "the timesteps must fall, between "
                f"{ends[0]:g} and {ends[1]:g}; got {got}: take fewer steps, or other timesteps"
            )
        return times.clamp(low, high)


@dataclass(frozen=True)
class Raw:
    """``sign`` times F of Karras et al. 2022 (arXiv 2206.00364, eq. 7), what a network returns that
    sees x_t = x_0 + sigma noise divided by sqrt(sigma^2 + sigma_data^2).

    Minus F is v of that state where ``sigma_data`` is 1.
    """

    sigma_data: float
    sign: float

    def scale(self, sigma: Tensor) -> Tensor:
        """What the state is multiplied by before the network sees it."""
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def coefficients(self, sde: LinearSDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of p x_0 + q noise."""
        sigma = sde.sigma(t)
        scale = self.sign * self.scale(sigma)
        return scale * sigma / self.sigma_data, -scale * self.sigma_data


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """What a configuration with all arguments of `Scheduler` says; a ValueError for what is not
    known.
    """
    check_choice("prediction_type", config["prediction_type"], PREDICTIONS)
    check_choice("timestep_spacing", config["timestep_spacing"], SPACINGS)
    check_choice("timestep_type", config["timestep_type"], ("discrete", "continuous"))
    check_choice("time_shift_type", config["time_shift_type"], ("exponential", "linear"))
    predicts = PREDICTIONS[config["prediction_type"]]
    constraint: Constraint | None = None
    if config["thresholding"]:
        constraint = DynamicThreshold(
            config["dynamic_thresholding_ratio"], config["sample_max_value"]
        )
    elif config["clip_sample"]:
        constraint = Clip(-config["clip_sample_range"], config["clip_sample_range"])
    n = integer("num_train_timesteps", config["num_train_timesteps"], 2)
    if config["use_flow_sigmas"] and predicts != "flow":
        raise ValueError(
            "use_flow_sigmas goes with prediction_type='flow_prediction', got "
            f"{config['prediction_type']!r}"
        )
    if predicts == "flow":
        flow = RectifiedFlow(t_min=0.1 / n, t_max=1.0)
        return Schedule(flow, "flow", Timesteps(n, shift=0.0), constraint, config)
    if config["timestep_type"] == "continuous":
        return _continuous(config, predicts, constraint)
    if config["trained_betas"] is not None:
        betas = torch.as_tensor(np.asarray(config["trained_betas"], dtype=np.float64))
    else:
        check_choice("beta_schedule", config["beta_schedule"], BETAS)
        make = BETAS[config["beta_schedule"]]
        betas = make(config["beta_start"], config["beta_end"], n)
    if config["rescale_betas_zero_snr"]:
        betas = zero_terminal_snr(betas)
    sde = DDPM(tuple(betas.tolist())).to_sde()
    return Schedule(sde, predicts, Timesteps(len(betas)), constraint, config)


def _continuous(
    config: Mapping[str, Any], predicts: str, constraint: Constraint | None
) -> Schedule:
    """Under x_t = x_0 + sigma noise: v of `EulerDiscreteScheduler`, or F of the EDM schedulers,
    which say ``sigma_data``.
    """
    low, high, sigma_data = (config[name] for name in ("sigma_min", "sigma_max", "sigma_data"))
    known = ("v",) if sigma_data is None else ("v", "noise")
    if predicts not in known or low is None or high is None:
        raise ValueError(
            "timestep_type='continuous' is known for prediction_type='v_prediction' with "
            "sigma_min and sigma_max, or 'epsilon' too with sigma_data; got "
            f"{config['prediction_type']!r}, {low}, {high} and {sigma_data}"
        )
    raw = Raw(1.0 if sigma_data is None else sigma_data, -1.0 if predicts == "v" else 1.0)
    return Schedule(EDM(low, high), raw, lambda t: 0.25 * t.log(), constraint, config)


def _vector(name: str, values: Any) -> Tensor:
    found = torch.as_tensor(np.asarray(values, dtype=np.float64))
    if found.ndim != 1 or not len(found):
        raise ValueError(f"{name} must be a sequence of numbers, got {values!r}")
    return found


def _shifted(sigma: Any, shift: float) -> Any:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _leading(N: int, n: int, offset: int) -> Tensor:
    return (torch.arange(n - 1, -1, -1) * (N // n) + offset).double()


def _trailing(N: int, n: int, offset: int) -> Tensor:
    return torch.from_numpy(np.round(N - np.arange(n) * (N / n)) - 1.0)


def _linspace(N: int, n: int, offset: int) -> Tensor:
    return torch.linspace(N - 1, 0, n, dtype=torch.float64).round()


_STEPS: Final = {"leading": _leading, "trailing": _trailing, "linspace": _linspace}
"""n of the network times 0..N - 1, as in Table 2 of Lin et al. 2024 (arXiv 2305.08891)."""


def _karras(high: float, low: float, n: int) -> Tensor:
    return torch.linspace(high ** (1 / 7), low ** (1 / 7), n, dtype=torch.float64) ** 7


def _exponential(high: float, low: float, n: int) -> Tensor:
    return torch.linspace(math.log(high), math.log(low), n, dtype=torch.float64).exp()


def _beta(high: float, low: float, n: int) -> Tensor:
    from scipy.stats import beta

    return torch.from_numpy(low + (high - low) * beta.ppf(np.linspace(1, 0, n), 0.6, 0.6))


_RESPACED: Final = {"karras": _karras, "exponential": _exponential, "beta": _beta}
"""n levels from the highest to the lowest: of Karras et al. 2022 (arXiv 2206.00364, eq. 5), in
equal ratios, and by quantiles of Beta(0.6, 0.6) (arXiv 2407.12173).
"""

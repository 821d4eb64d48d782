"""Our solvers as a scheduler of diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sdediff.describing import Own, build, encode
from sdediff.interop.configurations import KNOWN, arguments, completed
from sdediff.interop.replay import Replay, Tape, announced, check_fits, check_own_grid
from sdediff.interop.schedules import Schedule, schedule_of
from sdediff.options import default_solver
from sdediff.solvers import GRIDS, Solver, White, expand, seeds
from sdediff.solvers.given import check_choice, nearest

__all__ = ["Scheduler", "schedule_from"]

# After the check of its version.
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import (
    KarrasDiffusionSchedulers,
    SchedulerMixin,
    SchedulerOutput,
)


def schedule_from(config: Mapping[str, Any]) -> Schedule:
    """What the configuration of a scheduler says; a ValueError where its process is not known."""
    own = arguments(Scheduler)
    return schedule_of({**own, **completed(config, own)})


class Scheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any solver with fixed steps as the scheduler of a diffusers pipeline:

        pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, solver=UniPC(3))

    ``solver`` may evaluate the network several times a step, draw noise, or be a
    predictor-corrector; adaptive ones are refused. By default it is that of `sample`. ``grid`` is
    a name in `GRIDS`; by default times are spaced as the configuration says. The other arguments
    are those of diffusers' schedulers. n inference steps are n - 1 intervals, and the last
    evaluation gives E[x_0 | x], as ``last="denoise"`` of `sample` does: a solver of one evaluation
    a step makes n. A `Tuned` solver has a grid of its own, and takes as many inference steps as it
    makes evaluations. ``timesteps`` lists all evaluations; ``times`` is the grid in times of the
    SDE, for ``grid=`` of `sample`.

    `step` is handed the network's output, and returns the state at which the network is asked
    next, in the dtype of the sample; the scheduler keeps a float32 state beside it. Noise is that
    of `White`, by a seed that is drawn from ``generator`` (one for each sample, of a list), or from
    torch's global generator.
    """

    _compatibles = sorted(
        {*KNOWN, *(each.name for each in KarrasDiffusionSchedulers)} - {"UnCLIPScheduler"}
    )

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        timestep_type: str = "discrete",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        use_lu_lambdas: bool | None = False,
        use_flow_sigmas: bool | None = False,
        flow_shift: float = 1.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        variance_type: str | None = None,
        solver: Solver | Mapping[str, Any] | None = None,
        grid: str | None = None,
    ) -> None:
        self._solver = None if solver is None else check_fits(_read(solver))
        if grid is not None:
            check_choice("grid", grid, GRIDS)
        described = None if self._solver is None else encode(self._solver)
        self.register_to_config(solver=described)  # type: ignore[no-untyped-call]
        self._schedule = schedule_of(self.config)
        self.num_inference_steps: int | None = None
        self._begin_index: int | None = None
        self.times = torch.zeros(0, dtype=torch.float64)
        self._asked: list[tuple[int, float]] = []
        self._replay: Replay | None = None
        self._index: int | None = None
        sde = self._schedule.sde
        self._running = self._solver or default_solver(sde, 1, stochastic=False)
        ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
        first, last = self._schedule.network_time(ends).tolist()
        self.timesteps = torch.linspace(first, last, num_train_timesteps)
        self.sigmas = self._levels(self._schedule.time_at(self.timesteps))
        if hasattr(sde, "betas"):
            self.betas = torch.tensor(sde.betas)
            self.alphas_cumprod = torch.cumprod(1 - self.betas.double(), 0).float()

    @classmethod
    def _from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **given: Any
    ) -> Any:
        """A scheduler of this configuration, of ours or of diffusers' schedulers; a ValueError
        where its process is not known, a TypeError for an argument that is not.
        """
        if not isinstance(config, Mapping):
            raise TypeError(
                f"from_config takes a configuration, pipe.scheduler.config say; got {config!r}"
            )
        known = arguments(Scheduler)
        for name in given if not return_unused_kwargs else ():
            if name not in known:
                raise TypeError(f"Scheduler takes no argument {name!r}{nearest(name, known)}")
        return super().from_config(
            completed(config, arguments(Scheduler)),
            return_unused_kwargs=return_unused_kwargs,
            **given,
        )

    from_config = _from_config

    @property
    def order(self) -> int:
        """Evaluations of a step: pipelines that start midway skip whole steps by it."""
        steps = [step for step, _ in self._asked[:-1]]
        if steps:
            return steps.count(steps[-1])
        return self._running.evaluations

    @property
    def init_noise_sigma(self) -> float:
        """What standard normals are multiplied by at the start."""
        start = self._asked[0][1] if self._asked else self._schedule.sde.t_max
        return float(1 / self._schedule.scale(torch.tensor(start, dtype=torch.float64)))

    @property
    def step_index(self) -> int | None:
        """The number of the evaluation in ``timesteps`` that `step` waits for."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """The number of the evaluation that the loop starts with."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Let the loop start with that evaluation, which is the first of a step."""
        self._begin_index = begin_index

    def __len__(self) -> int:
        levels: int = self.config["num_train_timesteps"]
        return levels

    @torch.inference_mode(False)
    @torch.no_grad()
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Make the grid of ``num_inference_steps`` times, or of these network times, or of these
        noise levels, and list the evaluations along it in ``timesteps``.

        ``mu`` is the shift of flow models with use_dynamic_shifting. Raises ValueError where the
        solver cannot go along the grid.
        """
        schedule = self._schedule
        given = sigmas if timesteps is None else timesteps
        if given is not None and num_inference_steps == len(given):
            num_inference_steps = None
        own = self._solver
        if own is not None and own.times is not None:
            check_own_grid(own, num_inference_steps, given)
            times = own.times
        else:
            times = schedule.times(num_inference_steps, timesteps, sigmas, mu, self.config["grid"])
        self._running = own or default_solver(schedule.sde, len(times) - 1, stochastic=False)
        tape = Tape(schedule.sde, schedule.predicts)
        self.times, self._asked = announced(self._running, tape, schedule.constraint, times)
        self.num_inference_steps = len(times) - self._running.ends_clean
        at = torch.tensor([t for _, t in self._asked], dtype=torch.float64)
        self.timesteps = schedule.network_time(at).float().to(device)
        self.sigmas = torch.cat([self._levels(at), torch.zeros(1)])
        self._begin_index = self._index = self._replay = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is handed for a state: itself, unless times are continuous."""
        if self.config["timestep_type"] == "discrete":
            return sample
        return sample * float(self._schedule.scale(self._schedule.time_at(_time(timestep))))

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
        prev_timestep: Any = None,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The state at which the network is asked next, or at the end E[x_0 | x], from its output
        at ``timestep`` and ``sample``.

        ``sample`` is what was returned last, changed or not. ``prev_timestep``, which some
        pipelines pass, is known from the grid. Raises ValueError where the loop starts inside a
        step or at a time that is not listed.
        """
        if self._index is None or self._index == len(self._asked):
            self._start(timestep, sample, generator)
        if self.config["variance_type"] in ("learned", "learned_range"):
            model_output = model_output[:, : sample.shape[1]]
        replay, index = cast(Replay, self._replay), cast(int, self._index)
        replay.answer(model_output, sample)
        self._index = index + 1
        last = self._index == len(self._asked)
        if (replay.asked is None) != last or (
            not last and replay.step != self._asked[self._index][0] - self._asked[self._first][0]
        ):
            raise RuntimeError(
                f"{self._running!r} evaluates more or less often than on its dry run: its "
                "evaluations depend on the network, so that it cannot be a scheduler"
            )
        found = replay.hand(sample.dtype)
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _start(self, timestep: Any, sample: Tensor, generator: Any) -> None:
        """Begin a loop at the begin index, or at the timestep."""
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        steps = [step for step, _ in self._asked]
        starts = [i for i, step in enumerate(steps) if i == 0 or steps[i - 1] != step]
        found = self._begin_index
        if found is None:
            gaps = (self.timesteps.cpu()[starts] - _time(timestep)).abs()
            found = starts[int(gaps.argmin())]
            if float(gaps.min()) > 1e-3:
                raise ValueError(
                    f"timestep {float(_time(timestep)):g} is not where a step starts: those are "
                    f"{', '.join(f'{t:g}' for t in self.timesteps[starts].tolist())}"
                )
        if found not in starts:
            raise ValueError(
                f"evaluation {found} is inside a step of {self._running!r}: the loop starts at "
                f"one of {', '.join(map(str, starts))}"
            )
        solver, x = self._running, sample.to(torch.promote_types(sample.dtype, torch.float32))
        tape = Tape(self._schedule.sde, self._schedule.predicts)
        times = self.times[steps[found] :]
        if found and self._expected(tape, times) != len(steps) - found:
            raise ValueError(
                f"{solver!r} evaluates more often at its start than along the way, so that it "
                "cannot start midway: take startup='published', if it has that"
            )
        noise = self._noise(x, generator) if solver.stochastic else None
        self._replay = Replay(solver, tape, self._schedule.constraint, times, x, noise)
        self._index = self._first = found

    def _expected(self, tape: Tape, times: Tensor) -> int:
        return len(announced(self._running, tape, self._schedule.constraint, times)[1])

    def _noise(self, x: Tensor, generator: Any) -> White:
        if isinstance(generator, Sequence):
            if len(generator) != len(x):
                raise ValueError(
                    f"there are {len(generator)} generators for {len(x)} samples: pass one, or "
                    "one for each"
                )
            rows = tuple(map(_seed, generator))
        else:
            rows = seeds(_seed(generator), len(x))
        return White(rows, x.shape[1:], dtype=x.dtype, device=x.device)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """alpha x_0 + sigma noise at ``timesteps``, one for all samples or one for each."""
        t = self._schedule.time_at(_time(timesteps))
        sde = self._schedule.sde
        alpha, sigma = (c.to(original_samples) for c in (sde.alpha(t), sde.sigma(t)))
        return expand(alpha, original_samples) * original_samples + expand(sigma, noise) * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise`, by the name that it has for flow models."""
        return self.add_noise(sample, noise, timestep)

    def _levels(self, t: Tensor) -> Tensor:
        return self._schedule.level(t).float()


def _time(timestep: Any) -> Tensor:
    """Network times as float64 on the host, () or (n,)."""
    return torch.as_tensor(timestep).detach().double().cpu()


def _seed(generator: torch.Generator | None) -> int:
    """A seed drawn from a generator, by default from torch's own."""
    place = "cpu" if generator is None else generator.device
    drawn = torch.randint(2**62, (1,), generator=generator, device=place)
    return int(drawn)


def _read(solver: Any) -> Any:
    """A solver, or that of a saved configuration."""
    if not isinstance(solver, Mapping):
        return solver
    try:
        return build(solver)
    except Own as own:
        raise ValueError(
            f"the saved solver {own} is not one of sdediff's, or has a function of its own: pass "
            "solver= to from_pretrained"
        ) from own

"""Names of SDEs and solvers on the command line."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from sdediff.degradation import (
    Blur,
    Degradation,
    Downsampling,
    Masking,
    NaiveSampling,
    RestorationLoss,
    Snow,
    TACoS,
)
from sdediff.discrete import DDPM, NCSN
from sdediff.objectives import DenoisingScoreMatching, Objective
from sdediff.run_folder import check_out
from sdediff.sde import SDE, VE, VP, Cosine, LinearSDE, RectifiedFlow, SubVP
from sdediff.solvers import (
    DDIM,
    DEIS,
    DOP853,
    ERSDE,
    IPNDM,
    LMS,
    PLMS,
    PNDM,
    RES,
    RK23,
    RK45,
    SEEDS,
    SRA1,
    SRA3,
    AdaptiveSDE,
    Ancestral,
    Churn,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPPSinglestep,
    Euler,
    EulerMaruyama,
    EulerTrapezoid,
    Heun,
    Langevin,
    Midpoint,
    PredictorCorrector,
    Renoise,
    RESSinglestep,
    ReverseDiffusion,
    RungeKutta4,
    SASolver,
    SciPy,
    SDEDPMSolverPP,
    Solver,
    StochasticHeun,
    TorchDiffEq,
    TorchSDE,
    Tsit5,
    Tuned,
    UniPC,
)
from sdediff.solvers.given import check_name

__all__ = [
    "DEGRADATIONS",
    "SDES",
    "SOLVERS",
    "Request",
    "check_device",
    "check_tolerances",
    "loss_for",
    "make_sde",
    "make_solver",
    "process_for",
    "tuned_solver",
]

SDES: Final[dict[str, Callable[[], LinearSDE]]] = {
    "vp": VP,
    "ve": VE,
    "subvp": SubVP,
    "cosine": Cosine,
    "rectified-flow": RectifiedFlow,
}


def _blur(x: Tensor) -> Degradation:
    """The published blur of MNIST, in proportion to the side of images x, and the law of their
    colours.
    """
    side = x.shape[-1] / 32
    size = 2 * max(1, round(5.5 * side - 0.5)) + 1
    return Blur(20, 7.0 * side, size, complete=True).fitted(x)


def _fewer(x: Tensor) -> Degradation:
    """Down to 2 to 4 pixels a side."""
    return Downsampling(max(1, math.ceil(math.log2(x.shape[-1])) - 2))


DEGRADATIONS: Final[dict[str, Callable[[Tensor], Degradation]]] = {
    "blur": _blur,
    "masking": lambda x: Masking(std=x.shape[-1] / 32, growth=0.1 * x.shape[-1] / 32),
    "downsampling": _fewer,
    "snow": lambda _: Snow(),
}
"""Cold diffusion of images (N, C, H, W): a degradation that suits their size."""


class Request(NamedTuple):
    """What a solver is made from."""

    sde: LinearSDE
    steps: int
    rtol: float | None
    atol: float | None
    data_std: float = 1.0

    def tolerances(self, default: float = 1e-4) -> tuple[float, float]:
        """rtol and atol: as they are given, or by default the same for data of standard deviation
        1.
        """
        atol = default * self.data_std if self.atol is None else self.atol
        return default if self.rtol is None else self.rtol, atol


SOLVERS: Final[dict[str, Callable[[Request], Solver]]] = {
    "euler-maruyama": lambda _: EulerMaruyama(),
    "reverse-diffusion": lambda _: ReverseDiffusion(),
    "pc": lambda _: PredictorCorrector(ReverseDiffusion(), Langevin()),
    "ancestral": lambda _: Ancestral(),
    "ddpm": lambda request: DDPM.from_sde(request.sde, request.steps),
    "ncsn": lambda request: NCSN.from_sde(request.sde, request.steps, n_steps=5),
    "ddim": lambda _: DDIM(),
    "dpm-solver": lambda _: DPMSolver(),
    "dpm-solver++": lambda _: DPMSolverPP(),
    "dpm-solver++-2s": lambda _: DPMSolverPPSinglestep(),
    "unipc": lambda _: UniPC(),
    "deis": lambda _: DEIS(),
    "ipndm": lambda _: IPNDM(),
    "lms": lambda _: LMS(),
    "pndm": lambda _: PNDM(),
    "plms": lambda _: PLMS(),
    "res-2m": lambda _: RES(),
    "res-2s": lambda _: RESSinglestep(2),
    "res-3s": lambda _: RESSinglestep(3),
    "sde-dpm-solver++": lambda _: SDEDPMSolverPP(),
    "sa-solver": lambda _: SASolver(),
    "seeds": lambda _: SEEDS(),
    "er-sde": lambda _: ERSDE(),
    "adaptive-sde": lambda request: AdaptiveSDE(*request.tolerances(0.05)),
    "euler-trapezoid": lambda _: EulerTrapezoid(),
    "renoise": lambda _: Renoise(RungeKutta4()),
    "dpm2-ancestral": lambda _: Renoise(DPMSolver(2), eta=1.0),
    "dpm-solver++-2s-ancestral": lambda _: Renoise(DPMSolverPPSinglestep(2), eta=1.0),
    "euler": lambda _: Euler(),
    "stochastic-heun": lambda _: StochasticHeun(),
    "sra1": lambda _: SRA1(),
    "sra3": lambda _: SRA3(),
    "midpoint": lambda _: Midpoint(),
    "heun": lambda _: Heun(),
    "churn": lambda _: Churn(Heun()),
    "rk4": lambda _: RungeKutta4(),
    "ode": lambda request: RK45(*request.tolerances()),
    "rk45": lambda request: RK45(*request.tolerances()),
    "rk23": lambda request: RK23(*request.tolerances()),
    "tsit5": lambda request: Tsit5(*request.tolerances()),
    "dop853": lambda request: DOP853(*request.tolerances()),
    "scipy-rk45": lambda request: SciPy("RK45", *request.tolerances()),
    "torchdiffeq-dopri5": lambda request: TorchDiffEq("dopri5", *request.tolerances()),
    "torchsde-srk": lambda _: TorchSDE("srk"),
    "tacos": lambda _: TACoS(),
    "naive": lambda _: NaiveSampling(),
}


def _choose(kind: str, name: str, known: dict[str, Callable[..., object]]) -> str:
    key = name.lower().replace("_", "-")
    check_name(kind, key, known)
    return key


def make_sde(name: str) -> LinearSDE:
    """The SDE of that name with its defaults."""
    return SDES[_choose("SDE", name, dict(SDES))]()


def process_for(name: str) -> Callable[[Tensor], SDE]:
    """What makes the process of that name, an SDE or a degradation, for data (N, *event)."""
    key = _choose("SDE", name, {**SDES, **DEGRADATIONS})
    if key in SDES:
        return lambda _: SDES[key]()

    def made(x: Tensor) -> SDE:
        if x.ndim != 4:
            raise ValueError(
                f"--sde {key} is for images (C, H, W), and these data have shape "
                f"{tuple(x.shape[1:])}: take another one"
            )
        return DEGRADATIONS[key](x)

    return made


def loss_for(name: str, weighting: str, times: str) -> Objective:
    """The loss by which models under the process of that name are trained; a ValueError for options
    that it does not have.
    """
    if _choose("SDE", name, {**SDES, **DEGRADATIONS}) in SDES:
        return DenoisingScoreMatching(weighting, times, stratified=True)
    if (weighting, times) != ("edm", "logit-normal"):
        raise ValueError(
            f"--weighting and --times are of denoising losses, and --sde {name} has its own: drop "
            "them"
        )
    return RestorationLoss(stratified=True)


def make_solver(
    name: str,
    sde: LinearSDE,
    steps: int | None,
    rtol: float | None,
    atol: float | None,
    data_std: float = 1.0,
    config: Mapping[str, Any] | None = None,
    guidance: float | None = None,
) -> tuple[Solver, int | None]:
    """The solver of that name or in that .json file, and the steps to hand to `sample` with it, for
    the run with this configuration and guidance.
    """
    if name.endswith(".json"):
        if steps is not None:
            raise ValueError(f"{name} has a grid of its own: drop --steps")
        check_tolerances(f"{name} takes", rtol, atol)
        return tuned_solver(name, "--solver", config or {}, guidance), None
    make = SOLVERS[_choose("solver", name, dict(SOLVERS))]
    solver = make(Request(sde, steps or 100, rtol, atol, data_std))
    if solver.adaptive:
        if steps is not None:
            raise ValueError(
                f"solver {name!r} chooses its own steps: drop --steps, set --rtol and --atol"
            )
        return solver, None
    check_tolerances(f"solver {name!r} takes", rtol, atol)
    return solver, None if solver.times is not None else steps or 100


def tuned_solver(
    path: str, option: str, config: Mapping[str, Any], guidance: float | None
) -> Tuned:
    """The solver in a file of tune; a UserWarning if it was made for another run or guidance."""
    file = check_out(path, option)
    if not file.is_file():
        raise ValueError(f"{option} {path}: there is no such file; sdediff tune makes one")
    found = Tuned.load(file)
    told = found.made.get("model") or {}
    there = told.get("run"), told.get("guidance")
    here = config.get("run"), guidance
    if there[0] is not None and there != here:
        was, this = (
            f"the run {run}{'' if scale is None else f' with guidance {scale:g}'}"
            for run, scale in (there, here)
        )
        warnings.warn(
            f"{path} was tuned for {was}, and this is {this}: it may be worse here than the "
            "default solver; sdediff.tuning.transfer measures that, and sdediff tune makes one "
            "for this",
            stacklevel=2,
        )
    return found


def check_tolerances(who: str, rtol: float | None, atol: float | None) -> None:
    """Refuse tolerances beside fixed steps."""
    if rtol is not None or atol is not None:
        raise ValueError(
            f"{who} fixed steps, and --rtol and --atol are for solvers that choose their own: "
            "drop them, "
            "or take --solver ode or adaptive-sde without --steps"
        )


def check_device(device: str | None) -> str:
    """A device that is there: the one named, or the fastest."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"{device!r} is no device; take cpu, cuda or cuda:1, say") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no CUDA device that torch can use; take --device cpu")
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"{device!r} is not supported; take cpu, cuda or mps")
    return device

"""Published exponential integrators by their names: each is a choice of form, variable and
order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sdediff.solvers.exponential.flow import Flow, Moments
from sdediff.solvers.exponential.forms import Form, FormName
from sdediff.solvers.exponential.multistep import ExponentialMultistep
from sdediff.solvers.exponential.singlestep import ExponentialSinglestep
from sdediff.solvers.problem import Problem
from sdediff.solvers.variable import VariableName

__all__ = [
    "DEIS",
    "ERSDE",
    "IPNDM",
    "LMS",
    "PLMS",
    "PNDM",
    "RES",
    "SEEDS",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverPPSinglestep",
    "RESSinglestep",
    "SASolver",
    "SDEDPMSolverPP",
    "UniPC",
]


@dataclass(frozen=True, repr=False)
class DPMSolver(ExponentialSinglestep):
    """DPM-Solver-1, -2 and -3 (Lu et al. 2022, arXiv 2206.00927, Algorithms 1 and 2): single steps
    in noise form and log-SNR.

    Order and evaluations a step: ``order``, 1 to 3 as published, and 4 beyond.
    """

    form: FormName | float | Form = "noise"
    moments: Moments = "half"


@dataclass(frozen=True, repr=False)
class DPMSolverPPSinglestep(ExponentialSinglestep):
    """DPM-Solver++(2S) and (3S) (Lu et al. 2022, arXiv 2211.01095, Algorithm 1): single steps in
    data form and log-SNR.

    Order and evaluations a step: ``order``.
    """

    order: int = 2
    moments: Moments = "half"


@dataclass(frozen=True, repr=False)
class DPMSolverPP(ExponentialMultistep):
    """DPM-Solver++(2M) and (3M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2): multistep in data
    form and log-SNR.

    Order ``order``, one evaluation a step, and one more in the first step of 3M. The publication's
    3M is of order 2: its second difference lacks a factor 2, and it begins with lower orders
    (``startup="published"``).
    """

    order: int = 2
    moments: Moments = "half"


@dataclass(frozen=True, repr=False)
class UniPC(ExponentialMultistep):
    """UniPC of order p (Zhao et al. 2023, arXiv 2302.04867): UniP-p and UniC-p, multistep in data
    form and log-SNR.

    Order p + 1, one evaluation a step, and 2 and 6 more to start UniPC-3 and -4. The published
    codes begin with lower orders (``startup="published"``, which caps the order at 3) and end so
    (``lower_final``, at 2). B(h) matters where only two predictions meet: ``moments="half"`` is B_2
    = exp(h) - 1, ``"half-h"`` is B_1 = h.
    """

    corrector: int | None = None
    moments: Moments = "half"


@dataclass(frozen=True, repr=False)
class DEIS(ExponentialMultistep):
    """DEIS (Zhang and Chen 2023, arXiv 2204.13902): multistep in noise form, ``variable="t"`` for
    tAB, ``"sigma"`` for rhoAB.

    Order ``order`` (tAB of the publication's degree r has order r + 1), one evaluation a step and 1
    or 4 more to start orders 3 or 4.
    """

    form: FormName | float | Form = "noise"
    variable: VariableName = "t"


@dataclass(frozen=True, repr=False)
class LMS(ExponentialMultistep):
    """The linear multistep method of k-diffusion: Adams and Bashforth's in sigma / alpha.

    Order ``order``, one evaluation a step and 1 or 4 more to start orders 3 or 4. It is DEIS's
    rhoAB. ``LMS(startup="published")`` is k-diffusion's, which begins with lower orders, on a grid
    that ends at sigma = 0: the last step has the full order there too. (``last="denoise"`` of
    `sample`, where a grid ends above 0, is a step of order 1 to sigma = 0.)
    """

    order: int = 4
    form: FormName | float | Form = "noise"
    variable: VariableName = "sigma"


@dataclass(frozen=True, repr=False)
class IPNDM(ExponentialMultistep):
    """iPNDM (Zhang and Chen 2023, arXiv 2204.13902, after PNDM: Liu et al. 2022, arXiv 2202.09778):
    the weights of equal steps.

    The transfer is DDIM's, the prediction Adams and Bashforth's for equal steps whatever the grid:
    order ``order`` on grids uniform in sigma / alpha alone, 2 where the grid is a smooth function
    of the index. One evaluation a step, 1 or 4 more to start.
    """

    order: int = 4
    form: FormName | float | Form = "noise"
    moments: Moments = "uniform"


@dataclass(frozen=True, repr=False)
class PNDM(IPNDM):
    """PNDM (Liu et al. 2022, arXiv 2202.09778, Algorithm 2): `IPNDM` that begins with pseudo
    Runge-Kutta steps.

    The first order - 1 steps make four evaluations each, two of them in the middle of the step in
    t (or another ``variable``), and go by DDIM's transfer from the step's start with (e_1 + 2 e_2 +
    2 e_3 + e_4) / 6. The pseudo steps as well as the multistep weights of equal steps have order 2
    where the grid is a smooth function of the index, the paper's order; with ``variable="sigma"``
    and a grid uniform in sigma / alpha they have order 4. One evaluation a step, 9 more to start.
    """

    variable: VariableName = "t"
    startup: Literal["exact", "published", "heun", "runge-kutta"] = "runge-kutta"


@dataclass(frozen=True, repr=False)
class PLMS(IPNDM):
    """PLMS, the sampler of latent diffusion and of Stable Diffusion 1: PNDM's multistep method
    (Liu et al. 2022, arXiv 2202.09778, eq. 12) with a pseudo Heun step to start and lower orders
    after it.

    The first step is taken again with the mean of the evaluations at its start and at its end, then
    come orders 2, 3 and ``order``. Order 2 where the grid is a smooth function of the index, 3 on
    grids uniform in sigma / alpha. One evaluation a step, one more to start.
    """

    startup: Literal["exact", "published", "heun", "runge-kutta"] = "heun"


@dataclass(frozen=True, repr=False)
class RES(ExponentialMultistep):
    """The multistep method of the Refined Exponential Solver (Zhang et al. 2023, arXiv 2308.02157),
    ``res_2m`` in ComfyUI: data form and log-SNR, with exact integrals.

    Order ``order``, one evaluation a step, as `DPMSolverPP`, whose slope has a simplified weight.
    """

    order: int = 2


@dataclass(frozen=True, repr=False)
class RESSinglestep(ExponentialSinglestep):
    """The single steps of the Refined Exponential Solver (Zhang et al. 2023, arXiv 2308.02157):
    ``res_2s`` and ``res_3s`` in ComfyUI, with Hochbruck and Ostermann's order conditions.

    Stages at ``r1`` = 1/2 and, for order 3, ``r2`` = 1. Order and evaluations a step: ``order``.
    """

    order: int = 2

    usual: ClassVar[Mapping[int, tuple[float, ...]]] = {2: (0.5,), 3: (0.5, 1.0)}


@dataclass(frozen=True, repr=False)
class SDEDPMSolverPP(ExponentialMultistep):
    """SDE-DPM-Solver++(1) and (2M) (Lu et al. 2022, arXiv 2211.01095, eq. 18), and of order 3:
    multistep in data form for the SDE.

    The publication has lambda = 1; here it is the problem's. One evaluation a step. Strong order 1
    and weak order min(order, 2), where the paper names the order of the polynomial; at lambda = 0
    it is `DPMSolverPP`. Widely used code of order 3 diverges (a sign).
    """

    order: int = 2
    moments: Moments = "half"
    sde: bool = True


@dataclass(frozen=True, repr=False)
class SASolver(ExponentialMultistep):
    """SA-Solver (Xue et al. 2023, arXiv 2309.05019): stochastic Adams predictor and corrector in
    data form and log-SNR.

    tau(t) is the problem's ``stochasticity``. ``order`` predictions make the predictor,
    ``corrector`` and the new one the corrector, at one evaluation a step. Strong order 1 and weak
    order 2 at most, where the paper has orders of the polynomials as tau falls; at tau = 0 it is
    the exact-coefficient Adams method, of order ``order`` or one more.
    """

    corrector: int | None = None
    sde: bool = True


@dataclass(frozen=True, repr=False)
class SEEDS(ExponentialSinglestep):
    """SEEDS-1 to -3 (Gonzalez et al. 2023, arXiv 2305.14267): exponential single steps for the
    reverse SDE in noise form.

    ``order`` evaluations a step; the noise at the stages is that of the path. Strong order 1 and
    weak order min(order, 2); at lambda = 0 it is `DPMSolver` with exact integrals.

    It needs short steps. Where noise hides the data, a step over h in log(alpha / sigma) is to
    leave x / sigma standard normal; SEEDS-1 makes its variance (2 - e^h)^2 + e^(2 h) - 1, and
    SEEDS-2 multiplies it by about (4 / h)^2 e^(3 h). That is in the method, as published: for few
    steps take `SDEDPMSolverPP`, the data form, whose steps have no such factor.
    """

    form: FormName | float | Form = "noise"
    sde: bool = True


def _balanced(rho: Tensor) -> Tensor:
    """rho (exp(rho^0.3) + 10), the paper's choice."""
    return rho * (torch.exp(rho**0.3) + 10)


@dataclass(frozen=True, repr=False)
class ERSDE(ExponentialMultistep):
    """ER-SDE-Solver-1 to -3 (Cui et al. 2023, arXiv 2309.06169): multistep in data form and sigma /
    alpha, with a scale of noise.

    ``scale`` is the paper's phi, a function of rho = sigma / alpha: rho itself is the probability
    flow, rho^2 the reverse SDE; in general lambda^2 = d log phi / d log rho - 1. By default it is
    the paper's rho (exp(rho^0.3) + 10). One evaluation a step; strong order 1 and weak order
    min(order, 2).
    """

    variable: VariableName = "sigma"
    sde: bool = True
    scale: Callable[[Tensor], Tensor] | None = None

    solves_sde = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and not callable(self.scale):
            raise TypeError(
                f"ERSDE: scale must be a function of rho = sigma / alpha, got {self.scale!r}"
            )

    def flow(self, problem: Problem) -> Flow:
        """The problem with the solver's own stochasticity."""

        scale, length = (
            (_balanced, 1 / problem.standard) if self.scale is None else (self.scale, problem.unit)
        )

        def mixing(u: Tensor) -> tuple[Tensor, Tensor]:
            rho = (length * torch.exp(-u)).clamp(min=1e-30)  # at 0 powers have no derivative
            with torch.enable_grad():
                at = rho if rho.requires_grad else rho.detach().requires_grad_()
                phi = scale(at)
                (slope,) = torch.autograd.grad(phi.sum(), at, create_graph=rho.requires_grad)
            phi = phi if rho.requires_grad else phi.detach()
            square = rho * slope / phi - 1
            if bool((wrong := ~(square > -1e-9)).any()):
                raise ValueError(
                    "ERSDE: scale must be positive and grow at least as fast as rho; lambda^2 = "
                    "d log scale / d log rho - 1 at "
                    f"rho = {float(rho[wrong][0]):.4g} is {float(square[wrong][0]):.3g}"
                )
            return -(phi / rho).log(), square.clamp(min=0)

        return Flow(problem, self.form, self.variable, mixing)

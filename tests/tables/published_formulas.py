"""Published update formulas of exponential multistep methods, written from the papers as loops over
a grid.

Single steps are in `published_singlestep`. Nothing here knows the library's solvers. A `Walk` holds
what the papers' formulas read: alpha, sigma and half the log-SNR (their lambda, here u) at the
grid's times, the model's predictions, and a normal for each step. Every function returns the last
state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, expm1, log, sqrt

import numpy as np
import torch
from numpy.polynomial import Polynomial
from scipy.integrate import quad
from torch import Tensor

import sdediff as sd
from sdediff.solvers import Noise


class Walk:
    def __init__(self, model: sd.ScoreModel, times: Tensor, noise: Noise | None = None) -> None:
        self.model, self.times, self.noise = model, times.tolist(), noise
        self.a, self.s, self.u = self.at(times)
        self.rho = [s / a if a else float("inf") for a, s in zip(self.a, self.s, strict=True)]
        self.n = len(times) - 1

    def at(self, t: Tensor) -> tuple[list[float], list[float], list[float]]:
        sde = self.model.sde
        return sde.alpha(t).tolist(), sde.sigma(t).tolist(), (0.5 * sde.log_snr(t)).tolist()

    def eps(self, x: Tensor, i: int) -> Tensor:
        return self.model.noise(x, self.times[i])

    def x0(self, x: Tensor, i: int) -> Tensor:
        return self.model.data(x, self.times[i])

    def z(self, i: int, k: int = 0) -> Tensor:
        assert self.noise is not None
        return self.noise.at(i).normal("path", k)

    def h(self, i: int) -> float:
        return self.u[i + 1] - self.u[i]

    def inside(self, i: int, r: float) -> tuple[float, float, float]:
        """(t, alpha, sigma) where u is at u_i + r h."""
        t = self.model.sde.time_of(
            torch.tensor([2 * (self.u[i] + r * self.h(i))], dtype=torch.float64)
        )
        (a,), (s,), _ = self.at(t)
        return float(t), a, s


def lagrange(nodes: Sequence[float], j: int) -> Polynomial:
    """1 at node j, 0 at the others."""
    others = [node for k, node in enumerate(nodes) if k != j]
    p = Polynomial.fromroots(others) if others else Polynomial([1.0])
    return p / p(nodes[j])


def times_exponential(p: Polynomial, c: float, a: float, b: float) -> float:
    """The integral of exp(c (v - b)) p(v) from a to b, by parts."""
    parts = [(-1) ** j / c ** (j + 1) * (p.deriv(j) if j else p) for j in range(p.degree() + 1)]
    return float(sum(part(b) - exp(c * (a - b)) * part(a) for part in parts))


# -- multistep, log-SNR ----------------------------------------------------------------------------


def count(w: Walk, i: int, order: int, lower_final: bool) -> int:
    """How many predictions a published code takes in step i."""
    return min(order, i + 1, w.n - i if lower_final else order)


def dpm_solver_pp(
    w: Walk,
    x: Tensor,
    order: int,
    *,
    noisy: bool = False,
    taylor: bool = False,
    lower_final: bool = False,
    d2: float = 2.0,
    half: float = 0.5,
) -> Tensor:
    """DPM-Solver++(1), (2M), (3M), arXiv 2211.01095 Algorithm 2, and with ``noisy``
    SDE-DPM-Solver++ (section 5), lambda = 1.

    ``taylor``: the exact weight of the slope of 2M ("heun" in a widely used code), else half that
    of the prediction ("midpoint"). ``d2``: a factor on the second difference of 3M, 2 in Taylor's
    formula, 1 as published; ``half``: what its weight subtracts.
    """
    m: list[Tensor] = []
    for i in range(w.n):
        m.append(w.x0(x, i))
        q, h, a = count(w, i, order, lower_final), w.h(i), w.a[i + 1]
        c = 2 * h if noisy else h
        keep = w.s[i + 1] / w.s[i] * (exp(-h) if noisy else 1.0)
        x = keep * x - a * expm1(-c) * m[-1]
        if q > 1:
            r0 = w.h(i - 1) / h
            slope = curvature = (m[-1] - m[-2]) / r0
            if q == 3:
                r1 = w.h(i - 2) / h
                change = slope - (m[-2] - m[-3]) / r1
                slope, curvature = slope + r0 / (r0 + r1) * change, change / (r0 + r1)
            x = x + a * (expm1(-c) / c + 1 if taylor or q == 3 else -0.5 * expm1(-c)) * slope
            if q == 3:
                x = x - d2 * a * ((expm1(-c) + c) / c**2 - half) * curvature
        if noisy:
            x = x + w.s[i + 1] * sqrt(-expm1(-2 * h)) * w.z(i)
    return x


def unipc(
    w: Walk, x: Tensor, order: int, b: int, *, lower_final: bool = False, data: bool = True
) -> Tensor:
    """UniP-p and UniC-p with B_1(h) = h or B_2(h) = e^h - 1: arXiv 2302.04867, eq. 5 to 9 and
    Algorithms 1 and 2.
    """
    predict, sign = (w.x0, -1.0) if data else (w.eps, 1.0)
    m = [predict(x, 0)]
    for i in range(w.n):
        q, h = count(w, i, order, lower_final), w.h(i)
        hh = sign * h
        size = hh if b == 1 else expm1(hh)
        r = [(w.u[i - k] - w.u[i]) / h for k in range(1, q)] + [1.0]
        d = [(m[-1 - k] - m[-1]) / r[k - 1] for k in range(1, q)]
        right, phi, factorial = [], expm1(hh) / hh - 1, 1.0
        for k in range(1, q + 1):
            right.append(phi * factorial / size)
            factorial *= k + 1
            phi = phi / hh - 1 / factorial
        matrix = np.array([[each**k for each in r] for k in range(q)])
        last, scale = (w.s, w.a[i + 1]) if data else (w.a, w.s[i + 1])
        base = last[i + 1] / last[i] * x - scale * expm1(hh) * m[-1]
        p = [0.5] if q == 2 else np.linalg.solve(matrix[:-1, :-1], right[:-1]).tolist()
        x = base - scale * size * sum(
            (c * each for c, each in zip(p, d, strict=True)), start=torch.zeros_like(x)
        )
        if i < w.n - 1:
            new = predict(x, i + 1)
            p = [0.5] if q == 1 else np.linalg.solve(matrix, right).tolist()
            x = base - scale * size * sum(
                c * each for c, each in zip(p, [*d, new - m[-1]], strict=True)
            )
            m.append(new)
    return x


Law = Callable[[float], tuple[float, float]]
"""(L, tau^2) at u, L the integral of tau^2 du."""


def constant(tau: float) -> Law:
    return lambda u: (tau**2 * u, tau**2)


def sa_solver(
    w: Walk,
    x: Tensor,
    order: int,
    corrector: int,
    law: Law,
    *,
    closed: bool = True,
    lower_final: bool = False,
    rescaled: bool = False,
) -> Tensor:
    """SA-Solver: arXiv 2309.05019, Algorithm 1, eq. 14 to 18; the corrector takes ``corrector``
    earlier predictions (0: none).

    ``closed``: by the closed integrals for a constant tau, else by adaptive quadrature.
    ``rescaled``: the slope through two predictions has the weight at the end, times h^2 / 2
    (Appendix D, and the authors' code for few steps).
    """

    def step(x: Tensor, i: int, nodes: list[float], m: list[Tensor]) -> Tensor:
        a, b = w.u[i], w.u[i + 1]
        (big_a, square), (big_b, _) = law(a), law(b)
        for j, each in enumerate(m):
            p = lagrange(nodes, j)
            if closed:
                weight = (1 + square) * times_exponential(p, 1 + square, a, b)
                if rescaled and len(nodes) == 2:
                    ramp = times_exponential(Polynomial([-a, 1.0]), 1 + square, a, b)
                    weight += (1 + square) * p.deriv()(a) * ((b - a) ** 2 / 2 - ramp)
            else:
                weight = quad(
                    lambda u: (1 + law(u)[1]) * exp(u - b + law(u)[0] - big_b) * p(u),  # noqa: B023
                    a,
                    b,
                    epsabs=0,
                    epsrel=1e-12,
                )[0]
            x = (w.s[i + 1] / w.s[i] * exp(big_a - big_b) * x if j == 0 else x) + w.a[
                i + 1
            ] * weight * each
        return x + w.s[i + 1] * sqrt(-expm1(2 * (big_a - big_b))) * w.z(i) if big_a != big_b else x

    m = [w.x0(x, 0)]
    for i in range(w.n):
        q = count(w, i, order, lower_final)
        predicted = step(x, i, [w.u[i - k] for k in range(q)], m[::-1][:q])
        if i == w.n - 1:
            return predicted
        m.append(w.x0(predicted, i + 1))
        c = count(w, i, corrector, lower_final)
        x = (
            step(x, i, [w.u[i + 1 - k] for k in range(c + 1)], m[::-1][: c + 1])
            if corrector
            else predicted
        )
    return x


# -- multistep, other variables --------------------------------------------------------------------


def _noise_form(w: Walk, x: Tensor, order: int, weight: Callable[[int, int, int], float]) -> Tensor:
    """x_s / alpha_s = x_t / alpha_t + sum of weight(i, number of predictions, j) eps_j, starting
    with lower orders.
    """
    m: list[Tensor] = []
    for i in range(w.n):
        m.insert(0, w.eps(x, i))
        q = min(order, i + 1)
        x = w.a[i + 1] * (x / w.a[i] + sum(weight(i, q, j) * m[j] for j in range(q)))
    return x


def deis_tab(w: Walk, x: Tensor, order: int) -> Tensor:
    """DEIS tAB: arXiv 2204.13902, eq. 14 and 15, C_ij by quadrature in t of g^2 / (2 alpha sigma)
    times a polynomial.
    """
    sde, (node, size) = w.model.sde, np.polynomial.legendre.leggauss(60)
    times = np.array(w.times)
    half, t = (
        0.5 * np.diff(times),
        0.5 * (times[1:] + times[:-1])[:, None] + 0.5 * np.diff(times)[:, None] * node,
    )
    at = torch.from_numpy(t.flatten())
    density = (0.5 * sde.g(at) ** 2 / (sde.alpha(at) * sde.sigma(at))).numpy().reshape(t.shape)

    def weight(i: int, q: int, j: int) -> float:
        p = lagrange([w.times[i - k] for k in range(q)], j)
        return float((half[i] * size * density[i] * p(t[i])).sum())

    return _noise_form(w, x, order, weight)


def deis_rho_ab(w: Walk, x: Tensor, order: int) -> Tensor:
    """DEIS rhoAB, eq. 16: Adams and Bashforth's method in rho = sigma / alpha. k-diffusion's LMS is
    this with another name.
    """

    def weight(i: int, q: int, j: int) -> float:
        p = lagrange([w.rho[i - k] for k in range(q)], j).integ()
        return p(w.rho[i + 1]) - p(w.rho[i])

    return _noise_form(w, x, order, weight)


def deis_log_rho(w: Walk, x: Tensor, order: int) -> Tensor:
    """DEIS with polynomials in log rho."""

    def weight(i: int, q: int, j: int) -> float:
        nodes, a, b = [log(w.rho[i - k]) for k in range(q)], log(w.rho[i]), log(w.rho[i + 1])
        return exp(b) * times_exponential(lagrange(nodes, j), 1.0, a, b)

    return _noise_form(w, x, order, weight)


def ipndm(w: Walk, x: Tensor, order: int) -> Tensor:
    """iPNDM: arXiv 2204.13902, eq. 39 and 40 (PNDM, arXiv 2202.09778, eq. 12, with lower orders at
    the start).
    """
    known = {
        1: (1,),
        2: (3 / 2, -1 / 2),
        3: (23 / 12, -16 / 12, 5 / 12),
        4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    }
    return _noise_form(w, x, order, lambda i, q, j: (w.rho[i + 1] - w.rho[i]) * known[q][j])


def er_sde(
    w: Walk, x: Tensor, order: int, phi: Callable[[float], float], *, newton: bool = False
) -> Tensor:
    """ER-SDE-Solver-1 to -3: arXiv 2309.06169, Propositions 3 to 5, the integrals of 1 / phi by
    adaptive quadrature.

    Order 3 as published has (rho - rho_i)^2 / 2 times the second difference; ``newton``: (rho -
    rho_i) (rho - rho_{i - 1}) / 2.
    """
    m: list[Tensor] = []
    for i in range(w.n):
        m.insert(0, w.x0(x, i))
        a, b, rho = w.rho[i], w.rho[i + 1], w.rho
        ratio = phi(b) / phi(a)
        inverse = quad(lambda v: 1 / phi(v), b, a, epsabs=0, epsrel=1e-12)[0]
        moment = quad(lambda v: (v - a) / phi(v), b, a, epsabs=0, epsrel=1e-12)[0]  # noqa: B023
        new = w.a[i + 1] / w.a[i] * ratio * x + w.a[i + 1] * (1 - ratio) * m[0]
        first = b - a + phi(b) * inverse
        if min(order, i + 1) > 1:
            slope = (m[0] - m[1]) / (rho[i] - rho[i - 1])
            new = new + w.a[i + 1] * first * slope
        if min(order, i + 1) > 2:
            before = (m[1] - m[2]) / (rho[i - 1] - rho[i - 2])
            curvature = 2 * (slope - before) / (rho[i] - rho[i - 2])
            second = (b - a) ** 2 / 2 + phi(b) * moment
            if newton:
                second += first * (rho[i] - rho[i - 1]) / 2
            new = new + w.a[i + 1] * second * curvature
        fresh = 1 - (a * ratio / b) ** 2
        # the authors' code clips as well: it is 0 for rho
        x = new + w.s[i + 1] * sqrt(fresh) * w.z(i) if fresh > 1e-12 else new
    return x

"""Published update formulas of exponential single steps, written from the papers: see
`published_formulas`.
"""

from __future__ import annotations

from math import exp, expm1, log, sqrt

from published_formulas import Walk
from torch import Tensor


def dpm_solver(w: Walk, x: Tensor, order: int, r: float = 0.5) -> Tensor:
    """DPM-Solver-1 to -3: arXiv 2206.00927, eq. 3.7, Algorithms 1 and 2 (r_1 = 1/3, r_2 = 2/3)."""
    for i in range(w.n):
        h, a, s, e = w.h(i), w.a, w.s, w.eps(x, i)
        end = a[i + 1] / a[i] * x - s[i + 1] * expm1(h) * e
        if order == 2:
            t1, a1, s1 = w.inside(i, r)
            difference = w.model.noise(a1 / a[i] * x - s1 * expm1(r * h) * e, t1) - e
            end = end - s[i + 1] / (2 * r) * expm1(h) * difference
        if order == 3:
            (t1, a1, s1), (t2, a2, s2) = w.inside(i, 1 / 3), w.inside(i, 2 / 3)
            d1 = w.model.noise(a1 / a[i] * x - s1 * expm1(h / 3) * e, t1) - e
            g = 2 / 3 * h
            u2 = a2 / a[i] * x - s2 * expm1(g) * e - s2 * 2 * (expm1(g) / g - 1) * d1
            d2 = w.model.noise(u2, t2) - e
            end = end - s[i + 1] * 1.5 * (expm1(h) / h - 1) * d2
        x = end
    return x


def dpm_solver_pp_singlestep(w: Walk, x: Tensor, order: int, r: float = 0.5) -> Tensor:
    """DPM-Solver++(2S): arXiv 2211.01095, Algorithm 1; (3S): the authors' code, which is Algorithm
    2 of 2206.00927 for data.
    """
    for i in range(w.n):
        h, a, s, d = w.h(i), w.a, w.s, w.x0(x, i)
        end = s[i + 1] / s[i] * x - a[i + 1] * expm1(-h) * d
        if order == 2:
            t1, a1, s1 = w.inside(i, r)
            d1 = w.model.data(s1 / s[i] * x - a1 * expm1(-r * h) * d, t1)
            mixed = (1 - 1 / (2 * r)) * d + 1 / (2 * r) * d1
            end = s[i + 1] / s[i] * x - a[i + 1] * expm1(-h) * mixed
        if order == 3:
            (t1, a1, s1), (t2, a2, s2) = w.inside(i, 1 / 3), w.inside(i, 2 / 3)
            d1 = w.model.data(s1 / s[i] * x - a1 * expm1(-h / 3) * d, t1) - d
            g = 2 / 3 * h
            d2 = (
                w.model.data(
                    s2 / s[i] * x - a2 * expm1(-g) * d + 2 * a2 * (expm1(-g) / g + 1) * d1, t2
                )
                - d
            )
            end = end + 1.5 * a[i + 1] * (expm1(-h) / h + 1) * d2
        x = end
    return x


def seeds(w: Walk, x: Tensor, order: int) -> Tensor:
    """SEEDS-1 to -3: arXiv 2305.14267, Algorithms for the VP SDE in noise form; SEEDS-2 has its
    stage at 1/2.
    """
    for i in range(w.n):
        h, a, s, e = w.h(i), w.a, w.s, w.eps(x, i)
        end = a[i + 1] / a[i] * x - 2 * s[i + 1] * expm1(h) * e
        if order == 1:
            x = end + s[i + 1] * sqrt(expm1(2 * h)) * w.z(i)
        if order == 2:
            t1, a1, s1 = w.inside(i, 0.5)
            u = a1 / a[i] * x - 2 * s1 * expm1(h / 2) * e + s1 * sqrt(expm1(h)) * w.z(i)
            fresh = sqrt(exp(2 * h) - exp(h)) * w.z(i) + sqrt(expm1(h)) * w.z(i, 1)
            x = (
                a[i + 1] / a[i] * x
                - 2 * s[i + 1] * expm1(h) * w.model.noise(u, t1)
                + s[i + 1] * fresh
            )
        if order == 3:
            (t1, a1, s1), (t2, a2, s2), g = w.inside(i, 1 / 3), w.inside(i, 2 / 3), 2 / 3 * h
            size = [sqrt(exp(2 * k * h / 3) - exp(2 * (k - 1) * h / 3)) for k in (1, 2, 3)]
            d1 = (
                w.model.noise(a1 / a[i] * x - 2 * s1 * expm1(h / 3) * e + s1 * size[0] * w.z(i), t1)
                - e
            )
            u2 = a2 / a[i] * x - 2 * s2 * expm1(g) * e - 4 * s2 * (expm1(g) / g - 1) * d1
            d2 = w.model.noise(u2 + s2 * (size[1] * w.z(i) + size[0] * w.z(i, 1)), t2) - e
            fresh = size[2] * w.z(i) + size[1] * w.z(i, 1) + size[0] * w.z(i, 2)
            x = end - 3 * s[i + 1] * (expm1(h) / h - 1) * d2 + s[i + 1] * fresh
    return x


def res(w: Walk, x: Tensor, order: int, c: tuple[float, float] = (0.5, 1.0)) -> Tensor:
    """Refined Exponential Solver, arXiv 2308.02157: Hochbruck and Ostermann 2005, eq. 5.3 and 5.9,
    in x / alpha, with phi_{j,i} = phi_j(-c_i h).
    """
    c2, c3 = c

    def phi1(h: float) -> float:
        return -expm1(-h) / h

    def phi2(h: float) -> float:
        return (exp(-h) - 1 + h) / h**2

    for i in range(w.n):
        h, a, s, d = w.h(i), w.a, w.s, w.x0(x, i)
        (t2, a2, s2), (t3, a3, s3) = w.inside(i, c2), w.inside(i, c3)
        d2 = w.model.data(s2 / s[i] * x + a2 * c2 * h * phi1(c2 * h) * d, t2)
        keep = s[i + 1] / s[i] * x + a[i + 1] * h * phi1(h) * d
        slope = (d2 - d) / c2
        if order == 3:
            gamma = (3 * c3**2 - 2 * c3) / ((2 - 3 * c2) * c2)
            a32 = gamma * c2 * phi2(c2 * h) + c3**2 / c2 * phi2(c3 * h)
            u3 = s3 / s[i] * x + a3 * h * (c3 * phi1(c3 * h) * d + a32 * (d2 - d))
            d3 = w.model.data(u3, t3)
            slope = (gamma * (d2 - d) + d3 - d) / (gamma * c2 + c3)
        x = keep + a[i + 1] * h * phi2(h) * slope
    return x


def pndm(w: Walk, x: Tensor, runge_kutta: bool) -> Tensor:
    """PNDM, arXiv 2202.09778, Algorithm 2, with its transfer (eq. 11); or PLMS, whose first step is
    taken again with a mean, and lower orders.
    """
    adams = [
        (1.0,),
        (1.5, -0.5),
        (23 / 12, -16 / 12, 5 / 12),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    ]
    past: list[Tensor] = []
    for i in range(w.n):
        middle = 0.5 * (w.times[i] + w.times[i + 1])
        (am,), (sm,), _ = w.at(x.new_tensor([middle]))
        a, s, b, v = w.a[i], w.s[i], w.a[i + 1], w.s[i + 1]
        e = w.eps(x, i)
        past.insert(0, e)
        if runge_kutta and i < 3:
            e2 = w.model.noise(am / a * x + (sm - am / a * s) * e, middle)
            e3 = w.model.noise(am / a * x + (sm - am / a * s) * e2, middle)
            e4 = w.model.noise(b / a * x + (v - b / a * s) * e3, w.times[i + 1])
            e = (e + 2 * e2 + 2 * e3 + e4) / 6
        elif not i:
            e = (e + w.model.noise(b / a * x + (v - b / a * s) * e, w.times[1])) / 2
        else:
            weights = adams[min(i, 3)]
            e = sum((c * each for c, each in zip(weights, past, strict=False)), 0 * x)
        x = b / a * x + (v - b / a * s) * e
    return x


def ancestral(w: Walk, x: Tensor, eta: float, data: bool) -> Tensor:
    """DPM2 ancestral and (``data``) DPM++ 2S ancestral of k-diffusion, in sigma / alpha, with the
    noise multiplied by ``eta``; all steps but the last.
    """
    for i in range(w.n - 1):
        old, new = w.rho[i], w.rho[i + 1]
        up = min(new, eta * sqrt(new**2 * (old**2 - new**2) / old**2))
        down = sqrt(new**2 - up**2)
        middle = sqrt(old * down)
        t = float(w.model.sde.time_of(x.new_tensor([-2 * log(middle)])))
        y, d = x / w.a[i], w.x0(x, i)
        alpha = float(w.model.sde.alpha(t))
        if data:
            d = w.model.data(alpha * (middle / old * y + (1 - middle / old) * d), t)
            y = down / old * y + (1 - down / old) * d
        else:
            guess = alpha * (y + (middle - old) * (y - d) / old)
            y = y + (down - old) * w.model.noise(guess, t)
        x = w.a[i + 1] * (y + up * w.z(i))
    return x

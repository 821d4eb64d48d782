"""Published update formulas of exponential single steps, written from the papers: see
`published_formulas`.
"""

from __future__ import annotations

from math import exp, expm1, sqrt

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

"""Random vectors v with E[v v^T] = I, by which the trace of a matrix is estimated: E[v^T A v] = tr
A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from sdediff.solvers import White

__all__ = ["PROBES", "hadamard", "make_probes", "population"]

PROBES: Final = ("hadamard", "rademacher", "gaussian")


def population(d: int, probe: str) -> float:
    """How many estimates v^T A v there are of which k are drawn: those of all columns of a Hadamard
    matrix; else infinite.
    """
    return float(_order(d)[0]) if probe == "hadamard" else math.inf


def make_probes(seeds: Sequence[int], d: int, count: int, probe: str, first: int = 0) -> Tensor:
    """``count`` probes for each seed, float64 (count, rows, d).

    ``"gaussian"``: standard normals. ``"rademacher"``: independent signs (Hutchinson 1990), for
    which v^T A v has the exact diagonal of A and the least variance, sum_{i < j} (A_ij + A_ji)^2.
    ``"hadamard"``: v_i = D h_i, D a diagonal of random signs and h_i different random columns of a
    Hadamard matrix of order n, the least known n >= d, cut to d rows. As sum_i v_i v_i^T = n I over
    all columns, the mean of k has the variance of independent signs times (n - k) / (n - 1), and
    none at k = n. n = d for 1, 2 and nearly all multiples of 4.
    """
    draws = White(seeds, (d,), dtype=torch.float64)
    if probe == "gaussian":
        return torch.stack([draws.at(first + i).normal("probe") for i in range(count)])
    if probe == "rademacher":
        return torch.stack([_signs(draws.at(first + i).normal("probe")) for i in range(count)])
    order = _order(d)[0]
    chosen = (
        White(seeds, (order,), dtype=torch.float64)
        .at(first)
        .normal("probe", 1)
        .argsort(dim=1)[:, :count]
    )
    columns = hadamard(torch.arange(d)[:, None, None], chosen, d)  # (d, rows, count)
    return columns.permute(2, 1, 0) * _signs(draws.at(first).normal("probe"))


def _signs(z: Tensor) -> Tensor:
    return torch.where(z >= 0, 1.0, -1.0).to(z.dtype)


def hadamard(rows: Tensor, columns: Tensor, d: int) -> Tensor:
    """Entries, 1.0 or -1.0, of a Hadamard matrix of the least known order n >= d, at int64 rows and
    columns that broadcast.

    The Kronecker product of Sylvester's matrix of order 2^a and one of Paley's (1933): for a prime
    q = 3 mod 4 the first, of order q + 1, for q = 1 mod 4 the second, of order 2 (q + 1).
    """
    n, q = _order(d)
    base = 1 if not q else q + 1 if q % 4 == 3 else 2 * (q + 1)
    entries = _sylvester(rows // base, columns // base, n // base)
    if q:
        entries = entries * (_paley_1 if q % 4 == 3 else _paley_2)(rows % base, columns % base, q)
    return entries.to(torch.float64)


def _order(d: int) -> tuple[int, int]:
    """The least n >= d of the form 2^a, 2^a (q + 1) or 2^a 2 (q + 1), and its prime q; 0 where
    there is none.
    """
    n = d
    while True:
        found = _factor(n)
        if found is not None:
            return n, found
        n += 1


def _factor(n: int) -> int | None:
    if n & (n - 1) == 0:
        return 0
    while n % 2 == 0:
        for q, kind in ((n - 1, 3), (n // 2 - 1, 1)):
            if q % 4 == kind and _prime(q):
                return q
        n //= 2
    return None


def _prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, math.isqrt(n) + 1))


def _sylvester(i: Tensor, j: Tensor, order: int) -> Tensor:
    """(-1)^(number of common binary digits of i and j)."""
    common = i & j
    parity = (
        sum((common >> bit for bit in range(order.bit_length() - 1)), torch.zeros_like(common)) & 1
    )
    return 1 - 2 * parity


def _character(a: Tensor, q: int) -> Tensor:
    """1 for the squares modulo q, -1 for the others, 0 for 0."""
    table = torch.full((q,), -1)
    table[torch.arange(1, q) ** 2 % q] = 1
    table[0] = 0
    return table[a % q]


def _paley_1(i: Tensor, j: Tensor, q: int) -> Tensor:
    """I + S with S = [[0, 1], [-1, Q]], Q_ab = character(a - b)."""
    return torch.where(
        i == j, 1, torch.where(i == 0, 1, torch.where(j == 0, -1, _character(i - j, q)))
    )


def _paley_2(i: Tensor, j: Tensor, q: int) -> Tensor:
    """C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]] with C = [[0, 1], [1, Q]]."""
    a = i // 2
    b = j // 2
    k = i % 2
    m = j % 2
    c = torch.where(a == b, 0, torch.where((a == 0) | (b == 0), 1, _character(a - b, q)))
    corner = torch.where((k == 1) & (m == 1), -1, 1)
    return torch.where(a == b, torch.where((k == 0) & (m == 0), 1, -1), c * corner)

"""How a divergence is to be estimated: the arguments, checked, and what the spread of the estimates
tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, get_args

import numpy as np
import torch
from torch import Tensor

from sdediff.likelihood.divergence import Divergence, Exact, Hutchinson, HutchPlusPlus
from sdediff.options import Kind, Probe
from sdediff.solvers import White, rowwise
from sdediff.solvers.given import check_choice, integer, reals

__all__ = ["PROBES", "Estimate", "hadamard", "make_probes", "population"]

_LARGEST = 2**12


@dataclass(frozen=True)
class Estimate:
    """``probes`` products for each evaluation, of an event of d numbers; `sdediff.log_prob`
    documents the words. ``given`` are the user's own probes (probes, B, d).
    """

    divergence: str
    probes: int
    probe: str
    d: int
    given: Tensor | None = None

    @classmethod
    def checked(
        cls,
        divergence: str,
        probes: int | Tensor | Callable[[Tensor], Tensor] | None,
        probe: str,
        x: Tensor,
    ) -> Self:
        """From the arguments, for states x (B, *event); ValueError for those that are wrong."""
        check_choice("divergence", divergence, get_args(Kind))
        check_choice("probe", probe, get_args(Probe))
        d = x[0].numel()
        if callable(probes) or (isinstance(probes, Tensor | np.ndarray) and probes.ndim):
            if divergence != "hutchinson" or probe != "hadamard":
                raise ValueError(
                    "probes of your own go with divergence='hutchinson' and no probe, which says "
                    f"how others are drawn; got divergence={divergence!r}, probe={probe!r}"
                )
            own = _own(probes, x)
            return cls(divergence, len(own), "given", d, own)
        if divergence == "exact":
            if probes is not None:
                raise ValueError(
                    "divergence='exact' draws no probes: drop probes, or take "
                    "divergence='hutchinson'"
                )
            if d > _LARGEST:
                raise ValueError(
                    f"the exact divergence of an event of d = {d} numbers has a Jacobian of "
                    f"{8 * d**2 / 2**30:.3g} GiB a sample "
                    f"and takes {d} backward passes an evaluation ({_LARGEST} is the most); take "
                    "divergence='hutchinson', "
                    "probes=8, whose error is reported"
                )
            return cls(divergence, d, probe, d)
        least = 3 if divergence == "hutch++" else 1
        if probes is None:
            probes = 12 if divergence == "hutch++" else 8
            probes = max(least, min(probes, d)) if probe == "hadamard" else probes
        probes = integer("probes", probes, least, hint=f" for divergence={divergence!r}")
        if probe == "hadamard" and probes > max(least, d):
            raise ValueError(
                f"there are no more than d = {d} orthogonal probes of an event of {d} numbers, "
                f"got probes = {probes}; "
                "with as many the estimate is exact, as is divergence='exact'"
            )
        return cls(divergence, probes, probe, d)

    @property
    def draws(self) -> bool:
        """Whether there is anything to draw."""
        return self.divergence != "exact" and self.given is None

    def of(self, rows: Tensor, seeds: Sequence[int], x: Tensor, mask: Tensor | None) -> Divergence:
        """For states x (rows, *event) of the samples ``rows``, and the mask beside them; ``seeds``
        are those of all samples.
        """
        if self.given is not None:
            own = self.given[:, rows].to(x.dtype).to(x.device)
            return Hutchinson(own if mask is None else own * rowwise(mask), whole=True)
        if not self._random:
            return Exact()
        seeds = [seeds[i] for i in rows.tolist()]
        sketches = min(self.probes // 3, self.d) if self.divergence == "hutch++" else 0
        found = (
            make_probes(seeds, self.d, self.probes - 2 * sketches, self.probe)
            .to(x.dtype)
            .to(x.device)
        )
        if not sketches:
            return Hutchinson(found)
        # From draws that the probes do not take, and orthogonal: independent signs may coincide,
        # and leave no basis.
        signs = make_probes(seeds, self.d, sketches, "hadamard", first=self.probes)
        return HutchPlusPlus(signs.to(x.dtype).to(x.device), found)

    @property
    def _random(self) -> bool:
        """Not if d orthogonal probes are asked for and no Hadamard matrix of order d is known: unit
        vectors take their place.
        """
        whole = (
            self.divergence == "hutchinson" and self.probe == "hadamard" and self.probes == self.d
        )
        exact = self.divergence == "exact"
        return not exact and not (whole and population(self.d, self.probe) > self.d)

    def stderr(self, estimates: Tensor) -> Tensor:
        """The standard error (rows,) of the mean of estimates (rows, k): that of k of a finite
        population without replacement.

        s sqrt((1 - k / n) / k) with s the sample standard deviation and n the number of orthogonal
        probes, infinite for others.
        """
        k = estimates.shape[1]
        n = population(self.d, self.probe) if self._random else 1
        if k >= n:
            return estimates.new_zeros(len(estimates))
        if k == 1:
            return estimates.new_full((len(estimates),), torch.nan)
        return estimates.std(dim=1) * math.sqrt((1 - k / n) / k)


def _own(probes: Any, x: Tensor) -> Tensor:
    """The user's probes for states x (B, *event), or what their function of x returns, float64 (k,
    B, d).
    """
    found = probes(x.detach().clone()) if callable(probes) else probes
    vectors = reals("probes", found, "cpu").detach()
    if vectors.shape[1:] != x.shape or not len(vectors):
        raise ValueError(
            "probes of your own are (k, B, *event), k of them for each sample, with (B, *event) = "
            f"{tuple(x.shape)} as in x; got shape {tuple(vectors.shape)}"
        )
    if not bool(torch.isfinite(vectors).all()):
        raise ValueError("probes of your own must be finite numbers")
    return vectors.reshape(*vectors.shape[:2], -1)


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

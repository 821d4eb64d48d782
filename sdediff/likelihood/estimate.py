"""How a divergence is to be estimated: the arguments, checked, and what the spread of the estimates
tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, get_args

import torch
from torch import Tensor

from sdediff.likelihood.divergence import Divergence, Exact, Hutchinson, HutchPlusPlus
from sdediff.likelihood.probes import make_probes, population
from sdediff.options import Kind, Probe
from sdediff.solvers.given import check_choice, integer

__all__ = ["Estimate"]

_LARGEST = 2**12


@dataclass(frozen=True)
class Estimate:
    """``probes`` products for each evaluation, of an event of d numbers; `sdediff.log_prob`
    documents the words.
    """

    divergence: str
    probes: int
    probe: str
    d: int

    @classmethod
    def checked(cls, divergence: str, probes: int | None, probe: str, d: int) -> Self:
        """From the arguments; ValueError for those that are wrong."""
        check_choice("divergence", divergence, get_args(Kind))
        check_choice("probe", probe, get_args(Probe))
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
        """Whether there is anything random."""
        return self.divergence != "exact"

    def of(self, seeds: Sequence[int], x: Tensor) -> Divergence:
        """For states x (rows, *event) of the samples with these seeds."""
        if not self._random:
            return Exact()
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
        return self.draws and not (whole and population(self.d, self.probe) > self.d)

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

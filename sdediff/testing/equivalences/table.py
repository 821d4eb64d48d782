"""The table of equivalences: each a function of a case that yields what it compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdediff.testing.equivalences.case import Case
from sdediff.testing.identity import Comparison, Skip, require, settle
from sdediff.testing.report import Finding
from sdediff.testing.slips import likely_slip

__all__ = [
    "EQUIVALENCES",
    "EXACT",
    "Check",
    "Equivalence",
    "agree",
    "equivalence",
    "evaluate",
    "markdown",
]

Check = Callable[[Case], Iterator[Comparison]]

EXACT: Final = 1e-10
"""Bound of what is one thing written in two ways."""


class Equivalence(NamedTuple):
    """One line of the table."""

    check: Check
    statement: str
    bound: float
    """What every comparison is held to: largest deviation over the size of the states, or as the
    statement says.
    """
    needs: frozenset[str]
    """What the SDE must have, names in `case.NEEDS`."""
    costly: bool
    """Whether one case takes about a second, so that `check_equivalences` looks at one only."""


EQUIVALENCES: Final[dict[str, Equivalence]] = {}


def equivalence(
    name: str,
    *,
    statement: str,
    bound: float = EXACT,
    needs: tuple[str, ...] = (),
    costly: bool = False,
) -> Callable[[Check], Check]:
    """Enter a function into the table under that name."""

    def enter(check: Check) -> Check:
        EQUIVALENCES[name] = Equivalence(check, statement, bound, frozenset(needs), costly)
        return check

    return enter


def evaluate(name: str, case: Case) -> Finding:
    """Check one equivalence at one case. Whatever raises makes it fail; skipped where the SDE has
    not what it needs.
    """
    entry = EQUIVALENCES[name]

    def comparisons() -> Iterator[Comparison]:
        for reason in case.lacks(entry.needs):
            raise Skip(reason)
        for item in entry.check(case):
            yield item._replace(bound=entry.bound)

    with torch.inference_mode(False), torch.no_grad():
        return settle(name, comparisons())


def agree(
    what: str,
    given: Tensor,
    expected: Tensor,
    times: Tensor,
    bound: float = EXACT,
    *,
    hint: str = "",
    steps: bool = True,
) -> Comparison:
    """Whether states (K, rows, *event) are those expected, each at its time of ``times`` (K,).

    The deviation is the largest of |given - expected| over the largest |expected| of that time, or
    of an earlier one where that is larger. ``where`` is the first time at which it exceeds
    ``bound``, with sample and coordinate, and the step unless ``steps`` is false. A hint names a
    common factor between the two there; failing that it is ``hint``.
    """
    if given.shape != expected.shape:
        return require(
            False, f"{what} has shape {tuple(given.shape)}, not {tuple(expected.shape)}", hint=hint
        )
    given, expected = given.detach().cpu().double(), expected.detach().cpu().double()
    size = (
        expected.abs()
        .reshape(len(times), -1)
        .amax(dim=1)
        .cummax(dim=0)
        .values.clamp(min=torch.finfo(torch.float64).tiny)
    )
    gap = (given - expected).abs().reshape(len(times), -1) / size[:, None]
    gap = torch.where(gap.isnan(), torch.inf, gap)
    largest = float(gap.max())
    beyond = torch.nonzero(gap.amax(dim=1) > bound).flatten()
    k = int(beyond[0]) if len(beyond) else int(gap.amax(dim=1).argmax())
    index = torch.unravel_index(gap[k].argmax(), given.shape[1:])
    sample, *coordinate = (int(i) for i in index)
    place = [f"t = {float(times[k]):.6g}", f"sample {sample}"]
    if steps:
        place.insert(0, f"step {k} of {len(times) - 1}")
    if coordinate:
        place.append(f"coordinate {tuple(coordinate) if len(coordinate) > 1 else coordinate[0]}")
    where = ", ".join(place)
    found, due = (float(states[k][index]) for states in (given, expected))
    slip = (
        "" if largest <= bound else likely_slip(given[k].numpy(), expected[k].numpy(), None, hint)
    )
    return Comparison(
        largest, bound, where, f"{what} is {found:.9g}, not {due:.9g}, first at {where}", slip
    )


def markdown() -> str:
    """The table for the docs: name, statement, bound."""
    rows = [
        f"| {name} | {entry.statement} | {entry.bound:g} |" for name, entry in EQUIVALENCES.items()
    ]
    return "\n".join(["| name | statement | bound |", "|---|---|---|", *rows])

"""Butcher tableaus as validated data."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

__all__ = ["BOGACKI_SHAMPINE", "DORMAND_PRINCE", "EULER", "HEUN", "MIDPOINT", "RK4", "Tableau"]


def _numbers(text: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(word) for word in text.split())


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: k_i = drift(x + h sum_j a_ij k_j, t + c_i h), x_next = x + h sum_i b_i k_i.

    ``a`` holds the strictly lower rows (the first is empty), ``b`` the weights, ``b_low`` the weights of an embedded method
    for the error estimate. Rows are given as text with fractions, ``"1/5 3/10"``; they are checked exactly: each c_i
    is the sum of its row, and the weights satisfy the order conditions up to ``order`` (through order 3; higher ones are
    tested by measurement). Where the last row equals ``b`` the last stage is the first of the next step ("FSAL").
    """

    name: str
    order: int
    a: tuple[tuple[Fraction, ...], ...]
    b: tuple[Fraction, ...]
    b_low: tuple[Fraction, ...] | None = None
    order_low: int | None = None
    c: tuple[Fraction, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Check the tableau."""
        stages = len(self.a)
        for i, row in enumerate(self.a):
            if len(row) != i:
                raise ValueError(f"{self.name}: row {i} of an explicit tableau has {i} entries, got {len(row)}")
        for label, weights in (("b", self.b), ("b_low", self.b_low)):
            if weights is not None and len(weights) != stages:
                raise ValueError(f"{self.name}: {label} needs one weight for each of the {stages} stages, got {len(weights)}")
        object.__setattr__(self, "c", tuple(sum(row, Fraction(0)) for row in self.a))
        self._check_order("b", self.b, self.order)
        if self.b_low is not None:
            if self.order_low is None:
                raise ValueError(f"{self.name}: an embedded method needs order_low")
            self._check_order("b_low", self.b_low, self.order_low)

    def _check_order(self, label: str, weights: tuple[Fraction, ...], order: int) -> None:
        c, a = self.c, self.a
        conditions = {
            "sum b = 1": (1, sum(weights), Fraction(1)),
            "sum b c = 1/2": (2, sum(w * x for w, x in zip(weights, c, strict=True)), Fraction(1, 2)),
            "sum b c^2 = 1/3": (3, sum(w * x * x for w, x in zip(weights, c, strict=True)), Fraction(1, 3)),
            "sum b a c = 1/6": (
                3,
                sum(w * sum(r * x for r, x in zip(row, c, strict=False)) for w, row in zip(weights, a, strict=True)),
                Fraction(1, 6),
            ),
        }
        for condition, (from_order, value, expected) in conditions.items():
            if order >= from_order and value != expected:
                raise ValueError(f"{self.name}: {label} breaks the order condition {condition} (it gives {value})")

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the first stage of the next step."""
        return self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @classmethod
    def parse(cls, name: str, order: int, a: list[str], b: str, b_low: str | None = None, order_low: int | None = None) -> Tableau:
        """Build a tableau from rows of text, the empty first row left out."""
        rows = ((), *(_numbers(row) for row in a))
        return cls(name, order, rows, _numbers(b), None if b_low is None else _numbers(b_low), order_low)


EULER: Final = Tableau.parse("Euler", 1, [], "1")
MIDPOINT: Final = Tableau.parse("midpoint", 2, ["1/2"], "0 1")
HEUN: Final = Tableau.parse("Heun", 2, ["1"], "1/2 1/2")
RK4: Final = Tableau.parse("RK4", 4, ["1/2", "0 1/2", "0 0 1"], "1/6 1/3 1/3 1/6")
DORMAND_PRINCE: Final = Tableau.parse(
    "Dormand-Prince 5(4)",
    5,
    [
        "1/5",
        "3/40 9/40",
        "44/45 -56/15 32/9",
        "19372/6561 -25360/2187 64448/6561 -212/729",
        "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
        "35/384 0 500/1113 125/192 -2187/6784 11/84",
    ],
    "35/384 0 500/1113 125/192 -2187/6784 11/84 0",
    "5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40",
    4,
)
"""Dormand and Prince 1980; SciPy's RK45, MATLAB's ode45."""
BOGACKI_SHAMPINE: Final = Tableau.parse(
    "Bogacki-Shampine 3(2)", 3, ["1/2", "0 3/4", "2/9 1/3 4/9"], "2/9 1/3 4/9 0", "7/24 1/4 1/3 1/8", 2
)
"""Bogacki and Shampine 1989; SciPy's RK23."""

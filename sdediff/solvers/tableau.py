"""Butcher tableaus as validated data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BOGACKI_SHAMPINE",
    "DOP853",
    "DORMAND_PRINCE",
    "EULER",
    "HEUN",
    "MIDPOINT",
    "RK4",
    "TSITOURAS",
    "Tableau",
    "Tree",
    "conditions",
]

Tree = tuple["Tree", ...]
"""A tree is the sorted tuple of the trees that hang from its root."""


@cache
def _trees(nodes: int) -> tuple[Tree, ...]:
    return tuple(sorted(_forests(nodes - 1, nodes - 1)))


def _forests(nodes: int, largest: int) -> Iterator[Tree]:
    """Sorted tuples of trees with so many nodes in all, none of more than ``largest``; each forest
    once.
    """

    def grow(left: int, available: list[Tree]) -> Iterator[Tree]:
        if left == 0:
            yield ()
        for i, tree in enumerate(available):
            if (size := _size(tree)) <= left:
                for rest in grow(left - size, available[i:]):
                    yield (tree, *rest)

    yield from (
        tuple(sorted(forest))
        for forest in grow(nodes, [tree for n in range(1, largest + 1) for tree in _trees(n)])
    )


def _size(tree: Tree) -> int:
    return 1 + sum(_size(child) for child in tree)


def _density(tree: Tree) -> int:
    return _size(tree) * math.prod(_density(child) for child in tree)


def conditions(
    a: NDArray[np.float64], order: int
) -> Iterator[tuple[int, NDArray[np.float64], float]]:
    """(nodes, phi, 1 / gamma) for each rooted tree of at most ``order`` nodes: a method of that
    order has b . phi = 1 / gamma.
    """

    @cache
    def weights(tree: Tree) -> NDArray[np.float64]:
        product = np.ones(len(a))
        for child in tree:
            product = product * (a @ weights(child))
        return product

    for nodes in range(1, order + 1):
        for tree in _trees(nodes):
            yield nodes, weights(tree), 1 / _density(tree)


Row = tuple[Fraction, ...]


def _numbers(text: str) -> Row:
    return tuple(Fraction(word) for word in text.split())


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: k_i = drift(x + h sum_j a_ij k_j, t + c_i h), x_next = x + h
    sum_i b_i k_i.

    ``a`` holds the strictly lower rows (the first is empty), ``b`` the weights, ``low`` the weights
    of embedded methods with their orders, for the error estimate: one, or two of which the second
    tempers the first (Hairer, Norsett and Wanner I, II.10). Rows are given as text, ``"1/5 3/10"``
    or decimals. Each c_i is the sum of its row, and every method is checked to satisfy all order
    conditions up to the order that it claims, to 1e-12. Where the last row equals ``b`` the last
    stage is the first of the next step ("FSAL").
    """

    name: str
    order: int
    a: tuple[Row, ...]
    b: Row
    low: tuple[tuple[Row, int], ...] = ()
    c: Row = field(init=False)

    def __post_init__(self) -> None:
        stages = len(self.a)
        for i, row in enumerate(self.a):
            if len(row) != i:
                raise ValueError(
                    f"{self.name}: row {i} of an explicit tableau has {i} entries, got {len(row)}"
                )
        object.__setattr__(self, "c", tuple(sum(row, Fraction(0)) for row in self.a))
        for label, weights, order in (
            ("b", self.b, self.order),
            *(("b_low", weights, order) for weights, order in self.low),
        ):
            if len(weights) != stages:
                raise ValueError(
                    f"{self.name}: {label} needs one weight for each of the {stages} stages, got "
                    f"{len(weights)}"
                )
            self._check_order(label, weights, order)

    def _check_order(self, label: str, weights: Row, order: int) -> None:
        a = np.array([[float(v) for v in row] + [0.0] * (len(self.a) - len(row)) for row in self.a])
        b = np.array([float(v) for v in weights])
        for nodes, phi, expected in conditions(a, order):
            if abs(value := float(b @ phi) - expected) > 1e-12 * max(
                1.0, float(np.abs(b) @ np.abs(phi))
            ):
                raise ValueError(
                    f"{self.name}: {label} breaks a condition of order {nodes} by {value:.3g}, "
                    f"and claims order {order}"
                )

    @property
    def error_order(self) -> int:
        """The local error estimate is O(h^error_order); 0 without one."""
        orders = [order + 1 for _, order in self.low]
        return 0 if not orders else orders[0] if len(orders) == 1 else 2 * orders[0] - orders[1]

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the first stage of the next step."""
        return self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @classmethod
    def parse(
        cls, name: str, order: int, a: list[str], b: str, low: dict[int, str] | None = None
    ) -> Tableau:
        """Build a tableau from rows of text, the empty first row left out; ``low`` maps orders to
        embedded weights.
        """
        rows = ((), *(_numbers(row) for row in a))
        return cls(
            name,
            order,
            rows,
            _numbers(b),
            tuple((_numbers(text), n) for n, text in (low or {}).items()),
        )

    @classmethod
    def with_errors(
        cls, name: str, order: int, a: list[str], b: str, errors: dict[int, str]
    ) -> Tableau:
        """As `parse`, from the differences b - b_low in place of the embedded weights."""
        weights = _numbers(b)
        low = {
            n: " ".join(str(w - e) for w, e in zip(weights, _numbers(text), strict=True))
            for n, text in errors.items()
        }
        return cls.parse(name, order, a, b, low)


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
    {4: "5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40"},
)
"""Dormand and Prince 1980; SciPy's RK45, MATLAB's ode45."""
BOGACKI_SHAMPINE: Final = Tableau.parse(
    "Bogacki-Shampine 3(2)",
    3,
    ["1/2", "0 3/4", "2/9 1/3 4/9"],
    "2/9 1/3 4/9 0",
    {2: "7/24 1/4 1/3 1/8"},
)
"""Bogacki and Shampine 1989; SciPy's RK23."""
TSITOURAS: Final = Tableau.with_errors(
    "Tsitouras 5(4)",
    5,
    [
        "0.161",
        "-0.008480655492356989 0.335480655492357",
        "2.8971530571054935 -6.359448489975075 4.3622954328695815",
        "5.325864828439257 -11.748883564062828 7.4955393428898365 -0.09249506636175525",
        "5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401 "
        "-0.028269050394068383",
        "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 "
        "2.324710524099774",
    ],
    "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 "
    "2.324710524099774 0",
    {
        4: "-0.00178001105222577714 -0.0008164344596567469 0.007880878010261995 "
        "-0.1447110071732629 0.5823571654525552 -0.45808210592918697 1/66"
    },
)
"""Tsitouras 2011 (Computers and Mathematics with Applications 62)."""
DOP853: Final = Tableau.with_errors(
    "Dormand-Prince 8(5,3)",
    8,
    [
        "0.05260015195876773",
        "0.0197250569845379 0.0591751709536137",
        "0.02958758547680685 0 0.08876275643042054",
        "0.2413651341592667 0 -0.8845494793282861 0.924834003261792",
        "0.037037037037037035 0 0 0.17082860872947386 0.12546768756682242",
        "0.037109375 0 0 0.17025221101954405 0.06021653898045596 -0.017578125",
        "0.03709200011850479 0 0 0.17038392571223998 0.10726203044637328 -0.015319437748624402 "
        "0.008273789163814023",
        (
            "0.6241109587160757 0 0 -3.3608926294469414 -0.868219346841726 27.59209969944671 "
            "20.154067550477894 -43.48988418106996"
        ),
        (
            "0.47766253643826434 0 0 -2.4881146199716677 -0.590290826836843 21.230051448181193 "
            "15.279233632882423 "
            "-33.28821096898486 -0.020331201708508627"
        ),
        (
            "-0.9371424300859873 0 0 5.186372428844064 1.0914373489967295 -8.149787010746927 "
            "-18.52006565999696 "
            "22.739487099350505 2.4936055526796523 -3.0467644718982196"
        ),
        (
            "2.273310147516538 0 0 -10.53449546673725 -2.0008720582248625 -17.9589318631188 "
            "27.94888452941996 "
            "-2.8589982771350235 -8.87285693353063 12.360567175794303 0.6433927460157636"
        ),
        (
            "0.054293734116568765 0 0 0 0 4.450312892752409 1.8915178993145003 "
            "-5.801203960010585 0.3111643669578199 "
            "-0.1521609496625161 0.20136540080403034 0.04471061572777259"
        ),
    ],
    (
        "0.054293734116568765 0 0 0 0 4.450312892752409 1.8915178993145003 -5.801203960010585 "
        "0.3111643669578199 "
        "-0.1521609496625161 0.20136540080403034 0.04471061572777259 0"
    ),
    {
        5: (
            "0.01312004499419488 0 0 0 0 -1.2251564463762044 -0.4957589496572502 "
            "1.6643771824549864 -0.35032884874997366 "
            "0.3341791187130175 0.08192320648511571 -0.022355307863886294 0"
        ),
        3: (
            "-0.18980075407240762 0 0 0 0 4.450312892752409 1.8915178993145003 "
            "-5.801203960010585 -0.4226823213237919 "
            "-0.1521609496625161 0.20136540080403034 0.02265179219836082 0"
        ),
    },
)
"""Dormand and Prince's method of order 8 with the error estimates of Hairer, Norsett and Wanner I,
II.10; SciPy's DOP853.
"""

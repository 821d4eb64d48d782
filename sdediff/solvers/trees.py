"""Rooted trees: the order conditions of Runge-Kutta methods (Butcher 1963; Hairer, Norsett and
Wanner I, II.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Tree", "conditions"]

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

"""Standard normals as a pure function of a counter and a key, in whole arrays: Philox, then Box and Muller."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["fill", "philox", "schedule"]

ROUNDS: Final = 7  # they pass BigCrush (Salmon et al. 2011); ten, the usual margin, would make a normal a fifth dearer
_CHUNK: Final = 2**15  # counters at a time: fewer, and numpy's calls count; more, and its scratch of 56 bytes each leaves the cache

Words = NDArray[np.uint64]


def _constants(kind: type[np.number[Any]], *values: float) -> list[NDArray[Any]]:
    # 0-d arrays: numpy takes them faster than its own scalars, and no promotion rule applies.
    return [np.array(value, kind) for value in values]


_HALF: Final = np.array(32, np.uint64)
_MULTIPLIERS: Final = np.array([0xCD9E8D57, 0xD2511F53], np.uint64)
_WEYL: Final = np.array([[(i * w) % 2**32 << 32 for w in (0x9E3779B9, 0xBB67AE85)] for i in range(ROUNDS)], np.uint64)


def schedule(key: tuple[int, int] | Words) -> Words:
    """The round keys (rounds, 2, ...) of Philox4x32 for a key (2, ...), in the upper halves of words of 64 bits."""
    words = np.array(key, np.uint64)
    return (words << _HALF) + _WEYL.reshape(ROUNDS, 2, *(1,) * (words.ndim - 1))


def philox(c0: Words, c1: Words, c2: Words, c3: Words, k: Words, out: Words, scratch: Words) -> None:
    """Philox4x32-7 (Salmon et al. 2011, doi 10.1145/2063384.2063405): four 32-bit words from the counter (c0, c1, c2, c3).

    Writes them to ``out`` (2, *shape) as c0 * 2^32 + c1 and c2 * 2^32 + c3. The counter's words broadcast to ``shape``; ``k`` is
    the key's schedule, (rounds, 2) or, with keys that differ, (rounds, 2, *shape) or what broadcasts to it. For one key it is a
    bijection of the counter: no two counters give the same result.
    """
    a, b = out
    # In the first two rounds most of the state depends on c0 alone or on the rest alone, and costs little.
    first = (c2 * _MULTIPLIERS[0]) ^ (c1 << _HALF) ^ k[0, 0]
    np.bitwise_xor(c0 * _MULTIPLIERS[1], (c3 << _HALF) ^ k[0, 1], b)
    np.multiply(np.right_shift(b, _HALF, a), _MULTIPLIERS[0], a)
    np.bitwise_xor(a, (first << _HALF) ^ k[1, 0], a)
    np.left_shift(b, _HALF, b)
    np.bitwise_xor(b, ((first >> _HALF) * _MULTIPLIERS[1]) ^ k[1, 1], b)
    x, y = out.reshape(2, -1), scratch.reshape(2, -1)
    swapped, multipliers = x[::-1], _MULTIPLIERS[:, None]
    keyed = x if k.ndim == 2 else out
    for each in k[2:, :, None] if k.ndim == 2 else k[2:]:
        np.multiply(np.right_shift(swapped, _HALF, y), multipliers, y)
        np.left_shift(x, _HALF, x)
        np.bitwise_xor(x, y, x)
        np.bitwise_xor(keyed, each, keyed)


_SIGN: Final = np.array(2**31, np.uint32)
_ODD, _FRACTION, _EXPONENT, _SQRT_HALF = _constants(np.int32, 1 - 2**31, 0x7FFFFF, 23, 0x3F3504F3)  # the last: bits of sqrt(1/2)
_SHIFT: Final = np.array(0x3F3504F3 + (31 << 23) - 2**31, np.int32)  # and those of -2^31 sqrt(1/2)
_ONE, _LOG2, _UNIT = _constants(np.float32, 1.0, -2 * np.log(2.0), 2.0**-31)
# Minimax: -2 log((1 + s) / (1 - s)) / s in s^2 for (1 + s) / (1 - s) in [sqrt(1/2), sqrt(2)], relative error 3e-9; and in v^2 on
# [-1, 1], cos(pi v / 2), error 5e-8, and sin(pi v / 2) / v, error 3e-9.
_LOG: Final = _constants(np.float32, -4.0, -1.33333634, -0.7994941, -0.59855835)
_COS = (9.99999953e-01, -1.23369821e00, 2.53650745e-01, -2.08106275e-02, 8.58190605e-04)
_SIN = (1.57079629e00, -6.45963360e-01, 7.96884805e-02, -4.67222792e-03, 1.50820563e-04)
_COS_SIN: Final = [np.array(pair, np.float32)[:, None] for pair in zip(_COS, _SIN, strict=True)]


def _polynomial(z: NDArray[np.float32], coefficients: Sequence[NDArray[Any]], out: NDArray[np.float32]) -> None:
    np.multiply(z, coefficients[-1], out)
    for coefficient in coefficients[-2:0:-1]:
        np.add(out, coefficient, out)
        np.multiply(out, z, out)
    np.add(out, coefficients[0], out)


def _box_muller(words: NDArray[np.uint32], s: NDArray[np.float32]) -> None:
    """From uint32 (2, n) the factors of 2 n normals (Box and Muller 1958): s[0] * s[3] and s[1] * s[4], ``s`` being (5, n).

    r = sqrt(-2 log u), u an odd number below 2^31 over 2^31 from 30 bits of a word: never 0, and r goes up to 6.55. The word's
    highest bit is the sign of both numbers, so that their law is exactly symmetric. They are r times the cosine and the sine of
    an angle in [-pi/2, pi/2] from the other word.
    Sums, products, quotients and roots alone, which IEEE 754 rounds in one way: the same bits on every machine, in any batch.
    """
    x, y, z, r, t = s
    bits, exponent = x.view(np.int32), y.view(np.int32)
    np.copyto(x, np.bitwise_or(words[0].view(np.int32), _ODD, bits), casting="unsafe")
    # x = -2^31 u, and u = 2^e f with f in [sqrt(1/2), sqrt(2)]: where u is nearly 1, e is 0 and no digits cancel.
    np.subtract(bits, _SHIFT, bits)
    np.copyto(y, np.right_shift(bits, _EXPONENT, exponent), casting="unsafe")
    np.add(np.bitwise_and(bits, _FRACTION, bits), _SQRT_HALF, bits)
    np.subtract(x, _ONE, z)
    np.divide(z, np.add(x, _ONE, x), z)
    np.multiply(z, z, x)
    _polynomial(x, _LOG, r)
    np.add(np.multiply(r, z, r), np.multiply(y, _LOG2, y), r)
    signed = np.sqrt(r, r).view(np.uint32)
    np.bitwise_or(signed, np.bitwise_and(words[0], _SIGN, words[0]), signed)
    np.copyto(t, words[1].view(np.int32), casting="unsafe")
    np.multiply(t, _UNIT, t)
    np.multiply(t, t, z)
    _polynomial(z, _COS_SIN, s[:2])
    np.multiply(r, t, t)


def _even(total: int, most: int) -> int:
    """Length of the pieces, as even as can be, in which ``total`` is covered by pieces of at most ``most``."""
    pieces = -(-total // max(1, most))
    return -(-total // pieces)


def fill(
    block: NDArray[np.float32], rows: tuple[Words, Words, Words], key: tuple[int, int] | Words, place: Words | None = None
) -> None:
    """Fill ``block`` (2, m, rows, d), d even, with standard normals: cosines in block[0], sines in block[1].

    ``rows`` are three words c1, c2, c3 (rows,) of Philox's counter. A value depends on d, on the key, on the words of its row and
    on its place, except the row's number. With keys (2, m, rows) or (2, m, 1) it depends on its own key, and
    on ``place`` (m, rows), 0 by default, as otherwise on its place in m.
    """
    _, m, n, d = block.shape
    d //= 2
    width = _even(d, _CHUNK)
    height = _even(n, _CHUNK // width)
    depth = _even(m, _CHUNK // (width * height))
    k = schedule(key)
    if place is None:
        place = np.arange(m if k.ndim == 2 else 1, dtype=np.uint64)[:, None]
    place = place * np.uint64(d)
    words = np.empty(2 * depth * height * width, np.uint64)
    floats = np.empty(5 * len(words), np.float32)
    for i, j, start in itertools.product(range(0, m, depth), range(0, n, height), range(0, d, width)):
        down, across = slice(i, i + depth), slice(j, j + height)
        part = block[:, down, across, 2 * start : 2 * (start + width)]
        shape = (*part.shape[:3], part.shape[3] // 2)
        size = part.size // 2
        first = place[down if len(place) > 1 else slice(None), across if place.shape[1] > 1 else slice(None), None]
        index = first + np.arange(start, start + shape[3], dtype=np.uint64)
        x = words[:size].reshape(shape)
        c1, c2, c3 = (word[across, None] for word in rows)
        s = floats[: 5 * size].reshape(5, size)
        keys = k if k.ndim == 2 else k[:, :, down, across if k.shape[3] > 1 else slice(None), None]
        philox(index, c1, c2, c3, keys, x, s[:2].reshape(-1).view(np.uint64).reshape(shape))
        _box_muller(x.reshape(2, -1).view(np.uint32), s)
        np.multiply(s[:2].reshape(part.shape), s[3:].reshape(part.shape), part)

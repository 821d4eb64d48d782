"""Standard normals as a pure function of seeds and keys, in whole arrays: AES, then Box and Muller."""

from __future__ import annotations

import itertools
import threading
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

__all__ = ["encrypted", "fill", "words"]

_KEY: Final = b"sdediff: normals"  # of 128 bits, as any other would do
_CHUNK: Final = 2**14  # blocks at a time: fewer, and numpy's calls count; more, and its scratch of 72 bytes each leaves the cache

Words = NDArray[np.uint64]
_PLANE: Final = np.uint64(2**32)


class _Cipher(threading.local):
    """AES, a context for each thread: making one takes as long as a thousand normals."""

    def __init__(self) -> None:
        self.encryptor = Cipher(algorithms.AES(_KEY), modes.ECB()).encryptor()


_CIPHER: Final = _Cipher()


def encrypted(blocks: Words) -> Words:
    """AES-128 (NIST FIPS 197) of ``blocks`` (..., 2), each of two words, under one fixed key.

    A bijection of blocks that no test can tell from chance: a generator that is a function of a counter, of the kind of Salmon et
    al. 2011 (doi 10.1145/2063384.2063405), which processors have in hardware. A chain encrypted(encrypted(encrypted(a) ^ b) ^ c)
    depends on all of a, b and c in this way (CBC-MAC: Bellare, Kilian and Rogaway 2000, doi 10.1006/jcss.1999.1694); two chains
    with different parts agree with probability 2^-128.
    """
    found = np.empty(blocks.size + 2, np.uint64)  # the cipher asks for room for a block more, less a byte
    _CIPHER.encryptor.update_into(np.ascontiguousarray(blocks).reshape(-1).view(np.uint8).data, found.view(np.uint8).data)
    return found[:-2].reshape(blocks.shape)


def _constants(kind: type[np.number[Any]], *values: float) -> list[NDArray[Any]]:
    # 0-d arrays: numpy takes them faster than its own scalars, and no promotion rule applies.
    return [np.array(value, kind) for value in values]


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
    np.multiply(x, _LOG[-1], r)
    for coefficient in _LOG[-2:0:-1]:
        np.multiply(np.add(r, coefficient, r), x, r)
    np.multiply(np.add(r, _LOG[0], r), z, r)
    np.add(r, np.multiply(y, _LOG2, y), r)
    signed = np.sqrt(r, r).view(np.uint32)
    np.bitwise_or(signed, np.bitwise_and(words[0], _SIGN, words[0]), signed)
    np.copyto(t, words[1].view(np.int32), casting="unsafe")
    np.multiply(t, _UNIT, t)
    np.multiply(t, t, z)
    np.multiply(z, _COS_SIN[-1], s[:2])
    for coefficient in _COS_SIN[-2:0:-1]:
        np.multiply(np.add(s[:2], coefficient, s[:2]), z, s[:2])
    np.add(s[:2], _COS_SIN[0], s[:2])
    np.multiply(r, t, t)


def words(states: Words, count: int) -> Words:
    """Random words (rows, count) of states (rows, 2)."""
    index = np.arange(-(-count // 2), dtype=np.uint64)
    blocks = np.stack(np.broadcast_arrays(states[:, :1] ^ index, states[:, 1:]), axis=-1)
    return encrypted(blocks).reshape(len(states), -1)[:, :count]


def fill(block: NDArray[np.float32], states: Words, place: Words) -> None:
    """Fill ``block`` (2, m, rows, d), d a multiple of 4, with standard normals: cosines in block[0], sines in block[1].

    A value depends on d, on its state in ``states`` (m or 1, rows, 2), on its place, (m, rows) or less by broadcasting, and on the
    column, and not on where it is in the block.
    """
    _, m, n, d = block.shape
    d //= 4
    room, lengths = _CHUNK // 2, []
    for total in (d, n, m):  # pieces as even as can be, of as many blocks together as there is room for
        pieces = -(-total // max(1, room))
        lengths.append(-(-total // pieces))
        room //= lengths[-1]
    width, height, depth = lengths
    place = place * np.uint64(d)
    floats = np.empty(5 * 4 * width * height * depth, np.float32)
    for i, j, start in itertools.product(range(0, m, depth), range(0, n, height), range(0, d, width)):
        down, across = slice(i, i + depth), slice(j, j + height)
        part = block[:, down, across, 4 * start : 4 * (start + width)]
        columns = np.arange(start, min(start + width, d), dtype=np.uint64)
        index = place[down if len(place) > 1 else slice(None), across if place.shape[1] > 1 else slice(None), None] + columns
        state = states[down if len(states) > 1 else slice(None), across, None]
        blocks = np.empty((2, *part.shape[1:3], len(columns), 2), np.uint64)
        np.bitwise_xor(state[..., 0], index, blocks[0, ..., 0])
        np.bitwise_xor(state[..., 0], index | _PLANE, blocks[1, ..., 0])
        blocks[..., 1] = state[..., 1]
        found = encrypted(blocks)
        s = floats[: 5 * part.size // 2].reshape(5, -1)
        _box_muller(found.view(np.uint32).reshape(2, -1), s)
        np.multiply(s[:2].reshape(part.shape), s[3:].reshape(part.shape), part)

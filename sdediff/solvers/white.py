"""Normals addressed by key: functions of a seed, a step and a stream, the same bits on every
machine.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

from sdediff.solvers.given import integer
from sdediff.solvers.noise import STREAMS, device_of, elapsed, paired, root_of

__all__ = ["Nodes", "White", "Words", "encrypted", "fill", "keyed", "seeds", "sent", "words"]

_BLOCK: Final = 2**13


def seeds(seed: int, samples: range | int) -> tuple[int, ...]:
    """The seed of each sample in a run with seed ``seed``. ``samples`` is a number of samples, or a
    range of their numbers.

    Seed i depends on (seed, i) alone, so parts of a run agree with the whole:

        seeds(7, range(100, 200)) == seeds(7, 200)[100:]

    Different samples of one run never share a seed (a bijection of i, the finalizer of splitmix64).
    """
    seed = integer("seed", seed, kind="a non-negative int")
    samples = samples if isinstance(samples, range) else integer("samples", samples)
    index = (
        np.arange(samples.start, samples.stop, samples.step)
        if isinstance(samples, range)
        else np.arange(samples)
    )
    start = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    with np.errstate(over="ignore"):
        z = start + index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return tuple((z ^ (z >> np.uint64(31))).tolist())


class _Seeded:
    """Normals that are functions of a seed a row: for states (rows, *event), drawn on the host and
    moved to the device.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        event: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if isinstance(seeds, torch.Generator):
            seeds = (integer("seeds", seeds, kind="non-negative ints, one a sample"),)
        if not isinstance(seeds, Iterable) or isinstance(seeds, str | bytes):
            raise TypeError(
                f"seeds must be non-negative ints, one a sample; got {seeds!r}, seeds(0, 64) "
                "makes 64 of one"
            )
        if not isinstance(event, Iterable) or isinstance(event, str | bytes):
            raise TypeError(f"event must be the shape of a sample, (1, 28, 28) say; got {event!r}")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(
                f"dtype must be a floating-point dtype, torch.float32 say; got {dtype!r}"
            )
        self.seeds = tuple(seed if type(seed) is int else integer("seeds", seed) for seed in seeds)
        known = isinstance(event, torch.Size)
        self.event = torch.Size(event if known else [integer("event", n, 1) for n in event])
        self.dtype = dtype
        self.device = device if isinstance(device, torch.device) else device_of(device)
        if any(seed < 0 for seed in self.seeds):
            raise ValueError("seeds must not be negative")

    @cached_property
    def sources(self) -> Words:
        """What is made of each seed, (rows, 2), and not before something is drawn.

        AES of a seed below 2^64, of a longer one's hash of 128 bits.
        """
        long = {i: seed for i, seed in enumerate(self.seeds) if seed >= 2**64}
        blocks = np.zeros((len(self.seeds), 2), np.uint64)
        blocks[:, 0] = [0 if i in long else seed for i, seed in enumerate(self.seeds)]
        for i, seed in long.items():
            data = seed.to_bytes(-(-seed.bit_length() // 8), "little")
            digest = hashlib.blake2b(data, digest_size=16).digest()
            blocks[i] = np.frombuffer(digest, "<u8")
        return encrypted(blocks)

    def take(self, rows: Tensor) -> Self:
        """The same for some of the rows."""
        return type(self)(
            [self.seeds[i] for i in rows.tolist()], self.event, dtype=self.dtype, device=self.device
        )


class White(_Seeded):
    """Independent normals for steps of a fixed grid, one seed a sample.

    Float32 normals, drawn on the host a block of steps at a time and moved to the device, so that
    the values are the same on every device: AES of the seed, then of (stream, k, block), then of
    the place in the block, and Box and Muller. The block's length depends on the event's shape
    alone.
    """

    # What can coincide: two of a million samples' 10^9 numbers agree in their 128 bits with
    # probability 2^-33, chains of AES being chance; seeds of 2^64 and more are hashed, to 128 bits
    # too.

    def __init__(
        self,
        seeds: Sequence[int],
        event: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(seeds, event, dtype=dtype, device=device)
        length = min(64, _BLOCK // max(1, self.event.numel()))
        self.length = max(1, length - length % 2)
        # steps of small events that share a block of the cipher
        self.pack = max(1, 4 // max(1, self.event.numel()))
        self.keep = 1  # blocks of each stream and k
        self._blocks: dict[tuple[str, int, int], tuple[tuple[Tensor, ...], Tensor]] = {}
        self._held: dict[tuple[str, int], list[int]] = {}

    def at(self, step: int) -> _WhiteStep:
        """Noise of the step number ``step``."""
        return _WhiteStep(self, step)

    def tree(self) -> Nodes:
        """Normals of the same seeds, by number."""
        return Nodes(self.seeds, self.event, dtype=self.dtype, device=self.device)

    def normal(self, step: int, stream: str, k: int) -> Tensor:
        """Standard normal (rows, *event) of the key (step, stream, k)."""
        # The prior is one draw a solve, so its block is one step long.
        number, within = divmod(step, 1 if stream == "prior" else self.length)
        return (self._blocks.get((stream, k, number)) or self._hold(stream, k, number))[0][within]

    def block(self, stream: str, k: int, number: int) -> Tensor:
        """The normals of ``length`` steps from step ``number * length`` on, (length, rows,
        *event).
        """
        return (self._blocks.get((stream, k, number)) or self._hold(stream, k, number))[1]

    def _hold(self, stream: str, k: int, number: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Draw a block, and let go of an older one."""
        if not (0 <= number < 2**63 and 0 <= k < 2**32):
            raise ValueError(
                f"step and k must not be negative, nor so large: block {number} of steps, k = {k}"
            )
        length = 1 if stream == "prior" else self.length
        rows = len(self.seeds)
        size = self.event.numel()
        pack = self.pack
        states = _states(self.sources, np.array([[number]]), stream, k)
        if length == 1:
            drawn = _split(states, size)
        else:  # the cosines are the first steps of the block, the sines its second half
            steps = length // pack
            width = 4 * -(-pack * size // 4)
            parts = np.empty((2, steps // 2, rows, width), np.float32)
            if parts.size:
                fill(parts, states, np.arange(steps // 2, dtype=np.uint64)[:, None])
            drawn = parts.reshape(steps, rows, width)[..., : pack * size]
            drawn = drawn.reshape(steps, rows, pack, size).swapaxes(1, 2)
        block = sent(drawn.reshape(length, rows, size), self.dtype, self.device)
        block = block.reshape(length, rows, *self.event)
        held = self._held.setdefault((stream, k), [])
        if len(held) >= self.keep:
            del self._blocks[stream, k, held.pop(0)]
        held.append(number)
        self._blocks[stream, k, number] = found = (block.unbind(), block)
        return found

    def each(self, steps: NDArray[np.int64], stream: str, k: int) -> NDArray[np.float32]:
        """`normal` where every row has its own step: float32 (m, rows, size) on the host, for
        ``steps`` (m, rows).
        """
        size = self.event.numel()
        half = self.length // 2
        pack = self.pack
        number, within = np.divmod(steps, self.length)
        states = _states(self.sources, number, stream, k)
        if self.length == 1:
            return _split(states, size)
        place, lane = np.divmod(within % half, pack)
        block = np.empty((2, *steps.shape, 4 * -(-pack * size // 4)), np.float32)
        if block.size:
            fill(block, states, place.astype(np.uint64))
        chosen = np.where((within < half)[..., None], block[0], block[1])[
            ..., : pack * size
        ].reshape(*steps.shape, pack, size)
        found: NDArray[np.float32] = np.take_along_axis(chosen, lane[..., None, None], 2)[:, :, 0]
        return found

    def integers(self, step: int, stream: str, count: int, below: int) -> Tensor:
        """Uniform on 0..below - 1, independent, int64 (rows, count) on the host: of the stream's
        key (step, stream), to 2^-53.
        """
        drawn = words(_states(self.sources, np.array([step]), stream, 0), count)
        return torch.from_numpy(
            ((drawn >> np.uint64(11)).astype(np.float64) * (2.0**-53 * below)).astype(np.int64)
        )


class Nodes(_Seeded):
    """Normals by number, each row having its own: what the tree of a Brownian path is made of.

    As `White`'s in kind, and never the same as those of its streams. Each is a function of (seed,
    node, k), ``node`` from 0 on and ``k``, the number of the normal among those of one node.
    """

    def normal(self, node: Tensor, k: int = 0) -> Tensor:
        """Standard normals (rows, *event) of ``node``, int64 (rows,) on the host, or (m, rows,
        *event) of (m, rows).
        """
        if not 0 <= k < 2**32 or bool((node < 0).any()):
            raise ValueError(
                f"nodes and k must not be negative, and k below 2^32; got k = {k}, nodes "
                f"{node.tolist()}"
            )
        drawn = keyed(
            self.sources, node.reshape(-1, len(self.seeds)).numpy(), "tree", k, self.event.numel()
        )
        return sent(drawn, self.dtype, self.device).reshape(*node.shape, *self.event)


def sent(
    drawn: NDArray[np.floating] | Tensor, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Numbers drawn on the host, on a device."""
    here = torch.as_tensor(drawn).contiguous().to(dtype)
    # from other memory a copy makes the host wait for the device
    pinned = torch.device(device).type == "cuda"
    return (here.pin_memory() if pinned else here).to(device, non_blocking=pinned)


def keyed(
    sources: Words, node: NDArray[np.int64], stream: str, k: int, size: int
) -> NDArray[np.float32]:
    """Standard normals (m, rows, size), keyed by (stream, node, k) for nodes (m, rows) or (m,
    1).
    """
    return _split(_states(sources, node, stream, k), size)


def _split(states: Words, size: int) -> NDArray[np.float32]:
    """Normals (m, rows, size) of states (m, rows, 2), the cosines before the sines."""
    half = 4 * -(-size // 8)
    block = np.empty((*states.shape[:2], 2, half), np.float32)
    if block.size:
        fill(block.transpose(2, 0, 1, 3), states, np.zeros((1, 1), np.uint64))
    return block.reshape(*states.shape[:2], 2 * half)[..., :size]


def _states(sources: Words, number: NDArray[np.int64], stream: str, k: int) -> Words:
    """What is made of seeds and keys (number, stream, k), (m, rows, 2) for numbers (m, rows) or (m,
    1), (rows, 2) for (1,).
    """
    key = np.empty((*number.shape, 2), np.uint64)
    key[..., 0], key[..., 1] = number, STREAMS[stream] << 32 | k
    return encrypted(sources ^ key)


@dataclass(eq=False, slots=True)
class _WhiteStep:
    white: White
    step: int

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        return self.white.normal(self.step, stream, k)

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.white.normal(self.step, "path", k)

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        z = self.normal("path")
        return z * root_of(elapsed(a, b), z)

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return paired(self.normal("path"), self.normal("path", 1), elapsed(a, b))


_KEY: Final = b"sdediff: normals"  # of 128 bits, as any other would do
# blocks at a time: fewer, and numpy's calls count; more, and its scratch of 72 bytes each leaves
# the cache
_CHUNK: Final = 2**14
Words = NDArray[np.uint64]
_PLANE: Final = np.uint64(2**32)


class _Cipher(threading.local):
    """AES, a context for each thread: making one takes as long as a thousand normals."""

    def __init__(self) -> None:
        self.encryptor = Cipher(algorithms.AES(_KEY), modes.ECB()).encryptor()


_CIPHER: Final = _Cipher()


def encrypted(blocks: Words) -> Words:
    """AES-128 (NIST FIPS 197) of ``blocks`` (..., 2), each of two words, under one fixed key.

    A bijection of blocks that no test can tell from chance: a generator that is a function of a
    counter, of the kind of Salmon et al. 2011 (doi 10.1145/2063384.2063405), which processors have
    in hardware. A chain encrypted(encrypted(encrypted(a) ^ b) ^ c) depends on all of a, b and c in
    this way (CBC-MAC: Bellare, Kilian and Rogaway 2000, doi 10.1006/jcss.1999.1694); two chains
    with different parts agree with probability 2^-128.
    """
    # the cipher asks for room for a block more, less a byte
    found = np.empty(blocks.size + 2, np.uint64)
    _CIPHER.encryptor.update_into(
        np.ascontiguousarray(blocks).reshape(-1).view(np.uint8).data, found.view(np.uint8).data
    )
    return found[:-2].reshape(blocks.shape)


def _constants(kind: type[np.number[Any]], *values: float) -> list[NDArray[Any]]:
    # 0-d arrays: numpy takes them faster than its own scalars, and no promotion rule applies.
    return [np.array(value, kind) for value in values]


_SIGN: Final = np.array(2**31, np.uint32)
# the last: bits of sqrt(1/2)
_ODD, _FRACTION, _EXPONENT, _SQRT_HALF = _constants(np.int32, 1 - 2**31, 0x7FFFFF, 23, 0x3F3504F3)
_SHIFT: Final = np.array(0x3F3504F3 + (31 << 23) - 2**31, np.int32)  # and those of -2^31 sqrt(1/2)
_ONE, _LOG2, _UNIT = _constants(np.float32, 1.0, -2 * np.log(2.0), 2.0**-31)
# Minimax: -2 log((1 + s) / (1 - s)) / s in s^2 for (1 + s) / (1 - s) in [sqrt(1/2), sqrt(2)],
# relative error 3e-9; and in v^2 on [-1, 1], cos(pi v / 2), error 5e-8, and sin(pi v / 2) / v,
# error 3e-9.
_LOG: Final = _constants(np.float32, -4.0, -1.33333634, -0.7994941, -0.59855835)
_COS = (9.99999953e-01, -1.23369821e00, 2.53650745e-01, -2.08106275e-02, 8.58190605e-04)
_SIN = (1.57079629e00, -6.45963360e-01, 7.96884805e-02, -4.67222792e-03, 1.50820563e-04)
_COS_SIN: Final = [np.array(pair, np.float32)[:, None] for pair in zip(_COS, _SIN, strict=True)]


def _box_muller(words: NDArray[np.uint32], s: NDArray[np.float32]) -> None:
    """From uint32 (2, n) the factors of 2 n normals (Box and Muller 1958): s[0] * s[3] and s[1] *
    s[4], ``s`` being (5, n).

    r = sqrt(-2 log u), u an odd number below 2^31 over 2^31 from 30 bits of a word: never 0, and r
    goes up to 6.55. The word's highest bit is the sign of both numbers, so that their law is
    exactly symmetric. They are r times the cosine and the sine of an angle in [-pi/2, pi/2] from
    the other word.
    Sums, products, quotients and roots alone, which IEEE 754 rounds in one way: the same bits on
    every machine, in any batch.
    """
    x, y, z, r, t = s
    bits, exponent = x.view(np.int32), y.view(np.int32)
    np.copyto(x, np.bitwise_or(words[0].view(np.int32), _ODD, bits), casting="unsafe")
    # x = -2^31 u, and u = 2^e f with f in [sqrt(1/2), sqrt(2)]: where u is nearly 1, e is 0 and no
    # digits cancel.
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
    """Fill ``block`` (2, m, rows, d), d a multiple of 4, with standard normals: cosines in
    block[0], sines in block[1].

    A value depends on d, on its state in ``states`` (m or 1, rows, 2), on its place, (m, rows) or
    less by broadcasting, and on the column, and not on where it is in the block.
    """
    _, m, n, d = block.shape
    d //= 4
    room, lengths = _CHUNK // 2, []
    # pieces as even as can be, of as many blocks together as there is room for
    for total in (d, n, m):
        pieces = -(-total // max(1, room))
        lengths.append(-(-total // pieces))
        room //= lengths[-1]
    width, height, depth = lengths
    place = place * np.uint64(d)
    floats = np.empty(5 * 4 * width * height * depth, np.float32)
    for i, j, start in itertools.product(
        range(0, m, depth), range(0, n, height), range(0, d, width)
    ):
        down, across = slice(i, i + depth), slice(j, j + height)
        part = block[:, down, across, 4 * start : 4 * (start + width)]
        columns = np.arange(start, min(start + width, d), dtype=np.uint64)
        index = (
            place[
                down if len(place) > 1 else slice(None),
                across if place.shape[1] > 1 else slice(None),
                None,
            ]
            + columns
        )
        state = states[down if len(states) > 1 else slice(None), across, None]
        blocks = np.empty((2, *part.shape[1:3], len(columns), 2), np.uint64)
        np.bitwise_xor(state[..., 0], index, blocks[0, ..., 0])
        np.bitwise_xor(state[..., 0], index | _PLANE, blocks[1, ..., 0])
        blocks[..., 1] = state[..., 1]
        found = encrypted(blocks)
        s = floats[: 5 * part.size // 2].reshape(5, -1)
        _box_muller(found.view(np.uint32).reshape(2, -1), s)
        np.multiply(s[:2].reshape(part.shape), s[3:].reshape(part.shape), part)

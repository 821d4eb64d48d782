"""Noise addressed by key."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.special import ndtri
from scipy.stats import chi2, kstest

import sdediff as sd
from sdediff.solvers import White
from sdediff.solvers import white as generator
from sdediff.solvers.noise import STREAMS, paired
from sdediff.solvers.white import Nodes

PINNED = """
-0x1.aa04520000000p-10 0x1.59f2440000000p+0 -0x1.d8e2960000000p+0
0x1.43fb240000000p-2 0x1.596e5e0000000p+0 -0x1.4e31f40000000p-2
""".split()
CHECKSUM = -1929602017562


def test_seeds_of_shards_agree_and_differ() -> None:
    whole = sd.seeds(7, 2000)
    assert sd.seeds(7, range(500, 900)) == whole[500:900]
    assert len(set(whole)) == 2000
    assert sd.seeds(8, 2000)[:5] != whole[:5]
    assert not set(sd.seeds(8, 2000)) & set(whole)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(ValueError, match="seed must be a non-negative int"):
        sd.seeds(seed, 3)  # type: ignore[arg-type]


def test_same_key_same_noise_in_any_order() -> None:
    one, two = White([1, 2, 3], (5, 2)), White([1, 2, 3], (5, 2))
    steps = [0, 200, 3, 64, 63, 1, 65, 0]
    first = {
        (i, stream): one.at(i).normal(stream, 1).clone()
        for i in steps
        for stream in STREAMS
        if stream != "prior"
    }
    for i in reversed(steps):
        for stream in ("probe", "churn", "corrector", "path", "dequantization"):
            assert torch.equal(two.at(i).normal(stream, 1), first[i, stream])
    assert torch.equal(two.at(0).normal("prior"), one.at(0).normal("prior"))


def test_rows_do_not_depend_on_the_batch() -> None:
    white = White([4, 5, 6, 7], (3,))
    part = white.take(torch.tensor([2, 0]))
    for i in (0, 70):
        assert torch.equal(part.at(i).normal(), white.at(i).normal()[[2, 0]])


def test_streams_draws_and_steps_differ() -> None:
    white = White([9], (1000,))
    draws = [
        white.at(i).normal(stream, k)[0].clone()
        for i in (0, 1, 9)
        for stream in ("path", "corrector")
        for k in (0, 1)
    ]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    # Normal with standard deviation 1 / sqrt(1000); 66 pairs beyond 6 standard deviations: chance
    # 1e-7.
    assert float(correlation.abs().max()) < 6 / math.sqrt(1000)


def test_values_are_standard_normal() -> None:
    """Kolmogorov-Smirnov on 200,000 values over seeds, steps and blocks; false alarm 1e-6."""
    white = White(sd.seeds(0, 500), (4,))
    values = torch.cat([white.at(i).normal().flatten() for i in range(0, 200, 2)])
    assert kstest(values.numpy(), "norm").pvalue > 1e-6


def aes(block: int) -> int:
    """AES-128 of a number of 128 bits by the library's key, in another mode: of one block they all
    are the same.
    """
    cipher = Cipher(algorithms.AES(generator._KEY), modes.CBC(bytes(16))).encryptor()
    return int.from_bytes(cipher.update(block.to_bytes(16, "little")), "little")


def test_the_cipher_is_aes() -> None:
    """Of NIST's example (SP 800-38A, F.1.1), by the same library with that key; and ours, in a
    batch as alone.
    """
    key, text = (
        bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"),
        bytes.fromhex("6bc1bee22e409f96e93d7e117393172a"),
    )
    assert (
        Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(text).hex()
        == "3ad77bb40d7a3660a89ecaf32466ef97"
    )
    blocks = [0, 1, 2**64, 2**128 - 1, 12345 << 70]
    words = np.array([[block % 2**64, block >> 64] for block in blocks], np.uint64)
    found = generator.encrypted(words)
    assert [low | high << 64 for low, high in found.tolist()] == [aes(block) for block in blocks]
    assert np.array_equal(generator.encrypted(words[::-2]), found[::-2])
    assert generator.encrypted(words[:0]).shape == (0, 2)


def test_threads_have_ciphers_of_their_own() -> None:
    words = np.arange(2**12, dtype=np.uint64).reshape(-1, 2)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: generator.encrypted(words), range(64)))
    assert all(np.array_equal(each, found[0]) for each in found)


@pytest.mark.parametrize("place", ["seed", "step", "k", "column"])
def test_every_bit_depends_on_every_part(place: str) -> None:
    """Neighbouring numbers in one part of the key: 2^12 results, each of 128 bits set in half of
    them and changed in half of the next, the same for neighbouring bits; 3 x 128 normal deviations,
    none beyond 6.5: chance 3e-8.
    """
    n = 2**12
    if place == "column":
        words = generator.words(
            generator._states(generator.White([7], ()).sources, np.array([3]), "path", 1), 2 * n
        ).reshape(n, 2)
    elif place == "k":
        words = np.stack(
            [
                generator._states(generator.White([7], ()).sources, np.array([3]), "path", k)[0]
                for k in range(n)
            ]
        )
    else:
        seeds, steps = ([*range(n)], [5]) if place == "seed" else ([7], [*range(n)])
        words = generator._states(
            generator.White(seeds, ()).sources, np.array(steps)[:, None], "path", 1
        ).reshape(n, 2)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), axis=1)
    assert bits.shape == (n, 128)
    for each in (bits, bits[1:] ^ bits[:-1], bits ^ np.roll(bits, 1, axis=1)):
        deviation = (each.mean(axis=0) - 0.5) * 2 * len(each) ** 0.5
        assert np.abs(deviation).max() < 6.5


def box_muller(words: np.ndarray) -> np.ndarray:
    """Normals (2, n) in float32 from the words (2, n)."""
    s = np.empty((5, words.shape[1]), np.float32)
    generator._box_muller(words.copy(), s)
    return s[:2] * s[3:]


def test_normals_are_box_and_muller_of_the_words() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (2, 100_001), dtype=np.uint32)
    # What float32 rounds near u = 1 included: the largest 31 bits, and powers of 2.
    words[0, :4000] |= 0x7FFFF000
    words[0, 4000:4032] = 2 ** np.arange(32, dtype=np.uint32)
    u = 1 - (((words[0] & 0x7FFFFFFF).astype(np.float64) // 2) + 0.5) / 2**30
    r = np.sqrt(-2 * np.log(u)) * np.where(words[0] >> 31, -1, 1)
    angle = np.pi / 2 * words[1].view(np.int32) / 2**31
    expected = np.stack([r * np.cos(angle), r * np.sin(angle)])
    # Near u = 1 float32 holds u to 6e-8, and the radius to the root of that.
    small = np.abs(r) < 0.01
    assert np.abs(box_muller(words) - expected)[:, ~small].max() < 1e-5
    assert np.abs(box_muller(words) - expected)[:, small].max() < 4e-4


def test_no_word_gives_an_infinite_or_lopsided_normal() -> None:
    """The ends of both words: finite, up to 6.5 standard deviations on both sides, and the sign bit
    turns both numbers round.
    """
    ends = [0, 1, 2, 2**30, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1]
    words = np.array(list(itertools.product(ends, ends)), np.uint32).T
    values = box_muller(words)
    assert np.isfinite(values).all()
    assert values.min() < -6.5
    assert values.max() > 6.5
    words[0] ^= 2**31
    assert np.array_equal(box_muller(words), -values)


def test_tails_and_middle_have_their_share() -> None:
    """Chi-square of 4,194,304 values on 40 bins, the outermost beyond 4.5 standard deviations (7.1
    expected on each side); false alarm 1e-6.
    """
    white = White(sd.seeds(3, 1024), (64,))
    edges = np.concatenate(
        [[-4.5, -4.0, -3.5, -3.0], ndtri(np.linspace(0.005, 0.995, 33)), [3.0, 3.5, 4.0, 4.5]]
    )
    counts = np.zeros(len(edges) + 1)
    for i in range(64):
        counts += np.bincount(
            np.searchsorted(edges, white.at(i).normal().flatten().numpy()), minlength=len(counts)
        )
    share = np.diff([0.0, *(0.5 * math.erfc(-float(e) / 2**0.5) for e in edges), 1.0])
    expected = counts.sum() * share
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1) > 1e-6


def test_neighbours_are_independent() -> None:
    """Draws of 4096 numbers from keys that differ in one part, shifted by up to four elements too:
    no correlation of the values, of their squares or of one with the other's square. 48,000 pairs
    beyond 8 standard deviations; squares have heavier tails than normals, and a sum of 4096 such
    products goes there with a chance near 1e-11: in all 1e-6.
    """
    event, n = (4096,), 4096
    keys = [
        (seed, step, stream, k)
        for seed in (0, 1, 2**32)
        for step in (0, 1, 2)
        for stream in ("path", "churn")
        for k in (0, 1)
    ]
    keys += [(2**64 + i, 0, "path", 0) for i in (0, 1)] + [(0, 0, "prior", 0)]
    draws = [White([seed], event).at(step).normal(stream, k)[0] for seed, step, stream, k in keys]
    x = torch.stack([torch.roll(draw, shift) for draw in draws for shift in (0, 1, 2, 4)])
    x = torch.cat([x, (x**2 - 1) / 2**0.5]).double()
    gram = x @ x.T / n**0.5
    # a draw and its own square are no two draws
    same = torch.eye(len(x) // 2, dtype=torch.bool).repeat(2, 2)
    assert float(gram[~same].abs().max()) < 8


@pytest.mark.parametrize(
    "event", [(), (1,), (2,), (3,), (7,), (5, 5), (4096,), (4097,), (3, 40, 40)], ids=str
)
def test_a_sample_is_the_same_in_any_batch(
    event: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [*sd.seeds(1, 20), 2**70 + 1, 2**200]
    white = White(seeds, event)
    steps = (0, white.length - 1, white.length, 3 * white.length)
    whole = {(i, stream): white.at(i).normal(stream) for i in steps for stream in ("prior", "path")}
    assert all(draw.shape == (22, *event) for draw in whole.values())
    order = torch.randperm(22, generator=torch.Generator().manual_seed(0))[:9]
    monkeypatch.setattr(generator, "_CHUNK", 60)  # and however the work is cut
    parts = [white.take(order), White([seeds[i] for i in order], event)]
    for part, (i, stream) in itertools.product(parts, whole):
        assert torch.equal(part.at(i).normal(stream), whole[i, stream][order])


def test_all_numbers_of_a_block_differ() -> None:
    """Of 64 steps, 40 seeds and 5 elements no float32 comes in two places by a slip: 12,800
    numbers, 20 to 40 agree by chance.
    """
    white = White([*range(38), 2**64, 2**64 + 1], (5,))
    values = torch.cat([white.at(i).normal().flatten() for i in range(65)])
    assert len(values.unique()) > len(values) - 100


def test_the_values_are_these() -> None:
    """On every machine and with every version of torch and numpy: only sums, products, quotients
    and roots are rounded.
    """
    found = White([0, 2**32 + 1, 10**30], (2,)).at(64).normal("corrector", 3)
    assert [value.hex() for value in found.flatten().tolist()] == PINNED
    assert int(White(range(100), (999,)).at(5).normal().view(torch.int32).sum()) == CHECKSUM


def test_threads_and_global_generators_play_no_part() -> None:
    threads, state, legacy = (
        torch.get_num_threads(),
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),
    )
    try:
        torch.set_num_threads(1)
        one = White(range(300), (40,)).at(7).normal()
        torch.set_num_threads(3)
        assert torch.equal(White(range(300), (40,)).at(7).normal(), one)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == legacy


def test_long_seeds_are_kept_in_full() -> None:
    seeds = [
        5,
        2**32 + 5,
        2**63 + 5,
        2**64 + 5,
        2**65 + 5,
        2**96 + 5,
        2**128 + 5,
        2**1000 + 5,
        5 * 2**64,
        2**1000,
    ]
    assert len({tuple(row) for row in White(seeds, (6,)).at(0).normal().tolist()}) == len(seeds)


@pytest.mark.parametrize(("step", "k"), [(-1, 0), (0, -1), (0, 2**32), (64 * 2**63, 0)])
def test_keys_out_of_range(step: int, k: int) -> None:
    with pytest.raises(ValueError, match="step and k must"):
        White([0], (2,)).at(step).normal("path", k)


def test_negative_seed() -> None:
    with pytest.raises(ValueError, match="seeds must not be negative"):
        White([3, -1], (2,))


NODES = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**63 - 1, 7])


@pytest.mark.parametrize("event", [(), (1,), (2,), (7,), (64,), (4097,)], ids=str)
def test_a_node_has_its_normals_in_any_batch(
    event: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [*sd.seeds(1, 4), 2**70 + 1, 3]
    nodes = Nodes(seeds, event)
    whole = {k: nodes.normal(NODES, k) for k in (0, 63)}
    assert all(draw.shape == (6, *event) for draw in whole.values())
    monkeypatch.setattr(generator, "_CHUNK", 20)
    for k, order in itertools.product(whole, ([3], [5, 0, 4, 1])):
        rows = torch.tensor(order)
        assert torch.equal(nodes.take(rows).normal(NODES[rows], k), whole[k][rows])
    turned = Nodes(seeds[::-1], event, dtype=torch.float64).normal(NODES.flip(0), 63)
    assert torch.equal(turned, whole[63].flip(0).double())


def chained(seed: int, number: int, stream: str, k: int, index: int) -> list[int]:
    """The four words of 32 bits of one block, with the chain written down once more."""
    block = aes(aes(aes(seed) ^ (number | (STREAMS[stream] << 32 | k) << 64)) ^ index)
    return [block >> 32 * i & 2**32 - 1 for i in range(4)]


def normals(key: tuple[int, int, str, int], column: int) -> np.ndarray:
    """The four cosines and four sines, (2, 4), of a block's two places."""
    return box_muller(np.array([chained(*key, column), chained(*key, column | 2**32)], np.uint32))


def test_normals_of_nodes_are_those_of_their_keys() -> None:
    """One row and one key at a time: of 13 numbers the first eight are cosines, of two blocks."""
    seeds, drawn = range(90, 96), Nodes(range(90, 96), (13,)).normal(NODES, 9)
    for seed, node, row in zip(seeds, NODES.tolist(), drawn, strict=True):
        both = np.concatenate(
            [normals((seed, node, "tree", 9), column) for column in (0, 1)], axis=1
        )
        assert torch.equal(row, torch.from_numpy(both.reshape(-1)[:13]))


@pytest.mark.parametrize(("size", "pack"), [(1, 4), (2, 2), (3, 1), (4, 1), (6, 1)])
def test_steps_are_those_of_their_keys(size: int, pack: int) -> None:
    """Steps of a block of 64, in the first half cosines, then sines; small ones share the cipher's
    blocks.
    """
    white, blocks = White([5, 7], (size,)), -(-pack * size // 4)
    for step in (0, 3, 31, 32, 39, 63, 64, 130):
        number, within = divmod(step, 64)
        place, lane = divmod(within % 32, pack)
        for i, seed in enumerate((5, 7)):
            both = [
                normals((seed, number, "churn", 2), place * blocks + column)
                for column in range(blocks)
            ]
            want = np.concatenate(both, axis=1)[within // 32][lane * size : (lane + 1) * size]
            assert torch.equal(white.at(step).normal("churn", 2)[i], torch.from_numpy(want))
        each = white.each(np.array([[step, step + 1], [9, step]]), "churn", 2)
        for (j, i), s in zip(
            [(0, 0), (0, 1), (1, 0), (1, 1)], (step, step + 1, 9, step), strict=True
        ):
            assert torch.equal(torch.from_numpy(each[j, i]), white.at(s).normal("churn", 2)[i])


def test_normals_of_nodes_are_independent() -> None:
    """Of neighbouring nodes, numbers, seeds and of `White`: 14 draws of 4096, no correlation beyond
    6.5 deviations: chance 1e-8.
    """
    event = (4096,)
    draws = [
        Nodes([seed], event).normal(torch.tensor([n]), k)[0]
        for seed in (0, 1)
        for n in (0, 1, 2**32)
        for k in (0, 1)
    ]
    draws += [White([0], event).at(0).normal(stream)[0] for stream in ("path", "prior")]
    assert (
        float((torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))).abs().max()) < 6.5 / 64
    )


@pytest.mark.parametrize(("node", "k"), [(-1, 0), (0, -1), (0, 2**32)])
def test_nodes_out_of_range(node: int, k: int) -> None:
    with pytest.raises(ValueError, match="nodes and k must not be negative"):
        Nodes([0], (2,)).normal(torch.tensor([node]), k)


def test_a_draw_that_is_kept_does_not_change() -> None:
    white = White([1, 2], (3,))
    kept = white.at(0).normal()
    before = kept.clone()
    for i in range(200):
        white.at(i).normal()
    assert torch.equal(kept, before)


def test_increments_carry_gradients_to_the_times() -> None:
    step = White([3, 4], (2,), dtype=torch.float64).at(5)
    times = torch.tensor([0.7, 0.3], dtype=torch.float64, requires_grad=True)

    def numbers(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return step.increment(a, b), *step.pair(a, b)

    with_gradient = numbers(*times)
    without = numbers(*times.detach())
    for draw, plain in zip(with_gradient, without, strict=True):
        assert not plain.requires_grad
        torch.testing.assert_close(draw, plain, rtol=1e-14, atol=0)
        (gradient,) = torch.autograd.grad(draw.sum(), times, retain_graph=True)
        # An increment goes with h^(1/2), its integral with h^(3/2).
        power = 1.5 if draw is with_gradient[2] else 0.5
        expected = power * plain.sum() / 0.4 * torch.tensor([1.0, -1.0], dtype=torch.float64)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(numbers, tuple(times))
    rows = paired(
        step.normal(), step.normal("path", 1), torch.tensor([0.4, -0.4], dtype=torch.float64)
    )
    torch.testing.assert_close(rows, without[1:], rtol=1e-14, atol=0)


def test_increment_has_the_variance_of_its_interval() -> None:
    white = White([3, 4], (2,), dtype=torch.float64)
    step, a, b = (
        white.at(5),
        torch.tensor(0.7, dtype=torch.float64),
        torch.tensor([0.2, 0.6], dtype=torch.float64),
    )
    expected = step.normal() * (a - b).sqrt()[:, None]
    torch.testing.assert_close(step.increment(a, b), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(step.increment(b, a), expected, rtol=1e-14, atol=0)

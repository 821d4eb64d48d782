"""A Brownian path that can be asked for at any times, in any order: what solvers with different
steps have in common.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from sdediff.solvers.bridge import SMALL, Floats, Ints, Numbers, basis, edges, total_of
from sdediff.solvers.given import integer, real
from sdediff.solvers.noise import paired
from sdediff.solvers.white import White, keyed, sent

__all__ = ["BrownianPath"]

_SNAP: Final = 1e-6  # of the finest cell: times closer than that to a node are there
_FLOAT32: Final = 2.0**-23  # relative: times that were rounded to float32 are the path's ends
_KEEP: Final = 2**23  # numbers of the base intervals, of each kind, up to which they are kept


class BrownianPath:
    """Brownian paths, one for each seed, as the noise of a solve: any steps, and any order of them,
    see the same path.

    From ``start`` to ``end`` (in either direction) there are ``intervals`` base intervals: so many
    equal ones, or those between the given times (M + 1,). Over one of length h the increment W and
    H = 1/h int (w_r - w_a - (r - a)/h W) dr are independent normals, of variance h and h/12
    (space-time Levy area: Foster, Lyons and Oberhauser 2020, SIAM Journal on Numerical Analysis
    58); and given the two

        W1 - W2 = 3 H + sqrt(h)/2 z1,   H1 + H2 = H/2 - sqrt(h)/4 z1,   H1 - H2 = sqrt(h/12) z2

    for its halves, down to 2^-``depth`` of it, below which the path is its conditional mean, a
    parabola: the variance of w is short of h 2^-depth / 16 at most. A time costs two normals for
    each of ``depth`` nodes, fewer at a dyadic part of a base interval, none at an end of one or
    where the last query ended: take base intervals in which the steps' ends are. Over those `White`
    has the same normals in steps of the same numbers. ``area=False``: another path, with one normal
    a node (Levy's, sqrt(h)/2 z for the middle given the ends), a line below the depth (short of h
    2^-depth / 4), and without time integrals: at half the cost.

    Values depend on (seed, start, end, intervals, depth, area) and the times alone: not on the
    batch, the device, or what was asked before. Memory is bounded: kept are 2^23 numbers of base
    intervals and the path at two times. Times are in float64, () or (rows,), anywhere between start
    and end, and have no gradient.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        event: Sequence[int],
        start: float,
        end: float,
        *,
        intervals: int | Tensor = 64,
        depth: int = 20,
        area: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        times = edges(real("BrownianPath: start", start), real("BrownianPath: end", end), intervals)
        depth = integer("BrownianPath: depth", depth, 1, 30)
        self.start = float(times[0])
        self.end = float(times[-1])
        self.depth = depth
        self.area = area
        self._white = White(seeds, event, dtype=dtype, device=device)  # which checks them
        self.dtype, self.device = dtype, self._white.device
        self._white = White(seeds, event)
        self._white.keep = max(
            1,
            _KEEP
            // max(1, self._white.length * len(self._white.seeds) * self._white.event.numel()),
        )
        self._plain = dtype == torch.float32 and self.device.type == "cpu"
        self._times = times
        self._knots = {time: i for i, time in enumerate(times.tolist())}
        self._sign = 1.0 if self.end > self.start else -1.0
        self._distance: Floats = (times - times[0]).abs().numpy().astype(np.float64)
        # one more interval, where nothing is ever asked
        self._length: Floats = np.append(np.diff(self._distance), 1.0)
        self._roots: list[float] = np.sqrt(self._length).tolist()
        self._levels: Floats = np.exp2(np.arange(depth, dtype=np.float64))[:, None, None]
        self._kept: dict[tuple[int, bytes, bytes], Floats] = {}

    @property
    def seeds(self) -> tuple[int, ...]:
        """The samples' seeds."""
        return self._white.seeds

    @property
    def event(self) -> torch.Size:
        """A sample's shape."""
        return self._white.event

    def at(self, step: int) -> _PathStep:
        """Noise of the step number ``step``: the path by its times, the other streams as
        `White`'s.
        """
        return _PathStep(self, step)

    def take(self, rows: Tensor) -> BrownianPath:
        """The paths of some of the rows."""
        seeds = [self.seeds[i] for i in rows.tolist()]
        return BrownianPath(
            seeds,
            self.event,
            self.start,
            self.end,
            intervals=self._times,
            depth=self.depth,
            area=self.area,
            dtype=self.dtype,
            device=self.device,
        )

    def tree(self) -> None:
        """None: it is a path itself."""

    def over(self, a: Tensor, b: Tensor) -> Tensor:
        """The increment from a to b over the root of the interval's length, (rows, *event); 0 over
        no length.
        """
        i, j = self._ends(a, b)
        if j - i == 1:
            return self._out(self._white.normal(i, "path", 0))
        return self._asked(a, b, 1, standard=True)[0]

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        """w_b - w_a, (rows, *event)."""
        i, j = self._ends(a, b)
        if j - i == 1:
            return self._out(self._white.normal(i, "path", 0)) * self._roots[i]
        return self._asked(a, b, 1)[0]

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """w_b - w_a and the integral of w - w_a over the interval, its length taken positive."""
        if not self.area:
            raise ValueError(
                "BrownianPath: made with area=False it has no time integrals, which this solver "
                "asks for: take area=True"
            )
        i, j = self._ends(a, b)
        if j - i == 1:
            z, other = (self._white.normal(i, "path", k).to(self.dtype) for k in (0, 1))
            # on the host, lest a sum that cancels differ by the device
            w, integral = paired(z, other, self._roots[i] ** 2)
            return self._out(w), self._out(integral)
        w, area = self._asked(a, b, 2)
        return w, area

    def normal(self, step: int, stream: str, k: int) -> Tensor:
        """Standard normal (rows, *event) of the key (step, stream, k), for the streams that have no
        path.
        """
        if stream == "path":
            raise ValueError(
                "a Brownian path has no normals by number: ask for noise.over(t, s), the "
                "increment over the root of its length"
            )
        return self._out(self._white.normal(step, stream, k))

    def _ends(self, a: Tensor, b: Tensor) -> tuple[int, int]:
        """The numbers of two ends of base intervals; the same twice where a or b is none."""
        if a.ndim or b.ndim:
            return 0, 0
        i, j = self._knots.get(a.item()), self._knots.get(b.item())
        return (0, 0) if i is None or j is None else (i, j)

    def _out(self, z: Tensor) -> Tensor:
        return z if self._plain else sent(z, self.dtype, self.device)

    def _asked(self, a: Tensor, b: Tensor, outputs: int, *, standard: bool = False) -> list[Tensor]:
        if a.requires_grad or b.requires_grad:
            raise ValueError(
                "a Brownian path has no derivative in time: detach the times, or take White for "
                "gradients to a grid"
            )
        rows, size = len(self.seeds), self.event.numel()
        if {a.shape, b.shape} - {torch.Size(), torch.Size((rows,))}:
            raise ValueError(
                f"times must be () or ({rows},), one for each row; got {tuple(a.shape)} and "
                f"{tuple(b.shape)}"
            )
        if not rows or not size:
            return [torch.zeros(rows, *self.event, dtype=self.dtype, device=self.device)] * outputs
        times = np.empty((2, rows if a.ndim or b.ndim else 1))
        times[0], times[1] = a.numpy(), b.numpy()
        back = self._sign * (times[1] - times[0]) < 0
        turned = bool(back.any())
        i, x, p = self._locate(np.where(back, times[::-1], times) if turned else times)
        total = self._between(i, x, p, outputs)
        if standard:
            total /= np.sqrt(np.where(p[1] > p[0], p[1] - p[0], 1.0))[:, None]
        if turned:
            if outputs == 2:
                total[1] -= np.where(back, p[1] - p[0], 0.0)[:, None] * total[0]
            np.negative(total[0], total[0], where=back[:, None])
        return [sent(each, self.dtype, self.device).reshape(rows, *self.event) for each in total]

    def _locate(self, times: Floats) -> tuple[Ints, Floats, Floats]:
        """The base intervals of times (2, R), the places in them, from 0 to 1, and the distances
        from the start.
        """
        p, far = self._sign * (times - self.start), self._distance[-1]
        rounded = _FLOAT32 * max(abs(self.start), abs(self.end))
        if p.size and not (p.min() >= -rounded and p.max() <= far + rounded):
            raise ValueError(
                f"times must lie between {self.start:g} and {self.end:g}, where this path is; "
                f"got {times.tolist()}"
            )
        p = p.clip(0.0, far)
        i = self._distance[1:].searchsorted(p, side="right")
        cells = 2.0**self.depth
        x = (p - self._distance[i]) / self._length[i] * cells
        whole = np.rint(x)
        x = np.where(np.abs(x - whole) < _SNAP, whole, x)
        i, x = i + (x >= cells), np.where(x >= cells, 0.0, x / cells)
        return i, x, self._distance[i] + self._length[i] * x

    def _between(self, i: Ints, x: Floats, p: Floats, outputs: int) -> Floats:
        """w_b - w_a and, of two outputs, the integral of w - w_a, (outputs, rows, size), a being
        before b.
        """
        (start, end), length = self._places(i, x, outputs), p[1] - p[0]
        total: Floats = end - start
        if outputs == 2:
            total[1] -= length[:, None] * start[0]
        most = int((i[1] - i[0]).max())
        if not most:
            return total
        q = i[0] + np.arange(most)[:, None]  # (m, R)
        passed, q = q < i[1], np.minimum(q, len(self._times) - 2)
        h = self._length[q]
        root = np.sqrt(h) * passed
        weights = np.empty((outputs, *root.shape, 1))
        weights[0, ..., 0] = root
        if outputs == 2:
            weights[1, ..., 0] = root * (0.5 * h + p[1] - self._distance[q + 1])
        total += total_of(weights, self._steps(q, 0), total.shape[1:])
        if outputs == 2:
            total[1:] += total_of(
                (root * h / 12**0.5)[None, ..., None], self._steps(q, 1), total.shape[1:]
            )
        return total

    def _steps(self, q: Ints, k: int) -> Iterable[Numbers]:
        """Normals (rows, size) of the base intervals ``q`` (m, R), R being 1 or rows."""
        white, shape = self._white, (-1, len(self.seeds), self.event.numel())
        if q.shape[1] != 1:
            return white.each(q, "path", k)
        if len(q) == 1 or white.length == 1:
            return (white.normal(i, "path", k).numpy().reshape(shape[1:]) for i in q[:, 0].tolist())
        first, last = int(q.min()) // white.length, int(q.max()) // white.length
        found = [
            white.block("path", k, number).numpy().reshape(shape)
            for number in range(first, last + 1)
        ]
        return (found[0] if len(found) == 1 else np.concatenate(found))[
            q[:, 0] - first * white.length
        ]

    def _places(self, i: Ints, x: Floats, outputs: int) -> list[Floats]:
        """w and, of two outputs, its integral, from the start of base intervals ``i`` to places
        ``x`` in them, of two times (2, R).

        What was found for the query before is kept: the next one often begins where it ended.
        """
        keys = [(outputs, at.tobytes(), place.tobytes()) for at, place in zip(i, x, strict=True)]
        new = [k for k in (0, 1) if keys[k] not in self._kept]
        if new:
            self._kept.update(
                zip([keys[k] for k in new], self._place(i[new], x[new], outputs), strict=True)
            )
        self._kept = {key: self._kept[key] for key in keys}
        return [self._kept[key] for key in keys]

    def _place(self, i: Ints, x: Floats, outputs: int) -> Iterable[Floats]:
        """The same without a memory, for T times (T, R): T of (outputs, rows, size)."""
        rows, size = len(self.seeds), self.event.numel()
        if not x.any():
            return np.zeros((len(x), outputs, rows, size))
        q = np.minimum(i, len(self._times) - 2)
        h = self._length[q]
        within, nodes = basis(x, h, self._levels, area=self.area, integrals=outputs == 2)
        deep = len(nodes[0])
        while deep and not nodes[:, deep - 1].any():  # below, the times are nodes
            deep -= 1
        ids = (i << self.depth) + (self._levels[:deep] + within[:deep]).astype(np.int64)
        first, k = np.sqrt(h), 1 + self.area
        weights = np.empty((outputs, k * (1 + deep), *x.shape, 1))
        weights[:, k:] = nodes[:, :deep].reshape(outputs, -1, *x.shape, 1)
        weights[0, 0, ..., 0] = x * first
        if outputs == 2:
            weights[1, 0, ..., 0] = 0.5 * h * x * x * first
        if self.area:
            weights[0, 1, ..., 0] = 3**0.5 * x * (1 - x) * first
        if outputs == 2:
            weights[1, 1, ..., 0] = 12**-0.5 * h * x * x * (3 - 2 * x) * first
        normals: Iterable[Numbers] = itertools.chain(self._whole(q), self._nodes(ids))
        if weights.shape[1] * len(x) * outputs * rows * size <= SMALL:
            normals = np.concatenate(list(normals))
        else:
            normals = itertools.chain.from_iterable(normals)
        return total_of(weights, normals, (len(x), rows, size)).swapaxes(0, 1)

    def _whole(self, q: Ints) -> Iterable[Numbers]:
        """The normals (1, T, rows, size) of the base intervals ``q`` (T, R)."""
        for k in range(1 + self.area):
            found = list(self._steps(q, k))
            yield found[0][None, None] if len(found) == 1 else np.stack(found)[None]

    def _nodes(self, ids: Ints) -> Iterable[Numbers]:
        """The normals (m, T, rows, size) of nodes (L, T, R), some of them at a time, in their
        order.
        """
        rows = len(self.seeds)
        size = self.event.numel()
        width = ids.shape[1]
        normals = 1 + self.area
        most = max(1, SMALL // (normals * width * rows * size))
        for k in range(0, len(ids), most):
            part = ids[k : k + most]
            drawn = keyed(
                self._white.sources, part.reshape(-1, ids.shape[2]), "bridge", 0, normals * size
            )
            shaped = drawn.reshape(len(part), width, rows, normals, size).transpose(0, 3, 1, 2, 4)
            yield shaped.reshape(-1, width, rows, size)


class _PathStep:
    def __init__(self, path: BrownianPath, step: int) -> None:
        self.path, self.step = path, step

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.path.over(a, b)

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        return self.path.increment(a, b)

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.path.pair(a, b)

    def normal(self, stream: str, k: int = 0) -> Tensor:
        return self.path.normal(self.step, stream, k)

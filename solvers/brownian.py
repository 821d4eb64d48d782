"""A Brownian path that can be asked for at any times, in any order: what solvers with different steps have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solvers.bridge import NOTHING, SMALL, Floats, Ints, Numbers, Times, basis, total_of, used
from solvers.noise import White, keyed, paired

__all__ = ["BrownianPath"]

_SNAP: Final = 1e-6  # of the finest cell: times closer than that to a node are there
_KEEP: Final = 2**23  # numbers of the base intervals, of each kind, up to which they are kept


class BrownianPath:
    """Brownian paths, one for each seed, as the noise of a solve: any steps, and any order of them, see the same path.

    From ``start`` to ``end`` (in either direction) there are ``intervals`` base intervals: so many equal ones, or those between the
    given times (M + 1,). Over one of length h the increment W and H = 1/h int (w_r - w_a - (r - a)/h W) dr are independent normals,
    of variance h and h/12 (space-time Levy area: Foster, Lyons and Oberhauser 2020, SIAM Journal on Numerical Analysis 58); and
    given the two

        W1 - W2 = 3 H + sqrt(h)/2 z1,   H1 + H2 = H/2 - sqrt(h)/4 z1,   H1 - H2 = sqrt(h/12) z2

    for its halves, down to 2^-``depth`` of it, below which the path is its conditional mean, a parabola: the variance of w is short
    of h 2^-depth / 16 at most. A time costs two normals for each of ``depth`` nodes, drawn at once, fewer at a dyadic part of a
    base interval, none at an end of one: take base intervals in which the steps' ends are. Over those `White` has the same normals
    in steps of the same numbers.

    Values depend on (seed, start, end, intervals, depth) and the times alone: not on the batch, the device, or what was asked
    before. Memory is bounded: kept are 2^23 numbers of base intervals and the nodes of two times. Times are in float64, () or
    (rows,), anywhere between start and end, and have no gradient.
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
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        times = _edges(float(start), float(end), intervals)
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= 30:
            raise ValueError(f"BrownianPath: depth must be an int from 1 to 30, got {depth!r}")
        self.start, self.end, self.depth = float(times[0]), float(times[-1]), depth
        self.dtype, self.device = dtype, device
        self._white = White(seeds, event)
        self._white.keep = max(1, _KEEP // max(1, self._white.length * len(self._white.seeds) * self._white.event.numel()))
        self._plain = dtype == torch.float32 and torch.device(device).type == "cpu"
        self._number: type = np.float64 if dtype == torch.float64 else np.float32
        self._times = times
        self._knots = {time: i for i, time in enumerate(times.tolist())}
        self._sign = 1.0 if self.end > self.start else -1.0
        self._distance: Floats = (times - times[0]).abs().numpy().astype(np.float64)
        self._length: Floats = np.append(np.diff(self._distance), 1.0)  # one more interval, where nothing is ever asked
        self._roots: list[float] = np.sqrt(self._length).tolist()
        self._levels: Floats = np.exp2(np.arange(depth, dtype=np.float64))[:, None, None]
        self._kept: dict[bytes, Numbers] = {}

    @property
    def seeds(self) -> tuple[int, ...]:
        """The samples' seeds."""
        return self._white.seeds

    @property
    def event(self) -> torch.Size:
        """A sample's shape."""
        return self._white.event

    def at(self, step: int) -> _PathStep:
        """Noise of the step number ``step``: the path by its times, the other streams as `White`'s."""
        return _PathStep(self, step)

    def take(self, rows: Tensor) -> BrownianPath:
        """The paths of some of the rows."""
        seeds = [self.seeds[i] for i in rows.tolist()]
        options = {"depth": self.depth, "dtype": self.dtype, "device": self.device}
        return BrownianPath(seeds, self.event, self.start, self.end, intervals=self._times, **options)  # type: ignore[arg-type]

    def tree(self) -> None:
        """None: it is a path itself."""

    def over(self, a: Tensor, b: Tensor) -> Tensor:
        """The increment from a to b over the root of the interval's length, (rows, *event); 0 over no length."""
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
        i, j = self._ends(a, b)
        if j - i == 1:
            w, area = (self._out(self._white.normal(i, "path", k)) for k in (0, 1))
            return paired(w, area, self._roots[i] ** 2)
        w, area = self._asked(a, b, 2)
        return w, area

    def normal(self, step: int, stream: str, k: int) -> Tensor:
        """Standard normal (rows, *event) of the key (step, stream, k), for the streams that have no path."""
        if stream == "path":
            raise ValueError(
                "a Brownian path has no normals by number: ask for noise.over(t, s), the increment over the root of its length"
            )
        return self._out(self._white.normal(step, stream, k))

    def _ends(self, a: Tensor, b: Tensor) -> tuple[int, int]:
        """The numbers of two ends of base intervals; the same twice where a or b is none."""
        if a.ndim or b.ndim:
            return 0, 0
        i, j = self._knots.get(a.item()), self._knots.get(b.item())
        return (0, 0) if i is None or j is None else (i, j)

    def _out(self, z: Tensor) -> Tensor:
        return z if self._plain else z.to(self.dtype).to(self.device)

    def _asked(self, a: Tensor, b: Tensor, outputs: int, *, standard: bool = False) -> list[Tensor]:
        if a.requires_grad or b.requires_grad:
            raise ValueError("a Brownian path has no derivative in time: detach the times, or take White for gradients to a grid")
        rows, size = len(self.seeds), self.event.numel()
        if {a.shape, b.shape} - {torch.Size(), torch.Size((rows,))}:
            raise ValueError(f"times must be () or ({rows},), one for each row; got {tuple(a.shape)} and {tuple(b.shape)}")
        times = np.empty((2, rows if a.ndim or b.ndim else 1))
        times[0], times[1] = a.numpy(), b.numpy()
        if not rows or not size:
            return [torch.zeros(rows, *self.event, dtype=self.dtype, device=self.device)] * outputs
        at = self._locate(times, outputs, standard=standard)
        total = self._base(at, (outputs, rows, size))
        if at.x.any():
            total += self._bridge(at, (outputs, rows, size))
        return [torch.from_numpy(each).to(self.dtype).to(self.device).reshape(rows, *self.event) for each in total]

    def _locate(self, times: Floats, outputs: int, *, standard: bool) -> Times:
        p = self._sign * (times - self.start)
        far = self._distance[-1]
        if p.size and not (p.min() >= -1e-12 * far and p.max() <= (1 + 1e-12) * far):
            raise ValueError(f"times must lie between {self.start:g} and {self.end:g}, where this path is; got {times.tolist()}")
        back = p[0] > p[1]
        p = np.clip(np.sort(p, axis=0), 0.0, far)
        i = self._distance[1:].searchsorted(p, side="right")
        cells = 2.0**self.depth
        x = (p - self._distance[i]) / self._length[i] * cells
        whole = np.rint(x)
        x = np.where(np.abs(x - whole) < _SNAP, whole, x)
        i, x = i + (x >= cells), np.where(x >= cells, 0.0, x / cells)
        p = self._distance[i] + self._length[i] * x
        return Times(i, x, p, p[1] - p[0], back, standard, outputs)

    def _base(self, at: Times, shape: tuple[int, int, int]) -> NDArray[Any]:
        """What the base intervals' increments and areas contribute, (outputs, rows, size)."""
        most = int((at.i[1] - at.i[0]).max(initial=0)) + 1
        every = (at.i[0] + np.arange(most)[:, None])[:, None]  # (m, 1, R)
        q = np.minimum(every, len(self._times) - 2)
        h = self._length[q]
        passed = every < at.i
        y = np.where(passed, 1.0, np.where(every == at.i, at.x, 0.0))
        beyond = np.where(passed, at.p - self._distance[q + 1], 0.0)
        root = np.sqrt(h[:, 0])
        w = (at.weights(y, 0.5 * h * y * y + beyond) * root)[..., None]
        total = total_of(w, self._steps(q[:, 0], w, 0), shape, self._number)
        area = (at.weights(6 * y * (1 - y), h * y * y * (3 - 2 * y)) * (root / 12**0.5))[..., None]
        if area.any():
            total += total_of(area, self._steps(q[:, 0], area, 1), shape, self._number)
        return total

    def _steps(self, q: Ints, weights: Floats, k: int) -> Iterable[Numbers]:
        """Normals (rows, size) of the base intervals ``q`` (m, R), those that have a weight."""
        white, shape = self._white, (-1, len(self.seeds), self.event.numel())
        if q.shape[1] != 1:
            return white.each(q, "path", k)
        if white.length == 1:
            wanted = zip(q[:, 0].tolist(), used(weights), strict=True)
            return (white.normal(i, "path", k).numpy().reshape(shape[1:]) if want else NOTHING for i, want in wanted)
        blocks = range(int(q[0, 0]) // white.length, int(q[-1, 0]) // white.length + 1)
        found = [white.block("path", k, number).numpy().reshape(shape) for number in blocks]
        return (found[0] if len(found) == 1 else np.concatenate(found))[q[:, 0] - blocks[0] * white.length]

    def _bridge(self, at: Times, shape: tuple[int, int, int]) -> NDArray[Any]:
        """What the nodes above both times contribute, (outputs, rows, size)."""
        within, f, area = basis(at.x, self._length[at.i], self._levels)
        ids = (at.i << self.depth) + (self._levels + within).astype(np.int64)
        # A node above both times is counted with the first of them.
        same = ids[:, 0] == ids[:, 1]
        of = np.zeros((len(ids), 2, *at.x.shape))
        of[:, 0, 0], of[:, 0, 1], of[:, 1, 1] = 1.0, same, ~same
        each = at.weights(f[:, :, None] * of, area[:, :, None] * of)  # (outputs, 2 normals, L, 2 times, R)
        weights = each.transpose(0, 2, 3, 4, 1).reshape(len(each), -1, at.x.shape[1], 2, 1)
        normals = self._nodes(ids.reshape(-1, at.x.shape[1]), weights)
        outputs, rows, size = shape
        parts = total_of(weights, normals, (outputs, rows, 2, size), self._number)
        total: NDArray[Any] = parts[:, :, 0] + parts[:, :, 1]
        return total

    def _nodes(self, ids: Ints, weights: Floats) -> Iterable[Numbers]:
        """The normals (rows, 2, size) of nodes (m, R), those that have a weight."""
        rows, size = len(self.seeds), self.event.numel()

        def draw(ids: Ints) -> Numbers:
            return keyed(self._white.words, ids, "bridge", 0, 2 * size).reshape(len(ids), rows, 2, size)

        if 2 * len(ids) * rows * size <= SMALL:
            return draw(ids)
        wanted, keys = used(weights), [each.tobytes() for each in ids]
        missing = [i for i, key in enumerate(keys) if wanted[i] and key not in self._kept]
        if missing:
            # A copy of each: what is kept must not hold on to what was drawn with it.
            self._kept.update(zip((keys[i] for i in missing), map(np.copy, draw(ids[missing])), strict=True))
        self._kept = {key: self._kept[key] for key in keys if key in self._kept}
        return (self._kept[key] if want else NOTHING for key, want in zip(keys, wanted, strict=True))


def _edges(start: float, end: float, intervals: int | Tensor) -> Tensor:
    """The ends of the base intervals, (M + 1,)."""
    if isinstance(intervals, Tensor):
        times = intervals.detach().to("cpu", torch.float64)
        steps = times.diff() if times.ndim == 1 else times
        if times.ndim != 1 or len(times) < 2 or not (bool((steps > 0).all()) or bool((steps < 0).all())):
            raise ValueError("BrownianPath: intervals must be times (M + 1,) that rise or fall, or how many equal intervals")
        if float(times[0]) != start or float(times[-1]) != end:
            raise ValueError(
                f"BrownianPath: intervals go from {float(times[0]):g} to {float(times[-1]):g}, not from {start:g} to {end:g}"
            )
        return times
    if isinstance(intervals, bool) or not isinstance(intervals, int) or not 1 <= intervals <= 2**20:
        raise ValueError(f"BrownianPath: intervals must be an int from 1 to 2^20, or times (M + 1,); got {intervals!r}")
    if not (math.isfinite(start) and math.isfinite(end) and start != end):
        raise ValueError(f"BrownianPath: start and end must be two different times, got {start:g} and {end:g}")
    return torch.linspace(start, end, intervals + 1, dtype=torch.float64)


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

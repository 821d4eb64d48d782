"""A thousand devices, by simulation: a billion samples in shards, and training with checkpoints.

Nothing is computed or written: devices are numbers that differ in speed and fail at random times.
Sampling: a device takes the next shard that nobody has (as `sdediff sample` to a folder does), or
every thousandth shard (fixed shares), and the shard in hand is lost when it fails. A device that
fails comes back after ten minutes, one in five never; what is missing in the end is drawn by a
second launch. Training: all devices go from checkpoint to checkpoint together, and any failure
takes all back to the last one. The ratio is the time over that of devices without failures, equal
in speed, and for training also by the formula of Daly 2006 (doi 10.1016/j.future.2004.11.016).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from timing import Row, arguments, report

HOUR = 3600.0


@dataclass(frozen=True)
class Devices:
    """How many, how fast a sample is made by one (seconds), and how they fail."""

    count: int = 1000
    a_sample: float = 0.01
    spread: float = 0.1
    """Standard deviation of the logarithm of a device's speed; one in a hundred is half as fast."""
    between_failures: float = 500 * HOUR
    """Mean time of one device."""
    back_after: float = 600.0
    lost_for_good: float = 0.2


@dataclass
class Outcome:
    """What a simulated set took."""

    seconds: float
    failures: int
    lost: float
    """Seconds of devices that went into shards which nobody has."""
    left: int
    """Shards that a second launch had to draw."""


def draw_set(
    devices: Devices, samples: int, size: int, rng: np.random.Generator, *, shares: bool
) -> Outcome:
    """Draw a set; launches follow each other until no shard is missing."""
    missing = list(range(-(-samples // size)))
    whole = Outcome(0.0, 0, 0.0, 0)
    while missing:
        done, missing = _launch(devices, missing, size, rng, shares=shares)
        whole.seconds += done.seconds
        whole.failures += done.failures
        whole.lost += done.lost
        whole.left += len(missing)
    return whole


def _launch(
    devices: Devices, shards: list[int], size: int, rng: np.random.Generator, *, shares: bool
) -> tuple[Outcome, list[int]]:
    """One launch, until every device has nothing to do or is lost; and the shards left."""
    speed = np.exp(devices.spread * rng.standard_normal(devices.count))
    speed[rng.random(devices.count) < 0.01] *= 0.5
    common = iter(shards)
    own: list[Iterator[int]] = [
        iter(shards[i :: devices.count]) if shares else common for i in range(devices.count)
    ]
    returned: list[list[int]] = [[] for _ in own] if shares else [[]] * devices.count
    fails = rng.exponential(devices.between_failures, devices.count)
    events = [(0.0, device) for device in range(devices.count)]
    out, left = Outcome(0.0, 0, 0.0, 0), []
    while events:
        now, device = heapq.heappop(events)
        queue = returned[device]
        shard = queue.pop() if queue else next(own[device], None)
        if shard is None:
            continue
        end = now + size * devices.a_sample / speed[device]
        if fails[device] >= end:
            out.seconds = max(out.seconds, end)
            heapq.heappush(events, (end, device))
            continue
        out.failures += 1
        out.lost += fails[device] - now
        queue.append(shard)
        if rng.random() >= devices.lost_for_good:
            back = fails[device] + devices.back_after
            fails[device] = back + rng.exponential(devices.between_failures)
            heapq.heappush(events, (back, device))
        elif shares:
            left += [*queue, *own[device]]
            queue.clear()
    return out, [*left, *(returned[0] if not shares else [])]


def train(
    devices: int, between: float, every: float, save: float, restart: float, work: float, rng
) -> float:
    """Seconds until ``work`` seconds of training are kept, a checkpoint every ``every`` of them."""
    now = kept = 0.0
    fails = rng.exponential(between / devices)
    while kept < work:
        piece = min(every, work - kept) + save
        if fails >= now + piece:
            now += piece
            kept += piece - save
            continue
        now = fails + restart
        fails = now + rng.exponential(between / devices)
    return now


def daly(devices: int, between: float, every: float, save: float, restart: float) -> float:
    """The expected time of a second of training, where failures come while a restart goes on too:
    Daly's equation without that, since `train` has none then.
    """
    mean = between / devices
    return (mean + restart) * math.expm1((every + save) / mean) / every


def sampling_table(samples: int, rounds: int) -> list[Row]:
    """Shard sizes by policy, and devices that fail seldom and often."""
    rows: list[Row] = []
    for hours in (500, 50):
        devices = Devices(between_failures=hours * HOUR)
        work = samples * devices.a_sample
        ideal = work / devices.count
        for size in (5_000, 20_000, 100_000):
            for policy in ("next", "shares"):
                rngs = [np.random.default_rng([seed, size, hours]) for seed in range(rounds)]
                found = [
                    draw_set(devices, samples, size, rng, shares=policy == "shares") for rng in rngs
                ]
                rows.append(
                    {
                        "hours": hours,
                        "size": size,
                        "shards": -(-samples // size),
                        "policy": policy,
                        "time": float(np.mean([each.seconds for each in found])) / HOUR,
                        "ratio": float(np.mean([each.seconds for each in found])) / ideal,
                        "failures": float(np.mean([each.failures for each in found])),
                        "lost": float(np.mean([each.lost for each in found]))
                        / (ideal * devices.count),
                        "left": float(np.mean([each.left for each in found])),
                    }
                )
    return rows


def training_table(devices: int, rounds: int, work: float) -> list[Row]:
    """Intervals between checkpoints, for devices that fail once in 5,000 hours, one of a thousand
    every five hours; a checkpoint takes 30 seconds and a restart five minutes.
    """
    between, save, restart = 5000 * HOUR, 30.0, 300.0
    best = math.sqrt(2 * save * between / devices)
    rows: list[Row] = []
    for every in (60.0, 300.0, best, 3600.0, 4 * 3600.0):
        rng = np.random.default_rng(int(every))
        times = [train(devices, between, every, save, restart, work, rng) for _ in range(rounds)]
        rows.append(
            {
                "every": every,
                "ratio": float(np.mean(times)) / work,
                "stderr": float(np.std(times)) / work / math.sqrt(rounds),
                "daly": daly(devices, between, every, save, restart),
            }
        )
    return rows


def main() -> None:
    samples = {"type": int, "default": 10**9}
    args = arguments(__doc__ or "", 5, {"--samples": samples})
    if args.quick:
        args.samples = 10**7
    print(f"{args.samples:,} samples of 0.01 s on 1,000 devices\n")
    report("sampling", sampling_table(args.samples, args.rounds), args)
    print("100 hours of training on 1,000 devices, one of which fails every 5 hours\n")
    report("training", training_table(1000, args.rounds, 100 * HOUR), args)


if __name__ == "__main__":
    main()

"""Steps of training a second on a busy machine: threads that spin while they wait, and others.

Each row is a way in which a process may be set up, and its speed alone and beside neighbours, two
processes each of which keeps one core busy. The ratio is that of both. Every measurement is a
process of its own, because the policy of waiting is read when torch is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

WAYS: dict[str, dict[str, str]] = {
    "torch's default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
NEIGHBOUR = "while True: pass"
STEPS = """
import sys, time, torch  # before sdediff, which sets a policy unless torch is there already
from sdediff import ScoreModel, VP, DenoisingScoreMatching
from sdediff.networks import UNet
seconds = float(sys.argv[1])
model = ScoreModel(UNet(1, (24, 48)), VP(), "edm", sigma_data=0.6)
loss, x = DenoisingScoreMatching(stratified=True), torch.randn(128, 1, 8, 8)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
steps, end = -2, None
while end is None or time.perf_counter() < end or steps < 1:
    loss(model, x).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    steps += 1
    if steps == 0:
        begin = time.perf_counter()
        end = begin + seconds
print(steps / (time.perf_counter() - begin))
"""


def rate(way: dict[str, str], seconds: float) -> float:
    """Steps a second of one process."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(seconds)],
        capture_output=True,
        text=True,
        check=True,
        env={**env, **way},
    )
    return float(done.stdout)


def beside(way: dict[str, str], seconds: float, neighbours: int) -> float:
    """The same, beside neighbours."""
    others = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(neighbours)]
    try:
        return rate(way, seconds)
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all ways in turn")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--neighbours", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="shows that it runs")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, 0.1
    found: dict[str, dict[str, list[float]]] = {way: {"alone": [], "busy": []} for way in WAYS}
    for _ in range(args.rounds):
        for way, env in WAYS.items():
            found[way]["alone"].append(rate(env, args.seconds))
            found[way]["busy"].append(beside(env, args.seconds, args.neighbours))
    print(f"steps a second, medians of {args.rounds}; {args.neighbours} busy neighbours\n")
    print(f"{'':24} {'alone':>7} {'busy':>7} {'ratio':>6}")
    for way, each in found.items():
        alone, busy = (statistics.median(each[kind]) for kind in ("alone", "busy"))
        print(f"{way:24} {alone:7.2f} {busy:7.2f} {busy / alone:6.2f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

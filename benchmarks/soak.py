"""Hours of work in one process: train, sample, compare and load, again and again.

Memory, open files and threads after each round; and whether equal seeds give equal results in every
round. The ratio is the memory of the last quarter of the rounds over that of the second quarter.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import tempfile
import threading
import time
import warnings
from pathlib import Path

import torch

import sdediff as sd
from sdediff.networks import MLP, initialised

PAGE = os.sysconf("SC_PAGE_SIZE")


def state() -> dict[str, int]:
    """Resident bytes, open files and threads of this process."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    return {
        "bytes": resident,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def round_of(folder: Path, steps: int) -> str:
    """One round; a hash of all its results."""
    data = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.5
    model = sd.ScoreModel(initialised(lambda: MLP(2, 32, 2, 8), 0), sd.VP(), "edm", sigma_data=0.3)
    sd.fit(model, data, out=folder, steps=steps, batch_size=32, overwrite=True, device="cpu")
    model = sd.load(folder)
    fixed = sd.sample(model, (64, 2), steps=5, seed=1)
    adaptive = sd.sample(model, (16, 2), solver=sd.AdaptiveSDE(0.1, 0.1), seed=2)
    solvers = [sd.solvers.Euler(), sd.solvers.DPMSolverPP()]
    table = sd.compare(model, (16, 2), solvers=solvers, nfe=[3, 6], seed=3)
    digest = hashlib.sha256()
    for x in (fixed.x, adaptive.x):
        digest.update(x.numpy().tobytes())
    digest.update(repr([(row.nfe, row.error) for row in table.rows]).encode())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=20, help="of training in a round")
    parser.add_argument("--quick", action="store_true", help="eight rounds")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    began, states, results = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as folder:
        while True:
            results.append(round_of(Path(folder) / "run", args.steps))
            states.append(state())
            if len(states) == 8 and args.quick:
                break
            if len(states) >= 8 and time.monotonic() - began > 60 * args.minutes:
                break
    quarter = len(states) // 4
    early, late = states[quarter : 2 * quarter], states[-quarter:]
    middle = [statistics.median(each["bytes"] for each in part) for part in (early, late)]
    print(f"{len(states)} rounds in {time.monotonic() - began:.0f} s")
    ratio = middle[1] / middle[0]
    print(f"memory {middle[0] / 1e6:.1f} MB, then {middle[1] / 1e6:.1f}, ratio {ratio:.4f}")
    for name in ("files", "threads"):
        print(f"{name}: {early[0][name]}, then {late[-1][name]}")
    print(f"different results of equal seeds: {len(set(results)) - 1}")
    if args.json:
        args.json.write_text(json.dumps({"states": states, "results": results}) + "\n")


if __name__ == "__main__":
    main()

"""What the metrics of samples cost: seconds of each, on features that are normal draws.

python benchmarks/metrics_cost.py
python benchmarks/metrics_cost.py --quick
"""

from __future__ import annotations

import argparse
import time

import torch

from sdediff import metrics

SIZES = ((2_000, 64), (2_000, 512), (10_000, 64))
QUICK = ((500, 64),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small size")
    sizes = QUICK if parser.parse_args().quick else SIZES
    print(f"{torch.get_num_threads()} threads, {metrics.measured.GROUPS} groups, reference fixed\n")
    print("| n = m | features | metric | s | s without errors |\n|---:|---:|---|---:|---:|")
    for count, width in sizes:
        random = torch.Generator().manual_seed(0)
        x, y = (torch.randn(count, width, generator=random) for _ in range(2))
        logits = metrics.extractor(logits=lambda z: z[:, :10])
        for name in ("frechet", "kernel", "precision", "score"):
            seconds = []
            for groups in (40, 0):
                start = time.perf_counter()
                metrics.evaluate(x, y, features=logits, metrics=(name,), groups=groups)
                seconds.append(f"{time.perf_counter() - start:.2g}")
            print(f"| {count:,} | {width} | {name} | {' | '.join(seconds)} |", flush=True)


if __name__ == "__main__":
    main()

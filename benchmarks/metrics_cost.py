"""What the metrics of samples cost: seconds of each, on features that are normal draws.

python benchmarks/metrics_cost.py
python benchmarks/metrics_cost.py --quick
"""

from __future__ import annotations

import time

import torch
from timing import Row, options, report

from sdediff import metrics

SIZES = ((2_000, 64), (2_000, 512), (10_000, 64))
QUICK = ((500, 64),)


def main() -> None:
    args = options(__doc__ or "", quick="one small size")
    rows: list[Row] = []
    for count, width in QUICK if args.quick else SIZES:
        random = torch.Generator().manual_seed(0)
        x, y = (torch.randn(count, width, generator=random) for _ in range(2))
        logits = metrics.extractor(logits=lambda z: z[:, :10])
        for name in ("frechet", "kernel", "precision", "score"):
            row: Row = {"n = m": count, "features": width, "metric": name}
            for groups, head in ((40, "s"), (0, "s without errors")):
                start = time.perf_counter()
                metrics.evaluate(x, y, features=logits, metrics=(name,), groups=groups)
                row[head] = time.perf_counter() - start
            rows.append(row | {"ratio": float(str(row["s"])) / float(str(row["s without errors"]))})
    report(f"metrics: {metrics.measured.GROUPS} groups, reference fixed", rows, args)


if __name__ == "__main__":
    main()

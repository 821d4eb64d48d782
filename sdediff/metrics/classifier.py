"""A test by a classifier: what cannot be told apart is distributed alike."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdediff.metrics.samples import Floor, Metric, Pool, blocks, check_count, generator

__all__ = ["classifier_two_sample_test"]

_SPLIT, _TRAINING = 3, 4  # streams
_LEAST: Final = 8
_BATCH: Final = 128  # rows of each sample
_RATE: Final = 3e-3
_DECAY: Final = 1e-2
_CLIP: Final = 5.0


def classifier_two_sample_test(
    x: Tensor, y: Tensor, *, hidden: int = 64, steps: int = 1000, seed: int = 0
) -> Metric:
    """Classifier two-sample test: the accuracy with which a small network tells x from y on samples
    it was not trained on.

    value = (P(says x | X) + P(says y | Y)) / 2,    1/2 where the laws are equal, 1 where they do
    not overlap

    A random half of x (n, *event) and of y (m, *event) trains, the other half (n', m') tests. The
    network sees each coordinate standardised, and its square, and adds to a linear function of them
    one of ``hidden`` rectified units; it is trained by ``steps`` steps of AdamW on 128 rows of each
    sample. If the laws are equal, then, given that K of the n' + m' held-out rows are called x, the
    number of them that are from x is hypergeometric: the p-value is its upper tail (Fisher's exact
    test), and the floor its mean and standard deviation. That is exact for any n and m; for n' = m'
    with half of the rows called x it is the paper's N(1/2, 1 / 4(n' + m')). ValueError on samples
    of different shape or with NaN or inf, or of fewer than 8 rows.

    Lopez-Paz & Oquab 2017, arXiv 1610.06545.
    """
    from scipy.stats import hypergeom  # heavy, and kept out of `import sdediff`

    hidden = check_count("hidden", hidden, 1)
    steps = check_count("steps", steps, 1)
    random = generator(seed, _SPLIT)
    pool = Pool.of(x, y, least=_LEAST)
    device = pool.rows.device
    order_x, order_y = (
        torch.randperm(count, generator=random).to(device) for count in (pool.n, pool.m)
    )
    (train_x, test_x), (train_y, test_y) = (
        order.tensor_split([len(order) // 2]) for order in (order_x, order_y + pool.n)
    )
    network = _Network.fit(pool, train_x, train_y, hidden, steps, generator(seed, _TRAINING))
    right = int(network.says_x(pool, test_x).sum())
    wrong = int(network.says_x(pool, test_y).sum())
    n, m = len(test_x), len(test_y)
    called = right + wrong
    share = called / (n + m)
    std = 0.5 * math.sqrt(share * (1 - share) * (n + m) ** 2 / (n + m - 1) / (n * m))
    floor = Floor(0.5, std, 0.5 + 1.6448536269514722 * std, 0)
    # P(k >= right) for k of the n among those called x, drawn without replacement from n + m
    p_value = float(hypergeom.sf(right - 1, n + m, n, called))
    return Metric(0.5 * (1 + right / n - wrong / m), floor, p_value)


class _Network(NamedTuple):
    """logit(z) = a . f + v . relu(W f + b) + c with the features f = (z, z^2) of standardised z."""

    scale: Tensor
    shift: Tensor
    weights: tuple[Tensor, ...]

    @classmethod
    def fit(
        cls,
        pool: Pool,
        train_x: Tensor,
        train_y: Tensor,
        hidden: int,
        steps: int,
        random: torch.Generator,
    ) -> _Network:
        """Trained on as many rows of x as of y in every batch, so that neither is more likely
        beforehand.
        """
        shift, scale = _moments(pool, torch.cat([train_x, train_y]))
        width, zeros = 2 * len(scale), scale.float().new_zeros
        W = torch.randn(width, hidden, generator=random, dtype=torch.float32) * math.sqrt(2 / width)
        out = torch.randn(hidden, generator=random, dtype=torch.float32) / math.sqrt(hidden)
        weights = (zeros(width), W.to(scale.device), zeros(hidden), out.to(scale.device), zeros(()))
        network = cls(scale, shift, tuple(weight.requires_grad_() for weight in weights))
        sign = torch.cat([zeros(_BATCH) + 1, zeros(_BATCH) - 1])
        optimizer = torch.optim.AdamW(network.weights, lr=_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        with torch.enable_grad():
            for _ in range(steps):
                rows = [
                    part[torch.randint(len(part), (_BATCH,), generator=random).to(scale.device)]
                    for part in (train_x, train_y)
                ]
                loss = torch.nn.functional.softplus(
                    -sign * network.logit(pool, torch.cat(rows))
                ).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return network

    def logit(self, pool: Pool, rows: Tensor) -> Tensor:
        """Above 0 for what looks like x."""
        z = ((pool.centred(rows) - self.shift) / self.scale).float().clamp(-_CLIP, _CLIP)
        features = torch.cat([z, z.square() - 1], dim=1)
        linear, W, b, out, c = self.weights
        return features @ linear + (features @ W + b).relu() @ out + c

    def says_x(self, pool: Pool, rows: Tensor) -> Tensor:
        """For each of the rows."""
        with torch.no_grad():
            parts = [rows[part] for part in blocks(len(rows), 2 * len(self.scale))]
            return torch.cat([self.logit(pool, part) > 0 for part in parts])


def _moments(pool: Pool, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each coordinate of the centred rows; 1 where it does not
    vary.
    """
    parts = [rows[part] for part in blocks(len(rows), pool.rows.shape[1])]
    mean = sum(
        (pool.centred(part).sum(dim=0) for part in parts), torch.zeros_like(pool.center)
    ) / len(rows)
    squares = sum(
        ((pool.centred(part) - mean).square().sum(dim=0) for part in parts), torch.zeros_like(mean)
    )
    std = (squares / len(rows)).sqrt()
    return mean, std.where(std > 0, 1.0)

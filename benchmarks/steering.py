"""Samples of products, powers and tilts of densities beside the law that was asked for.

    python benchmarks/steering.py

The models are exact: a ring of 8 Gaussians in the plane, 3 neighbours of which are the class. The
laws are p(x | c)^w p(x)^(1 - w), a power of the ring with uneven weights, and the ring tilted by a
quadratic reward. Truth is by quadrature. Guidance and scaled scores are solved by the probability
flow (the default solver) and by the reverse SDE (Euler-Maruyama). Columns, root mean square over
five seeds of 4,000 particles: distance of the means; how far the ratio of the variances is from 1,
and that ratio itself on average; error of the log normaliser in nats; evaluations of a network and
backward passes of a particle.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdediff as sd
from sdediff.posterior import Anneal, FeynmanKac, Particles, Product, Reward, sample_weighted

F64 = torch.float64
VP = sd.VP()
ANGLES = torch.arange(8, dtype=F64) * (math.pi / 4)
MEANS = 1.3 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
EVERY = sd.exact.GaussianMixture(MEANS, 0.15)
OWN = sd.exact.GaussianMixture(MEANS[:3], 0.15)
UNEVEN = sd.exact.GaussianMixture(MEANS, 0.15, [0.05, 0.1, 0.2, 0.3, 0.05, 0.1, 0.1, 0.1])
GOAL, WIDTH = torch.tensor([0.9, 0.3], dtype=F64), 0.3


def reward(x: Tensor) -> Tensor:
    """Data near a goal, in nats."""
    return -0.5 * ((x - GOAL.to(x)) / WIDTH).square().sum(dim=1)


class Truth(NamedTuple):
    """Of a law with an unnormalised density: mean, variance and log normaliser by quadrature."""

    mean: Tensor
    variance: float
    log_normaliser: float

    @classmethod
    def of(cls, log_density: Callable[[Tensor], Tensor]) -> Truth:
        axis = torch.linspace(-4, 4, 801, dtype=F64)
        x = torch.cartesian_prod(axis, axis)
        logs = log_density(x)
        weight = logs.softmax(dim=0)[:, None]
        mean = (weight * x).sum(dim=0)
        total = float(logs.logsumexp(dim=0)) + 2 * math.log(axis[1] - axis[0])
        return cls(mean, float((weight * (x - mean).square()).sum()), total)


class Case(NamedTuple):
    """A law, its model, and how particles sample it."""

    model: Any
    truth: Truth
    particles: Callable[[int], Any]
    steps: list[int]


def cases(quick: bool) -> Iterator[tuple[str, Case]]:
    """The laws by name."""

    def log_prob(law: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: law.log_prob(VP, x, VP.t_min)

    own, every, uneven = (log_prob(law) for law in (OWN, EVERY, UNEVEN))
    for w, steps in ((2, [100, 200]), (4, [200, 1000])):
        model = Product({OWN.model(VP): w, EVERY.model(VP): 1 - w})
        truth = Truth.of(lambda x, w=w: w * own(x) + (1 - w) * every(x))
        steps = [20] if quick else steps
        yield f"p(x|c)^{w} p(x)^{1 - w}", Case(model, truth, FeynmanKac, steps)
    for heat in (0.5, 2.0):
        truth = Truth.of(lambda x, heat=heat: uneven(x) / heat)
        model = Anneal(UNEVEN.model(VP), heat)
        steps = [20] if quick else [100, 200]
        yield f"p(x)^(1 / {heat:g})", Case(model, truth, FeynmanKac, steps)
    truth = Truth.of(lambda x: every(x) + reward(x))
    steps = [20] if quick else [100]
    yield "p(x) exp(r(x))", Case(Reward(EVERY.model(VP), reward), truth, Particles, steps)


def row(name: str, errors: list[list[float]], solution: sd.Solution) -> list[float]:
    """One line of a table, from the errors of each seed; what it says is returned."""
    each = torch.tensor(errors, dtype=F64)
    rms = each.square().mean(dim=0).sqrt().tolist()
    back = 0 if solution.backward is None else int(solution.backward.max())
    found = [rms[0], rms[1], 1 + float(each[:, 1].mean()), rms[2]]
    shown = ["-" if math.isnan(v) else f"{v:.3f}" for v in found]
    print(f"| {' | '.join([name, *shown, str(int(solution.nfe.max())), str(back)])} |", flush=True)
    return found


def main() -> None:
    """Print the tables of docs/evidence/posteriors.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few particles, steps and seeds")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count, seeds = (400, 2) if arguments.quick else (4000, 5)
    results: dict[str, dict[str, list[float]]] = {}
    for name, (model, truth, particles, budgets) in cases(arguments.quick):
        found = results[name] = {}
        print(f"\n{name}: log normaliser {truth.log_normaliser:.3f}\n")
        print("| method | mean | variance | ratio | log normaliser | NFE | backward |")
        print("|---|---|---|---|---|---|---|")
        plain = {
            "the score alone, flow": {"steps": 40},
            f"the same, reverse SDE, {budgets[-1]} steps": {
                "steps": budgets[-1], "solver": sd.EulerMaruyama(), "grid": "log_snr",
            },
        }  # fmt: skip
        for method, options in plain.items():
            errors = []
            for seed in range(seeds):
                out = sd.sample(model, (count, 2), seed=seed, last="noisy", **options)
                mean, variance = out.x.double().mean(dim=0), float(out.x.double().var(dim=0).sum())
                off = float((mean - truth.mean).norm())
                errors.append([off, variance / truth.variance - 1, math.nan])
            found[method] = row(method, errors, out)
        for steps in budgets:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = sample_weighted(
                    model, (seeds, 2), particles=particles(count), steps=steps, seed=0,
                    batch_size=count,
                )  # fmt: skip
            means = (got.mean - truth.mean).norm(dim=1)
            ratios = got.variance.sum(dim=1) / truth.variance - 1
            logs = got.log_evidence - truth.log_normaliser
            method = f"{particles.__name__}({count}), {steps} steps"
            errors = torch.stack([means, ratios, logs], dim=1).tolist()
            found[method] = row(method, errors, got.solution)
            print(f"<!-- genealogical effective size {float(got.genealogical_ess.min()):.0f} -->")
    if arguments.json:
        arguments.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()

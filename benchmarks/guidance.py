"""What guidance does to the law of samples, and whether that has a limit as steps grow.

    python benchmarks/guidance.py
    python benchmarks/guidance.py --few

Exact models of a mixture in 16 dimensions: a ring of 8 Gaussians in a plane that is turned against
the coordinates, 3 neighbours of which are the class. *ratio* is the variance of samples in that
plane over the one of the law that guidance is often said to sample, p(x|c)^w p(x)^(1-w), by
quadrature; for Auto over the one of p(x|c). *moved* is the median distance of a sample from the one
of the same seed with a quarter of the steps, in standard deviations of p(x|c): it falls to 0 where
there is a limit. Euler-Maruyama draws other noise at other steps and has none.

With --few: the distance of a sample from the end of the exact guided flow, in standard deviations
of p(x|c), by solver, at scales 5 and 8 and 8 to 20 evaluations of the network.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdediff as sd
from sdediff.guidance import APG, Auto, Classifier, ClassifierFree, NoiseLevels, Rescale

F64 = torch.float64
VP = sd.VP()
DIM = 16
ANGLES = torch.arange(8, dtype=F64) * (math.pi / 4)
RING = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
PLANE = torch.linalg.qr(
    torch.randn(DIM, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
).Q
MEANS = RING @ PLANE.T
STD, CLASS = 0.35, [0, 1, 2]
EVERY = sd.exact.GaussianMixture(MEANS, STD)
OWN = sd.exact.GaussianMixture(MEANS[CLASS], STD)
WEAK = sd.exact.GaussianMixture(MEANS[CLASS], 2 * STD)


def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The v prediction of the class (label 0) or of all (label 1), of rows in this order."""
    one = int((label == 0).sum())
    return torch.cat([OWN.v(VP, x[:one], t[:one]), EVERY.v(VP, x[one:], t[one:])])


def log_prob(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """log p(c | x_t)."""
    return OWN.log_prob(VP, x, t) + math.log(3 / 8) - EVERY.log_prob(VP, x, t)


MODEL = sd.ScoreModel(net, VP, "v", time_dtype=F64, data_std=EVERY.data_std)
NULL = {"label": 1}


def free(scale: Any, **more: Any) -> ClassifierFree:
    return ClassifierFree(MODEL, scale, NULL, **more)


GUIDED: dict[str, tuple[Any, float | None]] = {
    "no guidance": (free(1.0), 1.0),
    "ClassifierFree, scale 2": (free(2.0), 2.0),
    "ClassifierFree, scale 4": (free(4.0), 4.0),
    "the same, NoiseLevels(0.2, 1.5)": (free(4.0, interval=NoiseLevels(0.2, 1.5)), 4.0),
    "Classifier, scale 2": (Classifier(EVERY.model(VP), log_prob, 2.0), 2.0),
    "Auto, scale 2": (Auto(OWN.model(VP), WEAK.model(VP), 2.0), None),
    "Rescale(ClassifierFree 4, 0.7)": (Rescale(free(4.0), 0.7), 4.0),
    "APG(ClassifierFree 4)": (APG(free(4.0)), 4.0),
}


def tilted(w: float) -> float:
    """The variance of p(x|c)^w p(x)^(1-w) in the plane, by quadrature."""
    axis = torch.linspace(-6, 6, 601, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    logs = -0.5 * torch.cdist(x, RING).square() / STD**2
    own, every = logs[:, CLASS].logsumexp(dim=1), logs.logsumexp(dim=1)
    weight = (w * own + (1 - w) * every).softmax(dim=0)[:, None]
    mean = (weight * x).sum(dim=0)
    return float((weight * (x - mean).square()).sum())


def samples(name: str, solver: Any, steps: int, count: int) -> Tensor:
    """Of a kind of guidance, in the plane."""
    label = torch.zeros(count, dtype=torch.int64)
    condition = {} if name.startswith("Auto") else {"label": label}
    given: Any = {"solver": solver, "steps": steps, "condition": condition, "seed": 0}
    return sd.sample(GUIDED[name][0], (count, DIM), dtype=F64, **given).x @ PLANE


def table(
    title: str, solver: Any, budgets: list[int], count: int, *, moved: bool
) -> dict[str, list[float]]:
    heads = [*map(str, budgets), *(["moved"] if moved else [])]
    print(
        f"{title}: ratio by steps\n\n| guidance | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}"
    )
    found: dict[str, list[float]] = {}
    unit = tilted(1.0) ** 0.5
    for name, (_, w) in GUIDED.items():
        drawn = [samples(name, solver, steps, count) for steps in budgets]
        right = tilted(1.0 if w is None else w)
        row = [float(x.var(dim=0).sum() / right) for x in drawn]
        shown = [f"{each:.2f}" for each in row]
        if moved:
            row.append(float((drawn[-1] - drawn[-2]).norm(dim=1).median()) / unit)
            shown.append(f"{row[-1]:.0e}")
        print(f"| {name} | {' | '.join(shown)} |", flush=True)
        found[name] = row
    print()
    return found


FEW: dict[str, Any] = {
    "default": None,
    "`DDIM()`": sd.DDIM(),
    "`DPMSolverPP(2)`": sd.solvers.DPMSolverPP(2),
    '`DEIS(3, startup="published")`': sd.solvers.DEIS(3, startup="published"),
    '`UniPC(3, startup="published")`': sd.solvers.UniPC(3, startup="published"),
    "`Heun()`": sd.Heun(),
}


def within(guided: ClassifierFree, solver: Any, budget: int, given: Any) -> Tensor | None:
    """The samples of the most steps that take ``budget`` evaluations at most, or None."""
    found = None
    for steps in range(1, budget):
        try:
            out = sd.sample(guided, solver=solver, steps=steps, **given)
        except ValueError:  # fewer steps than the interval has ends
            continue
        if int(out.nfe.max()) > budget:
            break
        found = out.x
    return found


def few(budgets: list[int], count: int) -> dict[str, list[str]]:
    """Print the errors of solvers with few evaluations under strong guidance, and return them."""
    found: dict[str, list[str]] = {}
    given: Any = {"condition": {"label": torch.zeros(count, dtype=torch.int64)}, "seed": 0}
    given |= {"shape": (count, DIM), "dtype": F64}
    unit = tilted(1.0) ** 0.5
    heads = " | ".join(f"{budget}: median | {budget}: 90 %" for budget in budgets)
    print(f"| scale | interval | solver | {heads} |\n|---:|---|---|{'---:|---:|' * len(budgets)}")
    for scale in (5.0, 8.0):
        for interval in (None, NoiseLevels(0.2, 1.5)):
            guided = free(scale, interval=interval)
            end = sd.sample(guided, solver=sd.RK45(rtol=1e-7, atol=1e-7), **given).x
            for name, solver in FEW.items():
                row = []
                for budget in budgets:
                    x = within(guided, solver, budget, given)
                    if x is None:
                        row += ["", ""]
                        continue
                    error = (x - end).norm(dim=1) / unit
                    row += [f"{float(error.quantile(share)):.2f}" for share in (0.5, 0.9)]
                where = "none" if interval is None else "`NoiseLevels(0.2, 1.5)`"
                print(f"| {scale:g} | {where} | {name} | {' | '.join(row)} |", flush=True)
                found[f"{scale:g}, {where}, {name}"] = row
    return found


def law(*, quick: bool) -> dict[str, dict[str, list[float]]]:
    """Print the ratios along the flow and along the reverse SDE, and return them."""
    count, budgets = (50, [4, 16]) if quick else (2000, [10, 40, 160])
    flow = table("Probability flow (default solver)", None, budgets, count, moved=True)
    reverse = table(
        "Reverse SDE (Euler-Maruyama)",
        sd.EulerMaruyama(),
        budgets if quick else [40, 160, 640],
        count,
        moved=False,
    )
    return {"probability flow": flow, "reverse SDE": reverse}


def main() -> None:
    """Print the tables of docs/evidence/guidance.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few samples and steps")
    parser.add_argument("--few", action="store_true", help="errors with few evaluations")
    parser.add_argument("--json", type=Path, help="file for the ratios")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.few:
        found: dict[str, Any] = few([8], 50) if arguments.quick else few([8, 12, 16, 20], 500)
    else:
        found = law(quick=arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

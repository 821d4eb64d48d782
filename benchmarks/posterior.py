"""Every method for inverse problems on three priors whose posteriors are known.

    python benchmarks/posterior.py

The network is exact, so that what is off is the method: a ring of 8 modes in the plane with one
measurement of noise 0.3, the same with noise 0.05, and 10 modes in 16 dimensions with 4
measurements of noise 0.2. All methods take 100 steps, uniform in log-SNR, of the same stochastic
solver, and draw as many samples. Columns: sliced Wasserstein distance to the posterior as a ratio
to that between two sets of as many exact draws; distance of the means in spreads of the posterior;
ratio of variances; how far the weights of the modes are from theirs (total variation); evaluations
and backward passes of a sample. azula's methods follow where it is installed: the same network,
measurement and number of steps, the best of its settings and of two grids.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from restoration_peers import Count, Problem, peers
from timing import Row, Tables, options, report, show
from torch import Tensor

import sdediff as sd
from sdediff import posterior

F64 = torch.float64
SDE = sd.VP()


@dataclass(frozen=True)
class Case:
    """A prior, a measurement of it, and what is true."""

    law: Any
    H: Tensor
    y: Tensor
    std: float

    @property
    def truth(self) -> Any:
        return self.law.posterior(self.H, self.y, self.std)

    @property
    def log_evidence(self) -> float:
        variance = float(self.law.components.variances[0])
        cov = variance * self.H @ self.H.T + self.std**2 * torch.eye(len(self.H), dtype=F64)
        mean = self.law.means @ self.H.T
        logs = torch.distributions.MultivariateNormal(mean, cov).log_prob(self.y)
        return float((logs + self.law.log_weights).logsumexp(dim=0))

    @property
    def measurement(self) -> posterior.Linear:
        return posterior.Linear(lambda x: x @ self.H.T.to(x), noise_std=self.std)


def cases() -> dict[str, Case]:
    """The three problems."""
    angle = torch.arange(8, dtype=F64) * math.pi / 4
    ring = sd.exact.GaussianMixture(1.3 * torch.stack([angle.cos(), angle.sin()], dim=1), 0.15)
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(10, 16, generator=generator, dtype=F64)
    clusters = sd.exact.GaussianMixture(means, 0.3)
    row = torch.tensor([[1.0, 0.5]], dtype=F64)
    H = torch.randn(4, 16, generator=generator, dtype=F64) / 4
    y = H @ clusters.sample(1, seed=5)[0] + 0.2 * torch.randn(4, generator=generator, dtype=F64)
    seen = torch.tensor([0.9], dtype=F64)
    return {
        "ring, noise 0.3": Case(ring, row, seen, 0.3),
        "ring, noise 0.05": Case(ring, row, seen, 0.05),
        "16-D, noise 0.2": Case(clusters, H, y, 0.2),
    }


class Score:
    """How far samples are from the posterior of a case."""

    def __init__(self, case: Case, count: int) -> None:
        self.truth, self.count = case.truth, count
        self.mean, cov = self.truth.data_moments()
        self.variance = float(cov.trace())
        self.shares = self._shares(self.truth.sample(200_000, seed=1))
        self.exact = [self.truth.sample(count, seed=2 + i) for i in range(6)]
        pairs = list(itertools.combinations(self.exact, 2))
        self.floor = sum(self._distance(*pair) for pair in pairs) / len(pairs)

    def _shares(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.double(), self.truth.means).argmin(dim=1)
        return torch.bincount(nearest, minlength=len(self.truth.means)).double() / len(x)

    @staticmethod
    def _distance(x: Tensor, y: Tensor) -> float:
        return float(sd.metrics.sliced_wasserstein(x.double(), y))

    def __call__(self, x: Tensor, found: posterior.Weighted | None = None) -> list[float]:
        """Distance, mean, variance and mode weights of equally weighted draws, or of particles."""
        if not bool(torch.isfinite(x).all()):
            return [math.nan] * 4
        mean, variance = x.double().mean(dim=0), x.double().var(dim=0)
        if found is not None:
            mean, variance = found.mean[0].double(), found.variance[0].double()
        distances = [self._distance(x, other) for other in self.exact]
        return [
            sum(distances) / len(distances) / self.floor,
            float((mean - self.mean).norm()) / self.variance**0.5,
            float(variance.sum()) / self.variance,
            0.5 * float((self._shares(x) - self.shares).abs().sum()),
        ]


def methods(case: Case, count: int, steps: int) -> Iterator[tuple[str, Callable[[], sd.Solution]]]:
    """Each method by name, as a function that solves."""
    model, measured, y = case.law.model(SDE), case.measurement, case.y[None]
    shape = (count, *case.law.event)
    options: dict[str, Any] = {
        "steps": steps, "grid": "log_snr", "seed": 0, "on_fail": "return",
    }  # fmt: skip
    ancestral = sd.solvers.Ancestral()

    def run(given: Any, solver: Any = ancestral) -> Callable[[], sd.Solution]:
        return lambda: sd.sample(given, shape, solver=solver, **options)

    yield "exact conditional score", run(case.truth.model(SDE))
    yield "MMPS(iterations=5)", run(posterior.MMPS(model, measured, y))
    yield "PiGDM", run(posterior.PiGDM(model, measured, y))
    yield "DPS", run(posterior.DPS(model, measured, y))
    for zeta in (0.1, 0.3, 1.0):
        name = f"PublishedDPS(zeta={zeta:g})"
        yield name, run(model, posterior.PublishedDPS(measured, y, zeta=zeta))
    yield "DiffPIR(lam=1)", run(model, posterior.DiffPIR(measured, y))
    yield "Replacement", run(model, posterior.Replacement(measured, y))
    yield "RePaint(jumps=5)", run(model, posterior.RePaint(measured, y, jumps=5))


def line(case: str, method: str, values: list[float], nfe: Any, backward: Any) -> Row:
    names = ("SW2 ratio", "mean", "variance ratio", "modes")
    row: Row = {"case": case, "method": method, **dict(zip(names, values, strict=True))}
    return row | {"NFE": nfe, "backward": backward}


def passes(solution: sd.Solution) -> tuple[int, int]:
    """Evaluations and backward passes of a sample."""
    back = 0 if solution.backward is None else int(solution.backward.max())
    return int(solution.nfe.max()), back


def by_azula(name: str, case: Case, score: Score, steps: int, quick: bool) -> Iterator[Row]:
    """azula's methods: each at the best of its settings and of two grids, by the distance to the
    posterior (``quick``: as it is recommended, on one), and nothing where it is not installed.
    """
    y = case.y.float().expand(score.count, -1)
    x = torch.zeros(score.count, *case.law.event)
    seen: Any = posterior.Linear(lambda x: x @ case.H.T.float(), noise_std=case.std)
    found: dict[str, list[Row]] = {}
    for by_log_snr in (True,) if quick else (False, True):
        problem = Problem(case.law.model(SDE), seen, y, x, steps, by_log_snr)
        for library, others in peers(problem, ("azula",)):
            for method, setting, solve in others or ():
                if quick and setting:
                    continue
                count = Count()
                values = score(solve(count).detach())
                grid = "uniform in log-SNR" if by_log_snr else "uniform in t"
                told = ", ".join(part for part in (f"{library}: {method}", setting, grid) if part)
                made = line(name, told, values, count.forward, count.backward)
                found.setdefault(method, []).append(made)
    for rows in found.values():
        finite = [row for row in rows if not math.isnan(float(str(row["SW2 ratio"])))]
        yield min(finite or rows, key=lambda row: float(str(row["SW2 ratio"])))


RUNS: tuple[tuple[str, float | None, int, str, int, int], ...] = (
    ("ring, noise 0.3", None, 1000, "mmps", 50, 20),
    ("ring, noise 0.3", None, 1000, "pigdm", 50, 20),
    ("ring, noise 0.3", None, 200, "pigdm", 30, 40),
    ("ring, noise 0.05", None, 200, "mmps", 30, 40),
    ("ring, noise 0.05", None, 1000, "pigdm", 30, 20),
    ("ring, noise 0.05", 0.001, 400, "mmps", 50, 20),
    ("ring, noise 0.05", 0.001, 400, "pigdm", 50, 20),
    ("ring, noise 0.05", 0.001, 2000, "mmps", 50, 5),
    ("16-D, noise 0.2", None, 400, "pigdm", 40, 10),
    ("16-D, noise 0.2", None, 400, "mmps", 15, 6),
)
"""A case and its noise if another, particles, the twist, steps and runs."""


def wrong_runs(quick: bool) -> Iterator[Row]:
    """How many runs that are wrong, by more than 1 nat or 3 standard errors of the mean, warn."""
    for name, std, n, twist, steps, runs in RUNS[:2] if quick else RUNS:
        case = cases()[name]
        case = case if std is None else dataclasses.replace(case, std=std)
        mean, _ = case.truth.data_moments()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = posterior.sample_posterior(
                case.law.model(SDE), case.measurement, case.y[None], (runs, *case.law.event),
                particles=posterior.Particles(n, twist), steps=steps, seed=0,
            )  # fmt: skip
        off = ((found.mean - mean) / found.mean_error.clamp(min=1e-12)).abs().amax(dim=1)
        wrong = (off > 3) | ((found.log_evidence - case.log_evidence).abs() > 1)
        row: Row = {"case": name, "noise": case.std, "particles": n, "twist": twist, "steps": steps}
        yield row | {
            "wrong": int(wrong.sum()),
            "no warning": int((wrong & found.exact).sum()),
            "right": int((~wrong).sum()),
            "warned": int((~wrong & ~found.exact).sum()),
        }


def by_particles(name: str, case: Case, score: Score, steps: int) -> Iterator[tuple[Row, Row]]:
    """Rows of `Particles`, and what they say of the evidence."""
    for twist in ("mmps", "pigdm"):
        particles = posterior.Particles(score.count, twist)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = posterior.sample_posterior(
                case.law.model(SDE), case.measurement, case.y[None], (1, *case.law.event),
                particles=particles, steps=steps, seed=0,
            )  # fmt: skip
        method = f"Particles({score.count}, {twist!r})"
        evidence: Row = {
            "case": name,
            "method": method,
            "log evidence off by": float(found.log_evidence) - case.log_evidence,
            "its error": float(found.log_evidence_error),
            "genealogical size": float(found.genealogical_ess),
        }
        values = score(found.draws[0], found)
        yield line(name, method, values, *passes(found.solution)), evidence


def main(argv: Sequence[str] | None = None) -> Tables:
    """Print the tables of docs/evidence/posteriors.md."""
    wrong = {"--wrong": {"action": "store_true", "help": "which runs warn, and nothing else"}}
    args = options(__doc__ or "", wrong, argv, "few samples, steps and particles")
    if args.wrong:
        report("runs that are wrong, and warnings", list(wrong_runs(args.quick)), args)
        return args.tables
    count, steps = (400, 20) if args.quick else (4000, 100)
    rows: list[Row] = []
    evidence: list[Row] = []
    for name, case in cases().items():
        score = Score(case, count)
        part = [line(name, "exact draws", score(score.truth.sample(count, seed=99)), "-", "-")]
        for method, solve in methods(case, count, steps):
            solution = solve()
            part.append(line(name, method, score(solution.x), *passes(solution)))
        for row, said in by_particles(name, case, score, steps):
            part.append(row)
            evidence.append(said)
        part += by_azula(name, case, score, steps, args.quick)
        show(name, part)
        rows += part
    report("posterior", rows, args)
    report("evidence", evidence, args)
    return args.tables


if __name__ == "__main__":
    main()

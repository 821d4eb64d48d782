"""Time of a step outside the network, against a hand-written loop in place.

The network returns a tensor that is there already, so what is left is the solver. The loop has its
coefficients as floats, works in place and draws by ``torch.randn``; it computes the same numbers,
which is checked before anything is timed. On a GPU (``--device cuda``) the loop draws there, and
times are those on the wall. ``--unet`` puts a U-Net of 34 million weights in the network's place: a
step of a real solve, network included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from timing import Run, Tables, arguments, micro, race, ratios, report, shape_name
from torch import Tensor

import sdediff as sd
from sdediff.networks import UNet
from sdediff.reverse import Reverse
from sdediff.solvers import White

# and steps, few and many: their difference is a multiple of White's block
SHAPES = {(16, 2): (64, 320), (64, 3, 32, 32): (8, 40)}
SOLVERS = {
    "Euler": sd.solvers.Euler(),
    "DDIM": sd.DDIM(),
    "EulerMaruyama": sd.EulerMaruyama(),
    "DPM-Solver++(2M)": sd.solvers.DPMSolverPP(startup="published"),
    "UniPC-3": sd.solvers.UniPC(startup="published"),
}
TARGETS = {(16, 2): 2.5, (64, 3, 32, 32): 1.5}
LARGER = {("UniPC-3", (16, 2)): 4.0, ("UniPC-3", (64, 3, 32, 32)): 2.0}
SDE = sd.VP()
Net = Callable[[Tensor, Tensor], Tensor]


def grid(steps: int) -> Tensor:
    return torch.linspace(SDE.t_max, SDE.t_min, steps + 1, dtype=torch.float64)


def coefficients(name: str, steps: int) -> tuple[Tensor, list[float], list[float], list[float]]:
    """The grid and (keep, push, noise) of x_s = keep x + push eps + noise z, for a network that
    predicts the noise eps.
    """
    times = grid(steps)
    t, h = times[:-1], times.diff()
    if name == "DDIM":
        alpha, sigma = SDE.alpha(times), SDE.sigma(times)
        keep = alpha[1:] / alpha[:-1]
        return times, keep.tolist(), (sigma[1:] - keep * sigma[:-1]).tolist(), [0.0] * steps
    share = 0.5 if name == "Euler" else 1.0
    keep, push = 1 + h * SDE.f(t), share * h * SDE.g(t) ** 2 / SDE.sigma(t)
    noise = SDE.g(t) * h.abs().sqrt() if name == "EulerMaruyama" else torch.zeros_like(t)
    return times, keep.tolist(), push.tolist(), noise.tolist()


def rows_of(times: Tensor, x: Tensor) -> list[Tensor]:
    """The times as a network takes them."""
    return [t.expand(len(x)) for t in times.to(x)]


def hand_written(name: str, start: Tensor, net: Net, noise: White | None = None) -> Run:
    """The loop; with ``noise`` it takes those numbers in place of its own draws."""
    prepared: dict[int, tuple[list[Tensor], list[float], list[float], list[float]]] = {}
    generator, z = torch.Generator(start.device).manual_seed(0), torch.empty_like(start)

    def run(steps: int) -> Tensor:
        if steps not in prepared:
            grid, *rest = coefficients(name, steps)
            prepared[steps] = rows_of(grid, start), *rest
        times, keep, push, sizes = prepared[steps]
        x = start.clone()
        if name == "EulerMaruyama":
            for i in range(steps):
                out = net(x, times[i])
                if noise is None:
                    torch.randn(z.shape, generator=generator, out=z)
                else:
                    z.copy_(noise.at(i).normal("path"))
                x.mul_(keep[i]).add_(out, alpha=push[i]).add_(z, alpha=sizes[i])
        else:
            for i in range(steps):
                out = net(x, times[i])
                x.mul_(keep[i]).add_(out, alpha=push[i])
        return x

    with torch.no_grad():
        run(1)
    return torch.no_grad()(run)


class Multistep(NamedTuple):
    """Coefficients of a step in data form: of the noise prediction's conversion, of the correction
    and of the move.
    """

    a: float  # data = a x + b eps
    b: float
    correct: list[float]  # of the data predicted one step back, here, two steps back, ...
    keep: float
    push: list[float]  # of the data predicted here, one step back, ...


def planned(solver: sd.solvers.DPMSolverPP | sd.solvers.UniPC, times: Tensor) -> list[Multistep]:
    """The solver's own numbers: the loop differs in how it uses them."""
    model = sd.ScoreModel(lambda x, t: x, SDE, predicts="noise")
    rows = []
    for entry in solver.plan(Reverse(model, 1), times):
        alpha, sigma = entry.at.alpha, entry.at.sigma
        correct = [] if entry.correct is None else [w for (w,) in entry.correct.weights]
        rows.append(
            Multistep(
                1 / alpha, -sigma / alpha, correct, entry.go.keep, [w for (w,) in entry.go.weights]
            )
        )
    return rows


def hand_written_multistep(name: str, start: Tensor, net: Net) -> Run:
    """The same in place, with buffers for the predictions that are handed round."""
    prepared: dict[int, tuple[list[Tensor], list[Multistep]]] = {}
    buffers, base = [torch.empty_like(start) for _ in range(5)], torch.empty_like(start)

    def run(steps: int) -> Tensor:
        if steps not in prepared:
            prepared[steps] = rows_of(grid(steps), start), planned(SOLVERS[name], grid(steps))
        x, held = start.clone(), list(buffers)
        for t, (a, b, correct, keep, push) in zip(*prepared[steps], strict=False):
            here = held.pop()
            torch.mul(x, a, out=here).add_(net(x, t), alpha=b)
            if correct:
                x.copy_(base).add_(held[0], alpha=correct[0]).add_(here, alpha=correct[1])
                for old, weight in zip(held[1:], correct[2:], strict=False):
                    x.add_(old, alpha=weight)
            held.insert(0, here)
            x.mul_(keep)
            if name == "UniPC-3":
                base.copy_(x)
            for each, weight in zip(held, push, strict=False):
                x.add_(each, alpha=weight)
        return x

    return torch.no_grad()(run)


def loop(name: str, start: Tensor, net: Net) -> Run:
    """The loop in place for a solver."""
    if isinstance(SOLVERS[name], sd.ExponentialMultistep):
        return hand_written_multistep(name, start, net)
    return hand_written(name, start, net)


def ours(name: str, start: Tensor, net: Net) -> Run:
    model = sd.ScoreModel(net, SDE, predicts="noise")
    grids: dict[int, Tensor] = {}

    def run(steps: int) -> Tensor:
        if steps not in grids:
            grids[steps] = grid(steps)
        given = {"grid": grids[steps], "x_init": start, "device": start.device}
        return sd.sample(
            model, tuple(start.shape), solver=SOLVERS[name], seed=0, last="noisy", **given
        ).x

    return run


def unet(device: str) -> Net:
    torch.manual_seed(0)
    return (
        UNet(3, (128, 256, 256, 256), layers=2, attention=(False, True, False, False), groups=32)
        .to(device)
        .eval()
    )


def main(argv: Sequence[str] | None = None) -> Tables:
    args = arguments(
        __doc__ or "",
        40,
        {"--device": {"help": "cpu or cuda (default cpu)"}, "--unet": {"action": "store_true"}},
        argv,
    )
    rows: list[dict[str, object]] = []
    for shape, (few, many) in SHAPES.items():
        if args.unet and len(shape) == 2:
            continue
        generator = torch.Generator().manual_seed(1)
        start, eps = (torch.randn(shape, generator=generator).to(args.device) for _ in range(2))
        net = unet(args.device) if args.unet else lambda x, t, eps=eps: eps
        for name in SOLVERS:
            mine = ours(name, start, net)
            white = (
                White(sd.seeds(0, shape[0]), shape[1:], device=args.device)
                if name == "EulerMaruyama"
                else None
            )
            plain = loop(name, start, net)
            same = plain if white is None else hand_written(name, start, net, white)
            expected = same(few)
            torch.testing.assert_close(
                mine(few), expected, rtol=1e-4, atol=1e-4 * max(1.0, float(expected.abs().max()))
            )
            times = race({"ours": mine, "loop": plain}, few, many, args.rounds)
            rows.append({"solver": name, "shape": shape_name(shape), **row(times)})
            if not args.unet and args.device == "cpu":  # what targets are of
                found, target = rows[-1]["ratio"], LARGER.get((name, shape), TARGETS[shape])
                rows[-1] |= {"target": target, "met": "yes" if found <= target else "no"}
    report("step", rows, args)
    return args.tables


def row(times: dict[str, list[float]]) -> dict[str, object]:
    return {
        "loop us": micro(times["loop"]),
        "ours us": micro(times["ours"]),
        **ratios(times["ours"], times["loop"]),
    }


if __name__ == "__main__":
    main()

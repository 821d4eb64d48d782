"""Time of a step outside the network, against a hand-written loop in place.

The network returns a tensor that is there already, so what is left is the solver. The loop has its coefficients as floats, works
in place and draws by ``torch.randn``; it computes the same numbers, which is checked before anything is timed.
"""

from __future__ import annotations

import torch
from timing import Run, arguments, micro, race, ratios, report, shape_name
from torch import Tensor

import sdediff as sd
from solvers import White

SHAPES = {(16, 2): (64, 320), (64, 3, 32, 32): (8, 40)}  # and steps, few and many: their difference is a multiple of White's block
TARGETS = {(16, 2): 3.0, (64, 3, 32, 32): 1.5}
SOLVERS = {"Euler": sd.Euler(), "DDIM": sd.DDIM(), "EulerMaruyama": sd.EulerMaruyama()}
# The fastest peer of a kind in shared/field/baselines.md section 3, over the floor measured beside it (another machine: a guide).
PEERS = {
    ("Euler", (16, 2)): 20 / 4,  # torchdiffeq euler
    ("DDIM", (16, 2)): 28 / 4,  # k-diffusion euler
    ("EulerMaruyama", (16, 2)): 59 / 5,  # k-diffusion euler_ancestral
    ("Euler", (64, 3, 32, 32)): 172 / 34,
    ("DDIM", (64, 3, 32, 32)): 249 / 34,  # azula Euler
    ("EulerMaruyama", (64, 3, 32, 32)): 951 / 724,
}
SDE = sd.VP()


def coefficients(name: str, steps: int) -> tuple[Tensor, list[float], list[float], list[float]]:
    """The grid and (keep, push, noise) of x_s = keep x + push eps + noise z, for a network that predicts the noise eps."""
    times = torch.linspace(SDE.t_max, SDE.t_min, steps + 1, dtype=torch.float64)
    t, h = times[:-1], times.diff()
    if name == "DDIM":
        alpha, sigma = SDE.alpha(times), SDE.sigma(times)
        keep = alpha[1:] / alpha[:-1]
        return times, keep.tolist(), (sigma[1:] - keep * sigma[:-1]).tolist(), [0.0] * steps
    share = 0.5 if name == "Euler" else 1.0
    keep, push = 1 + h * SDE.f(t), share * h * SDE.g(t) ** 2 / SDE.sigma(t)
    noise = SDE.g(t) * h.abs().sqrt() if name == "EulerMaruyama" else torch.zeros_like(t)
    return times, keep.tolist(), push.tolist(), noise.tolist()


def hand_written(name: str, start: Tensor, eps: Tensor, noise: White | None = None) -> Run:
    """The loop; with ``noise`` it takes those numbers in place of its own draws."""
    prepared: dict[int, tuple[Tensor, list[float], list[float], list[float]]] = {}
    generator, z = torch.Generator().manual_seed(0), torch.empty_like(start)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return eps

    def run(steps: int) -> Tensor:
        if steps not in prepared:
            prepared[steps] = coefficients(name, steps)
        times, keep, push, sizes = prepared[steps]
        x = start.clone()
        if name == "EulerMaruyama":
            for i in range(steps):
                out = net(x, times)
                if noise is None:
                    torch.randn(z.shape, generator=generator, out=z)
                else:
                    z.copy_(noise.at(i).normal("path"))
                x.mul_(keep[i]).add_(out, alpha=push[i]).add_(z, alpha=sizes[i])
        else:
            for i in range(steps):
                x.mul_(keep[i]).add_(net(x, times), alpha=push[i])
        return x

    with torch.no_grad():
        run(1)
    return torch.no_grad()(run)


def ours(name: str, start: Tensor, eps: Tensor) -> Run:
    model = sd.ScoreModel(lambda x, t: eps, SDE, predicts="noise")
    grids: dict[int, Tensor] = {}

    def run(steps: int) -> Tensor:
        if steps not in grids:
            grids[steps] = coefficients(name, steps)[0]
        shape = tuple(start.shape)
        return sd.sample(model, shape, solver=SOLVERS[name], grid=grids[steps], x_init=start, seed=0, last="noisy").x

    return run


def main() -> None:
    args = arguments(__doc__ or "", rounds=40)
    rows: list[dict[str, object]] = []
    for shape, (few, many) in SHAPES.items():
        generator = torch.Generator().manual_seed(1)
        start, eps = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        for name in SOLVERS:
            mine = ours(name, start, eps)
            white = White(sd.seeds(0, shape[0]), shape[1:]) if name == "EulerMaruyama" else None
            torch.testing.assert_close(mine(few), hand_written(name, start, eps, white)(few), rtol=1e-4, atol=1e-4)
            times = race({"ours": mine, "loop": hand_written(name, start, eps)}, few, many, args.rounds)
            found = ratios(times["ours"], times["loop"])
            rows.append(
                {
                    "solver": name,
                    "shape": shape_name(shape),
                    "loop us": micro(times["loop"]),
                    "ours us": micro(times["ours"]),
                    **found,
                    "target": TARGETS[shape],
                    "best peer": PEERS[name, shape],
                    "met": "yes" if found["ratio"] <= TARGETS[shape] else "no",
                }
            )
    report("step", rows, args)


if __name__ == "__main__":
    main()

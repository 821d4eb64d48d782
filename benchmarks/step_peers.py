"""Time of a step outside the network: diffusers, k-diffusion and azula beside us, in one process.

As in `step.py` the network returns a tensor that is there already, and the reference is its loop in
place. A *kind* is a method that several libraries have. The time of a step is the slope between a
short and a long solve, so that set-up drops out. *ratio* is over the loop, in the same round.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import step
import torch
from peers import THROWN, diffusers_scheduler, k_diffusion, versions
from timing import Row, Run, Tables, arguments, micro, race, ratios, report, shape_name
from torch import Tensor

Make = Callable[[Tensor, Tensor], Run]
"""(state at the start, what the network returns) -> a solve of so many steps."""


def by_k_diffusion(name: str) -> Make:
    def make(start: Tensor, out: Tensor) -> Run:
        sample = getattr(k_diffusion(), f"sample_{name}")

        def run(steps: int) -> None:
            sample(lambda x, s: out, start, torch.linspace(10.0, 0.1, steps + 1), disable=True)

        return run

    return make


def by_diffusers(kind: str, **given: Any) -> Make:
    def make(start: Tensor, out: Tensor) -> Run:
        scheduler = diffusers_scheduler(kind, **given)

        @torch.no_grad()
        def run(steps: int) -> None:
            scheduler.set_timesteps(steps)
            x = start
            for t in scheduler.timesteps:
                x = scheduler.step(out, t, scheduler.scale_model_input(x, t), return_dict=False)[0]

        return run

    return make


def by_azula(name: str, **given: Any) -> Make:
    def make(start: Tensor, out: Tensor) -> Run:
        denoise, sample = (
            importlib.import_module(f"azula.{part}") for part in ("denoise", "sample")
        )
        found = denoise.DiracPosterior(mean=out)

        class Denoiser(denoise.Denoiser):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.schedule = importlib.import_module("azula.noise").VPSchedule()

            def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
                return found

        denoiser, make_sampler = Denoiser(), getattr(sample, f"{name}Sampler")

        def run(steps: int) -> None:
            make_sampler(denoiser, steps=steps, stop=0.01, silent=True, **given)(start)

        return run

    return make


KINDS: dict[str, dict[str, tuple[str, Make, str]]] = {
    "DDIM": {
        "k-diffusion euler": ("k-diffusion", by_k_diffusion("euler"), THROWN),
        "diffusers DDIM": ("diffusers", by_diffusers("DDIM", clip_sample=False), ""),
        "diffusers Euler": ("diffusers", by_diffusers("EulerDiscrete"), ""),
        "azula DDIM": ("azula", by_azula("DDIM"), THROWN),
        "azula Euler": ("azula", by_azula("Euler"), ""),
    },
    "EulerMaruyama": {
        "k-diffusion euler_ancestral": ("k-diffusion", by_k_diffusion("euler_ancestral"), ""),
        "diffusers EulerAncestral": ("diffusers", by_diffusers("EulerAncestralDiscrete"), ""),
        "azula DDPM": ("azula", by_azula("DDPM"), ""),
    },
    "DPM-Solver++(2M)": {
        "k-diffusion dpmpp_2m": ("k-diffusion", by_k_diffusion("dpmpp_2m"), ""),
        "diffusers DPM++ 2M": ("diffusers", by_diffusers("DPMSolverMultistep"), ""),
        "azula xEAB2": ("azula", by_azula("xEAB", order=2), ""),
    },
    "UniPC-3": {
        "diffusers UniPC 3": ("diffusers", by_diffusers("UniPCMultistep", solver_order=3), ""),
    },
}
"""Methods of `step.py`; the library, the solve and its fault by the name of the sampler."""


def table(kind: str, shape: tuple[int, ...], rounds: int) -> Iterator[Row]:
    """The loop, ours and the libraries' of a kind."""
    few, many = step.SHAPES[shape]
    generator = torch.Generator().manual_seed(1)
    start, out = (torch.randn(shape, generator=generator) for _ in range(2))
    there = versions()
    others = {name: peer for name, peer in KINDS[kind].items() if there[peer[0]]}
    runs: dict[str, Run] = {
        "loop in place": step.loop(kind, start, lambda x, t: out),
        "sdediff": step.ours(kind, start, lambda x, t: out),
    }
    runs |= {name: make(start, out) for name, (_, make, _) in others.items()}
    with torch.random.fork_rng([]):
        times = race(runs, few, many, rounds)
    for name, found in times.items():
        row: Row = {"kind": kind, "shape": shape_name(shape), "by": name, "us": micro(found)}
        note = others[name][2] if name in others else ""
        yield row | {**ratios(found, times["loop in place"]), "note": note}


def main(argv: Sequence[str] | None = None) -> Tables:
    args = arguments(__doc__ or "", 10, argv=argv)
    warnings.simplefilter("ignore")
    rows = [
        row for shape in step.SHAPES for kind in KINDS for row in table(kind, shape, args.rounds)
    ]
    report("step beside other libraries", rows, args)
    return args.tables


if __name__ == "__main__":
    main()

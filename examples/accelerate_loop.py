"""Your own loop on Accelerate: several GPUs, several machines, and weights that are divided.

    python examples/accelerate_loop.py --out runs/loop
    accelerate launch --config_file examples/launch/two_machines.yaml examples/accelerate_loop.py
    accelerate launch --config_file examples/launch/fsdp.yaml examples/accelerate_loop.py

The loss is a plain function of the model and the data, so that whatever Accelerate does with a
network, FSDP and DeepSpeed among it, it does here: the model is handed the network that Accelerate
has prepared.
"""

from __future__ import annotations

import argparse
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import sdediff as sd
from sdediff.networks import MLP, initialised


def main() -> None:
    """Train on a ring of points, print the loss now and then, and write the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500, help="training steps")
    parser.add_argument("--out", type=Path, default=Path("runs/loop"), help="folder to write")
    arguments = parser.parse_args()

    accelerator = Accelerator()
    angle = 2 * torch.pi * torch.rand(4096, generator=torch.Generator().manual_seed(0))
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    loader = DataLoader(TensorDataset(ring), batch_size=128, shuffle=True, drop_last=True)
    net = initialised(lambda: MLP(2), seed=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    model = sd.ScoreModel(net, sd.VP(), "edm", sigma_data=0.7)
    loss = sd.DenoisingScoreMatching(stratified=True)

    torch.manual_seed(1 + accelerator.process_index)  # each process has times and noise of its own
    epochs = chain.from_iterable(repeat(loader))
    for step, (x_0,) in enumerate(islice(epochs, arguments.steps), 1):
        value = loss(model, x_0).mean()
        optimizer.zero_grad()
        accelerator.backward(value)
        accelerator.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            accelerator.print(f"step {step}  loss {value.item():.3f}")
    # of all processes: each may hold a part of them
    accelerator.save_model(net, arguments.out)


if __name__ == "__main__":
    main()

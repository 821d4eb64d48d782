"""How `fit` makes its steps: what is trained, the optimizer, its schedule, and gradient
accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdediff.solvers.given import callback_of, integer

__all__ = ["Optimization", "check_trainable"]


@dataclass(frozen=True)
class Optimization:
    """The user's optimizer and schedule, and gradient accumulation; `fit` takes it as
    ``optimization=``.

        Optimization(optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), accumulate=4)

    ``optimizer``: a function of the parameters that returns a torch optimizer; by default AdamW
    with betas 0.9 and 0.99. The learning rate that the function sets is the peak, and ``lr`` of
    `fit` is not used.
    ``schedule``: a function of the step 0, 1, ..., whose value the peak is multiplied by, in place
    of warm-up and cosine. It depends on the step alone, so that a resumed run goes on as it would
    have.
    ``accumulate``: in how many parts a batch is taken, one after another; at least 1. One step of
    the optimizer still sees ``batch_size`` samples. The memory is that of a part. The gradient is
    that of the whole batch, with the same times and noise, up to rounding.

    Raises TypeError or ValueError where one of them is something else. `fit` raises ValueError
    where the optimizer remembers more than tensors and numbers: a run folder keeps no more.
    """

    optimizer: Callable[[Sequence[Tensor]], torch.optim.Optimizer] | None = None
    schedule: Callable[[int], float] | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        callback_of("optimizer", self.optimizer, "of parameters")
        callback_of("schedule", self.schedule, "of a step")
        integer("accumulate", self.accumulate, 1)

    def made(self, learned: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        """The optimizer of these parameters: AdamW unless the user makes one."""
        if self.optimizer is None:
            fused = not any(p.is_complex() for p in learned)
            return torch.optim.AdamW(learned, lr=lr, betas=(0.9, 0.99), fused=fused)
        found = self.optimizer(learned)
        if not isinstance(found, torch.optim.Optimizer):
            raise TypeError(
                "optimizer must return a torch optimizer: lambda p: torch.optim.SGD(p, lr=0.1), "
                f"say; got {type(found).__name__}"
            )
        return found

    def check_state(self, optimizer: Any) -> None:
        """A ValueError unless what the optimizer remembers can be kept in a run folder."""
        for entry in optimizer.state_dict()["state"].values():
            for name, value in entry.items():
                if not (value is None or isinstance(value, Tensor | int | float)):
                    raise ValueError(
                        f"optimizer remembers {name!r}, a {type(value).__name__}: a run folder "
                        "keeps tensors and numbers alone; take another optimizer"
                    )

    def described(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What a configuration says of what the user passed; nothing where it is fit's own."""
        said: dict[str, Any] = {}
        if self.optimizer is not None:
            numbers = {
                name: value
                for name, value in optimizer.defaults.items()
                if isinstance(value, bool | int | float | str | tuple | None)
            }
            said["optimizer"] = {"class": type(optimizer).__name__, **numbers}
        if self.schedule is not None:
            said["schedule"] = getattr(self.schedule, "__name__", type(self.schedule).__name__)
        return said


def check_trainable(module: nn.Module, learned: Sequence[Tensor]) -> None:
    """Raise ValueError unless there are parameters, all have values, and one of them is to be
    trained.
    """
    name = type(module).__name__
    for part, value in (*module.named_parameters(), *module.named_buffers()):
        if torch.nn.parameter.is_lazy(value):
            raise ValueError(
                f"{part} of {name} has no shape before the network is first called; call it "
                "once: net(data[:1], torch.ones(1))"
            )
        if value.is_meta:
            raise ValueError(
                f"{part} of {name} is on the meta device, without values; build the network on a "
                "real one"
            )
    if not learned:
        raise ValueError(f"{name} has no parameters, so there is nothing to train")
    if not any(value.requires_grad for value in learned):
        raise ValueError(
            f"every parameter of {name} is frozen, so there is nothing to train; "
            "net.requires_grad_() unfreezes all of them"
        )

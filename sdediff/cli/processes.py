"""Which of several processes this one is, as ``accelerate launch`` and ``torchrun`` tell it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

from sdediff.cli.names import check_device

__all__ = ["Processes"]


@dataclass(frozen=True)
class Processes:
    """This process, one of ``count``."""

    index: int = 0
    count: int = 1
    local: int = 0
    """Its number on its machine."""

    @classmethod
    def here(cls) -> Self:
        """As the environment says: RANK, WORLD_SIZE and LOCAL_RANK."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        words = [os.environ.get(name, default) for name, default in zip(names, "010", strict=True)]
        if not all(word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
            said = ", ".join(map("=".join, zip(names, words, strict=True)))
            raise ValueError(
                f"the environment says {said}: expected numbers with RANK below WORLD_SIZE, as "
                "accelerate launch and torchrun set them"
            )
        return cls(*map(int, words))

    @property
    def first(self) -> bool:
        """Whether it is the one that speaks for all."""
        return self.index == 0

    def device(self, name: str | None) -> str:
        """The device named, or the fastest: of several GPUs, each process on a machine its own."""
        found = check_device(name)
        return f"cuda:{self.local}" if found == "cuda" and self.count > 1 else found

    def check_alone(self, option: str) -> None:
        """A ValueError where several processes would each draw the whole; ``option`` names where
        the samples go.
        """
        if self.count > 1:
            raise ValueError(
                f"{self.count} processes share the work in a folder of shards alone: name one, "
                f"without an ending, by {option}"
            )

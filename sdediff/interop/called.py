"""A network of diffusers, called as diffusers calls it: by the signature of its ``forward``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

from torch import Tensor, nn

from sdediff.solvers.given import nearest

__all__ = ["Called", "config_of", "unwrapped"]

_STATES: Final = ("sample", "hidden_states")
_TIMES: Final = ("timestep", "timesteps")
_ADDED: Final = "added_cond_kwargs"
"""The argument that is a dictionary of tensors; conditions have the names of its entries."""
_NEEDED: Final[dict[str, tuple[str, ...]]] = {
    "joint_attention_dim": ("encoder_hidden_states",),
    "caption_channels": ("encoder_hidden_states",),
    "cross_attention_dim": ("encoder_hidden_states",),
    "pooled_projection_dim": ("pooled_projections",),
    "guidance_embeds": ("guidance",),
    "num_class_embeds": ("class_labels",),
    "class_embed_type": ("class_labels",),
    "norm_type=ada_norm_zero": ("class_labels",),
}
"""Conditions that a network needs where this entry of its configuration is set, or has this
value.
"""
_NEEDED_IN_ADDED: Final[dict[str, tuple[str, ...]]] = {
    "addition_embed_type=text_time": ("text_embeds", "time_ids"),
    "addition_embed_type=text_image": ("text_embeds", "image_embeds"),
    "addition_embed_type=image": ("image_embeds",),
    "addition_embed_type=image_hint": ("image_embeds", "hint"),
    "encoder_hid_dim_type=text_image_proj": ("image_embeds",),
    "encoder_hid_dim_type=image_proj": ("image_embeds",),
    "use_additional_conditions": ("resolution", "aspect_ratio"),
}
"""The same for entries of ``added_cond_kwargs``."""


class Called(nn.Module):
    """``net(x, t, **condition)`` for a network of diffusers, or one with such a signature.

    States go into its argument ``sample`` or ``hidden_states``, times (B,) into ``timestep``.
    Conditions have the names of its other arguments, and of the entries of ``added_cond_kwargs``. A
    `functools.partial` of the network has some of them already. The result is ``sign`` times the
    first of the network's outputs, of which ``halved`` keeps the first half of the channels.

    ``config`` is the network's configuration, ``known`` the names of the conditions that it takes.

    A TypeError says which argument a network lacks. Every call raises a ValueError, before the
    network is called, where a condition is missing or not known.
    """

    def __init__(
        self, network: Callable[..., Any], sign: float = 1.0, *, halved: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self._sign, self._halved = sign, halved
        inner, given = unwrapped(network)
        self._name = getattr(inner, "__name__", type(inner).__name__)
        function = inner.forward if isinstance(inner, nn.Module) else inner
        parameters = inspect.signature(function).parameters
        self._states = self._argument("states", _STATES, parameters)
        self._times = self._argument("times", _TIMES, parameters)
        self._plain = {"return_dict": False} if "return_dict" in parameters else {}
        self._open = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        self.config = config = config_of(inner)
        taken = {self._states, self._times, "return_dict", _ADDED, *given}
        free = {
            name: each
            for name, each in parameters.items()
            if name not in taken
            and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
            and not name.endswith("_kwargs")
        }
        inside = _ADDED in parameters and _ADDED not in given
        self._added = _named(config, _NEEDED_IN_ADDED) if inside else ()
        needed = (name for name, each in free.items() if each.default is each.empty)
        told = (name for name in _named(config, _NEEDED) if name in free)
        self._needed = tuple(dict.fromkeys((*needed, *told, *self._added)))
        self.known = tuple(dict.fromkeys((*self._needed, *free)))

    def _argument(self, kind: str, names: tuple[str, ...], parameters: Collection[str]) -> str:
        """The name of the argument in which the network takes states, or times."""
        found = next((name for name in names if name in parameters), None)
        if found is None:
            raise TypeError(
                f"{self._name} takes no {kind}: it has no argument {names[0]!r}, as networks of "
                f"diffusers have, but {', '.join(parameters) or 'none at all'}; wrap it: "
                "def net(sample, timestep, **condition)"
            )
        return found

    def forward(self, x: Tensor, t: Tensor, /, **condition: Tensor) -> Any:
        """The network's output at states x (B, *event) and network times t (B,)."""
        out = self.outputs(x, t, condition)
        out = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)
        if not isinstance(out, Tensor):
            return out  # the model says what is wrong with it
        out = out.chunk(2, dim=1)[0] if self._halved else out
        return out if self._sign == 1 else self._sign * out

    def outputs(self, x: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Any:
        """All that the network returns, as it returns it."""
        self._check(condition)
        plain = {name: value for name, value in condition.items() if name not in self._added}
        added = {name: condition[name] for name in self._added}
        nested = {_ADDED: added} if added else {}
        handed: dict[str, Any] = {self._states: x, self._times: t}
        return self.network(**handed, **plain, **nested, **self._plain)

    def _check(self, condition: Collection[str]) -> None:
        """A ValueError that names the conditions which are missing or not known."""
        missing = [name for name in self._needed if name not in condition]
        unknown = [name for name in condition if name not in self.known and not self._open]
        if not missing and not unknown:
            return
        wrong = [f"lacks {name}" for name in missing]
        wrong += [f"has {name}{nearest(name, self.known)}" for name in unknown]
        takes = ", ".join(self.known) or "no conditions"
        needs = f", and needs {', '.join(self._needed)}" if self._needed else ""
        raise ValueError(f"the condition {', '.join(wrong)}: {self._name} takes {takes}{needs}")


def _named(config: Mapping[str, Any], table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The conditions that a network's configuration asks for."""
    found: list[str] = []
    for entry, names in table.items():
        key, _, wanted = entry.partition("=")
        value = config.get(key)
        if value == wanted if wanted else value not in (None, False):
            found += names
    return tuple(dict.fromkeys(found))


def config_of(network: Any) -> Mapping[str, Any]:
    """The configuration of a network; empty where it has none."""
    config = getattr(network, "config", None)
    return config if isinstance(config, Mapping) else {}


def unwrapped(network: Any) -> tuple[Any, frozenset[str]]:
    """The network inside of torch.compile and `functools.partial`, and the arguments it has."""
    given: set[str] = set()
    while True:
        if isinstance(network, partial):
            given |= set(network.keywords)
            network = network.func
        elif isinstance(network, nn.Module) and hasattr(network, "_orig_mod"):
            network = network._orig_mod
        else:
            return network, frozenset(given)

"""Weights of other code, read from a file into a network without running code that the file
holds.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from sdediff._extras import require

__all__ = ["check_network", "load_weights"]

_FAMILIES: Final = {
    "diffusion_model.": "latent diffusion (CompVis): from_k_diffusion with its CompVisDenoiser",
    "all_modules.": "score_sde: from_score_sde with the network of that repository",
    "unet.enc.": "EDM2: from_edm with the Precond of that repository",
    "enc.": "EDM: from_edm with the Precond of that repository",
    "input_blocks.": (
        "guided-diffusion: from_guided_diffusion with its UNetModel (or torchcfm, whose U-Net has "
        "the same names: from_flow_matching)"
    ),
    "down_blocks.": "diffusers: a pipeline of that library",
    "d_blocks.": "k-diffusion: from_k_diffusion with the network of that repository",
    "down_levels.": "k-diffusion: from_k_diffusion with the network of that repository",
    "mid_level.": "k-diffusion: from_k_diffusion with the network of that repository",
}
"""Parts of the names of weights by which a family is known, and what reads it; the first counts."""


def check_network(name: str, net: object, *, trained: bool) -> None:
    """A TypeError unless ``net`` is a network, and a module where weights are to be loaded."""
    if isinstance(net, str | bytes | PathLike):
        raise TypeError(
            f"{name}: net must be the network, got the path {str(net)!r}: build the network by its "
            f"own code and pass the file as weights={str(net)!r}"
        )
    if trained and not isinstance(net, nn.Module):
        raise TypeError(
            f"{name}: weights are loaded into a torch module, and net is {type(net).__name__}"
        )


def load_weights(net: nn.Module, weights: str | PathLike[str]) -> None:
    """Load into ``net`` the weights of a safetensors file, or of a file of `torch.save` that holds
    tensors, numbers and containers of these alone.

    The file is a state dict, or a dict with state dicts in it, as training scripts write them; one
    whose name contains ``ema`` takes precedence. Prefixes that all names share, such as
    ``module.`` of data parallel training, are left aside.

    Raises TypeError for anything but a path, FileNotFoundError, or ValueError if the file holds
    code (it is not run), is damaged, or has other names or shapes than the network.
    """
    if not isinstance(weights, str | PathLike):
        raise TypeError(
            f"weights must be the path of a file, got {type(weights).__name__}; load a state dict "
            "by net.load_state_dict(state)"
        )
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}")
    found = _state_dicts(_read(path), net)
    if not found:
        raise ValueError(
            f"{path} holds no state dict, a dict from names to tensors, at its top or one level "
            "below; save one: torch.save(net.state_dict(), 'weights.pt')"
        )
    own = net.state_dict()
    complaints = {}
    for name in sorted(found, key=lambda name: "ema" not in name.lower()):
        state = _renamed(found[name], own)
        complaints[name] = _complaint(state, own)
        if not complaints[name]:
            net.load_state_dict(state)
            return
    name = min(complaints, key=lambda name: len(complaints[name]))
    held = f"{path}[{name!r}]" if name else str(path)
    raise ValueError(
        f"{held} does not fit the network {type(net).__name__}: {complaints[name]}. The file looks "
        f"like {_family(found[name])}; the network looks like {_family(own)}"
    )


def _read(path: Path) -> Any:
    """What a file holds, on the host; a ValueError if it would run code or is damaged."""
    if path.suffix == ".safetensors":
        safetensors = require("safetensors", "train")
        try:
            return require("safetensors.torch", "train").load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or damaged: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: what torch makes of other files
        named = re.search(r"GLOBAL (\S+)", str(error))
        bare = path.read_bytes()[:1] == b"\x80"  # a pickle without the archive of torch.save
        if named is None and not bare:
            raise ValueError(f"{path} is no file of torch.save, or damaged") from error
        name, new = str(path), str(path.with_name(f"{path.stem}-weights.pt"))
        read = f"pickle.load(open({name!r}, 'rb'))['ema']"
        if not bare:
            read = f"torch.load({name!r}, weights_only=False)['net']"
        raise ValueError(
            f"{path} is not read: it holds {named[1] if named else 'objects'} beside tensors, and "
            "to unpickle it would run code. If you trust it, convert it once, with the repository "
            "that wrote it on the path, and the name of the module in it:\n\n"
            f"    import pickle, torch\n    net = {read}\n    torch.save(net.state_dict(), {new!r})"
            f"\n\nand pass weights={new!r}"
        ) from error


def _state_dicts(content: Any, net: nn.Module) -> dict[str, Mapping[str, Tensor]]:
    """The state dicts that a file holds, by their names in it; "" is the name of all of it."""
    if _is_state(content):
        return {"": content}
    parts = content if isinstance(content, Mapping) else {}
    found = {str(name): part for name, part in parts.items() if _is_state(part)}
    for name, part in parts.items():
        # averages of parameters, in their order, as torch_ema and score_sde keep them
        shadow = part.get("shadow_params") if isinstance(part, Mapping) else None
        if not isinstance(shadow, list):
            continue
        names = [key for key, value in net.named_parameters() if value.requires_grad]
        if len(shadow) != len(names):
            raise ValueError(
                f"the average {name!r} of the file has {len(shadow)} parameters, and the network "
                f"{len(names)} with requires_grad: is it the network that was trained?"
            )
        rest = _renamed(next(iter(found.values()), {}), net.state_dict())
        found[f"{name} (ema)"] = rest | dict(zip(names, shadow, strict=True))
    return found


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Names by what is left of them without the prefixes that all share."""
    bare = {name: name for name in names}
    while len(first := {name.partition(".")[0] for name in bare}) == 1 and all(
        "." in name for name in bare
    ):
        (prefix,) = first
        bare = {name.removeprefix(f"{prefix}."): full for name, full in bare.items()}
    return bare


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the names of the network, where they differ by common prefixes alone."""
    theirs, ours = _bare(state), _bare(own)
    return (
        {ours[name]: state[full] for name, full in theirs.items()}
        if theirs.keys() == ours.keys()
        else dict(state)
    )


def _complaint(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """How a state differs from what a network has; "" if it does not."""
    parts = [
        f"{what} {', '.join(map(repr, names[:3]))}" + (f" and {rest} more" if rest > 0 else "")
        for what, names in (
            ("it lacks", sorted(own.keys() - state.keys())),
            ("it has, and the network does not,", sorted(state.keys() - own.keys())),
        )
        if names
        for rest in [len(names) - 3]
    ]
    parts += [
        f"{name!r} has the shape {tuple(state[name].shape)} in place of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ][:3]
    return "; ".join(parts)


def _family(names: Iterable[str]) -> str:
    """Which code has such names."""
    given = list(names)
    return next(
        (
            text
            for part, text in _FAMILIES.items()
            if any(f".{part}" in f".{name}" for name in given)
        ),
        "none that is known",
    )

"""States of modules as safetensors files: shared tensors once, extra state as JSON, a checksum over
all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sdediff._extras import require

__all__ = [
    "bare",
    "checksum",
    "module_state",
    "pack",
    "read_notes",
    "read_tensors",
    "serialise",
    "set_module_state",
    "unpack",
]

_META: Final = "sdediff"
_SUM: Final = "sha256"
_ALIASES: Final = "aliases"
_EXTRA: Final = "extra"
_HELD: Final = "\x00tensor"
"""The key under which extra state says where its tensors are."""


def bare(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel."""
    while (inner := _inner(module)) is not None:
        module = module.get_submodule(inner)
    return module


def _inner(module: nn.Module) -> str | None:
    """The attribute that holds the module which a wrapper wraps."""
    if isinstance(module, nn.DataParallel | DistributedDataParallel):
        return "module"
    return "_orig_mod" if "_orig_mod" in dict(module.named_children()) else None


def _shown(module: nn.Module) -> Callable[[str], str]:
    """From names in the module's state dict to names without the wrappers, wherever they are inside
    it.
    """
    wrappers: list[tuple[str, str]] = []
    for name, part in module.named_modules(remove_duplicate=False):
        inner, start = _inner(part), f"{name}." if name else ""
        if inner is not None:
            wrappers.append((f"{start}{inner}.", start))
    wrappers.sort(key=lambda pair: -len(pair[0]))

    def shown(name: str) -> str:
        for prefix, start in wrappers:
            if name.startswith(prefix):
                name = start + name.removeprefix(prefix)
        return name

    return shown


def module_state(module: nn.Module) -> dict[str, Any]:
    """The state dict of a module, under the names that it has without wrappers."""
    shown = _shown(module)
    return {shown(name): value for name, value in module.state_dict().items()}


def set_module_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state whose names are without wrappers; RuntimeError, as of torch, where it does not
    fit.
    """
    shown = _shown(module)
    names = {shown(name): name for name in module.state_dict()}

    def own(name: str) -> str:
        # Files of format 1 have the names of wrappers.
        for candidate in (name, name.replace("_orig_mod.", ""), name.removeprefix("module.")):
            if candidate in names:
                return names[candidate]
        return name

    module.load_state_dict({own(name): value for name, value in state.items()})


def pack(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a state: each tensor once, its other names and what is no tensor as
    JSON in the metadata.

    Raises ValueError for extra state that is neither tensors nor JSON.
    """
    tensors: dict[str, Tensor] = {}
    extra = {
        name: _plain(value, name, tensors)
        for name, value in state.items()
        if not isinstance(value, Tensor)
    }
    tensors |= {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    first: dict[object, str] = {}
    stored: set[int] = set()
    aliases: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    for name, value in tensors.items():
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        storage = value.untyped_storage().data_ptr()
        # Other views of one storage are kept as tensors of their own.
        kept[name] = (value.clone() if storage in stored else value).cpu().contiguous()
        stored.add(storage)
    meta = {_ALIASES: json.dumps(aliases)} if aliases else {}
    return kept, meta | ({_EXTRA: json.dumps(extra)} if extra else {})


def _plain(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Extra state as JSON; its tensors are added to ``tensors``."""
    if isinstance(value, Tensor):
        key = f"{name}.{len(tensors)}"
        tensors[key] = value.detach()
        return {_HELD: key}
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _plain(part, name, tensors) for key, part in value.items()}
    if type(value) is list:
        return [_plain(part, name, tensors) for part in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        f"{name!r} holds a {type(value).__name__}, and a run folder keeps tensors, numbers, "
        "strings, and dicts and lists of "
        "these, without pickle; return these from get_extra_state"
    )


def unpack(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> dict[str, Any]:
    """The state of which `pack` made tensors and metadata."""
    state: dict[str, Any] = dict(tensors)
    state |= {name: state[kept] for name, kept in json.loads(meta.get(_ALIASES, "{}")).items()}
    held: set[str] = set()
    for name, value in json.loads(meta.get(_EXTRA, "{}")).items():
        state[name] = _whole(value, state, held)
    return {name: value for name, value in state.items() if name not in held}


def _whole(value: Any, state: Mapping[str, Any], held: set[str]) -> Any:
    if isinstance(value, list):
        return [_whole(part, state, held) for part in value]
    if not isinstance(value, dict):
        return value
    if _HELD in value:
        held.add(value[_HELD])
        return state[value[_HELD]]
    return {key: _whole(part, state, held) for key, part in value.items()}


def serialise(state: Mapping[str, Any], meta: Mapping[str, str]) -> bytes:
    """A safetensors file of a state, with metadata and a checksum of both.

    All metadata are one entry, as JSON, because safetensors writes several in any order, and equal
    runs shall write equal files.
    """
    tensors, notes = pack(state)
    whole = {**meta, **notes}
    whole[_SUM] = checksum(tensors, whole)
    content: bytes = require("safetensors.torch", "train").save(tensors, {_META: json.dumps(whole)})
    return content


def checksum(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """SHA-256 of names, dtypes, shapes and values, in hexadecimal."""
    digest = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def read_tensors(path: Path, *, sealed: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """State and metadata of a file; ValueError if its checksum does not hold, or if it has none
    though it is ``sealed``.
    """
    safetensors = require("safetensors", "train")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; the run was stopped before its first checkpoint: train again"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            meta = dict(file.metadata() or {})
        # format 1 has a number of steps alone
        meta = json.loads(meta[_META]) if _META in meta else meta
        found = meta.pop(_SUM, None)
        if (sealed or found is not None) and found != checksum(tensors, meta):
            raise ValueError("its checksum does not hold")
        state = unpack(tensors, meta)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); train again or restore the file") from error
    return state, {key: value for key, value in meta.items() if key not in (_ALIASES, _EXTRA)}


def read_notes(path: Path) -> tuple[dict[str, str], int]:
    """The metadata of a file of tensors, and how many numbers these hold, without reading them."""
    with require("safetensors", "train").safe_open(path, framework="pt") as file:
        meta = dict(file.metadata() or {})
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    whole: dict[str, str] = json.loads(meta[_META]) if _META in meta else meta
    return whole, sum(math.prod(shape) for shape in shapes)

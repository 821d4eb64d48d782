"""What a configuration says of a model, and the model made again from it.

Values are written as JSON that says what it is: numbers and strings as they are, dtypes and tensors
marked, classes that ship by name and parameters, which may hold such values again. Whatever else a
model has is the user's own: it is written by name alone and passed to `sdediff.load`, because
loading never imports or runs code that a file names.
"""

from __future__ import annotations

import inspect
import itertools
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from sdediff import constraints, degradation, solvers
from sdediff import sde as families
from sdediff.constraints import Constrained
from sdediff.model import ScoreModel
from sdediff.network_time import Timesteps
from sdediff.networks import NETWORKS, initialised
from sdediff.normalizer import Normalizer
from sdediff.sde import SDE
from sdediff.solvers.given import nearest
from sdediff.states import bare

__all__ = [
    "KINDS",
    "Own",
    "build",
    "build_network",
    "describe",
    "describe_sde",
    "encode",
    "fields_of",
    "rebuild",
]

_SDES: Final[dict[str, type]] = {
    name: kind
    for name, kind in {**vars(families), **vars(degradation)}.items()
    if isinstance(kind, type) and issubclass(kind, SDE) and is_dataclass(kind)
}
_CONSTRAINTS: Final[dict[str, type]] = {
    name: kind
    for name, kind in vars(constraints).items()
    if name in constraints.__all__ and isinstance(kind, type) and is_dataclass(kind)
}
KINDS: Final[dict[str, dict[str, type]]] = {
    "sde": _SDES,
    "net": dict(NETWORKS),
    "time": {"Timesteps": Timesteps},
    "constraint": _CONSTRAINTS,
    "normalizer": {"Normalizer": Normalizer},
}
"""For each argument of `sdediff.load`, the classes that a configuration can name."""

_KNOWN: Final[dict[str, type]] = {
    "MonotoneSchedule": families.MonotoneSchedule,
    "MixtureStart": degradation.MixtureStart,
}
for _kind in KINDS.values():
    _KNOWN.update(_kind)
_KNOWN.update(
    {
        name: kind
        for name, kind in vars(solvers).items()
        if name in solvers.__all__ and isinstance(kind, type) and is_dataclass(kind)
    }
)
_DTYPES: Final = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}


class Own(Exception):
    """A value is the user's own; its class is ``args[0]``."""


def fields_of(model: ScoreModel) -> tuple[str, ...]:
    """The names of all that a model is made of beside its network and its SDE: constructor
    arguments and public attributes.

    ``declared_x`` is what the constructor was given as x, where x itself is worked out.
    """
    given = [
        name for name in inspect.signature(ScoreModel).parameters if name not in ("net", "sde")
    ]
    # extras follow from learned_variance
    known = {
        *vars(nn.Module()),
        "net",
        "sde",
        "extras",
        *given,
        *(f"declared_{name}" for name in given),
    }
    return (
        *given,
        *(name for name in vars(model) if not name.startswith("_") and name not in known),
    )


def describe(model: ScoreModel | Constrained) -> dict[str, Any]:
    """The sections ``sde``, ``network`` and ``model`` of a configuration."""
    plain: Any = getattr(model, "learner", model)
    net: Any = bare(plain.net) if isinstance(plain.net, nn.Module) else plain.net
    fields = {name: _field(plain, net, name) for name in fields_of(plain)}
    return {
        "sde": describe_sde(plain.sde),
        "network": encode(net),
        "model": {**fields, "constraint": encode(getattr(model, "constraint", None))},
    }


def describe_sde(sde: SDE) -> dict[str, Any]:
    """The section ``sde``; an SDE of the user's own is said in words too, so that another one in
    its place is noticed.

    One that holds modules is not: what it says of itself changes as they learn.
    """
    entry: dict[str, Any] = encode(sde)
    if entry["parameters"] is not None or any(
        isinstance(value, nn.Module) for value in (sde, *vars(sde).values())
    ):
        return entry
    return {**entry, "repr": re.sub(r" at 0x[0-9a-f]+", "", repr(sde))}


def _field(model: ScoreModel, net: Any, name: str) -> Any:
    if name == "network":
        return _name_in(net, model.network)
    return encode(getattr(model, f"declared_{name}", getattr(model, name)))


def _name_in(net: Any, part: nn.Module | None) -> str | None:
    """The name in ``net`` of the module that is handed x."""
    names = (
        {id(module): name for name, module in net.named_modules()}
        if isinstance(net, nn.Module)
        else {}
    )
    if part is not None and id(part) not in names:
        raise ValueError(
            f"network={type(part).__name__} is not registered in net, so that its weights would "
            "not be kept: register it there"
        )
    return None if part is None else names[id(part)]


def encode(value: Any) -> Any:
    """A value as JSON that says what it is: the inverse of `build`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        return [encode(part) for part in value]
    if isinstance(value, Mapping):
        return {"values": {key: encode(part) for key, part in value.items()}}
    name = type(value).__name__
    if _KNOWN.get(name) is not type(value):
        return {"class": getattr(value, "__name__", name), "parameters": None}
    parameters = {key: encode(part) for key, part in _arguments(value).items()}
    return {
        "class": name,
        "parameters": None if any(map(_is_own, _parts(parameters))) else parameters,
    }


def _arguments(value: Any) -> dict[str, Any]:
    """The arguments that make a value of a class that ships: what it says itself, or the fields of
    a dataclass.
    """
    if isinstance(value, nn.Module):
        config: Any = value.config
        return dict(config)
    if isinstance(value, Normalizer):
        return value.to_dict()
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _parts(value: Any) -> Iterator[Any]:
    yield value
    for part in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from _parts(part)


def _is_own(entry: Any) -> bool:
    return isinstance(entry, dict) and "class" in entry and entry["parameters"] is None


def build(entry: Any, known: Mapping[str, type] | None = None) -> Any:
    """The value that an entry describes; `Own` if it is the user's own, ValueError if it names a
    class that is not ``known``.

    Without ``known``, and inside of what is built, all classes that ship are.
    """
    known = _KNOWN if known is None else known
    if isinstance(entry, list):
        return [build(part) for part in entry]
    if not isinstance(entry, dict):
        return entry
    if "values" in entry:
        return {key: build(part) for key, part in entry["values"].items()}
    if "tensor" in entry:
        return torch.tensor(entry["tensor"], dtype=_DTYPES[entry["dtype"]])
    if "dtype" in entry:
        return _DTYPES[entry["dtype"]]
    name, parameters = entry["class"], entry["parameters"]
    if parameters is None:
        raise Own(name)
    if name not in known:
        raise ValueError(
            f"names {name!r}, which this version does not know{nearest(name, known)}; known: "
            f"{', '.join(known)}"
        )
    return known[name](**{key: build(part) for key, part in parameters.items()})


def build_network(entry: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network that an entry describes, for the weights beside it.

    Raises ValueError before anything large is built if they do not fit.
    """
    make = partial(build, entry, KINDS["net"])
    with torch.device("meta"), _at_most(2 * len(weights) + 16):
        sketch = initialised(make, seed=0)
    wanted, got = (
        {k: tuple(v.shape) for k, v in state.items()} for state in (sketch.state_dict(), weights)
    )
    if wanted != got:
        name = min(k for k in wanted.keys() | got.keys() if wanted.get(k) != got.get(k))
        raise ValueError(
            f"{name} has shape {got.get(name)} in the file and {wanted.get(name)} in the network"
        )
    net: nn.Module = initialised(make, seed=0)
    _set_dtypes(net, weights)
    return net


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """ValueError as soon as this thread makes more than ``count`` parameters."""
    thread, made = threading.get_ident(), itertools.count(1)

    def seen(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if threading.get_ident() == thread and next(made) > count:
            raise ValueError("the network has more layers than the file has weights for")

    handle = nn.modules.module.register_module_parameter_registration_hook(seen)
    try:
        yield
    finally:
        handle.remove()


def _set_dtypes(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the network the dtypes of the weights."""
    dtypes = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        net.to(dtypes.pop())
        return
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        value.data = value.data.to(weights[name].dtype if name in weights else value.dtype)


def rebuild(net: nn.Module, sde: SDE, values: Mapping[str, Any]) -> ScoreModel | Constrained:
    """The model with that network and SDE whose fields have these values; the rest are as they are
    by default.
    """
    arguments = inspect.signature(ScoreModel).parameters
    given = {name: value for name, value in values.items() if name in arguments}
    if given.get("network") is not None:
        given["network"] = net.get_submodule(given["network"])
    model = ScoreModel(net, sde, **given)
    kept = {name: value for name, value in values.items() if name not in arguments}
    constraint = kept.pop("constraint", None)
    unknown = kept.keys() - fields_of(model)
    if unknown:
        raise ValueError(
            f"a model has no {', '.join(sorted(unknown))}; load it with the version that wrote it"
        )
    vars(model).update(kept)
    return model if constraint is None else model.constrained(constraint)

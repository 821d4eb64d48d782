"""What a model is: anything that says of which SDE it is a field, and evaluates it.

`ScoreModel` is one, and so is an object of a dozen lines that has nothing to do with torch's
modules.
Losses, samplers and likelihoods use the four members of `Model` and, where a model has them, the
further ones that `Facts` reads.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import torch
from torch import Tensor

from sdediff.modules import first_fact, modules_behind
from sdediff.normalizer import Normalizer
from sdediff.sde import LinearSDE
from sdediff.solvers.arithmetic import Like
from sdediff.solvers.given import integer, real
from sdediff.solvers.problem import Monitor, Output

__all__ = [
    "Facts",
    "Like",
    "Model",
    "Output",
    "Piece",
    "Prediction",
    "Rows",
    "check_model",
    "facts",
    "is_model",
]

Piece = tuple[float, float]
"""The ends (low, high) of times between which a model has no `Facts.breaks`."""

_Fact = TypeVar("_Fact", torch.device, torch.dtype)


class Prediction(Protocol):
    """What a model predicts: p x_0 + q noise, where x_t = alpha x_0 + sigma noise."""

    def coefficients(self, sde: LinearSDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) at float64 host times t, () or (n,), shaped as t."""


@dataclass(eq=False, repr=False)
class Rows:
    """The samples of an evaluation: row i of the state belongs to row i here.

    A model made of models passes ``rows`` to the inner model. It may pass others instead, by
    `take`, in which a row may repeat: classifier-free guidance evaluates each row twice.
    """

    condition: Mapping[str, Tensor]
    """Tensors by the names of the network's arguments, each with a row for a row of the state."""
    index: Tensor
    """Which sample of the call each row is, int64 (rows,) on the host."""
    size: int
    """How many samples the call has; some may have arrived, or wait for their turn."""
    monitor: Monitor
    mask: Tensor | None = None
    """Which coordinates exist, bool (rows, *event) beside the state; None: all."""
    _own: Tensor | None = None

    @classmethod
    def of(
        cls, count: int, condition: Mapping[str, Tensor] | None = None, mask: Tensor | None = None
    ) -> Rows:
        """All samples of a call that is one evaluation."""
        return cls(dict(condition or {}), torch.arange(count), count, Monitor(count), mask)

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Tensor) -> Rows:
        """Some of the rows, int64 (k,) on the host; one may come several times."""
        condition = {name: value[rows.to(value.device)] for name, value in self.condition.items()}
        mask = None if self.mask is None else self.mask[rows.to(self.mask.device)]
        own = rows if self._own is None else self._own[rows]
        return Rows(condition, self.index[rows], self.size, self.monitor, mask, own)

    def under(self, condition: Mapping[str, Tensor]) -> Rows:
        """The same rows with other conditions."""
        return Rows(condition, self.index, self.size, self.monitor, self.mask, self._own)

    def uncounted(self) -> Rows:
        """The same rows for an evaluation that is no part of the solve."""
        return Rows(self.condition, self.index, self.size, Monitor(len(self)), self.mask)

    def count(self, evaluations: int = 1, backward: int = 0) -> None:
        """Count evaluations of a network and passes back through it, of each row.

        `ScoreModel` counts its own; if a model counts nothing in a call, the call counts as one
        evaluation.
        """
        monitor = self.monitor
        if self._own is None and not backward:  # in most solves all of them at every step
            monitor.calls += 1
            monitor.evaluations.everyone += evaluations
        else:
            monitor.count(self._own, evaluations, backward)

    def look(self, x: Tensor, out: Tensor) -> None:
        """Note whose output ``out`` of a network at states ``x`` is not finite, where a solve asks
        for it.

        A solve looks at what `Model.evaluate` returns. A model whose answer may be finite where
        that of the model inside is not, as of one that clips, shows the latter.
        """
        if self.monitor.watch:
            self.monitor.look(x, out, self._own)


class Model(Protocol):
    """What every model offers: its SDE, and a prediction at a state x_t and a time t, computed
    without side effects.
    """

    @property
    def sde(self) -> Any:  # a LinearSDE where it offers "kernel"
        """The SDE, or what has its methods."""

    @property
    def predicts(self) -> str | Prediction:
        """``noise``, ``data``, ``score``, ``v``, ``flow`` or ``edm``, or a value that has
        coefficients.
        """

    def at(self, times: Tensor, like: Like, piece: Piece | None) -> Sequence[Any]:
        """What `evaluate` takes for its time, one entry for each of ``times``, float64 on the host.

        ``times`` is (n,), or (n, rows) where every row has its own. ``like`` says what states look
        like. ``piece`` is None for a model without breaks, else the stretch (low, high) between two
        of them: at either end of it the value inside counts. Entries can hold what is to be
        computed once for a grid; solvers do not look into them. Those of (n, rows) are for these
        rows: who asks for others, by `Rows.take`, asks here for their times too.
        """

    def evaluate(self, x: Tensor, at: Any, rows: Rows) -> Tensor | Output:
        """The prediction at states x (rows, *event), of their shape and dtype; x is only read."""


@dataclass(frozen=True)
class Facts:
    """What a model may say beside the protocol, as attributes of these names; here with what holds
    where it does not.

    ``device``, ``dtype``: where states are solved, and what the network takes; by default those of
    the modules that the model holds.
    ``data_std``: the standard deviation of the data, in units of which solves run; by default the
    SDE's.
    ``sigma_data``: the standard deviation of the data that ``predicts="edm"`` supposes; by default
    the SDE's.
    ``declared_data_std``: ``data_std`` if the model says it itself, else None.
    ``detail_std``: the standard deviation of the details of the data, where
    `sdediff.tuning.measure` has found it.
    ``normalizer``: what stands between the user's data and the states.
    ``breaks``: times at which the prediction jumps. Every solve stops there.
    ``extras``: names of further outputs of an evaluation.
    ``cost``: how often a call evaluates the network for each row, at most.
    ``guidance_scale``: s where the prediction is u + s (c - u) at all noise levels, with u and c
    predictions of networks, or 1 - s if that is larger; of several operators the largest; infinite
    if s is not one number.
    ``net``: the function whose arguments are the names of the conditions.
    ``check_event``: a function of an event's shape that raises a ValueError where states cannot
    have it.
    """

    device: torch.device
    dtype: torch.dtype | None
    data_std: float
    sigma_data: float
    declared_data_std: float | None = None
    detail_std: float | None = None
    normalizer: Normalizer | None = None
    breaks: tuple[float, ...] = ()
    extras: tuple[str, ...] = ()
    cost: int = 1
    guidance_scale: float = 1.0
    net: Callable[..., Any] | None = field(default=None, compare=False)
    check_event: Callable[[Sequence[int]], None] | None = field(default=None, compare=False)

    @property
    def details(self) -> float | None:
        """``detail_std`` in units of ``data_std``."""
        return None if self.detail_std is None else self.detail_std / self.data_std


_CPU: Final = torch.device("cpu")
_FACTS: Final = tuple(
    "declared_data_std detail_std normalizer breaks extras cost guidance_scale net check_event "
    "device dtype sigma_data".split()
)
_NOTHING: Final = object()


def facts(model: Model) -> Facts:
    """What a model says of itself, or what holds where it says nothing; a TypeError if it is no
    model.
    """
    if isinstance(model, type) or not all(hasattr(model, name) for name in _NEEDED):
        check_model(model)
    asked: dict[str, Any] = {name: getattr(model, name, _NOTHING) for name in _FACTS}
    found = {name: value for name, value in asked.items() if value is not _NOTHING}
    found["device"] = found.get("device") or _behind(model, lambda p: p.device) or _CPU
    if "dtype" not in found:
        found["dtype"] = _behind(model, lambda p: p.dtype if p.is_floating_point() else None)
    if "declared_data_std" not in found:
        found["declared_data_std"] = getattr(model, "data_std", None)
    declared = found["declared_data_std"]
    found["data_std"] = model.sde.data_std if declared is None else declared
    if "sigma_data" not in found:
        found["sigma_data"] = model.sde.sigma_data
    if "breaks" in found:
        found["breaks"] = breaks_of(model)
    if "cost" in found:
        found["cost"] = cost_of(model)
    if "guidance_scale" in found:
        found["guidance_scale"] = guidance_scale_of(model)
    if isinstance(found.get("extras"), str):
        raise TypeError(
            f"{type(model).__name__}.extras must be names, ({found['extras']!r},); got a string"
        )
    return Facts(**found)


def breaks_of(model: object) -> tuple[float, ...]:
    """The times at which a model jumps, its own and those of the models inside, rising."""
    own: list[float] = []
    for layer in _layers(model):
        given = getattr(layer, "breaks", ())
        try:
            _ = len(given)  # what is used up by one reader will not do
            own += [real(f"{type(layer).__name__}.breaks", t) for t in given]
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{type(layer).__name__}.breaks must be times, (0.2, 0.8) say; got {given!r}"
            ) from error
    if not all(map(math.isfinite, own)):
        raise ValueError(f"{type(model).__name__}.breaks must be finite times; got {own}")
    return tuple(sorted(set(own)))


def cost_of(model: Any) -> int:
    """Evaluations of a network in a call, at most: what an operator says of its model, times what
    that says of its own.
    """
    total = 1
    for layer in _saying("cost", model):
        total *= integer(f"{type(layer).__name__}.cost", layer.cost, 1)
    return total


def guidance_scale_of(model: Any) -> float:
    """The largest of what a model and the models inside say: of s and 1 - s, at least 1."""
    found = 1.0
    for layer in _saying("guidance_scale", model):
        said = layer.guidance_scale
        if getattr(said, "ndim", 0):  # a scale for each sample, none of which may matter to another
            return math.inf
        scale = real(f"{type(layer).__name__}.guidance_scale", said)
        if math.isnan(scale):
            raise ValueError(f"{type(layer).__name__}.guidance_scale must be a number, got nan")
        found = max(found, scale, 1 - scale)
    return found


def _saying(name: str, model: Any) -> list[Any]:
    """Those of `_layers` that say it themselves, not None; an operator has what is said inside."""
    every = _layers(model)
    return [each for each in every if inspect.getattr_static(each, name, None) is not None]


def _layers(model: Any) -> list[Any]:
    """The model, the one inside it if it is made of one, and so on."""
    found = [model]
    while is_model(inner := getattr(found[-1], "model", None)):
        found.append(inner)
    return found


def has_weights(model: Model) -> bool:
    """Whether the device of a model is known: by what it says, or by the modules that it holds."""
    if hasattr(model, "has_weights"):
        return bool(model.has_weights)
    return bool(getattr(model, "device", None) or _behind(model, lambda p: p.device))


def _behind(model: object, read: Callable[[Tensor], _Fact | None]) -> _Fact | None:
    known = (first_fact(module, read) for module in modules_behind(model).modules)
    return next((fact for fact in known if fact is not None), None)


def sigma_data(model: Model) -> float:
    """The standard deviation of the data that ``predicts="edm"`` supposes."""
    found: float = getattr(model, "sigma_data", model.sde.sigma_data)
    return found


_NEEDED: Final = ("sde", "predicts", "at", "evaluate")


def is_model(value: object) -> bool:
    """Whether it has what `Model` asks for."""
    return not isinstance(value, type) and all(hasattr(value, name) for name in _NEEDED)


def check_model(model: object) -> None:
    """A TypeError unless it is a model."""
    lacking = [name for name in _NEEDED if not hasattr(model, name)]
    if lacking or isinstance(model, type):
        got = model.__name__ if isinstance(model, type) else type(model).__name__
        parts = f" without {', '.join(lacking)}" if 0 < len(lacking) < len(_NEEDED) else ""
        raise TypeError(
            f"model must be a ScoreModel, got {got}{parts}; wrap the network: ScoreModel(net, "
            "sde, predicts='noise'), "
            "or give an object sde, predicts, at and evaluate (sdediff.Model)"
        )


def ask(model: Model, x: Tensor, at: Any, rows: Rows) -> Tensor | Output:
    """The answer of a model; one that counts nothing itself has made one evaluation of each row."""
    before = rows.monitor.calls
    found = model.evaluate(x, at, rows)
    if isinstance(found, Tensor):
        found = found.clone()  # a network may write all its outputs to one tensor
    value_of(found, x, model)
    if rows.monitor.calls == before:
        rows.count()
    return found


def entries_of(
    model: Model, times: Tensor, like: Like, piece: Piece | None, breaks: tuple[float, ...]
) -> Sequence[Any]:
    """What the model's `at` returned; an error unless that is one entry for each of the times.

    Where no piece is being solved, of a chain or a single evaluation, each time has that in which
    it lies; at a break it is the one before.
    """
    if breaks and piece is None:
        ends = (-math.inf, *breaks, math.inf)
        rows = times.detach().reshape(len(times), -1).contiguous()
        sides = torch.bucketize(rows, torch.tensor(breaks, dtype=times.dtype))
        if bool((sides != sides[:, :1]).any()):
            raise ValueError(
                f"the model jumps at {', '.join(f'{t:g}' for t in breaks)}: times of one call "
                "have to lie on "
                "one side of each; call it once for each side"
            )
        pieces = [(ends[i], ends[i + 1]) for i in sides[:, 0].tolist()]
        each = zip(times.unbind(), pieces, strict=True)
        return [entries_of(model, t[None], like, own, breaks)[0] for t, own in each]
    found = model.at(times, like, piece)
    if isinstance(found, Sequence | Tensor) and len(found) == len(times):
        return found
    got = f"{len(found)} of them" if isinstance(found, Sequence | Tensor) else type(found).__name__
    raise ValueError(
        f"{type(model).__name__}.at must return a sequence of {len(times)} entries, one for each "
        f"of the times; got {got}"
    )


def value_of(out: Tensor | Output, x: Tensor, model: object) -> Tensor:
    """The prediction of a model at states x; a ValueError unless it is a tensor like them."""
    value = out.value if isinstance(out, Output) else out
    if isinstance(value, Tensor) and value.shape == x.shape and value.dtype == x.dtype:
        return value
    name = type(model).__name__
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name}.evaluate must return a tensor or an Output, got {type(value).__name__}"
        )
    wanted, got = (f"{tuple(each.shape)}, {each.dtype}" for each in (x, value))
    raise ValueError(
        f"{name}.evaluate must return a tensor of the shape and the dtype of x, {wanted}; got {got}"
    )


def extras_of(out: Tensor | Output, model: object, names: tuple[str, ...]) -> dict[str, Tensor]:
    """What a model returned beside its prediction; a ValueError unless all ``names`` that it
    promises are there.
    """
    extras = out.extras if isinstance(out, Output) else {}
    lacking = [name for name in names if not isinstance(extras.get(name), Tensor)]
    if lacking:
        given = ", ".join(f"{name}={name}" for name in names)
        raise ValueError(
            f"{type(model).__name__}.evaluate must return Output(value, {given}), as the model's "
            f"extras = {names!r} say; "
            f"it returned no {', '.join(lacking)}"
        )
    return extras

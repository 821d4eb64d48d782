"""One network seen as a score, as noise, as data or as a velocity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from sdediff.calls import Condition, check_known, check_names, check_taken, doubled, tensor_of
from sdediff.modules import first_fact, modules_behind
from sdediff.network_time import (
    NetworkTime,
    check_network_time,
    check_time_dtype,
    read_network_time,
)
from sdediff.normalizer import Normalizer
from sdediff.predict import Predictions
from sdediff.predictions import Pair, canonical, conversion, singular
from sdediff.protocols import Like, Output, Piece, Rows
from sdediff.sde import SDE
from sdediff.solvers.arithmetic import planned, weighted
from sdediff.solvers.coefficients import Coef
from sdediff.solvers.given import WrittenError, flag, plain, reading, real

__all__ = ["Call", "ScoreModel"]

_Fact = TypeVar("_Fact", torch.device, torch.dtype)


class Call(NamedTuple):
    """What the network is handed beside the states."""

    time: Tensor
    """The network's time, (rows,), on its device."""
    dtype: torch.dtype
    """What floating-point inputs are cast to."""
    scale: Coef | None = None
    """What the states are multiplied by; None: nothing."""


class ScoreModel(Predictions):
    """A network with the SDE on which it was or will be trained.

        model = sd.ScoreModel(net, sd.VP(), predicts="v")

    ``net(x, time, **condition)`` takes states (B, *event) and times (B,) and returns a tensor of
    the shape of x (or an object with that tensor as ``.sample``, as diffusers' networks do).
    ``predicts`` says what it returns: ``noise`` (or ``eps``), ``data`` (``x0``), ``score``, ``v``,
    ``flow``, or ``edm``, where the network sees x divided by sqrt(sigma^2 + alpha^2 sigma_data^2),
    so that its input and output have unit variance for data of standard deviation ``sigma_data``.
    ``edm`` is the raw output, F of Karras et al. 2022 (arXiv 2206.00364, eq. 7); their denoiser D,
    which includes the preconditioning, predicts ``data``. All of these are affine in x_0 and noise,
    so each is computed from any other; where that is singular a ValueError says which to use.

    ``time`` says which time the network is handed: ``"t"``, ``"log_snr"``, ``"sigma"``, `Timesteps`
    (a scaled integer), a function of float64 times, () or (B,), or ``"reversed"``: T - t, from
    noise at 0 to data at T, as in most code for flow matching. The ``flow`` of such a network is
    the velocity in this direction, from noise to data.

    One rule for dtypes: the network is handed x, times and conditions in the dtype of its
    parameters (integers as they are; ``time_dtype`` for times alone takes precedence), or of the
    state if it has none. Its output is raised to the state's dtype before anything is computed with
    it. States and losses have float32 at least; predictions are computed so and rounded once.

    The network must not change these tensors in place; a ValueError says so if it does.

    Device, dtype and evaluation mode are those of the modules that ``net`` is or calls:
    `functools.partial`, lambdas, bound methods and objects that hold modules are looked through.
    Where a module is found only by running the code, or several disagree, ``network`` names the one
    that is handed x.

    ``data_std`` is the standard deviation of the data about the means of their channels (for
    points: of their coordinates). Solvers work in units of it. Models of `sdediff.exact` declare
    it, `fit` estimates it; by default it is ``sde.data_std``, 1 under `VP`. ``sigma_data`` is
    ``data_std`` where that is declared, else ``sde.sigma_data``, which is 0.5 under `VP`.

    ``detail_std``, an attribute, is the standard deviation of the details of the data, in units of
    x as ``data_std`` is: None until `fit` has measured it or you set it to what
    `sdediff.tuning.measure` finds. The default solver takes its form and its grid by it.

    ``learned_variance``: the network returns twice the channels (dimension 1). The second half is
    the variance of DDPM's reverse step (``DDPM(variance="learned")``). Other solvers and losses
    ignore it.

    ``normalizer``: the network and the SDE see your data y as x = (y - mean) / std. ``fit``,
    `diagnose`, `sample`, `encode` and likelihoods take and return y. Losses, the methods of the
    model and ``data_std`` are in units of x.

    ``null``: what the network gets in place of a condition if there is none, by the name of each
    condition: a number, or a tensor of one sample's shape, such as ``{"label": 10}``.
    ``fit(drop=0.1)`` trains it, and classifier-free guidance uses it.

    Under an SDE without a Gaussian kernel the network predicts the score, under a degradation the
    data. The methods take t as a
    number or one number a sample, inside the SDE's usable range, and ``**condition`` for the
    network.
    """

    network: nn.Module | None
    _detail_std: float | None = None

    def __init__(
        self,
        net: Callable[..., Any],
        sde: SDE,
        predicts: str = "noise",
        *,
        sigma_data: float | None = None,
        data_std: float | None = None,
        time: NetworkTime = "t",
        time_dtype: torch.dtype | None = None,
        learned_variance: bool = False,
        network: nn.Module | None = None,
        normalizer: Normalizer | None = None,
        null: Condition | None = None,
    ) -> None:
        super().__init__()
        if isinstance(net, ScoreModel):
            raise TypeError(
                "net is a ScoreModel already: pass it as it is, or its network, "
                "ScoreModel(net=model.net, sde=...)"
            )
        given: object = net
        if isinstance(given, type) and issubclass(given, nn.Module):
            raise TypeError(f"net must be a network, not a class: write {given.__name__}(...)")
        if not callable(net):
            hint = "; the order is ScoreModel(net, sde)" if isinstance(net, SDE) else ""
            raise TypeError(f"net must be callable as net(x, t), got {net!r}{hint}")
        if isinstance(sde, type) or not isinstance(sde, SDE):
            hint = (
                f"pass an instance, {sde.__name__}()" if isinstance(sde, type) else "pass VP(), say"
            )
            raise TypeError(f"sde must be an SDE, got {sde!r}; {hint}")
        sde.check_range()
        predicts = canonical(predicts)
        if "kernel" not in sde.offers and predicts != sde.predicted:
            raise ValueError(
                f"{sde!r} has no Gaussian kernel: its network predicts {sde.predicted!r}, got "
                f"{predicts!r}; or use a LinearSDE"
            )
        self.net = net
        self.sde = sde
        self.predicts = predicts
        self.declared_data_std = None if data_std is None else _length("data_std", data_std)
        given = data_std if sigma_data is None else sigma_data
        self.sigma_data = _length("sigma_data", sde.sigma_data if given is None else given)
        self.time = check_network_time(time, sde)
        self.time_dtype = check_time_dtype(time_dtype)
        self.learned_variance = flag("learned_variance", learned_variance)
        self.extras: tuple[str, ...] = ("variance",) if self.learned_variance else ()
        if normalizer is not None and not isinstance(normalizer, Normalizer):
            raise TypeError(
                f"normalizer must be a Normalizer, Normalizer.of(data) say; got {normalizer!r}"
            )
        self.normalizer = normalizer
        self.null = None if null is None else _values("null", null, net)
        if network is not None and not isinstance(network, nn.Module):
            raise TypeError(f"network must be the torch module that net calls, got {network!r}")
        vars(self)["network"] = network  # not by attribute: a module would be entered a second time

    @property
    def data_std(self) -> float:
        """The standard deviation of a coordinate of the data: declared, else the one that the SDE
        is made for.
        """
        return self.sde.data_std if self.declared_data_std is None else self.declared_data_std

    @property
    def detail_std(self) -> float | None:
        """The standard deviation of the details of the data, where it was measured."""
        return self._detail_std

    @detail_std.setter
    def detail_std(self, value: float | None) -> None:
        self._detail_std = None if value is None else _length("detail_std", value)

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are; the host if it has none."""
        return self._agreed("device", lambda p: p.device) or torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the network's parameters; None if it has none."""
        return self._agreed("dtype", lambda p: p.dtype if p.is_floating_point() else None)

    @property
    def has_weights(self) -> bool:
        """Whether there are parameters or buffers, so that the device is known."""
        return self._agreed("device", lambda p: p.device) is not None

    def _agreed(self, name: str, read: Callable[[Tensor], _Fact | None]) -> _Fact | None:
        """What the first parameter says that says anything; a ValueError if modules behind ``net``
        disagree.
        """
        own = first_fact(self if self.network is None else self.network, read)
        if own is not None or self.network is not None:
            return own
        facts = {first_fact(module, read) for module in modules_behind(self.net).modules} - {None}
        if len(facts) > 1:
            raise ValueError(
                f"net calls modules of more than one {name}, {', '.join(sorted(map(str, facts)))}: "
                "say which of them is handed x, ScoreModel(net, sde, network=module)"
            )
        return next(iter(facts), None)

    def _hidden(self) -> list[nn.Module]:
        """The modules behind ``net`` that are not registered here."""
        registered = set(self.modules())
        named = [] if self.network is None else [self.network]
        return [
            module
            for module in (*named, *modules_behind(self.net).modules)
            if module not in registered
        ]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for module in self._hidden():
            module._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's has no types
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the network, registered here or behind a function."""
        for module in self._hidden():
            module.train(mode)
        return super().train(mode)

    def conversion(self, target: str, t: Tensor) -> Pair:
        """(A, B) such that ``target`` is A x + B output, for float64 host times () or (B,); not
        finite where there is none.
        """
        return conversion(self.sde, self.predicts, target, t, self.sigma_data)

    def singular(self, target: str, t: Tensor) -> str:
        """Why `conversion` to ``target`` is not finite at the first such time of t, and what to use
        instead.
        """
        times = t.reshape(-1)
        bad = ~torch.stack([torch.isfinite(c).reshape(-1) for c in self.conversion(target, t)]).all(
            dim=0
        )
        return singular(
            self.sde,
            self.predicts,
            target,
            times[bad][0] if bool(bad.any()) else times[0],
            self.sigma_data,
        )

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[Call]:
        """The network's times, and what states are scaled by, for each of times (n,) or (n,
        rows).
        """
        dtype = like.sees if like.asked is self else self.dtype or like.sees
        t = times.reshape(-1)
        time = t if self.time == "t" else read_network_time(self.time, self.sde, t)
        if time.is_floating_point():
            time = time.to(
                dtype if self.time_dtype is None or like.device.type == "mps" else self.time_dtype
            )
        time = time.to(like.device, non_blocking=True)
        moments = (
            time.reshape(times.shape) if times.ndim > 1 else time[:, None].expand(-1, like.rows)
        ).unbind()
        if self.predicts != "edm":
            return list(map(Call, moments, repeat(dtype)))
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        scale = (sigma**2 + (self.sigma_data * alpha) ** 2).rsqrt()
        (scales,) = planned(len(times), like, scale.reshape(times.shape))
        return list(map(Call, moments, repeat(dtype), scales))

    def evaluate(self, x: Tensor, at: Call, rows: Rows) -> Tensor | Output:
        """The network's prediction at states x (rows, *event), in their shape and dtype.

        This is the method to override, and what every sampler, loss and likelihood calls. With
        ``learned_variance`` it is an `Output` with ``variance`` beside the value, of the same
        shape.
        """
        rows.count()
        given = x if at.scale is None else weighted((at.scale, x))
        given = given if given.dtype == at.dtype else given.to(at.dtype)
        # Made for all rows beforehand, unless these are others.
        count, time = x.shape[0], at.time
        time = time if time.shape[0] == count else _of_rows(time, count)
        named = (
            {
                name: _of_dtype(value, at.dtype)
                for name, value in rows.condition.items()
                if name not in self.sde.conditions
            }
            if rows.condition
            else {}
        )
        try:
            out = reading("the network", self.net, "x, t", given, time, **named)
        except WrittenError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, TypeError):
                check_names(named, self.net)
                check_taken(named, self.net, self.sde.conditions)
            names = "".join(f", {name}" for name in named)
            error.add_note(
                f"the network was called as net(x, t{names}) with x of shape {tuple(x.shape)}, "
                f"{at.dtype}: does it take that?"
            )
            raise
        against = self.time == "reversed" and self.predicts == "flow"
        if self.learned_variance:
            both = tensor_of(out, doubled(x.shape), " with learned_variance").to(x.dtype)
            value, variance = both.chunk(2, dim=1)
            return Output(-value if against else value, variance=variance)
        if not (isinstance(out, Tensor) and out.dtype == x.dtype and out.shape == x.shape):
            out = tensor_of(out, x.shape).to(x.dtype)
        return -out if against else out


def _of_rows(time: Tensor, count: int) -> Tensor:
    """The one time of an entry of `ScoreModel.at` for another number of rows; a ValueError where
    its rows have their own.
    """
    if len(time) > 1 and time.stride(0) != 0:
        raise ValueError(
            f"an entry of `at` for {len(time)} rows, each at its own time, was evaluated at "
            f"{count} rows: a model that evaluates "
            "another at rows of its own choice, rows.take(i), hands on the times of these, "
            "times[:, i] where times are (n, rows)"
        )
    return time[:1].expand(count)


def _of_dtype(value: Any, dtype: torch.dtype) -> Any:
    """A condition as the network is handed it."""
    return (
        value.to(dtype)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != dtype
        else value
    )


def _values(name: str, values: Any, net: Callable[..., Any]) -> dict[str, Tensor | float]:
    """Numbers or tensors by the names of conditions of ``net``."""
    check_names(values, net, name)
    if not values:
        raise ValueError(f"{name} is empty: name a condition, {name}={{'label': 10}} say")
    check_known(values, net, f"{name}: ")
    found = {key: plain(value) for key, value in values.items()}
    for key, value in found.items():
        if not isinstance(value, Tensor | float | int):
            raise TypeError(
                f"{name}[{key!r}] must be a number, or a tensor of the shape that one sample's "
                f"condition has; got {type(value).__name__}"
            )
    return found


def _length(name: str, value: Any) -> float:
    size = real(name, value)
    if not 0 < size < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return size

"""What a forward SDE is: dx = drift(x, t) dt + g(t) dw from data at t = 0 to noise at t = T."""

from __future__ import annotations

import functools
import inspect
import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import MemberDescriptorType
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from sdediff.solvers import Solver, rowwise
from sdediff.solvers.coefficients import is_linear
from sdediff.solvers.given import (
    Positive,
    Record,
    WrittenError,
    fact,
    nearest,
    plain,
    plain_fields,
    reading,
    real,
    reals,
)

__all__ = ["SDE", "Prior", "as_time", "check_linear", "check_span", "derived", "drift_of", "values"]

_SLACK = 1e-6
_COEFFICIENTS = ("diffusion", "f", "g", "alpha", "sigma", "log_snr")
_OF_KERNELS = frozenset(
    {
        *_COEFFICIENTS[1:],
        "levels",
        "time_of",
        "time_beyond",
        "rates",
        "kernel",
        "posterior",
        "perturb",
        "prior_gap",
    }
)


def as_time(t: Tensor | float) -> Tensor:
    """``t`` as a contiguous float64 tensor on the host, () or (B,), where schedules are
    evaluated.
    """
    time = reals("t", t, "cpu")
    if time.ndim > 1:
        raise ValueError(
            f"t must be a number or one number a sample, (B,); got shape {tuple(time.shape)}"
        )
    return time.contiguous()


def values(function: Callable[[Tensor], Any], t: Tensor | float, name: str) -> Tensor:
    """function(t) as float64, shaped as t; a function may return one number for all times."""
    time = as_time(t)
    try:
        found = reading(name, function, "t", time)
        out = found if is_linear(found) else reals(name, found, time.device)
    except WrittenError:
        raise
    except AttributeError as error:
        # Inside a property Python would take it for a missing property, and lose what is missing.
        raise TypeError(f"{name} asks for an attribute that is not there: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        if not getattr(error, "__notes__", None):
            error.add_note(
                f"{name} was called with a float64 tensor of shape {tuple(time.shape)}: write it "
                "with torch functions"
            )
        raise
    if is_linear(out):
        return cast(Tensor, _maps(out, time, name))
    if out.shape == time.shape:
        return out
    if out.numel() == 1:
        return out.reshape(()).expand(time.shape)
    raise ValueError(
        f"{name} must return one number for each time, shape {tuple(time.shape)}; got shape "
        f"{tuple(out.shape)}"
    )


def _maps(found: Any, time: Tensor, name: str) -> Any:
    """Linear maps at all times; a ValueError if there is one for all, or not one for each."""
    shape = getattr(found, "values", time).shape
    if (
        time.ndim
        and hasattr(found, "values")
        and (len(shape) < 2 + hasattr(found, "axis") or shape[0] != len(time))
    ):
        raise ValueError(
            f"{name} must return a map for each time, values of shape ({len(time)}, ...), got "
            f"{tuple(shape)}; one for "
            "all times is repeated: values.expand(len(t), ...)"
        )
    return found


def coefficient(method: Callable[..., Any]) -> Callable[..., Tensor]:
    """Make a method of (self, t) take numbers and tensors of any kind, and return float64 shaped as
    t.
    """

    @functools.wraps(method)
    def wrapped(self: object, t: Tensor | float) -> Tensor:
        return values(
            functools.partial(method, self), t, f"{type(self).__name__}.{method.__name__}(t)"
        )

    return wrapped


def derived(method: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    """`coefficient` for a method of ours: it takes numbers and tensors of any kind."""

    @functools.wraps(method)
    def wrapped(self: object, t: Tensor | float) -> Tensor:
        here = isinstance(t, Tensor) and t.dtype == torch.float64 and t.device.type == "cpu"
        if here and isinstance(t, Tensor) and t.ndim < 2 and t.is_contiguous():
            return method(self, t)
        return method(self, as_time(t))

    return wrapped


@dataclass(frozen=True)
class Prior(Record):
    """The normal law N(0, std^2 I) of the states from which sampling starts."""

    std: Positive

    def from_noise(self, z: Tensor) -> Tensor:
        """The draw that a standard normal z (B, *event) becomes."""
        return self.std * z

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x (B, *event) in nats, (B,)."""
        flat = rowwise(x) / self.std
        return -0.5 * flat.square().sum(dim=1) - flat.shape[1] * (
            math.log(self.std) + 0.5 * math.log(2 * math.pi)
        )


class SDE:
    """A process that carries data at t = 0 to noise at t = T,

        dx = drift(x, t) dt + diffusion(t) dw

    (Song et al. 2021, arXiv 2011.13456, eq. 5). A subclass has the methods ``drift`` and
    ``diffusion``, and ``prior`` if samples should start from it. Any drift can be simulated forward
    (`simulate`) and sampled in reverse with a given score (`sample`). A `LinearSDE` is needed for
    all that rests on a Gaussian kernel: alpha, sigma, losses by denoising, predictions other than
    the score, and solvers in data form.

    ``[t_min, t_max]`` is the usable range of time, shared by losses, sampling and likelihood: T /
    1000 and T unless a class attribute, a field or an argument says otherwise. Times are numbers or
    float64 host tensors, () or (B,); states are (B, *event) of any rank.
    """

    @fact
    def offers(self) -> frozenset[str]:
        """What is known of it: ``kernel`` says that x_t given x_0 is N(alpha x_0, sigma^2 I), with
        all that `LinearSDE` has.
        """
        return frozenset({"drift", "diffusion"})

    @fact
    def predicted(self) -> str:
        """What a network predicts under it where there is no Gaussian kernel."""
        return "score"

    @fact
    def conditions(self) -> frozenset[str]:
        """The names of conditions that are for the process itself: the network is not handed
        them.
        """
        return frozenset()

    @fact
    def solver(self) -> Solver | None:
        """The solver of `sample` where none is given; None: by the rule of docs/solvers.md."""
        return None

    @fact
    def T(self) -> float:
        """The end of time."""
        return 1.0

    @fact
    def unit(self) -> float:
        """The length that was 1 when the SDE was declared: another one where it is
        `LinearSDE.scaled`.
        """
        return 1.0

    @fact
    def spacing(self) -> str:
        """The grid that suits the SDE's own time, a name in `sdediff.solvers.GRIDS`: that of
        solvers which have no better one.
        """
        return "uniform"

    def __init__(
        self, *, T: float | None = None, t_min: float | None = None, t_max: float | None = None
    ) -> None:
        self._declare(T=T, t_min=t_min, t_max=t_max)

    def __post_init__(self) -> None:
        """Nothing: what a dataclass among the subclasses gives is checked after it, as
        `check_declared` says.
        """

    def __init_subclass__(cls) -> None:
        """Let the coefficients of a subclass take numbers and tensors of any kind, and check what
        it declares once it is made.
        """
        super().__init_subclass__()
        for name in _COEFFICIENTS:
            method = vars(cls).get(name)
            if callable(method) and not hasattr(method, "__wrapped__"):
                setattr(cls, name, coefficient(method))
        if "__init__" in vars(cls) and "__repr__" not in vars(cls):
            setattr(cls, "__repr__", SDE.__repr__)  # noqa: B010  # of its arguments, not of fields
        # a dataclass has no __init__ yet: its __post_init__ is the last to run
        for name in ("__init__", "__post_init__"):
            method = vars(cls).get(name, getattr(cls, name) if name == "__post_init__" else None)
            if method is not None:
                setattr(cls, name, _then_checked(method))

    def check_declared(self) -> None:
        """Raise a ValueError unless T, t_min and t_max make sense, however they are given: it is
        called once all of it is there.

        Of t_min and t_max what is computed, by a property or from coefficients, is left to its
        first use.
        """
        for name in ("drift", *_COEFFICIENTS):
            found = _of_class(type(self), name)
            if not (found is None or callable(found) or hasattr(found, "__get__")):
                raise TypeError(
                    f"{type(self).__name__}: {name} must be a method, def {name}(self, ...), got "
                    f"{found!r}"
                )
        T = real(f"{type(self).__name__}: T", self.T)
        t_min = self._given("t_min")
        t_max = self._given("t_max")
        if not 0 < T < math.inf:
            raise ValueError(f"{type(self).__name__}: T must be a positive number, got {self.T!r}")
        if t_min is not None and not 0 <= t_min < T:
            raise ValueError(
                f"{type(self).__name__}: t_min must lie in [0, T) = [0, {T:g}), got {t_min!r}"
            )
        if t_max is not None and not (t_min or 0.0) < t_max <= T:
            raise ValueError(
                f"{type(self).__name__}: t_max must lie in (t_min, T] = ({t_min or 0.0:g}, "
                f"{T:g}], got {t_max!r}"
            )

    def _given(self, name: str) -> float | None:
        """What an argument, a field or a class attribute says; None where a property says it."""
        found = vars(self).get(name, _of_class(type(self), name))
        number = plain(found)
        if hasattr(found, "__get__") and name not in vars(self):
            return None
        return (
            number
            if isinstance(number, int | float)
            else real(f"{type(self).__name__}: {name}", number)
        )

    def __getattr__(self, name: str) -> NoReturn:
        """Say why there is no kernel where there is none, and what a property has missed that
        fails.
        """
        found = _of_class(type(self), name)
        # a slot may be empty
        if hasattr(found, "__get__") and not isinstance(found, MemberDescriptorType):
            try:  # again: Python has let go of the error
                found.__get__(self, type(self))
            except AttributeError as error:
                raise TypeError(
                    f"{type(self).__name__}.{name} asks for an attribute that is not there: {error}"
                ) from error
        if name in _OF_KERNELS:
            raise AttributeError(
                f"{type(self).__name__} has no {name}: only a LinearSDE has a Gaussian kernel. "
                "Draw x_t by sdediff.simulate, "
                "and sample with a network that predicts the score, by EulerMaruyama or RK45"
            )
        hint = (
            ""
            if name.startswith("_")
            else nearest(name, [known for known in dir(self) if known[0] != "_"])
        )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def _declare(self, **given: float | None) -> None:
        """Let arguments take the place of class attributes and derived values."""
        values = {name: real(name, value) for name, value in given.items() if value is not None}
        vars(self).update(values, _declared=vars(self).get("_declared", {}) | values)

    def __repr__(self) -> str:
        """The class and its arguments, as far as they are kept under their names."""
        kept = vars(self)
        names = [
            name
            for name in inspect.signature(type(self)).parameters
            if name in kept and name not in _COEFFICIENTS
        ]
        derived = [name for name in names if hasattr(_of_class(type(self), name), "__get__")]
        given = {name: kept[name] for name in names if name not in derived} | kept.get(
            "_declared", {}
        )
        arguments = [f"{name}={_brief(value)}" for name, value in given.items()]
        return f"{type(self).__name__}({', '.join(arguments)})"

    @cached_property
    def t_min(self) -> float:
        """The smallest usable time: T / 1000."""
        return 1e-3 * self.T

    @cached_property
    def t_max(self) -> float:
        """The largest usable time, where sampling starts: T."""
        return self.T

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """Drift at (x, t), (B, *event), for t () or (B,): `sdediff.solvers.expand` shapes a (B,)
        so that it multiplies x.
        """
        raise NotImplementedError(f"{type(self).__name__} has no drift: give drift(self, x, t)")

    @derived
    def diffusion(self, t: Tensor) -> Tensor:
        """Diffusion coefficient g(t), shaped as t."""
        raise NotImplementedError(
            f"{type(self).__name__} has no diffusion: give diffusion(self, t)"
        )

    @property
    def prior(self) -> Prior:
        """The law from which sampling starts, at t_max."""
        raise NotImplementedError(
            f"{type(self).__name__} has no prior: give the class one, `prior = Prior(std)` say, "
            "or pass x_init to sample"
        )

    @cached_property
    def data_std(self) -> float:
        """The standard deviation of data that the SDE is made for: the prior's, or 1 without a
        prior.
        """
        try:
            return self.prior.std
        except NotImplementedError:
            return 1.0

    @property
    def sigma_data(self) -> float:
        """The standard deviation of images in [-1, 1] in the SDE's own lengths: half of `data_std`,
        0.5 where that is 1.

        Publications choose their constants for such data. ``predicts="edm"`` supposes it where a
        model declares none.
        """
        return 0.5 * self.data_std

    def check_range(self) -> None:
        """Raise a ValueError unless t_min and t_max are times, those too that are computed at their
        first use.
        """
        for each in ("t_min", "t_max"):
            time = real(f"{type(self).__name__}: {each}", getattr(self, each))
            if not (time >= 0 if each == "t_min" else time > 0) or not time < math.inf:
                raise ValueError(
                    f"{type(self).__name__}: {each} must be a time in [0, T] = [0, {self.T:g}], "
                    f"got {time!r}"
                )

    def check_time(self, t: Tensor) -> Tensor:
        """Return t; a ValueError if any of it is outside the usable range."""
        return check_span(t, self.t_min, self.t_max, "the usable range [t_min, t_max]", self)


def _then_checked(method: Callable[..., None]) -> Callable[..., None]:
    """An ``__init__`` or ``__post_init__`` after which what the SDE declares is checked, if it is
    the last to run.
    """

    @functools.wraps(method)
    def made(self: SDE, *args: Any, **kwargs: Any) -> None:
        if method.__name__ == "__post_init__":
            plain_fields(self)
        method(self, *args, **kwargs)
        first = type(self).__init__
        if (first if hasattr(first, "then_checked") else type(self).__post_init__) is made:
            self.check_declared()

    vars(made)["then_checked"] = True
    return made


def _of_class(cls: type, name: str) -> Any:
    """What the class itself has under that name, a property as the property that it is; None if
    nothing.
    """
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _brief(value: Any) -> str:
    """A value in few characters."""
    number = plain(value)
    if isinstance(number, float):
        return f"{number:g}"
    if isinstance(number, Tensor):
        return f"tensor of shape {tuple(number.shape)}"
    return reprlib.repr(number)


def check_span(t: Tensor, low: float, high: float, what: str, sde: SDE) -> Tensor:
    """Return t; a ValueError if any of it is outside [low, high], which is called ``what``."""
    # The slack lets a bound pass that was rounded to float32; written so that NaN does not.
    inside = (t >= low * (1 - _SLACK)) & (t <= high * (1 + _SLACK))
    if not bool(inside.all()):
        wrong = t[~inside] if t.ndim else t
        raise ValueError(
            f"t = {float(wrong.flatten()[0]):.6g} is outside {what} = [{low:g}, {high:g}] of "
            f"{sde!r}"
        )
    return t


def check_linear(sde: object) -> None:
    """A TypeError unless it is an SDE with a Gaussian kernel."""
    if not isinstance(sde, SDE) or "kernel" not in sde.offers:
        raise TypeError(
            f"sde must be a LinearSDE, VP() say, which has a Gaussian kernel; got {sde!r}"
        )


def drift_of(sde: SDE, x: Tensor, t: Tensor) -> Tensor:
    """The drift of an SDE, which may be a user's, at (x, t)."""
    found: Tensor = reading(f"the drift of {type(sde).__name__}", sde.drift, "x, t", x, t)
    return found

"""The problem that a user's own functions are: dx = f(x, t) dt + b(x, t) dw."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Self

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, expand
from sdediff.solvers.coefficients import Coef, Columns, Coordinates
from sdediff.solvers.given import reading
from sdediff.solvers.problem import Problem

__all__ = ["SENSES", "STRUCTURES", "Function", "FunctionProblem", "Sense", "Structure"]

Function = Callable[..., Tensor]
Structure = Literal["additive", "diagonal", "commutative", "general"]
Sense = Literal["ito", "stratonovich"]
STRUCTURES: Final = ("additive", "diagonal", "commutative", "general")
SENSES: Final = ("ito", "stratonovich")

_CLOSE: Final = 1e-3  # relative: two answers that differ by less are taken for the same
_ROUGH: Final = 1e-2  # the same, for differences


class _Spread(NamedTuple):
    """The size of the noise of a step, but for the state: root b(x, t)."""

    t: Tensor
    root: Tensor


class FunctionProblem(Problem):
    """dx = f(x, t) dt + b(x, t) dw for states like ``x``, with b in a ``structure`` and the noise
    in a ``sense`` that `solve_sde` explains; without b it is an ODE.
    """

    def __init__(
        self,
        x: Tensor,
        drift: Function,
        diffusion: Function | None = None,
        *,
        derivative: Function | None = None,
        structure: Structure = "diagonal",
        sense: Sense = "ito",
        condition: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(len(x))
        self.start = x
        self.condition = dict(condition or {})
        self.brownian: torch.Size = x.shape[1:]
        self.structure = structure
        self.sense = sense
        self._f, self._b, self._derivative = drift, diffusion, derivative
        if diffusion is not None:
            self.offers = frozenset({"drift", "diffusion", "loading", "iterated"})

    def take(self, rows: Tensor) -> Self:
        part = super().take(rows)
        part.start = self.start[rows.to(self.start.device)]
        part.condition = {
            name: value[rows.to(value.device)] for name, value in self.condition.items()
        }
        return part

    def call(self, who: str, function: Function, x: Tensor, t: Tensor) -> Tensor:
        """What a user's function says at (x, t), with the condition of these rows."""
        if t.ndim:
            t = t.to(x.device, torch.float32 if x.device.type == "mps" else torch.float64)
        found: Tensor = reading(who, function, "x, t", x, t, **self.condition)
        if not isinstance(found, Tensor):
            raise TypeError(f"{who} must return a tensor, got {type(found).__name__}")
        if found.is_complex():
            raise TypeError(f"{who} must return real numbers, got {found.dtype}")
        return found

    def _shaped(self, who: str, function: Function, x: Tensor, t: Tensor) -> Tensor:
        found = self.call(who, function, x, t)
        if found.shape != x.shape:
            hint = (
                ": t is (rows,) where every sample has its own time, and solvers.expand(t, x) "
                "shapes it for x"
                if t.ndim
                else ""
            )
            raise ValueError(
                f"{who} must return a tensor of the shape of x, {tuple(x.shape)}; got "
                f"{tuple(found.shape)}{hint}"
            )
        return found.to(x.dtype, copy=True)  # the function may return one tensor each time

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return self.seen(x, self._shaped("f(x, t)", self._f, x, t))

    def check_rows(self, x: Tensor, times: Tensor) -> None:
        """A ValueError where f takes times (B,) for a vector over the last axis of x, which shows
        in no shape if that axis has length B too.

        The first sample is asked at the first of two ``times``, the others at the second.
        """
        if x.ndim < 2 or not 1 < x.shape[-1] == len(x):
            return
        first, second = times.unbind()
        own = torch.cat([first[None], second.expand(len(x) - 1)])
        for who, function in (("f(x, t)", self._f), ("the diffusion b(x, t)", self._b)):
            if function is not None:
                wanted = self.call(who, function, x, second).clone()
                wanted[:1] = self.call(who, function, x, first)[:1]
                found = self.call(who, function, x, own)
                if found.shape != wanted.shape or not _same(found, wanted):
                    raise ValueError(
                        f"{who} answers otherwise where every sample has its own time, t (B,), "
                        "than where t is one number: shape t for x first, by solvers.expand(t, x)"
                    )

    # -- noise -------------------------------------------------------------------------------------

    def _loaded(self, x: Tensor, t: Tensor) -> Tensor:
        """b(x, t): of the shape of x, or (rows, d, m)."""
        who = "the diffusion b(x, t)"
        if self._b is None:
            raise NotImplementedError
        found = self.call(who, self._b, x, t).to(x.dtype)
        matrix = self.structure in ("commutative", "general") or (
            self.structure == "additive" and found.ndim == 3 and x.ndim == 2
        )
        if matrix:
            if x.ndim != 2 or found.ndim != 3 or found.shape[:2] != x.shape:
                raise ValueError(
                    f"{who} must return (rows, d, m) for states (rows, d) where structure="
                    f"{self.structure!r}; got {tuple(found.shape)} for {tuple(x.shape)}. Noise "
                    "of the shape of x is structure='diagonal'"
                )
        elif found.shape != x.shape:
            raise ValueError(
                f"{who} must return a tensor of the shape of x, {tuple(x.shape)}, where "
                f"structure={self.structure!r}; got {tuple(found.shape)}. A matrix (rows, d, m) "
                "is structure='general' (or 'commutative')"
            )
        return found

    def probe(self, x: Tensor, t: Tensor, *, derivative: bool) -> None:
        """Learn from b at the start how many Brownian motions there are; a ValueError where b has
        not the structure that it is said to have.

        With ``derivative``, the noise has to commute: that is looked at here, and nowhere else.
        """
        b = self._loaded(x, t)
        self.brownian = b.shape[1:] if b.shape == x.shape else b.shape[2:]
        if self.structure == "additive":
            if not _same(b, self._loaded(2 * x + 1, t)):
                raise ValueError(
                    "structure='additive' is for noise that does not depend on the state, and "
                    "b(2 x + 1, t) differs from b(x, t) at the start: take 'diagonal', or "
                    "'general' for a matrix"
                )
            return
        if derivative and self._derivative is None and self._cut(x, t, b):
            raise ValueError(
                "b depends on x, and torch finds no derivative of it, which the solver needs: "
                "leave out detach() and torch.no_grad(), or pass derivative="
            )
        if derivative and self._derivative is not None:
            self._check_derivative(x, t, b)
        if derivative and not self._commutes(x, t, b):
            what = (
                "coordinate i of b depends on others than coordinate i of x"
                if self.structure == "diagonal"
                else "the columns of b do not commute"
            )
            raise ValueError(
                f"structure={self.structure!r} does not hold at the start, where {what}: write "
                "b as a matrix (rows, d, m) with structure='general', for EulerMaruyama() or "
                "StratonovichHeun()"
            )

    def _check_derivative(self, x: Tensor, t: Tensor, b: Tensor) -> None:
        """A ValueError where the given derivative is not that of b at the start, by differences
        along one direction; kinks, where the two sides differ, are passed over.
        """
        v = torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape)
        step = torch.finfo(x.dtype).eps ** (1 / 3) * (1 + x.abs().max())
        ahead = (self._loaded(x + step * v, t) - b) / step
        behind = (b - self._loaded(x - step * v, t)) / step
        given = self._along(x, t, v)
        least = _ROUGH * torch.maximum(given.abs().max(), ahead.abs().max())
        wrong = (given - (ahead + behind) / 2).abs() > least
        if bool((wrong & ((ahead - behind).abs() <= least)).any()):
            raise ValueError(
                "derivative= differs from the differences of b at the start: return d b_i / d x_i "
                "of the shape of x, or (rows, d, m, d) for a matrix, or leave it out, so that "
                "torch differentiates b"
            )

    def _cut(self, x: Tensor, t: Tensor, b: Tensor) -> bool:
        """Whether b depends on x by something that torch does not differentiate."""
        if _same(b, self._loaded(2 * x + 1, t)):
            return False
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            found = self._loaded(y, t)
            return (
                not found.requires_grad
                or torch.autograd.grad(found.sum(), y, allow_unused=True)[0] is None
            )

    def _commutes(self, x: Tensor, t: Tensor, b: Tensor) -> bool:
        """Whether (D b_k)[b_j] = (D b_j)[b_k] for all j and k."""
        if b.shape == x.shape:
            signs = torch.ones_like(x)
            signs.view(-1)[torch.arange(x.numel(), device=x.device) * 7 % 3 == 1] = -1.0
            return _same(self._along(x, t, signs), signs * self._along(x, t, torch.ones_like(x)))
        turned = [self._along(x, t, b[..., j]) for j in range(b.shape[2])]
        pairs = itertools.combinations(range(b.shape[2]), 2)
        return all(_same(turned[j][..., k], turned[k][..., j]) for j, k in pairs)

    def _along(self, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """The derivative of b at x along v (rows, *event), of the shape of b."""
        if self._derivative is None:
            return directional(lambda y: self._loaded(y, t), x, v)
        given = self.call("the derivative of b", self._derivative, x, t).to(x.dtype)
        diagonal = self.structure == "diagonal"
        wanted = x.shape if diagonal else (*x.shape, *self.brownian, x.shape[1])
        if given.shape != wanted:
            raise ValueError(
                f"the derivative of b must be {tuple(wanted)}, "
                f"{'d b_i / d x_i' if diagonal else '(rows, d, m, d): d b_ik / d x_j'}; got "
                f"{tuple(given.shape)}"
            )
        return given * v if diagonal else torch.einsum("bikj,bj->bik", given, v)

    def loading(self, x: Tensor, t: Tensor) -> Coef:
        b = self._loaded(x, t)
        return Coordinates(b) if b.shape == x.shape else Columns(b)

    def iterated(self, x: Tensor, t: Tensor, dw: Tensor, h: Number) -> Tensor:
        """With symmetric I_jk = (dw_j dw_k - h delta_jk) / 2 in Ito's sense, dw_j dw_k / 2 in
        Stratonovich's.
        """
        if self.structure == "additive":
            return torch.zeros_like(x)
        signed: Any = expand(h, x)
        length = abs(signed) if self.sense == "ito" else 0.0
        b = self._loaded(x, t)
        if b.shape == x.shape:
            return 0.5 * self._along(x, t, b) * (dw.square() - length)
        out = 0.5 * (self._along(x, t, (b @ dw[..., None])[..., 0]) @ dw[..., None])[..., 0]
        if self.sense == "ito":
            for k in range(b.shape[2]):
                out = out - 0.5 * length * self._along(x, t, b[..., k])[..., k]
        return out

    def spread(self, times: Tensor, root: Number = 1.0) -> Sequence[Any]:
        roots = torch.as_tensor(root, dtype=torch.float64).expand(times.shape)
        planned = [_Spread(*row) for row in zip(times.unbind(), roots.unbind(), strict=True)]
        if self.structure != "additive":
            return planned
        return [self._sized(self.start, each) for each in planned]

    def spread_at(self, x: Tensor, spread: Any) -> Coef:
        size: Coef = spread if self.structure == "additive" else self._sized(x, spread)
        return size

    def _sized(self, x: Tensor, spread: _Spread) -> Coef:
        root = spread.root
        return self.loading(x, spread.t) * (root.to(x.device, x.dtype) if root.ndim else root)


def directional(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The derivative of a function at x along v, by two reverse passes: u^T D f is linear in u, and
    its derivative in u is D f v.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        y = function(x)
        u = torch.zeros_like(y, requires_grad=True)
        pulled = (
            torch.autograd.grad(y, x, u, create_graph=True, allow_unused=True)[0]
            if y.requires_grad
            else None
        )
        if pulled is None:
            return torch.zeros_like(y)
        (found,) = torch.autograd.grad(pulled, u, v, create_graph=keep)
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= _CLOSE * (a.abs() + b.abs()) + 1e-12).all())

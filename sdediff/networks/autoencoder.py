"""An encoder and a decoder of any make, as one network: diffusers' AutoencoderKL and VQModel, or a
user's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sdediff.arguments import check_seed
from sdediff.calls import check_floating
from sdediff.drawing import drawn
from sdediff.modules import evaluating, first_fact, modules_behind
from sdediff.normalizer import Normalizer
from sdediff.solvers import White, rowwise
from sdediff.solvers.given import described, integer

__all__ = ["Autoencoder", "Reconstruction"]

Store = Callable[[int, Iterator[Tensor]], Tensor]
"""From a number of samples and their parts, one after the other, to the tensor of them all."""


class Reconstruction(NamedTuple):
    """What an autoencoder makes of data x (B, *event), and the terms of its loss."""

    sample: Tensor
    """x^, in the shape of x."""
    kl: Tensor | None = None
    """KL(q(z | x) || N(0, I)) in nats, (B,), where the encoder returns a distribution."""
    commitment: Tensor | None = None
    """The loss of a quantizer, () or (B,), where the decoder returns one."""


class Autoencoder(nn.Module):
    """An encoder and a decoder, found by their methods, as one network: z = E(x), x^ = D(z).

    ``encode`` is an object with a method ``encode``, as diffusers' AutoencoderKL and VQModel have,
    or a function or network of data x (B, *event). It returns latents (B, *shape): a tensor, the
    first entry of a tuple, or an object with one as ``latents``, ``latent`` or ``latent_dist``. A
    distribution, there or returned itself, has ``mean``, and ``std`` or ``stddev`` where latents
    can be drawn from it. ``decode``, by default the method of the same object, takes latents and
    returns data: a tensor, the first entry of a tuple, or an object with one as ``sample``.

    A configuration of the encoder that has a ``scaling_factor``, ``shift_factor``, ``latents_mean``
    or ``latents_std`` is heeded, as diffusers' pipelines do: z = scaling_factor (E(x) -
    shift_factor), and the inverse before the decoder. ``shape``, that of one latent, is compared
    with what the encoder returns.

    Called as a network, (x, t) -> `Reconstruction`, it is a model of the process
    `degradation.Unchanged`, and `objectives.Autoencoding` trains it: in training z is drawn from
    the encoder's distribution, else it is its mean; t plays no part.
    """

    _functions: dict[str, Callable[[Tensor], Any]]

    def __init__(
        self, encode: Any, decode: Any = None, *, shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        made = {"encode": _function("encode", encode)}
        if decode is None and not callable(getattr(encode, "decode", None)):
            raise TypeError(
                "decode is missing: pass a function or network of latents, or as encode an object "
                f"with both methods, as diffusers' AutoencoderKL; {described(encode)} has no "
                "method decode"
            )
        made["decode"] = _function("decode", encode if decode is None else decode)
        vars(self)["_functions"] = made  # not by attribute: modules are entered once, below
        behind = chain.from_iterable(modules_behind(each).modules for each in made.values())
        self.parts = nn.ModuleList(dict.fromkeys(behind))
        self.declared = _declared(encode)
        self.shape = None if shape is None else _shape(shape)

    def encode(
        self,
        x: Tensor,
        *,
        batch_size: int = 64,
        seed: int | Sequence[int] | None = None,
        out: str | Path | None = None,
    ) -> Tensor:
        """Latents (N, *shape) of data x (N, *event), ``batch_size`` of them at a time, in
        evaluation mode.

        Of a distribution they are its mean; with ``seed`` they are drawn from it: an int, of which
        sample i takes seed i of `seeds`, or one int a sample. With ``out``, the path of an .npy
        file, they are written there part by part, and the tensor that is returned reads the file as
        it is needed;
        ``torch.from_numpy(numpy.load(out, mmap_mode="c"))`` is the same tensor later. A gradient is
        kept where x asks for one, which a file cannot: with ``out`` that is a ValueError.

        Raises TypeError or ValueError where the encoder returns something else than latents of the
        declared shape.
        """
        check_floating("x", x)
        if out is not None and x.requires_grad and torch.is_grad_enabled():
            raise ValueError("x asks for a gradient, which a file cannot keep: pass x.detach()")

        every = None if seed is None else check_seed(seed, None, tuple(x.shape))

        def part(rows: range) -> Tensor:
            mean, std = self._posterior(x[rows.start : rows.stop])
            if every is not None and std is not None:
                own = every[rows.start : rows.stop]
                noise = White(own, mean.shape[1:], dtype=mean.dtype, device=mean.device)
                mean = mean + std * noise.at(0).normal("prior")
            return mean if self.declared is None else self.declared.normalize(mean)

        store = _joined if out is None else partial(_written, Path(out))
        return self._in_parts(x, part, batch_size, store)

    def decode(self, z: Tensor, *, batch_size: int = 64) -> Tensor:
        """Data (N, *event) of latents z (N, *shape), ``batch_size`` of them at a time, in
        evaluation mode.

        A gradient is kept where z asks for one; a ValueError says so where the decoder has none.
        """
        check_floating("z", z)
        self.check_latents(z.shape[1:])

        def part(rows: range) -> Tensor:
            given = z[rows.start : rows.stop]
            given = given if self.declared is None else self.declared.denormalize(given)
            found, _ = self._restored(given)
            if given.requires_grad and torch.is_grad_enabled() and not found.requires_grad:
                raise ValueError(
                    "the decoder is not differentiable: what it returns has no gradient in the "
                    "latents; look in it for torch.no_grad, torch.inference_mode, detach() or "
                    "argmax"
                )
            return found

        return self._in_parts(z, part, batch_size, _joined)

    def check_latents(self, shape: Sequence[int]) -> None:
        """Raise a ValueError unless latents may have this shape."""
        if self.shape is not None and tuple(shape) != self.shape:
            raise ValueError(
                f"latents have shape {self.shape}, as declared; got {tuple(shape)}: latents of "
                "data x are encode(x)"
            )

    def forward(
        self, x: Tensor, t: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Reconstruction:
        """The reconstruction of data x (B, *event), and the terms of its loss; in training z is
        drawn from ``generator`` on the host, by default torch's own.
        """
        z, std = self._posterior(x)
        if std is None:
            sample, commitment = self._restored(z)
            return Reconstruction(sample, None, commitment)
        kl = 0.5 * (z.square() + std.square() - 1) - std.log()
        if self.training:
            shape, kind = z.shape[1:], z.dtype
            noise = drawn(
                len(z), generator, lambda n, g: torch.randn((n, *shape), generator=g, dtype=kind)
            )
            z = z + std * noise.to(z.device)
        sample, commitment = self._restored(z)
        return Reconstruction(sample, rowwise(kl).sum(dim=1), commitment)

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of q(z | x) before the declared scale; None: z is E(x)."""
        mean, std = _moments(self._functions["encode"](self._cast(x)))
        if not isinstance(mean, Tensor) or mean.ndim < 2 or len(mean) != len(x):
            raise ValueError(
                f"the encoder must return latents ({len(x)}, *shape) of data {tuple(x.shape)}: a "
                "tensor, or an object with one as .latents, or a distribution as .latent_dist; got "
                f"{described(mean)}"
            )
        if self.shape is not None and mean.shape[1:] != self.shape:
            raise ValueError(
                f"the encoder returns latents of shape {tuple(mean.shape[1:])} of data "
                f"{tuple(x.shape[1:])}, and shape={self.shape} is declared: mend one of the two"
            )
        return _back(mean, x), None if std is None else _back(std, x)

    def _restored(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """D(z) of z before the declared scale, and the loss of a quantizer."""
        found = self._functions["decode"](self._cast(z))
        value = found[0] if type(found) is tuple else getattr(found, "sample", found)
        if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != len(z):
            raise ValueError(
                f"the decoder must return data ({len(z)}, *event) of latents {tuple(z.shape)}, a "
                f"tensor or an object with one as .sample; got {described(value)}"
            )
        return _back(value, z), getattr(found, "commit_loss", None)

    def _cast(self, x: Tensor) -> Tensor:
        """A tensor where the parts are, in the dtype of their parameters."""
        device = first_fact(self, lambda p: p.device) or x.device
        dtype = first_fact(self, lambda p: p.dtype if p.is_floating_point() else None) or x.dtype
        return x.to(device, dtype)

    def _in_parts(
        self, x: Tensor, part: Callable[[range], Tensor], batch_size: int, store: Store
    ) -> Tensor:
        """What ``part`` makes of the rows of x, so many at a time."""
        size = integer("batch_size", batch_size, 1)
        if not len(x):
            raise ValueError("there are no samples to encode or decode: the tensor has no rows")
        graph = torch.is_grad_enabled() and x.requires_grad
        with torch.set_grad_enabled(graph), evaluating(self):
            batches = (range(i, min(i + size, len(x))) for i in range(0, len(x), size))
            return store(len(x), map(part, batches))


def _joined(count: int, parts: Iterator[Tensor]) -> Tensor:
    """The parts in one tensor; where there are several without a graph, none is held beside it."""
    first = next(parts)
    if len(first) == count:
        return first
    if first.requires_grad:
        return torch.cat([first, *parts])
    found = first.new_empty(count, *first.shape[1:])
    _fill(found, chain([first], parts))
    return found


def _written(path: Path, count: int, parts: Iterator[Tensor]) -> Tensor:
    """The parts in an .npy file, which appears as a whole."""
    if path.suffix != ".npy":
        raise ValueError(f"out must be the path of an .npy file, got {str(path)!r}")
    first = next(parts).cpu()
    partial_path = path.with_suffix(".partial.npy")
    shape = (count, *first.shape[1:])
    mapped = np.lib.format.open_memmap(partial_path, "w+", first.numpy().dtype, shape)
    _fill(torch.from_numpy(mapped), chain([first], parts))
    mapped.flush()
    os.replace(partial_path, path)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _fill(found: Tensor, parts: Iterator[Tensor]) -> None:
    """Write the parts to the rows of ``found``, one after the other."""
    place = 0
    for part in parts:
        if part.shape[1:] != found.shape[1:]:
            raise ValueError(
                f"parts of one call have events of shape {tuple(found.shape[1:])} and "
                f"{tuple(part.shape[1:])}: an encoder or decoder returns one shape"
            )
        found[place : place + len(part)] = part
        place += len(part)


def _function(name: str, given: Any) -> Callable[[Tensor], Any]:
    """The method of that name, or the function itself."""
    method = getattr(given, name, None)
    found: Any = method if callable(method) and not isinstance(given, str | type) else given
    if not callable(found) or isinstance(found, type):
        raise TypeError(
            f"{name} must be an object with a method {name}, as diffusers' AutoencoderKL has, or a "
            f"function or network; got {given!r}"
        )
    function: Callable[[Tensor], Any] = found
    return function


def _moments(found: Any) -> tuple[Any, Tensor | None]:
    """Mean and standard deviation of what an encoder returned; None: it is no distribution."""
    found = found[0] if type(found) is tuple else found
    for name in ("latent_dist", "latents", "latent"):
        found = getattr(found, name, found)
    if isinstance(found, Tensor):
        return found, None
    mean = getattr(found, "mean", None)
    if not isinstance(mean, Tensor) and hasattr(found, "mode"):  # a distribution of one point
        return found.mode(), None
    std = getattr(found, "std", getattr(found, "stddev", None))
    return mean, std if isinstance(std, Tensor) else None


def _declared(encode: Any) -> Normalizer | None:
    """The shift and the scale of latents that an autoencoder's configuration says; None: none."""
    owner = getattr(encode, "__self__", encode)
    config = getattr(owner, "config", None)
    said = dict(config) if isinstance(config, Mapping) else {}
    known = {name: value for name, value in said.items() if value is not None}
    if not known.keys() & {"scaling_factor", "shift_factor", "latents_mean", "latents_std"}:
        return None
    shift = known.get("latents_mean", known.get("shift_factor", 0.0))
    spread = torch.as_tensor(known.get("latents_std", 1.0), dtype=torch.float64)
    return Normalizer(shift, spread / known.get("scaling_factor", 1.0))


def _shape(given: Sequence[int]) -> tuple[int, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"shape must be that of one latent, (4, 8, 8) say; got {given!r}")
    return tuple(integer("shape", each, 1) for each in given)


def _back(found: Tensor, x: Tensor) -> Tensor:
    """What the parts returned, where x is and in its dtype, float32 at least."""
    return found.to(x.device, torch.promote_types(x.dtype, torch.float32))

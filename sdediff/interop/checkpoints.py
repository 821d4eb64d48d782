"""Networks of other code as `ScoreModel`: EDM, score_sde, guided-diffusion, k-diffusion and flow
matching.

Each function takes the network object, built by its own code, and the settings that it was trained
with. ``weights`` is a file to load into it: safetensors, or a state dict of `torch.save`; a pickle
that would run code is refused (`sdediff.interop.weights`). docs/bring-your-own-network.md has the
names of all settings there and here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any, Final

import torch
from torch import Tensor, nn

from sdediff.discrete import DDPM
from sdediff.interop.weights import check_network, load_weights
from sdediff.model import ScoreModel
from sdediff.network_time import Timesteps
from sdediff.sde import EDM, SDE, LinearSDE, RectifiedFlow
from sdediff.solvers import expand
from sdediff.solvers.given import integer, real

__all__ = [
    "from_edm",
    "from_flow_matching",
    "from_guided_diffusion",
    "from_k_diffusion",
    "from_score_sde",
]

Network = Callable[..., Any]
Weights = str | PathLike[str] | None
_LEAST, _MOST = 0.002, 80.0  # noise levels of Karras et al. 2022, Table 1


class _Adapter(nn.Module):
    """A network of other code behind the call net(x, time, **condition)."""

    def __init__(self, net: Network, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net
        self.call = call

    def forward(self, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        return self.call(self.net, x, time, **condition)


def from_edm(
    net: Network,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    weights: Weights = None,
) -> ScoreModel:
    """The model of a network of EDM or EDM2 (Karras et al. 2022, arXiv 2206.00364; 2024, arXiv
    2312.02696): net(x, sigma, class_labels) is the denoiser D, E[x_0 | x_0 + sigma noise = x].

    The preconditioners ``VPPrecond``, ``VEPrecond``, ``iDDPMPrecond``, ``EDMPrecond`` and EDM2's
    ``Precond`` have this call. The SDE is `EDM`, whose time is sigma, from ``sigma_min`` to
    ``sigma_max``: by default 0.002 to 80, or what the network supports of it (its attributes
    ``sigma_min`` and ``sigma_max``), rounded by its ``round_sigma``, as in their sampler.
    ``sigma_data`` is the network's. Labels are the condition ``class_labels``, (B, label_dim),
    one-hot; without it the network is unconditional. ``iDDPMPrecond`` was trained at discrete
    levels: its ``round_sigma`` rounds the times of a grid.

    Raises TypeError or ValueError for a network or weights that do not fit, and levels outside the
    network's range.
    """
    _prepare("from_edm", net, weights)
    called: Network = net
    if hasattr(net, "label_dim"):
        shape = (int(net.label_dim),) if net.label_dim else None
        called = _Adapter(net, partial(_labelled, "class_labels", shape, False))
    sde = _levels("from_edm", net, sigma_min, sigma_max)
    return ScoreModel(called, sde, "data", sigma_data=_sigma_data(net))


def from_k_diffusion(
    net: Network,
    *,
    sigma_data: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    weights: Weights = None,
) -> ScoreModel:
    """The model of a denoiser of k-diffusion: net(x, sigma, **condition) is E[x_0 | x_0 + sigma
    noise = x].

    ``layers.Denoiser``, ``external.VDenoiser``, ``CompVisDenoiser`` and the like have this call.
    With ``sigma_data`` the network is the inner model of a ``Denoiser``, and Karras et al.'s
    preconditioner is put around it here. ``sigma_min`` and ``sigma_max`` are as in `from_edm`;
    trainings with other levels (0.01 in most configurations there) should say so.

    Raises TypeError or ValueError for a network or weights that do not fit, and levels outside the
    network's range.
    """
    _prepare("from_k_diffusion", net, weights)
    sde = _levels("from_k_diffusion", net, sigma_min, sigma_max)
    if sigma_data is None:
        return ScoreModel(net, sde, "data", sigma_data=_sigma_data(net))
    if hasattr(net, "inner_model"):
        raise ValueError(
            f"from_k_diffusion: {type(net).__name__} is a denoiser, which has its sigma_data; drop "
            "sigma_data, or pass net.inner_model"
        )
    return ScoreModel(net, sde, "edm", sigma_data=sigma_data)


def from_score_sde(
    net: Network, sde: LinearSDE, *, N: int | None = None, weights: Weights = None
) -> ScoreModel:
    """The model of a network of score_sde (Song et al. 2021, arXiv 2011.13456) trained under
    ``sde``: `VP`, `SubVP` or `VE` with their beta_min, beta_max, sigma_min, sigma_max.

    A network of continuous labels (``config.training.continuous``) is handed 999 t and returns
    noise (the negative of it: score = -net / std), or, where alpha = 1, is handed sigma and returns
    the score.

    ``N`` (``config.model.num_scales``) says that it was trained at N discrete levels. Under `VP` it
    is handed the index i = 0..N - 1 of a level of the chain with betas from beta_min / N to
    beta_max / N, and the SDE of the model is that chain's (`DDPM.to_sde`). Where alpha = 1, it is
    handed the index, rounded, from the highest of N levels in geometric progression to the lowest.

    The usable range is that of ``sde``: they train from t = 1e-5 on, ``VP(t_min=1e-5)``.

    Raises TypeError or ValueError for a network, an SDE or weights that do not fit.
    """
    _prepare("from_score_sde", net, weights)
    if not isinstance(sde, SDE) or "kernel" not in sde.offers:
        raise TypeError(
            "from_score_sde: sde must be an SDE of this library with a Gaussian kernel, "
            f"VP(beta_min=0.1, beta_max=20.0) say, SubVP or VE; got {sde!r}"
        )
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    exploding = bool((sde.alpha(ends) == 1).all())
    if N is None:
        if exploding:
            return ScoreModel(net, sde, "score", time="sigma")
        return ScoreModel(net, sde, "noise", time=Timesteps(999, shift=0.0))
    count = integer("from_score_sde: N", N, 2)
    if exploding:
        indices = Timesteps(1 - count, shift=count - 1.0, rounded=True)
        return ScoreModel(net, sde, "score", time=indices)
    if not bool(((sde.alpha(ends) ** 2 + sde.sigma(ends) ** 2 - 1).abs() < 1e-9).all()):
        raise ValueError(f"from_score_sde: N is for VP and VE; under {sde!r} labels are continuous")
    chain = DDPM.from_sde(sde, count, rule="song")
    return ScoreModel(net, chain.to_sde(), "noise", time=Timesteps(count))


_MEANS: Final = {"EPSILON": "noise", "START_X": "data", "PREVIOUS_X": "data"}
_SETTINGS: Final = ("betas", "model_mean_type", "model_var_type", "rescale_timesteps")


def from_guided_diffusion(net: Network, diffusion: Any, *, weights: Weights = None) -> ScoreModel:
    """The model of a network of guided-diffusion or improved-diffusion (Dhariwal and Nichol 2021,
    arXiv 2105.05233): ``from_guided_diffusion(*create_model_and_diffusion(**settings))``.

    ``diffusion`` is their ``GaussianDiffusion`` or ``SpacedDiffusion``, or an object with its
    attributes ``betas``, ``model_mean_type``, ``model_var_type`` and ``rescale_timesteps``, and of
    a respaced one ``timestep_map`` and ``original_num_steps``. The SDE has the chain's marginals at
    t = (i + 1) / N for the step i of N. A respaced chain is known at its own steps alone: between
    them the SDE is interpolated, so that all steps are better for other grids, and a respaced chain
    a solver: ``DDPM(diffusion.betas).respaced(50)``.

    The network returns noise (``EPSILON``), data (``START_X``) or the mean of the step before
    (``PREVIOUS_X``), which is turned into data. A learned variance (``LEARNED_RANGE``) is that of
    ``DDPM(variance="learned")``. Labels are the condition ``y``, int64 (B,), where the network has
    ``num_classes``.

    Raises TypeError or ValueError for a network, a diffusion or weights that do not fit.
    """
    _prepare("from_guided_diffusion", net, weights)
    lacking = [name for name in _SETTINGS if not hasattr(diffusion, name)]
    if lacking:
        raise TypeError(
            "from_guided_diffusion: diffusion must be the GaussianDiffusion or SpacedDiffusion "
            f"that the network was trained with; {type(diffusion).__name__} lacks "
            f"{', '.join(lacking)}"
        )
    mean, variance = (
        getattr(kind, "name", str(kind))
        for kind in (diffusion.model_mean_type, diffusion.model_var_type)
    )
    if mean not in _MEANS or variance not in ("LEARNED_RANGE", "FIXED_SMALL", "FIXED_LARGE"):
        raise ValueError(
            f"from_guided_diffusion: model_mean_type must be one of {', '.join(_MEANS)}, and "
            "model_var_type LEARNED_RANGE, FIXED_SMALL or FIXED_LARGE; got "
            f"{mean} and {variance}"
        )
    steps = list(getattr(diffusion, "timestep_map", range(len(diffusion.betas))))
    count = int(getattr(diffusion, "original_num_steps", len(diffusion.betas)))
    chain = DDPM(tuple(map(float, diffusion.betas)), tuple((i + 1) / count for i in steps))
    per = 1000 / count if diffusion.rescale_timesteps else 1.0
    called: Network = net
    if hasattr(net, "num_classes"):
        shape = None if net.num_classes is None else ()
        called = _Adapter(called, partial(_labelled, "y", shape, True))
    if mean == "PREVIOUS_X":
        data, keep, _ = chain.posterior_columns
        handed = per * torch.tensor(steps, dtype=torch.float64)
        called = _Adapter(called, partial(_from_previous, handed, data, keep))
    return ScoreModel(
        called,
        chain.to_sde(),
        _MEANS[mean],
        time=Timesteps(per * (steps[-1] + 1), shift=-per),
        learned_variance=variance == "LEARNED_RANGE",
    )


def from_flow_matching(net: Network, path: Any = None, *, weights: Weights = None) -> ScoreModel:
    """The model of a velocity field trained by flow matching (Lipman et al. 2023, arXiv
    2210.02747), whose time goes from noise at 0 to data at 1.

    ``net(x, t, **condition)``; a network whose first argument is called ``t``, ``time`` or
    ``timesteps`` is called as net(t, x, **condition), as those of torchcfm and torchdyn.

    ``path`` says how noise becomes data, x = alpha data + sigma noise:

    - None: alpha = t and sigma = 1 - t (``CondOTScheduler``), which is `RectifiedFlow` here;
    - a scheduler of flow_matching, or a function of their t that returns (alpha, sigma);
    - a flow matcher of torchcfm, which has a ``sigma`` of its own;
    - an SDE of this library, whose time goes the other way.

    Pairs of noise and data must be independent. Where they are coupled by optimal transport the
    velocity gives the samples and the likelihood of the probability flow (pass no ``path``), but no
    score: what needs one (stochastic solvers, Langevin steps) does not hold.

    Raises TypeError or ValueError for a network, a path or weights that do not fit.
    """
    _prepare("from_flow_matching", net, weights)
    called = _Adapter(net, _time_first) if _takes_time_first(net) else net
    return ScoreModel(called, _sde_of(path), "flow", time="reversed")


def _prepare(name: str, net: Network, weights: Weights) -> None:
    check_network(name, net, trained=weights is not None)
    if weights is not None and isinstance(net, nn.Module):
        load_weights(net, weights)


def _sigma_data(net: Network) -> float | None:
    found = getattr(net, "sigma_data", None)
    return None if found is None else float(found)


def _levels(name: str, net: Network, sigma_min: float | None, sigma_max: float | None) -> EDM:
    """The SDE over the levels that are asked for; a ValueError outside of those of the network."""
    least = float(getattr(net, "sigma_min", 0.0))
    most = float(getattr(net, "sigma_max", float("inf")))
    low, high = max(_LEAST, least), min(_MOST, most)
    if hasattr(net, "round_sigma"):
        ends = torch.tensor([low, high], dtype=torch.float64)
        low, high = net.round_sigma(ends).tolist()
    low = low if sigma_min is None else real(f"{name}: sigma_min", sigma_min)
    high = high if sigma_max is None else real(f"{name}: sigma_max", sigma_max)
    if low < least or high > most:
        raise ValueError(
            f"{name}: the network supports noise levels from {least:g} to {most:g}, got sigma_min "
            f"= {low:g} and sigma_max = {high:g}"
        )
    return EDM(low, high)


def _labelled(
    name: str,
    shape: tuple[int, ...] | None,
    needed: bool,
    net: Network,
    x: Tensor,
    time: Tensor,
    **condition: Any,
) -> Any:
    """The network at x, its labels checked: ``shape`` is that of one label, None where the network
    takes none.
    """
    label = condition.get(name)
    if label is None and shape is not None and needed:
        raise ValueError(
            f"the network is made for classes: condition={{{name!r}: ...}} must be labels of shape "
            f"{(len(x), *shape)}"
        )
    if label is not None and shape is None:
        raise ValueError(f"the network is made without classes, and got the condition {name!r}")
    if label is not None and label.shape != (len(x), *(shape or ())):
        hint = (
            f"; one-hot: torch.nn.functional.one_hot(labels, {shape[0]}).float()"
            if shape
            else "; class numbers, int64"
        )
        raise ValueError(
            f"the condition {name!r} must have the shape {(len(x), *(shape or ()))}, got "
            f"{tuple(label.shape)}{hint}"
        )
    return net(x, time, **condition)


def _from_previous(
    handed: Tensor,
    data: Tensor,
    keep: Tensor,
    net: Network,
    x: Tensor,
    time: Tensor,
    **condition: Any,
) -> Any:
    """(out - keep_i x) / data_i, E[x_0 | x] from the mean data_i E[x_0 | x] + keep_i x of the step
    before, at the nearest level i.
    """
    i = (time[:, None] - handed.to(time)).abs().argmin(dim=1)
    out = net(x, time, **condition)
    value, rest = out[:, : x.shape[1]], out[:, x.shape[1] :]
    value = (value - expand(keep.to(time)[i], x) * x) / expand(data.to(time)[i], x)
    return torch.cat([value, rest], dim=1)


def _time_first(net: Network, x: Tensor, time: Tensor, **condition: Any) -> Any:
    return net(time, x, **condition)


def _takes_time_first(net: Network) -> bool:
    try:
        taken = inspect.signature(net.forward if isinstance(net, nn.Module) else net).parameters
    except (TypeError, ValueError):
        return False
    return next(iter(taken), "") in ("t", "time", "times", "timestep", "timesteps")


def _sde_of(path: Any) -> LinearSDE:
    """The SDE of a path from noise to data, in our time."""
    if path is None:
        return RectifiedFlow()
    if isinstance(path, SDE):
        if "kernel" not in path.offers:
            raise ValueError(f"from_flow_matching: {path!r} has no Gaussian kernel")
        return path  # type: ignore[return-value]  # it offers the kernel
    if isinstance(path, type) or not (hasattr(path, "compute_mu_t") or callable(path)):
        raise TypeError(
            "from_flow_matching: path must be a scheduler of flow_matching, a flow matcher of "
            f"torchcfm, an SDE, or a function t -> (alpha, sigma); got {path!r}"
        )
    if hasattr(path, "ot_sampler"):
        raise ValueError(
            f"from_flow_matching: {type(path).__name__} pairs noise and data by optimal transport, "
            "so that the states given the data are not Gaussian and the velocity gives no score: "
            "pass no path, and use ODE solvers"
        )
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, sigma = _path_levels(path, ends)
    if not bool(alpha[0] < alpha[1]):
        raise ValueError(
            "from_flow_matching: a path goes from noise at t = 0 to data at t = 1, and its alpha "
            f"goes from {float(alpha[0]):g} to {float(alpha[1]):g}"
        )
    return LinearSDE(
        alpha=lambda t: _path_levels(path, 1 - t)[0],
        sigma=lambda t: _path_levels(path, 1 - t)[1],
        sigma_0=float(sigma[1]) if sigma[1] > 1e-8 else 0.0,  # cos(pi / 2) is not 0
    )


def _path_levels(path: Any, t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of a path at their times t."""
    if hasattr(path, "compute_mu_t"):
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        rest = torch.as_tensor(path.compute_sigma_t(t), dtype=t.dtype)
        noise = path.compute_mu_t(one, zero, t).reshape(t.shape)
        return path.compute_mu_t(zero, one, t).reshape(t.shape), (noise**2 + rest**2).sqrt()
    found = path(t)
    alpha, sigma = (found.alpha_t, found.sigma_t) if hasattr(found, "alpha_t") else tuple(found)
    return alpha, sigma

"""Pipelines and networks of diffusers as models here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from sdediff.constraints import Constrained
from sdediff.interop.called import Called, config_of, unwrapped
from sdediff.interop.configurations import diffusers
from sdediff.interop.control import Controlled
from sdediff.interop.diffusers import schedule_from
from sdediff.interop.schedules import Raw, Schedule
from sdediff.model import ScoreModel
from sdediff.network_time import NetworkTime, Timesteps

__all__ = ["from_diffusers"]

_NETWORK: Final = r"(unet|transformer|prior)(_\d+)?"
"""The names that pipelines have for their networks."""
_CONTROL: Final = "controlnet"
"""The name that pipelines have for their ControlNets."""
_UNIT_TIMES: Final = frozenset(
    "AuraFlowTransformer2DModel BriaFibo2Transformer2DModel ChromaTransformer2DModel "
    "Flux2Transformer2DModel FluxTransformer2DModel Krea2Transformer2DModel "
    "LongCatAudioDiTTransformer LongCatImageTransformer2DModel NucleusMoEImageTransformer2DModel "
    "OvisImageTransformer2DModel PRXTransformer2DModel QwenImage21Transformer2DModel "
    "QwenImageTransformer2DModel".split()
)
"""Networks whose pipelines divide the timesteps by their number."""
_REVERSED: Final = frozenset({"Lumina2Transformer2DModel", "LuminaNextDiT2DModel"})
"""Networks that are handed 1 - t."""
_NEGATED: Final = _REVERSED | {
    "NucleusMoEImageTransformer2DModel",
    "HiDreamImageTransformer2DModel",
}
"""Networks that return data - noise."""


def from_diffusers(
    source: Any, scheduler: Any = None, *, controls: Mapping[str, Any] | None = None
) -> ScoreModel | Constrained:
    """A diffusers model as a model here, for every solver, likelihood and operator:

        model = sd.from_diffusers(pipe)
        sd.sample(model, shape, steps=20, condition={"encoder_hidden_states": embeddings})

    ``source`` is a pipeline, the folder of a saved one, or a network. A folder is read from disk
    alone, and weights as safetensors alone. A network is a module of diffusers, or a function with
    the arguments ``sample`` (or ``hidden_states``) and ``timestep``; what all samples share goes in
    by `functools.partial`. ``scheduler``, a scheduler or its configuration, goes with a network,
    and replaces that of a pipeline.

    The scheduler's configuration says the SDE, the prediction, the network's times, and whether
    E[x_0 | x] is clipped. States are x_t = alpha x_0 + sigma noise, with alpha^2 + sigma^2 = 1 for
    betas, whatever the scheduler multiplies by in `scale_model_input`, alpha = 1 - t and sigma = t
    for flow models, and alpha = 1 for EDM and other continuous times. A network that returns twice
    the channels has a learned variance.

    States of a pipeline with an autoencoder are its latents: `sdediff.Latent`, ``Latent(model,
    pipe.vae)``, goes from them to pictures.

    Conditions have the names of the network's arguments, and of the entries of its argument
    ``added_cond_kwargs``. A ValueError names those that are missing or not known, before the
    network is called.

    ``controls`` has ControlNets by the names of the conditions that are their images:
    ``controls={"edges": controlnet}`` (`sdediff.interop.control.Controlled`; the network is locked
    then). Of a pipeline with ControlNets these are ``"control"``, or ``"control_0"``,
    ``"control_1"`` and so on, unless they are named here.

    Raises ValueError or TypeError where the process of the configuration is not known, the network
    lacks an argument, or the folder holds no pipeline or pickles alone.
    """
    if isinstance(source, str | Path):
        network, own, found = _opened(Path(source), scheduler)
    elif hasattr(source, "scheduler") and isinstance(getattr(source, "components", None), Mapping):
        parts = {name: part for name, part in source.components.items() if part is not None}
        network, own = parts[_only(type(source).__name__, parts)], source.scheduler
        found = _controls_of(parts.get(_CONTROL))
    else:
        network, own, found = source, None, None
    if isinstance(network, type) or not callable(network):
        raise TypeError(
            "from_diffusers takes a pipeline, the folder of one, or a network with its scheduler; "
            f"got {network!r}"
        )
    schedule = schedule_from(_config(own if scheduler is None else scheduler))
    return _model(network, schedule, found if controls is None else controls)


def _controls_of(part: Any) -> dict[str, Any] | None:
    """The ControlNets of a pipeline by the names of their images; None where it has none."""
    if part is None:
        return None
    several = getattr(part, "nets", None)
    if several is None:
        return {"control": part}
    return {f"control_{i}": each for i, each in enumerate(several)}


def _model(
    network: Any, schedule: Schedule, controls: Mapping[str, Any] | None
) -> ScoreModel | Constrained:
    """The model of a network under a schedule."""
    inner, _ = unwrapped(network)
    own = config_of(inner)
    time, sign = _conventions(type(inner).__name__, schedule.time, own, flows=schedule.flows)
    predicts, sigma_data = schedule.predicts, None
    if isinstance(predicts, Raw):
        sign, sigma_data, predicts = predicts.sign, predicts.sigma_data, "edm"
    kind, channels = schedule.config["variance_type"], own.get("out_channels")
    doubled = kind in ("learned", "learned_range")
    if channels is not None:
        doubled = channels == 2 * own.get("in_channels", 0)
    learned = doubled and kind != "learned"  # of "learned" the second half is a logarithm
    called = Called(network, sign, halved=doubled and not learned)
    model = ScoreModel(
        called if controls is None else Controlled(called, controls),
        schedule.sde,
        predicts,
        sigma_data=sigma_data,
        time=time,
        time_dtype=torch.float32,
        learned_variance=learned,
    )
    return model if schedule.constraint is None else model.constrained(schedule.constraint)


def _conventions(
    name: str, time: NetworkTime, config: Mapping[str, Any], *, flows: bool
) -> tuple[NetworkTime, float]:
    """What a network of this class is handed for t, and the sign of what it returns."""
    if isinstance(time, Timesteps) and config.get("time_embedding_type") == "learned":
        return replace(time, rounded=True), 1.0
    if not flows:
        return time, 1.0
    time = (lambda t: 1 - t) if name in _REVERSED else "t" if name in _UNIT_TIMES else time
    return time, -1.0 if name in _NEGATED else 1.0


def _config(scheduler: Any) -> Mapping[str, Any]:
    """The configuration of a scheduler, with the name of its class."""
    if isinstance(scheduler, Mapping):
        return scheduler
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise TypeError(
            "a network goes with a scheduler of diffusers, or its configuration: "
            f"from_diffusers(network, scheduler); got {scheduler!r}"
        )
    return {**config, "_class_name": type(scheduler).__name__}


def _only(pipeline: str, parts: Iterable[str]) -> str:
    """The name of a pipeline's network; a ValueError unless there is one."""
    parts = list(parts)
    found = [name for name in parts if re.fullmatch(_NETWORK, name)]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"{pipeline} has {' and '.join(found) or 'no unet, transformer or prior'}, its parts are "
        f"{', '.join(parts)}: pass the network that is meant, from_diffusers(network, scheduler)"
    )


def _opened(folder: Path, scheduler: Any) -> tuple[Any, Mapping[str, Any], dict[str, Any] | None]:
    """The network, the scheduler's configuration and the ControlNet of a saved pipeline, nothing
    else of it.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        there = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
        got = (
            f"it has {', '.join(there[:8]) or 'no files'}" if folder.is_dir() else "it is not there"
        )
        raise ValueError(
            f"{folder} is no folder of a saved pipeline, which has a model_index.json: {got}; "
            "a pipeline from elsewhere, or a network, is loaded by diffusers and passed itself"
        )
    parts = {k: v for k, v in json.loads(index.read_text()).items() if k[:1] != "_" and _is_part(v)}
    part = _only(str(folder), parts)
    file = folder / "scheduler" / "scheduler_config.json"
    if scheduler is None and not file.is_file():
        raise ValueError(f"{folder} has no scheduler/scheduler_config.json: pass scheduler=")
    network = _loaded(folder, part, *parts[part])
    config = json.loads(file.read_text()) if scheduler is None else {}
    controlnet = _loaded(folder, _CONTROL, *parts[_CONTROL]) if _CONTROL in parts else None
    return network, config, _controls_of(controlnet)


def _loaded(folder: Path, part: str, library: str, name: str) -> Any:
    """A network of a saved pipeline."""
    kind: Any = getattr(diffusers, name, None) if library == "diffusers" else None
    usable = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)
    if not usable:
        raise ValueError(
            f"{folder / 'model_index.json'} says that {part} is {name} of {library}, which is no "
            f"network of diffusers {diffusers.__version__}: load it yourself and pass it"
        )
    return kind.from_pretrained(
        folder / part,
        local_files_only=True,
        use_safetensors=True,
        variant=_variant(folder / part),
    )


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and None not in value


def _variant(folder: Path) -> str | None:
    """The variant of the weights there, such as fp16, None for the plain ones; a ValueError
    without safetensors.
    """
    stem = "diffusion_pytorch_model"
    files = sorted(each.name for each in folder.glob("*") if each.is_file())
    ours = [name[len(stem) :] for name in files if name.startswith(stem) and "safetensors" in name]
    if not ours:
        raise ValueError(
            f"{folder} has no safetensors, but {', '.join(files) or 'no files'}. Loading a pickle "
            "can run code, so that none is read here: convert it once, "
            "network.load_state_dict(torch.load(file, weights_only=True)) and "
            "network.save_pretrained(folder)"
        )
    plain = any(name[0] == "-" or name.startswith(".safetensors") for name in ours)
    return None if plain else ours[0][1:].split(".")[0].split("-")[0]

"""Golden cases of discrete models, chains, losses and bounds, and of losses in continuous time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from golden_cases import Case, Found, made, some_prediction, told
from golden_models import LENGTHS, LINEAR, PREDICTS, Closed, closed, fixed
from torch import Tensor

import sdediff as sd

Chain = Callable[..., sd.DDPM]
linear = partial(sd.DDPM.from_schedule, "linear", 1000)
scaled = partial(sd.DDPM.from_schedule, "scaled-linear", 1000)
DDPMS: dict[str, Chain] = {
    "from_sde(VP,10)": partial(sd.DDPM.from_sde, sd.VP(), 10),
    "from_sde(VP,25,rule='song')": partial(sd.DDPM.from_sde, sd.VP(), 25, rule="song"),
    "linear-1000-respaced-8": lambda **variance: linear(**variance).respaced(8),
    "scaled-linear-1000-quadratic-8": lambda **variance: scaled(**variance).respaced(
        8,
        spacing="quadratic",
    ),
    "cosine-9": partial(sd.DDPM.from_schedule, "cosine", 9),
    "sigmoid-9": partial(sd.DDPM.from_schedule, "sigmoid", 9),
    "linear-1000-zero-terminal-respaced-8": lambda **variance: (
        linear(**variance)
        .with_zero_terminal_snr()  # alpha is 0 at the last level
        .respaced(8)
    ),
}
NCSNS = {
    "from_sde(VE(0.05,10),6,n_steps=2)": sd.NCSN.from_sde(sd.VE(0.05, 10.0), 6, n_steps=2),
    "geometric(5,0.05,5,n_steps=3)": sd.NCSN.geometric(5.0, 0.05, 5, n_steps=3),
    "geometric(5,0.05,5,step_size=5e-4)": sd.NCSN.geometric(
        5.0,
        0.05,
        5,
        step_size=5e-4,
        n_steps=1,
    ),
}


def of_chain(
    chain: Any,
    predicts: str,
    event: tuple[int, ...] = (2,),
    *,
    learned: bool = False,
) -> sd.ScoreModel:
    """The network in closed form under the chain's SDE."""
    sde = chain.to_sde()
    net = Closed(sde, predicts, torch.Size(event).numel(), learned=learned)
    return sd.ScoreModel(net, sde, predicts, sigma_data=0.5, learned_variance=learned)


def ancestral(
    chain: Any,
    predicts: str,
    event: tuple[int, ...],
    learned: bool,
    **options: Any,
) -> Found:
    """Samples by the chain itself."""
    model = of_chain(chain, predicts, event, learned=learned)
    out = sd.sample(model, (3, *event), solver=chain, seed=11, dtype=torch.float64, **options)
    return told(out, "x", "times")


def subsequence(chain: Any, predicts: str, solver: str) -> Found:
    """Samples on the chain's times by another solver."""
    model = of_chain(chain, predicts)
    out = sd.sample(
        model,
        (3, 2),
        solver=made(solver),
        grid=chain.times,
        seed=11,
        dtype=torch.float64,
    )
    return told(out, "x", "times")


def with_gradients(losses: Tensor, model: sd.ScoreModel, *more: Tensor) -> Found:
    """Losses of the samples, and what their sum pulls the parameters to."""
    found = {"losses": losses}
    wrt = [*model.parameters(), *more]
    parts = torch.autograd.grad(losses.sum(), wrt, allow_unused=True, materialize_grads=True)
    found |= {f"gradient {i}": part for i, part in enumerate(parts)}
    return {name: part.detach() for name, part in found.items()}


def on_bins(*event: int) -> Tensor:
    """Data on sixteen values from -1 to 1."""
    return torch.round(fixed(3, *event, size=0.4).clamp(-1, 1) * 7.5 + 7.5) / 7.5 - 1


def ddpm_loss(chain: sd.DDPM, kind: str, predicts: str, bins: bool) -> Found:
    """A loss of DDPM at given levels and noise."""
    event = (1, 2, 2)
    model = of_chain(chain, predicts, event, learned=chain.variance == "learned")
    values = sd.objectives.Bins(16, -1, 1) if bins else None
    x = on_bins(*event) if bins else fixed(3, *event)
    loss = sd.discrete.DDPMLoss(chain, kind, bins=values)  # type: ignore[arg-type]
    return with_gradients(
        loss(model, x, i=torch.tensor([1, 2, chain.N]), noise=fixed(3, *event, phase=2.0)),
        model,
    )


def bound(chain: sd.DDPM, predicts: str, bins: bool) -> Found:
    """Every term of the variational bound."""
    event = (1, 2, 2)
    model = of_chain(chain, predicts, event, learned=chain.variance == "learned")
    values = sd.objectives.Bins(16, -1, 1) if bins else None
    x = on_bins(*event) if bins else fixed(3, *event)
    out = sd.discrete.variational_bound(chain, model, x, bins=values, seed=5, batch_size=2)
    return {
        "prior": out.prior,
        "transitions": out.transitions,
        "decoder": out.decoder,
        "bits": out.bits_per_dim,
    }


def ncsn_loss(chain: sd.NCSN, predicts: str) -> Found:
    """NCSN's loss at given levels and noise."""
    model = of_chain(chain, predicts)
    levels = torch.tensor([1, 3, chain.N])
    return with_gradients(
        sd.discrete.NCSNLoss(chain)(model, fixed(3, 2), i=levels, noise=fixed(3, 2, phase=2.0)),
        model,
    )


def levels(chain: Any) -> Found:
    """The chain's own numbers, its kernels and its posterior."""
    x, noise = fixed(3, 2), fixed(3, 2, phase=2.0)
    i = torch.tensor([2, 3, chain.N])
    mean, variance = chain.posterior(x, noise, i)
    found = {
        "times": chain.level_times,
        "forward": chain.forward(x, i, noise),
        "perturb": chain.perturb(x, i, noise),
        "mean": mean,
        "variance": torch.as_tensor(variance),
    }
    own = "step_sizes" if isinstance(chain, sd.NCSN) else "alphas_bar"
    return found | {own: getattr(chain, own)}


LOSSES = {
    **{
        f"DenoisingScoreMatching('{name}')": name
        for name in "sigma2 snr uniform likelihood min-snr noise data score v flow edm".split()
    }
}


def loss(sde: str, predicts: str, objective: Any, *, bins: bool = False) -> Found:
    """A loss at given times and noise, and its gradients, to a learned schedule too."""
    model, process = closed(sde, predicts), LINEAR[sde]
    share = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)
    t = process.t_min + (process.t_max - process.t_min) * share
    x = on_bins(2) if bins else fixed(3, 2, size=0.4 * LENGTHS.get(sde, 1.0))
    more = list(process.schedule.parameters()) if sde == "LearnedVP" else []
    return with_gradients(objective(model, x, t=t, noise=fixed(3, 2, phase=2.0)), model, *more)


def sliced(sde: str, predicts: str, directions: str) -> Found:
    """Sliced score matching; its directions are drawn from a generator that is handed in."""
    model = closed(sde, predicts)
    objective = sd.objectives.SlicedScoreMatching(directions=directions, slices=2)  # type: ignore[arg-type]
    seeded = torch.Generator().manual_seed(0)
    share = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)
    t = model.sde.t_min + (model.sde.t_max - model.sde.t_min) * share
    options = {"noise": fixed(3, 2, phase=2.0)} if sde in LINEAR else {}
    return with_gradients(objective(model, fixed(3, 2), t=t, generator=seeded, **options), model)


def losses() -> Iterator[Case]:
    """Losses in continuous time."""
    for sde in ("VP", "VE", "VP.scaled(3)", "Pull"):
        for directions in ("rademacher", "gaussian"):
            predicts = some_prediction(sde, directions)
            run = partial(sliced, sde, predicts, directions)
            yield Case(f"loss/{sde}/{predicts}/SlicedScoreMatching/{directions}", run)
    for sde in LINEAR:
        for key, name in LOSSES.items():
            every = name in ("sigma2", "likelihood") and sde in ("VP", "VE", "VP.scaled(3)")
            for predicts in PREDICTS if every else [some_prediction(sde, key)]:
                yield Case(
                    f"loss/{sde}/{predicts}/{key}",
                    partial(loss, sde, predicts, sd.DenoisingScoreMatching(name)),
                )
        for key in (
            "FlowMatching()",
            "ImplicitScoreMatching()",
            "VariationalDiffusion()",
            "VariationalDiffusion(inside='variance')",
        ):
            predicts = some_prediction(sde, key)
            if "variance" not in key or sde in ("LearnedVP", "VP"):
                yield Case(f"loss/{sde}/{predicts}/{key}", partial(loss, sde, predicts, made(key)))
        predicts = some_prediction(sde, "bins")
        run = partial(
            loss,
            sde,
            predicts,
            sd.objectives.VariationalDiffusion(sd.objectives.Bins(16, -1, 1)),
            bins=True,
        )
        yield Case(f"loss/{sde}/{predicts}/VariationalDiffusion(bins)", run)


def chains() -> Iterator[Case]:
    """DDPM, NCSN and DDIM on chains."""
    for name, make in DDPMS.items():
        zero = "zero" in name
        able = ("data", "v", "flow") if zero else PREDICTS
        for predicts in able:
            for variance in ("beta_tilde", "beta"):
                key = f"chain/DDPM.{name}/{predicts}/{variance}"
                yield Case(key, partial(ancestral, make(variance=variance), predicts, (2,), False))
        predicts = "data" if zero else some_prediction("VP", name)
        learned = partial(ancestral, make(variance="learned"), predicts, (1, 2, 2), True)
        yield Case(f"chain/DDPM.{name}/{predicts}/learned", learned)
        for last in ("denoise", "mean", "noisy"):
            run = partial(ancestral, make(variance="beta"), predicts, (1, 2, 2), False, last=last)
            yield Case(f"chain/DDPM.{name}/{predicts}/beta/images/last={last}", run)
        for solver in ("DDIM()", "DDIM(eta=1.0)", "UniPC(2)", "Ancestral()"):
            run = partial(subsequence, make(variance="beta"), predicts, solver)
            yield Case(f"chain/DDPM.{name}/{predicts}/grid of {solver}", run)
        yield Case(f"chain/DDPM.{name}/levels", partial(levels, make(variance="beta_tilde")))
        for variance in ("beta", "beta_tilde", "learned"):
            kinds = ("simple", "vlb", "hybrid") if variance == "learned" else ("simple", "vlb")
            for kind in kinds:
                for bins in (False, True):
                    run = partial(ddpm_loss, make(variance=variance), kind, predicts, bins)
                    yield Case(f"loss/DDPM.{name}/{predicts}/{variance}/{kind}/bins={bins}", run)
            for bins in (False, True):
                run = partial(bound, make(variance=variance), predicts, bins)
                yield Case(f"bound/DDPM.{name}/{predicts}/{variance}/bins={bins}", run)
    for name, ncsn in NCSNS.items():
        for predicts in PREDICTS:
            yield Case(
                f"chain/NCSN.{name}/{predicts}",
                partial(ancestral, ncsn, predicts, (2,), False),
            )
        predicts = some_prediction("VE", name)
        run = partial(ancestral, ncsn, predicts, (1, 2, 2), False, last="noisy")
        yield Case(f"chain/NCSN.{name}/{predicts}/images/last=noisy", run)
        yield Case(
            f"chain/NCSN.{name}/{predicts}/grid of DDIM()",
            partial(subsequence, ncsn, predicts, "DDIM()"),
        )
        yield Case(f"chain/NCSN.{name}/levels", partial(levels, ncsn))
        yield Case(f"loss/NCSN.{name}/{predicts}", partial(ncsn_loss, ncsn, predicts))
    yield from losses()

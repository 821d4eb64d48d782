"""Every exception of the packages goes through pickle whole, as a process pool takes it."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sdediff as sd
import sdediff.testing
from sdediff import solvers
from sdediff.mcmc.chains import ChainError
from sdediff.solvers.external.driver import Stop
from sdediff.testing.report import CheckError, Finding
from sdediff.training import Interrupted


def raised(function: Callable[[], object], kind: type[BaseException]) -> BaseException:
    with pytest.raises(kind) as caught:
        function()
    return caught.value


def failed_solve(grad: str = "none") -> object:
    scale = torch.full((), torch.nan, requires_grad=True)
    model = sd.ScoreModel(lambda x, t: x * scale, sd.VP())
    return sd.sample(model, (2, 2), steps=3, seed=0, grad=grad)  # type: ignore[arg-type]


def wrong_sde() -> object:
    wrong = sd.LinearSDE(alpha=lambda t: t, sigma=lambda t: 1 - t)
    return sd.testing.check_sde(wrong, verbose=False)


def wrong_solver() -> object:
    class Never(sd.solvers.Euler):
        order = 3

    return sd.testing.check_solver(Never(), verbose=False)


def unequal() -> object:
    return sd.testing.check_equivalence(sd.DDIM(), sd.Heun(), sde=sd.VP(), verbose=False)


def lost_chains() -> object:
    start = torch.zeros(2, 1)
    target = sd.mcmc.Score(lambda x: x * torch.nan)
    return sd.mcmc.run(sd.mcmc.ULA(0.1), target, start, steps=3, seed=0)


EXAMPLES: dict[type[BaseException], Callable[[], BaseException]] = {
    ChainError: lambda: raised(lost_chains, ChainError),
    Interrupted: lambda: Interrupted(3, Path("run")),
    sd.SolveError: lambda: raised(failed_solve, sd.SolveError),
    sd.testing.EquivalenceError: lambda: raised(unequal, sd.testing.EquivalenceError),
    sd.testing.SDEError: lambda: raised(wrong_sde, sd.testing.SDEError),
    sd.testing.SolverError: lambda: raised(wrong_solver, sd.testing.SolverError),
    Stop: lambda: Stop(solvers.Status.DRIVER_STOPPED, "gave up"),
}


def classes(package: ModuleType) -> set[type[BaseException]]:
    """Every exception class that is defined in a package."""
    found: set[type[BaseException]] = set()
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            own = isinstance(value, type) and issubclass(value, BaseException)
            if own and value.__module__.split(".")[0] in ("sdediff", "solvers"):
                found.add(value)
    return found


FOUND = {kind for package in (sd, solvers) for kind in classes(package)} - {
    solvers.portable.Portable,
    CheckError,
}


def test_every_exception_class_has_an_example() -> None:
    """Those without a constructor of their own are made from a message."""
    assert {kind for kind in FOUND if "__init__" in vars(kind)} <= EXAMPLES.keys() <= FOUND


@pytest.mark.thin(6)
@pytest.mark.parametrize(
    "kind", sorted(FOUND, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__
)
def test_an_exception_comes_back_whole(kind: type[BaseException]) -> None:
    error = EXAMPLES[kind]() if kind in EXAMPLES else kind("what happened")
    error.add_note("seen by the caller")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again).keys() == vars(error).keys()
    assert again.__notes__ == ["seen by the caller"]


def test_what_a_solve_has_reached_comes_back_with_its_error() -> None:
    error = EXAMPLES[sd.SolveError]()
    again = pickle.loads(pickle.dumps(error))
    assert again.solution.failures == error.solution.failures  # type: ignore[attr-defined]
    assert torch.equal(again.solution.x, error.solution.x)  # type: ignore[attr-defined]


def test_an_error_of_a_solve_with_a_graph_goes_to_another_process() -> None:
    """torch refuses to send what belongs to a graph: the states are detached."""
    error = raised(lambda: failed_solve("full"), sd.SolveError)
    assert error.solution.x.requires_grad  # type: ignore[attr-defined]
    assert str(pickle.loads(bytes(ForkingPickler.dumps(error)))) == str(error)


def test_a_report_that_holds_an_error_which_cannot_be_pickled_keeps_its_words() -> None:
    class Local(Exception):
        pass

    finding = Finding("alpha", "fail", error=Local("no such beta"))
    again = pickle.loads(pickle.dumps(finding))
    assert str(again.error) == "Local: no such beta"
    assert again.name == finding.name

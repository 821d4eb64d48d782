"""`check_sde` passes what is consistent, and names the broken identity of each mutant."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from sde_mutants import (
    DRIFT,
    ENDS,
    FALLS,
    FLOW,
    INVERSE,
    KERNEL,
    MEAN,
    MUTANTS,
    PERTURB,
    PRIOR,
    RANGE,
    REVERSE,
    START,
    VARIANCE,
    F,
    G,
    Well,
)

import sdediff as sd
from sdediff.reverse import Reverse
from sdediff.solvers import expand
from sdediff.testing import Finding, Report, SDEError, check_sde
from sdediff.testing.context import IDENTITIES, Moments, Rates, integrate
from sdediff.testing.report import compare, likely_slip

BUILT_IN = [
    sd.VE(),
    sd.VP(),
    sd.SubVP(),
    sd.Cosine(),
    sd.EDM(),
    sd.RectifiedFlow(),
    sd.Cosine(t_max=1.0),
    sd.RectifiedFlow(t_max=1.0),
    sd.VE(T=3.0, t_min=0.1),
    sd.VP(T=1000.0, t_min=1.0),
    sd.SubVP(t_min=1e-5),
]

# -- SDEs that users write -------------------------------------------------------------------------


class Cubic(sd.LinearSDE):
    def beta(self, t):
        return 0.1 + 19.9 * t**3

    def f(self, t):
        return -0.5 * self.beta(t)

    def g(self, t):
        return self.beta(t).sqrt()


class Jump(Cubic):
    """beta jumps, time ends at 4, and data carry noise."""

    T = 4.0
    sigma_0 = 0.05

    def beta(self, t):
        return torch.where(t < 1.37, 0.3, 5.0)


class Stretch(Cubic):
    """Nothing happens between 0.3 and 0.5."""

    def beta(self, t):
        return torch.where((t > 0.3) & (t < 0.5), 0.0, 15.0)


class Steps(Cubic):
    """DDPM's beta as a step function with 1000 jumps."""

    def beta(self, t):
        return 0.1 + 19.9 * torch.floor(1000 * t) / 999


class Cancelling(sd.LinearSDE):
    """sigma loses its digits near 0, where its slope is then NaN; alpha(T) is 6e-17."""

    t_max = 1.0

    def alpha(self, t):
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t):
        return (1 - self.alpha(t) ** 2).sqrt()


class OutsideTorch(sd.VP):
    """alpha and sigma carry no gradient."""

    def alpha(self, t):
        return torch.as_tensor(np.exp(-0.5 * self.integral(t).detach().numpy()))

    def sigma(self, t):
        return torch.as_tensor(np.sqrt(-np.expm1(-self.integral(t).detach().numpy())))


class Growing(sd.LinearSDE):
    """f > 0: data and noise grow."""

    T = 0.5

    def f(self, t):
        return 2.0

    def g(self, t):
        return 100 * t


class SinglePrecision(Cubic):
    def beta(self, t):
        return (0.1 + 19.9 * t).float()


USERS = [
    Cubic(),
    Jump(),
    Stretch(),
    Steps(),
    Cancelling(),
    OutsideTorch(),
    Growing(),
    SinglePrecision(),
    sd.LinearSDE(f=lambda t: -5.0, g=lambda t: 10**0.5),
    sd.LinearSDE(
        f=lambda t: 0.0, g=lambda t: 0.02 * 2500**t * math.sqrt(2 * math.log(2500)), sigma_0=0.02
    ),
    sd.LinearSDE(alpha=lambda t: 1 - t, sigma=lambda t: t.sqrt(), t_max=0.999),
    sd.LinearSDE(alpha=lambda t: 1.0, sigma=lambda t: 30 * t**0.25),
    sd.LinearSDE(alpha=lambda t: torch.exp(-t / 2), log_snr=lambda t: 8 - 9 * t, T=2.0),
    sd.LinearSDE(
        alpha=lambda t: torch.cos(t), log_snr=lambda t: -2 * torch.tan(t).log(), T=math.pi / 2
    ),
]


class Pull(sd.SDE):
    """Anisotropic, nonlinear, in two dimensions only, with a drift that depends on time."""

    def drift(self, x, t):
        rate = torch.tensor([1.0, 3.0], dtype=x.dtype, device=x.device)
        return -rate * torch.sinh(x) * expand(torch.as_tensor(t), x)

    def diffusion(self, t):
        return (1 + t).sqrt()


def failures(sde: sd.SDE | type[sd.SDE]) -> Report:
    with pytest.raises(SDEError) as error:
        check_sde(sde, verbose=False)
    return error.value.report


@functools.cache
def failures_of(mutant: str) -> Report:
    return failures(MUTANTS[mutant].make())


def names(report: Report) -> set[str]:
    return {finding.name for finding in report.failures}


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "sde", [*BUILT_IN, *USERS], ids=lambda sde: repr(sde).replace("LinearSDE()", "functions")
)
def test_a_consistent_sde_passes(sde: sd.SDE) -> None:
    report = check_sde(sde, verbose=False)
    assert report.passed
    assert not report.warnings
    assert [finding.name for finding in report.findings] == [
        n for n, entry in IDENTITIES.items() if entry.kind != "general"
    ]
    assert all(
        finding.verdict == "ok" and finding.deviation <= finding.bound
        for finding in report.findings
    )


@pytest.mark.parametrize("sde", BUILT_IN, ids=repr)
def test_smooth_schedules_hold_far_below_the_bounds(sde: sd.SDE) -> None:
    """So that the bounds, which leave room for jumps and noise, could be lower were it not for
    those.
    """
    report = check_sde(sde, verbose=False)
    for name in (MEAN, VARIANCE, F, G, KERNEL, FLOW, REVERSE):
        assert report[name].deviation < 1e-9
        assert report[name].bound < 1.01e-6


@pytest.mark.parametrize("sde", [Well(), Pull()], ids=repr)
def test_an_sde_without_a_kernel_passes_what_applies(sde: sd.SDE) -> None:
    report = check_sde(sde, verbose=False)
    assert report.passed
    assert {finding.name for finding in report.findings} == {
        n for n, entry in IDENTITIES.items() if entry.kind != "linear"
    }
    assert report[PRIOR].verdict == ("skipped" if isinstance(sde, Pull) else "ok")
    shapes = report["any rank and dtype"].detail
    assert ("(B, 3)" in shapes) == isinstance(sde, Well)
    assert "(B, 2)" in shapes


# -- mutants ---------------------------------------------------------------------------------------


@pytest.mark.thin(5)
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_rejected_by_the_name_of_the_broken_identity(name: str) -> None:
    mutant = MUTANTS[name]
    report = failures_of(name)
    assert mutant.broken in names(report)
    assert names(report) <= mutant.sensible
    assert mutant.hint in str(report[mutant.broken])


def test_there_are_mutants_of_every_identity() -> None:
    assert len(MUTANTS) > 40
    broken = set().union(*(names(failures_of(name)) for name in MUTANTS))
    assert broken == IDENTITIES.keys() - {"prior_gap is small"}  # which only warns


def test_small_slips_are_seen() -> None:
    """A relative error of 1e-5 in g, which no picture would show."""

    class Off(sd.VP):
        def g(self, t):
            return super().g(t) * (1 + 1e-5)

    report = failures(Off())
    assert {VARIANCE, G, FLOW, REVERSE} <= names(report)
    assert report[G].deviation == pytest.approx(2e-5, rel=0.01)
    assert report[VARIANCE].deviation == pytest.approx(1e-5, rel=0.01)


def test_the_deviation_is_located() -> None:
    """sigma has a bump at t = 0.7 that f and g know nothing of."""

    class Bump(sd.VP):
        def sigma(self, t):
            return super().sigma(t) * (1 + 0.1 * torch.exp(-(((t - 0.88) / 0.02) ** 2)))

    finding = failures(Bump())[VARIANCE]
    where = float(finding.where.removeprefix("t = "))
    assert where == pytest.approx(0.88, abs=0.02)
    assert finding.deviation == pytest.approx(
        0.1 * math.exp(-(((where - 0.88) / 0.02) ** 2)), rel=1e-3
    )
    assert finding.where in str(finding)


def test_noise_that_appears_at_once_is_seen_where_g_is_unbounded() -> None:
    """sigma^2 = 25 + 900 sqrt(t), but 0 at t = 0: where g grows as t^(-1/4) the moments start from
    sigma itself, shortly after.
    """

    class Sudden(sd.LinearSDE):
        def alpha(self, t):
            return torch.ones_like(t)

        def sigma(self, t):
            return torch.where(t == 0, 0.0, (self.floor + 900 * t.sqrt()).sqrt())

        floor = 25.0

    report = failures(Sudden())
    assert names(report) == {VARIANCE}
    assert report[VARIANCE].detail.startswith("sigma at t = 1e-08 is 5.00")
    gradual = Sudden()
    gradual.floor = 0.0
    assert "integrated from t = 1e-08" in check_sde(gradual, verbose=False)[VARIANCE].detail


def test_every_stochasticity_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of size lambda^2 g is right for lambda = 0 and 1."""
    monkeypatch.setattr(
        Reverse, "diffuse", lambda self, dw, t: expand(self.lam**2 * self.sde.g(t), dw) * dw
    )
    report = failures(sd.VP())
    assert names(report) == {REVERSE}
    assert "lambda = 0.5" in report[REVERSE].detail


def test_what_is_not_a_number_deviates_by_infinity() -> None:
    for given, expected in ((math.nan, 1.0), (1.0, math.nan), (math.inf, math.inf), (1.0, 0.0)):
        found = compare(
            "x",
            np.array([1.0, given]),
            np.array([1.0, expected]),
            {"t": np.array([0.1, 0.2])},
            1e-6,
        )
        assert found.deviation == math.inf
        assert found.where == "t = 0.2"
    assert compare("x", np.zeros(2), np.zeros(2), {}, 0.0).deviation == 0


def test_an_exception_is_the_failure_of_its_identity() -> None:
    class Broken(sd.VP):
        def drift(self, x, t):
            raise KeyError("beta_table")

    with pytest.raises(SDEError, match=r"drift is f x: KeyError: 'beta_table'") as error:
        check_sde(Broken(), verbose=False)
    assert isinstance(error.value.__cause__, KeyError)
    assert isinstance(error.value.report[DRIFT].error, KeyError)
    assert names(error.value.report) == {DRIFT, "any rank and dtype"}


def test_what_rests_on_a_failure_is_skipped() -> None:
    report = failures_of("TimeReversed")
    assert report[VARIANCE].verdict == report[FLOW].verdict == report[INVERSE].verdict == "skipped"
    assert "needs 'finite coefficients'" in report[VARIANCE].detail
    assert FALLS in report[INVERSE].detail


def test_a_range_that_cannot_be_found_does_not_hide_why() -> None:
    """t_max is derived from log_snr, which is NaN for a negative alpha."""

    class Negative(sd.LinearSDE):
        def alpha(self, t):
            return -torch.exp(-10 * t)

        def sigma(self, t):
            return (1 - torch.exp(-20 * t)).sqrt()

    report = failures(Negative())
    assert {RANGE, START, MEAN} <= names(report)
    assert report[MEAN].hint == "a sign"
    assert report[PERTURB].verdict == report[ENDS].verdict == report[PRIOR].verdict == "skipped"


# -- what is said ----------------------------------------------------------------------------------


def test_the_table_and_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    report = check_sde(sd.VP())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == repr(sd.VP())
    assert lines[1].split() == ["identity", "deviation", "bound", "where", "verdict"]
    assert len(lines) == 2 + len(report.findings)
    assert all(line.endswith("ok") for line in lines[2:])
    check_sde(sd.VP(), verbose=False)
    assert capsys.readouterr().out == ""

    with pytest.raises(SDEError) as error:
        check_sde(MUTANTS["DriftWithWrongSign"].make())
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "fail" in line]
    assert row.startswith("drift is f x")
    assert row.endswith("fail: a sign")
    assert str(error.value).splitlines() == [
        "DriftWithWrongSign(beta_min=0.1, beta_max=20.0, T=1.0, t_min=0.001) breaks an identity:",
        "- drift is f x: drift(x, t) is 0.05995, not -0.05995, at t = 0.001 (deviation 2, bound "
        "1e-09); likely slip: a sign",
    ]
    assert isinstance(error.value, ValueError)


def test_a_large_prior_gap_only_warns(capsys: pytest.CaptureFixture[str]) -> None:
    report = check_sde(sd.VP(beta_max=1.0))
    snr = float(sd.VP(beta_max=1.0).log_snr(1.0).exp())
    (warning,) = report.warnings
    assert warning.name == "prior_gap is small"
    assert warning.deviation == pytest.approx(0.5 * (snr - math.log1p(snr)), rel=1e-9)
    assert "warn: data of variance 1 keep 0.25 nats" in capsys.readouterr().out


def test_what_is_not_an_sde() -> None:
    assert check_sde(sd.VP, verbose=False).passed
    with pytest.raises(TypeError, match="takes an SDE or a LinearSDE"):
        check_sde("vp", verbose=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes an SDE or a LinearSDE"):
        check_sde(dict, verbose=False)  # type: ignore[arg-type]

    class NeedsArguments(sd.VP):
        def __init__(self, beta):
            super().__init__()

    with pytest.raises(
        TypeError, match=r"missing 1 required positional argument: 'beta'; .* pass an instance"
    ):
        check_sde(NeedsArguments, verbose=False)
    with pytest.raises(KeyError, match="no such"):
        check_sde(sd.VP, verbose=False)["no such"]


def test_gradients_and_modes_of_the_caller_do_not_matter() -> None:
    with torch.inference_mode():
        assert check_sde(Cubic(), verbose=False).passed
    with torch.no_grad():
        assert check_sde(sd.Cosine(), verbose=False).passed
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert check_sde(sd.VE(), verbose=False).passed
    finally:
        torch.set_default_dtype(default)


@pytest.mark.thin(0)
def test_no_test_library_is_needed_and_import_stays_light() -> None:
    code = (
        "import sys, sdediff as sd\n"
        "assert 'sdediff.testing' not in sys.modules\n"
        "sd.testing.check_sde(sd.VP(), verbose=False)\n"
        "print([name for name in ('pytest', 'hypothesis', 'scipy.integrate', 'typer') if name in "
        "sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# -- the parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backward", [False, True])
def test_moments_against_scipy(backward: bool) -> None:
    """m' = a m + c and V' = 2 a V +- d with a kink, forward and backward."""

    def rates(t: np.ndarray) -> Rates:
        return Rates(
            *((item[:, None]) for item in (np.cos(3 * t) - np.abs(t - 0.3), 1 + t**2, np.exp(t)))
        )

    edges = np.linspace(0, 2, 7)
    edges = edges[::-1].copy() if backward else edges
    moments = integrate(rates, edges, np.array([0.3]), np.array([0.2]), np.ones((6, 1)))
    mean, variance = moments.at(edges, np.array([0.3]), np.array([0.2]))

    def equations(t: float, y: np.ndarray) -> list[float]:
        a, c, d = (float(item[0, 0]) for item in rates(np.array([t])))
        return [a * y[0] + c, 2 * a * y[1] + (-d if backward else d)]

    exact = solve_ivp(
        equations,
        (edges[0], edges[-1]),
        [0.3, 0.2],
        "DOP853",
        t_eval=edges,
        rtol=1e-12,
        atol=1e-12,
        max_step=0.01,
    )
    np.testing.assert_allclose(mean[:, 0], exact.y[0], rtol=1e-8)
    np.testing.assert_allclose(variance[:, 0], exact.y[1], rtol=1e-8)
    assert moments.error < 1e-7


def test_what_is_not_resolved_is_reported() -> None:
    """With as few panels as these, the error of a step function is that of its last panel."""

    def rates(t: np.ndarray) -> Rates:
        a = np.where(t < 1 / 3, 0.0, 1.0)[:, None]
        return Rates(a, 0 * a, 0 * a + 1)

    coarse, fine = (
        integrate(rates, np.linspace(0, 1, 3), np.ones(1), np.ones(1), np.ones((2, 1)), most=most)
        for most in (4, 4000)
    )
    truth = np.exp(2 / 3)
    off = abs(float(coarse.at(np.ones(1), np.ones(1), np.ones(1))[0][0, 0]) / truth - 1)
    assert 1e-5 < off < coarse.error < 0.1
    assert abs(float(fine.at(np.ones(1), np.ones(1), np.ones(1))[0][0, 0]) / truth - 1) < 1e-9
    assert fine.error < 1e-8


@pytest.mark.parametrize(
    ("error", "bound"),
    [(0.0, 1e-6), (1e-4, 1.01e-4), (0.5, 0.010001), (math.inf, 1e-6), (math.nan, 1e-6)],
)
def test_the_bound_grows_with_the_error_of_the_integration_but_stays_small(
    error: float, bound: float
) -> None:
    nothing = np.zeros((0, 1))
    moments = Moments(np.zeros(1), nothing, nothing, nothing, error)
    assert moments.bound == pytest.approx(bound, rel=1e-12)


X = np.array([0.3, 0.8, 1.7, 2.9])


@pytest.mark.parametrize(
    ("given", "slip"),
    [
        (X, ""),
        (2 * X, "a factor 2"),
        (0.5 * X, "a factor 2"),
        (-X, "a sign"),
        (-2 * X, "a sign and a factor 2"),
        (X / 4, "a factor 4, that is 2 squared"),
        (X * 2**0.5, "a factor sqrt(2), that is a 2 on the wrong side of a square root"),
        (X * math.pi, "a factor pi"),
        (X / math.log(10), "a logarithm to base 10"),
        (1.7 * X, "a constant factor 1.7"),
        (X**2, "a missing square root"),
        (2 * X**2, "a missing square root, and a factor 2"),
        (np.sqrt(X), "a square root too many, or a missing square"),
        (1 / X, "the inverse, 1 / x for x"),
        (1 - X, "1 - x for x"),
        (np.cos(X), "x and y swapped"),
        (X + 0.1, ""),
        (X * np.array([1, 1, 1, np.nan]), ""),
    ],
)
def test_likely_slips(given: np.ndarray, slip: str) -> None:
    assert likely_slip(given, X, {"x and y swapped": np.cos(X)}) == slip


def test_findings_are_values() -> None:
    finding = Finding("a", "fail", math.inf, 1e-9, "t = 1", "x is 1, not 2", "a factor 2")
    assert str(finding) == "a: x is 1, not 2; likely slip: a factor 2"
    report = Report("S()", (finding, Finding("b", "skipped", detail="why")))
    assert not report.passed
    assert str(report).splitlines()[-1].split() == ["b", "-", "-", "skipped:", "why"]

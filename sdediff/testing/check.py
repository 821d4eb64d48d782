"""Whether an SDE is consistent."""

from __future__ import annotations

from typing import Any

import torch

from sdediff.sde import SDE

# Importing the topics enters their identities into the table, in this order.
from sdediff.testing import coefficients, general, kernels, priors, reversal, shapes  # noqa: F401
from sdediff.testing.context import Context
from sdediff.testing.identity import IDENTITIES, evaluate
from sdediff.testing.report import Finding, Report, SDEError

__all__ = ["check_sde", "instance_of"]


def check_sde(sde: SDE | type[SDE], *, verbose: bool = True) -> Report:
    """Check every identity that makes an SDE dx = f x dt + g dw consistent, and raise `SDEError`
    naming those that fail.

    - moments: alpha and sigma against m' = f m and V' = 2 f V + g^2, integrated from m = 1 and V =
      sigma_0^2 at t = 0;
    - derivatives: f = d log alpha / dt, g^2 = d sigma^2 / dt - 2 f sigma^2, `rates`; log_snr, its
      fall and its inverse `time_of`;
    - kernels: the moment equations, Chapman-Kolmogorov, the marginal at s = 0, `perturb`, and
      `posterior` against Bayes' theorem;
    - the prior against sigma(t_max), and `prior_gap`, which only warns where it is large;
    - probability flow and reverse SDE keep the marginals of Gaussian data, by their moment
      equations;
    - the ends of the usable range; states of any rank, dtype and device there is; times as numbers
      and as batches.

    Whatever is overridden is held against what would be derived. Of an `SDE` without a Gaussian
    kernel only drift, diffusion, prior and shapes are checked. A class is made without arguments.
    Coefficients that jump are fine; deviations are relative, the bounds 1e-9 for what takes a few
    operations and 1e-6 for what is integrated. Nothing is random, no network is needed.

    Prints a table unless ``verbose`` is false and returns it as a `Report`. Raises TypeError for
    what is no SDE.
    """
    instance = instance_of(sde, "check_sde")
    with torch.inference_mode(False), torch.no_grad():
        context = Context(instance)
        findings: dict[str, Finding] = {}
        for name, entry in IDENTITIES.items():
            if entry.kind not in ("any", "linear" if context.linear else "general"):
                continue
            missing = [needed for needed in entry.after if findings[needed].verdict == "fail"]
            if missing:
                findings[name] = Finding(
                    name, "skipped", detail=f"needs {' and '.join(map(repr, missing))}"
                )
            else:
                findings[name] = evaluate(name, context)
    report = Report(repr(instance), tuple(findings.values()))
    if verbose:
        print(report)
    if not report.passed:
        cause = next(
            (finding.error for finding in report.failures if finding.error is not None), None
        )
        raise SDEError(report) from cause
    return report


def instance_of(sde: Any, by: str) -> SDE:
    """An SDE, or that which its class makes without arguments; a TypeError in the name of the
    function ``by`` for anything else.
    """
    if isinstance(sde, type) and issubclass(sde, SDE):
        try:
            sde = sde()
        except TypeError as error:
            raise TypeError(
                f"{error}; {by} makes a class without arguments: pass an instance if it needs some"
            ) from error
    if not isinstance(sde, SDE):
        raise TypeError(f"{by} takes an SDE or a LinearSDE, or a class of either; got {sde!r}")
    return sde

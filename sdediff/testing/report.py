"""What a check has found: one line for each identity, and the error that names the broken ones."""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from sdediff.solvers.portable import Portable

__all__ = ["Finding", "Report", "SDEError"]

Verdict = Literal["ok", "fail", "warn", "skipped"]


class Finding(NamedTuple):
    """What one identity came to."""

    name: str
    verdict: Verdict
    deviation: float = math.nan
    """The largest, relative; infinite where something is not finite, has the wrong shape or has
    raised.
    """
    bound: float = math.nan
    where: str = ""
    """The time or times of the largest deviation: "t = 0.5" or "t = 0.5, s = 0.1"."""
    detail: str = ""
    """What deviates, with the value found and the value expected; of a skipped identity, why."""
    hint: str = ""
    """The likely slip; "" where none is recognised."""
    error: Exception | None = None
    """What a method of the SDE has raised."""

    def __reduce__(self) -> tuple[Any, ...]:
        """The fields; an error that cannot be pickled is replaced by its words."""
        return type(self), (*self[:-1], _portable(self.error))

    def __str__(self) -> str:
        """One line: name, what deviates by how much and where, likely slip."""
        text = f"{self.name}: {self.detail}" if self.detail else self.name
        if math.isfinite(self.deviation) and self.verdict != "skipped":
            text += f" (deviation {self.deviation:.2g}, bound {self.bound:.0e})"
        return f"{text}; likely slip: {self.hint}" if self.hint else text


def _portable(error: Exception | None) -> Exception | None:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of any kind: the user's class decides
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@dataclass(frozen=True)
class Report:
    """The findings of `check_sde`, one for each identity; printed as a table."""

    kind: ClassVar[str] = "identity"
    """What there is a finding for: the head of the table's first column."""

    sde: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no identity fails."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The identities that fail, the more basic first."""
        return tuple(finding for finding in self.findings if finding.verdict == "fail")

    def lines(self) -> list[str]:
        """The failures, a line for each cause: what fails by one and the same error shares a
        line.
        """
        together: dict[object, list[Finding]] = {}
        for finding in self.failures:
            same = (
                re.sub(r"[\d.+-]+", "", finding.detail)
                if finding.error is not None
                else finding.name
            )
            together.setdefault((type(finding.error), same), []).append(finding)
        said = []
        for first, *others in together.values():
            names = ", ".join(finding.name for finding in others)
            said.append(f"- {first}{f'; the same error ends {names}' if others else ''}")
        return said

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What is no error and may yet surprise."""
        return tuple(finding for finding in self.findings if finding.verdict == "warn")

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def __str__(self) -> str:
        """A table: name, largest deviation, bound, where, verdict."""
        rows = [(self.kind, "deviation", "bound", "where", "verdict")]
        for finding in self.findings:
            deviation = "-" if math.isnan(finding.deviation) else f"{finding.deviation:.1e}"
            bound = "-" if math.isnan(finding.bound) else f"{finding.bound:.0e}"
            note = finding.hint if finding.verdict == "fail" else finding.detail
            rows.append(
                (
                    finding.name,
                    deviation,
                    bound,
                    finding.where,
                    f"{finding.verdict}: {note}" if note else finding.verdict,
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            f"{name:<{widths[0]}}  {deviation:>{widths[1]}}  {bound:>{widths[2]}}  "
            f"{where:<{widths[3]}}  {verdict}"
            for name, deviation, bound, where, verdict in rows
        ]
        return "\n".join([self.sde, *(line.rstrip() for line in lines)])


class SDEError(Portable, ValueError):
    """An SDE breaks at least one identity; ``report`` has them all."""

    def __init__(self, report: Report) -> None:
        self.report = report
        broken = report.failures
        count = "an identity" if len(broken) == 1 else f"{len(broken)} identities"
        lines = [f"{report.sde} breaks {count}:", *report.lines()]
        if len(lines) > 2:
            lines.append(
                "They are listed from the basic to the derived: mend the first and check again."
            )
        super().__init__("\n".join(lines))

"""Settings of Hypothesis for tests: the same examples in every run, without a database."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

QUIET = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)

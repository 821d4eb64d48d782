"""Calls with arguments of every kind: how many are tried, and what may come of them.

The slow tests try 5,500, ``FUZZ`` times as many if that is set in the environment.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

TIMES = int(os.environ.get("FUZZ", "1"))
COMMANDS = 1500 * TIMES
"""Cases of the command line, of a tenth of a second each."""
CALLS = 4000 * TIMES
"""Cases of the API, of fifteen milliseconds each."""
LIMIT = 1.0
"""Seconds of the process's time until a failure is told."""


def few(cases: int) -> settings:
    """So many cases, the same in every run."""
    return settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

"""How the threads of torch wait for each other: asleep. To be imported before torch.

By default they spin, for they wait for microseconds where all of them run. On a busy machine one of
them may have no core for milliseconds, and the others spin on those that it needs: beside eight
processes on two cores a step of training took 4 to 10 times the processor's time
(docs/evidence/scale.md). A policy that the user has set is left alone.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

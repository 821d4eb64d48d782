"""The numerics of `sdediff` under a name of their own: ``from solvers import RK45`` works.

Nothing in `sdediff` imports this name, so that a file or folder called ``solvers`` beside a user's
script does no harm.
"""

from sdediff.solvers import *  # noqa: F403
from sdediff.solvers import __all__ as __all__

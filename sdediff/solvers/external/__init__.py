"""Other libraries as solvers: torchdiffeq, torchsde and SciPy, imported when they are first
used.
"""

from sdediff.solvers.external.driver import External
from sdediff.solvers.external.ode import SciPy, TorchDiffEq
from sdediff.solvers.external.sde import TorchSDE

__all__ = ["External", "SciPy", "TorchDiffEq", "TorchSDE"]

"""Other libraries as solvers: torchdiffeq, torchsde and SciPy, imported when they are first used."""

from solvers.external.driver import External
from solvers.external.ode import SciPy, TorchDiffEq
from solvers.external.sde import TorchSDE

__all__ = ["External", "SciPy", "TorchDiffEq", "TorchSDE"]

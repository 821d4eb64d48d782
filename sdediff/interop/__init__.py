"""Other libraries: their networks as our models, and our solvers inside of theirs.

`from_edm`, `from_score_sde`, `from_guided_diffusion`, `from_k_diffusion` and `from_flow_matching`
make models of networks of other code, `from_sbi` of score estimators of sbi, and
`sdediff.from_diffusers` of those of diffusers. `sdediff.interop.diffusers` has our solvers as a
scheduler, and `Controlled` puts ControlNets on a network.
Nothing here is imported by `import sdediff`.
"""

from sdediff.interop.checkpoints import (
    from_edm,
    from_flow_matching,
    from_guided_diffusion,
    from_k_diffusion,
    from_score_sde,
)
from sdediff.interop.control import Controlled
from sdediff.interop.sbi import from_sbi

__all__ = [
    "Controlled",
    "from_edm",
    "from_flow_matching",
    "from_guided_diffusion",
    "from_k_diffusion",
    "from_sbi",
    "from_score_sde",
]

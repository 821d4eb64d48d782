"""Cold diffusion: processes that degrade data without noise, the loss that restores them, and the
two samplers (Bansal et al. 2022, arXiv 2208.09392).
"""

from sdediff.degradation.base import Degradation, Function, Hot, Unchanged
from sdediff.degradation.images import BLURS, Blur, Downsampling, Masking
from sdediff.degradation.loss import RestorationLoss
from sdediff.degradation.sampling import NaiveSampling, TACoS
from sdediff.degradation.snow import Snow
from sdediff.degradation.start import MixtureStart

__all__ = [
    "BLURS",
    "Blur",
    "Degradation",
    "Downsampling",
    "Function",
    "Hot",
    "Masking",
    "MixtureStart",
    "NaiveSampling",
    "RestorationLoss",
    "Snow",
    "TACoS",
    "Unchanged",
]

"""Posteriors of data given a measurement: inpainting, deblurring, super-resolution, colourisation
and any other inverse problem.

A measurement (`Linear`, `Mask`, `Blur`, `Downsample`, `Grey`, `Fourier`, `Nonlinear`) says what
was seen of x_0. Methods that are models of models (`MMPS`, `PiGDM`, `DPS`) go into `sdediff.sample`
with any solver. `PublishedDPS`, `Replacement`, `RePaint` and `DiffPIR` are solvers that know the
measurement. `sample_posterior` weighs `Particles`, so that the law is right, and has the evidence.

`sample_weighted` does the same for laws made of laws: `Product`, `Anneal` and `Reward`. `Composed`
is an approximation to a product for any solver: several observations of one thing.
"""

from sdediff.posterior.composed import Composed
from sdediff.posterior.corrected import FeynmanKac
from sdediff.posterior.measurements import (
    Blur,
    Downsample,
    Fourier,
    Grey,
    Linear,
    LinearMeasurement,
    Mask,
    Measurement,
    Nonlinear,
    Through,
)
from sdediff.posterior.operators import DPS, MMPS, PiGDM, Posterior
from sdediff.posterior.particles import Particles
from sdediff.posterior.resampling import Resampling
from sdediff.posterior.sampling import Weighted, sample_posterior, sample_weighted
from sdediff.posterior.steering import Anneal, Product, Reward
from sdediff.posterior.wrappers import DiffPIR, PublishedDPS, RePaint, Replacement

__all__ = [
    "DPS",
    "MMPS",
    "Anneal",
    "Blur",
    "Composed",
    "DiffPIR",
    "Downsample",
    "FeynmanKac",
    "Fourier",
    "Grey",
    "Linear",
    "LinearMeasurement",
    "Mask",
    "Measurement",
    "Nonlinear",
    "Particles",
    "PiGDM",
    "Posterior",
    "Product",
    "PublishedDPS",
    "RePaint",
    "Replacement",
    "Resampling",
    "Reward",
    "Through",
    "Weighted",
    "sample_posterior",
    "sample_weighted",
]

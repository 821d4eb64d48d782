"""Networks that ship: U-Nets and a transformer for images, a U-Net for signals, and a multilayer
perceptron for points; and autoencoders of any make as networks.
"""

from sdediff.networks.autoencoder import Autoencoder, Reconstruction
from sdediff.networks.choice import NETWORKS, initialised, network_for
from sdediff.networks.dit import DiT
from sdediff.networks.mlp import MLP
from sdediff.networks.unet import UNet
from sdediff.networks.unet1d import UNet1D

__all__ = [
    "MLP",
    "NETWORKS",
    "Autoencoder",
    "DiT",
    "Reconstruction",
    "UNet",
    "UNet1D",
    "initialised",
    "network_for",
]

"""Networks that ship: U-Nets and a transformer for images, a U-Net for signals, a multilayer
perceptron for points, an encoder for texts; and autoencoders of any make as networks.
"""

from sdediff.networks.autoencoder import Autoencoder, Reconstruction
from sdediff.networks.choice import NETWORKS, initialised, network_for
from sdediff.networks.dit import DiT
from sdediff.networks.mlp import MLP
from sdediff.networks.text import Captioned, TextEncoder, Tokenizer
from sdediff.networks.unet import UNet
from sdediff.networks.unet1d import UNet1D

__all__ = [
    "MLP",
    "NETWORKS",
    "Autoencoder",
    "Captioned",
    "DiT",
    "Reconstruction",
    "TextEncoder",
    "Tokenizer",
    "UNet",
    "UNet1D",
    "initialised",
    "network_for",
]

"""Learned effective dynamics: propagate a molecular system in its latent space."""

from importlib.metadata import version

__version__ = version("mosaicmd-led-dynamics")

__all__ = ["__version__"]

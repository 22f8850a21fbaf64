"""Free energies along a potential path, and training on hydration free energies."""

from importlib.metadata import version

__version__ = version("mosaicmd-resolv")

__all__ = ["__version__"]

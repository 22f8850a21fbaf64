"""Learning potentials from experiment by differentiable trajectory reweighting."""

from importlib.metadata import version

__version__ = version("mosaicmd-difftre")

__all__ = ["__version__"]

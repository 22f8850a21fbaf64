"""Coulomb interactions and charge equilibration."""

from importlib.metadata import version

__version__ = version("mosaicmd-qeq-longrange")

__all__ = ["__version__"]

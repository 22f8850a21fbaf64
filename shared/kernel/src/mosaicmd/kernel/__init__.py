"""Systems, graphs, potentials, dynamics, observables and training: what every package stands on."""

from importlib.metadata import version

__version__ = version("mosaicmd-kernel")

__all__ = ["__version__"]

"""Energy functions on graphs, from learnable classical terms to graph neural networks."""

from importlib.metadata import version

__version__ = version("mosaicmd-gnn-models")

__all__ = ["__version__"]

"""Moving a trained potential to another element."""

from importlib.metadata import version

__version__ = version("mosaicmd-transfer")

__all__ = ["__version__"]

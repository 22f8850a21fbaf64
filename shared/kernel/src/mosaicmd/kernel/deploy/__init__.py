"""Models in the hands of other programs: an ASE calculator, i-PI sockets, exported programs."""

from mosaicmd.kernel.deploy.calculator import PotentialCalculator, ase_calculator
from mosaicmd.kernel.deploy.exported import ExportedModel, export_model, load_exported

__all__ = [
    "ExportedModel",
    "PotentialCalculator",
    "ase_calculator",
    "export_model",
    "load_exported",
]

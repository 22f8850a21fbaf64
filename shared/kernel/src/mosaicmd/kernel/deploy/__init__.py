"""Models in the hands of other programs: ASE, i-PI sockets, programs that run jax, LAMMPS."""

from mosaicmd.kernel.deploy.calculator import PotentialCalculator, ase_calculator
from mosaicmd.kernel.deploy.exported import ExportedModel, export_model, load_exported

__all__ = [
    "ExportedModel",
    "PotentialCalculator",
    "ase_calculator",
    "export_model",
    "load_exported",
]

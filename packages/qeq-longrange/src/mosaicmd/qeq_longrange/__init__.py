"""Coulomb interactions and charge equilibration."""

from importlib.metadata import version

from mosaicmd.qeq_longrange.charge_equilibration import (
    ChargeEquilibration,
    ChargeEquilibrationConfig,
    Equilibrium,
    charge_equilibration,
    equilibrate_charges,
)
from mosaicmd.qeq_longrange.coulomb import CoulombConfig, coulomb
from mosaicmd.qeq_longrange.electrostatics import (
    coulomb_energy,
    coulomb_matrix,
    coulomb_operator,
    coulomb_potentials,
)
from mosaicmd.qeq_longrange.planning import plan_coulomb
from mosaicmd.qeq_longrange.plans import CoulombPlan, DirectPlan, EwaldPlan, MeshPlan
from mosaicmd.qeq_longrange.short_range import Exclusions

__version__ = version("mosaicmd-qeq-longrange")

__all__ = [
    "ChargeEquilibration",
    "ChargeEquilibrationConfig",
    "CoulombConfig",
    "CoulombPlan",
    "DirectPlan",
    "Equilibrium",
    "EwaldPlan",
    "Exclusions",
    "MeshPlan",
    "__version__",
    "charge_equilibration",
    "coulomb",
    "coulomb_energy",
    "coulomb_matrix",
    "coulomb_operator",
    "coulomb_potentials",
    "equilibrate_charges",
    "plan_coulomb",
]

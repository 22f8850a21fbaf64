"""Coulomb interactions and charge equilibration."""

from importlib.metadata import version

from mosaicmd.qeq_longrange.celli import CELLIConfig, NetworkConfig, celli
from mosaicmd.qeq_longrange.charge_equilibration import (
    ChargeEquilibration,
    ChargeEquilibrationConfig,
    Fragments,
    SolverConfig,
    charge_equilibration,
    equilibrium_of_gaussians,
)
from mosaicmd.qeq_longrange.coulomb import CoulombConfig, coulomb
from mosaicmd.qeq_longrange.electrostatics import (
    coulomb_energy,
    coulomb_matrix,
    coulomb_operator,
    coulomb_potentials,
)
from mosaicmd.qeq_longrange.equilibrium import (
    Equilibrium,
    equilibrate_charges,
    equilibrate_charges_iteratively,
    require_equilibrium,
)
from mosaicmd.qeq_longrange.fourth_generation import FourthGenerationConfig, fourth_generation
from mosaicmd.qeq_longrange.planning import plan_coulomb
from mosaicmd.qeq_longrange.plans import CoulombPlan, DirectPlan, EwaldPlan, MeshPlan
from mosaicmd.qeq_longrange.short_range import Exclusions
from mosaicmd.qeq_longrange.symmetry_functions import SymmetryFunctionsConfig, symmetry_functions

__version__ = version("mosaicmd-qeq-longrange")

__all__ = [
    "CELLIConfig",
    "ChargeEquilibration",
    "ChargeEquilibrationConfig",
    "CoulombConfig",
    "CoulombPlan",
    "DirectPlan",
    "Equilibrium",
    "EwaldPlan",
    "Exclusions",
    "FourthGenerationConfig",
    "Fragments",
    "MeshPlan",
    "NetworkConfig",
    "SolverConfig",
    "SymmetryFunctionsConfig",
    "__version__",
    "celli",
    "charge_equilibration",
    "coulomb",
    "coulomb_energy",
    "coulomb_matrix",
    "coulomb_operator",
    "coulomb_potentials",
    "equilibrate_charges",
    "equilibrate_charges_iteratively",
    "equilibrium_of_gaussians",
    "fourth_generation",
    "plan_coulomb",
    "require_equilibrium",
    "symmetry_functions",
]

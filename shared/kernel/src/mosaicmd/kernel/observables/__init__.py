"""Averages over trajectories, with error bars and weights.

An `Observable` says what one frame contributes; calling it on a `Trajectory` gives the
average and its `Info`. Transport coefficients, which need the order of frames, are plain
functions of a trajectory.
"""

from mosaicmd.kernel.observables._observable import Info, Observable, jackknife_error
from mosaicmd.kernel.observables.angles import adf, tetrahedral_order
from mosaicmd.kernel.observables.elasticity import (
    ElasticTerms,
    elastic_constants,
    elastic_constants_from_strain,
    elastic_terms,
)
from mosaicmd.kernel.observables.fluctuations import (
    heat_capacity,
    isothermal_compressibility,
    thermal_expansion,
)
from mosaicmd.kernel.observables.frames import add_quantities, evaluate_frames, observe
from mosaicmd.kernel.observables.internal_coordinates import (
    Coordinate,
    bond_angle,
    bond_length,
    coordinate_average,
    coordinate_distribution,
    dihedral,
    free_energy_surface,
)
from mosaicmd.kernel.observables.pair_distribution import coordination_number, rdf, shell_volumes
from mosaicmd.kernel.observables.structure_factor import (
    bragg_intensities,
    structure_factor,
    structure_factor_from_rdf,
    transform_of_rdf,
    wave_vectors,
)
from mosaicmd.kernel.observables.thermodynamics import (
    density,
    number_density,
    pressure,
    pressure_tensor,
    temperature,
)
from mosaicmd.kernel.observables.transport import (
    DiffusionInfo,
    MeanSquareDisplacement,
    diffusion_coefficient,
    mean_square_displacement,
)
from mosaicmd.kernel.observables.velocity_correlation import (
    GreenKuboInfo,
    VelocityAutocorrelation,
    VibrationalSpectrum,
    green_kubo_diffusion,
    velocity_autocorrelation,
    vibrational_spectrum,
)

__all__ = [
    "Coordinate",
    "DiffusionInfo",
    "ElasticTerms",
    "GreenKuboInfo",
    "Info",
    "MeanSquareDisplacement",
    "Observable",
    "VelocityAutocorrelation",
    "VibrationalSpectrum",
    "add_quantities",
    "adf",
    "bond_angle",
    "bond_length",
    "bragg_intensities",
    "coordinate_average",
    "coordinate_distribution",
    "coordination_number",
    "density",
    "diffusion_coefficient",
    "dihedral",
    "elastic_constants",
    "elastic_constants_from_strain",
    "elastic_terms",
    "evaluate_frames",
    "free_energy_surface",
    "green_kubo_diffusion",
    "heat_capacity",
    "isothermal_compressibility",
    "jackknife_error",
    "mean_square_displacement",
    "number_density",
    "observe",
    "pressure",
    "pressure_tensor",
    "rdf",
    "shell_volumes",
    "structure_factor",
    "structure_factor_from_rdf",
    "temperature",
    "tetrahedral_order",
    "thermal_expansion",
    "transform_of_rdf",
    "velocity_autocorrelation",
    "vibrational_spectrum",
    "wave_vectors",
]

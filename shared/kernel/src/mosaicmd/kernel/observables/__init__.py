"""Averages over trajectories, with error bars and weights.

An `Observable` says what one frame contributes; calling it on a `Trajectory` gives the
average and its `Info`. Transport coefficients, which need the order of frames, are plain
functions of a trajectory.
"""

from mosaicmd.kernel.observables._observable import Info, Observable, jackknife_error
from mosaicmd.kernel.observables.angles import adf, tetrahedral_order
from mosaicmd.kernel.observables.frames import add_quantities, evaluate_frames, observe
from mosaicmd.kernel.observables.pair_distribution import coordination_number, rdf, shell_volumes
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

__all__ = [
    "DiffusionInfo",
    "Info",
    "MeanSquareDisplacement",
    "Observable",
    "add_quantities",
    "adf",
    "coordination_number",
    "density",
    "diffusion_coefficient",
    "evaluate_frames",
    "jackknife_error",
    "mean_square_displacement",
    "number_density",
    "observe",
    "pressure",
    "pressure_tensor",
    "rdf",
    "shell_volumes",
    "temperature",
    "tetrahedral_order",
]

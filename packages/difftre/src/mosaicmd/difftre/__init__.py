"""Learning potentials from experiment by differentiable trajectory reweighting."""

from importlib.metadata import version

from mosaicmd.difftre.algorithm import DiffTReState, StatePointData, difftre
from mosaicmd.difftre.boltzmann_inversion import boltzmann_inversion
from mosaicmd.difftre.divergence import jensen_shannon_divergence
from mosaicmd.difftre.force_aggregation import (
    aggregate_forces,
    basic_force_map,
    optimal_force_map,
)
from mosaicmd.difftre.measurements import Measurement, load_measurement
from mosaicmd.difftre.relative_entropy import (
    NaturalGradient,
    RelativeEntropyState,
    relative_entropy,
)
from mosaicmd.difftre.reweighting import Linearised, Prediction, Reweighting, Samples
from mosaicmd.difftre.sampling import Sampler, dynamics_sampler
from mosaicmd.difftre.targets import Target
from mosaicmd.difftre.updates import Problem, Update, UpdateInfo, first_order, gauss_newton

__version__ = version("mosaicmd-difftre")

__all__ = [
    "DiffTReState",
    "Linearised",
    "Measurement",
    "NaturalGradient",
    "Prediction",
    "Problem",
    "RelativeEntropyState",
    "Reweighting",
    "Sampler",
    "Samples",
    "StatePointData",
    "Target",
    "Update",
    "UpdateInfo",
    "__version__",
    "aggregate_forces",
    "basic_force_map",
    "boltzmann_inversion",
    "difftre",
    "dynamics_sampler",
    "first_order",
    "gauss_newton",
    "jensen_shannon_divergence",
    "load_measurement",
    "optimal_force_map",
    "relative_entropy",
]

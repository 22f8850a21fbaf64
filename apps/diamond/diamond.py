"""The problem: diamond in its measured cell, the model, and what was measured."""

import dataclasses
from typing import Any

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from mosaicmd.difftre import Target
from mosaicmd.gnn_models import (
    StillingerWeberPairConfig,
    ThreeBodyConfig,
    stillinger_weber_pair,
    three_body,
)
from mosaicmd.kernel import units
from mosaicmd.kernel.config import Config, Density, Pressure, Temperature, Time
from mosaicmd.kernel.elastic_tensors import point_group
from mosaicmd.kernel.observables import Observable, elastic_constants, elastic_terms
from mosaicmd.kernel.potentials import Potential, sum_potentials
from mosaicmd.kernel.systems import System, from_ase

CARBON = 6
CARBON_MASS = 12.011  # u
MCSKIMIN = "McSkimin & Andreatch, J. Appl. Phys. 43, 2944 (1972)"
MEASURED_GPA = {"c11": 1079.0, "c12": 124.0, "c44": 578.0}
_ENTRIES = np.array([0, 0, 3]), np.array([0, 1, 3])  # of C11, C12 and C44 in Voigt's matrix


class ModelConfig(Config):
    pair: StillingerWeberPairConfig
    three_body: ThreeBodyConfig


class RunConfig(Config):
    """How to simulate; ``friction_per_ps`` is that of the Langevin thermostat."""

    timestep_fs: Time = Field(gt=0.0)
    every: int = Field(gt=0)  # steps between frames
    n_equilibration: int = Field(ge=0)  # frames
    n_frames: int = Field(gt=0)
    friction_per_ps: float = Field(default=20.0, gt=0.0)
    skin: float = Field(default=0.3, ge=0.0)


class TrainingConfig(RunConfig):
    """Deviations that count as one, and how the Gauss–Newton steps are bounded and averaged."""

    n_updates: int = Field(gt=0)
    tolerance_gpa: float = Field(gt=0.0)  # of elastic constants
    tolerance_pressure: Pressure = Field(gt=0.0)  # eV/Å³
    max_divergence: float = Field(gt=0.0)
    average_last: int = Field(gt=0)


class DiamondConfig(Config):
    seed: int
    repeats: int = Field(gt=0)  # cubic cells of eight atoms along each edge
    temperature_kelvin: Temperature = Field(gt=0.0)
    density: Density = Field(gt=0.0)  # u/Å³
    model: ModelConfig
    training: TrainingConfig
    validation: RunConfig

    @property
    def kT(self) -> float:
        """eV."""
        return self.temperature_kelvin * units.KELVIN

    @property
    def edge(self) -> float:
        """Edge of the cubic cell of eight atoms, Å."""
        return (8.0 * CARBON_MASS / self.density) ** (1.0 / 3.0)


def crystal(config: DiamondConfig) -> System:
    """The ideal lattice at the measured density, in float32."""
    atoms = ase.build.bulk("C", "diamond", a=config.edge, cubic=True).repeat(config.repeats)
    return from_ase(atoms).astype(jnp.float32)


def build_potential(config: ModelConfig) -> Potential:
    return sum_potentials(stillinger_weber_pair(config.pair), three_body(config.three_body))


def elasticity(config: DiamondConfig, potential: Potential) -> Observable:
    """C11, C12, C44 and the pressure, ``[4]``, GPa."""
    full = elastic_constants(
        potential.energy,
        cutoff=potential.cutoff,
        kT=config.kT,
        rotations=point_group(crystal(config)),
    )
    assert full.combine is not None
    constants = full.combine

    def combine(values: jax.Array, weights: jax.Array) -> jax.Array:
        stress = elastic_terms(values, weights, kT=config.kT).stress
        pressure = -jnp.mean(stress[:3], keepdims=True) / units.GPA
        return jnp.concatenate([constants(values, weights)[_ENTRIES], pressure])

    return dataclasses.replace(full, name="elasticity", combine=combine)


def stresses(config: DiamondConfig, observable: Observable) -> Observable:
    """The six components of the mean stress, GPa, from the same values per frame."""

    def combine(values: jax.Array, weights: jax.Array) -> jax.Array:
        return elastic_terms(values, weights, kT=config.kT).stress / units.GPA

    return dataclasses.replace(observable, combine=combine)


def target(config: DiamondConfig, potential: Potential) -> Target:
    """Measured constants, and no pressure in the measured cell."""
    scale = config.training
    constants = [scale.tolerance_gpa] * len(MEASURED_GPA)
    return Target(
        observable=elasticity(config, potential),
        value=np.array([*MEASURED_GPA.values(), 0.0]),
        tolerance=np.array([*constants, scale.tolerance_pressure / units.GPA]),
    )


def pair_energies(config: ModelConfig, params: Any, distances: np.ndarray) -> np.ndarray:
    """Energy of two atoms, eV, at ``distances`` (Å)."""
    from mosaicmd.kernel.graphs import host_graph
    from mosaicmd.kernel.potentials import total_energy
    from mosaicmd.kernel.systems import make_system

    pair = stillinger_weber_pair(config.pair)

    def one(distance: float) -> float:
        two = make_system(np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]), CARBON)
        return float(total_energy(pair.energy, params[0], two, host_graph(two, pair.cutoff)))

    return np.array([one(distance) for distance in distances])

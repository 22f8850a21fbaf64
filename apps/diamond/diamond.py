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
    DimeNetConfig,
    StillingerWeberPairConfig,
    ThreeBodyConfig,
    dimenet,
    fixed,
    scaled,
    stillinger_weber_pair,
    three_body,
)
from mosaicmd.kernel import units
from mosaicmd.kernel.config import Config, Density, Energy, Length, Pressure, Temperature, Time
from mosaicmd.kernel.elastic_tensors import point_group
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.observables import Observable, elastic_constants, elastic_terms
from mosaicmd.kernel.potentials import Potential, sum_potentials, total_energy
from mosaicmd.kernel.systems import System, from_ase

CARBON = 6
CARBON_MASS = 12.011  # u
MCSKIMIN = "McSkimin & Andreatch, J. Appl. Phys. 43, 2944 (1972)"
MEASURED_GPA = {"c11": 1079.0, "c12": 124.0, "c44": 578.0}
_ENTRIES = np.array([0, 0, 3]), np.array([0, 1, 3])  # of C11, C12 and C44 in Voigt's matrix


class NetworkConfig(DimeNetConfig):
    """DimeNet++ whose numbers are energies in ``energy_unit``, eV."""

    energy_unit: Energy = Field(gt=0.0)


class ModelConfig(Config):
    """Two terms of Stillinger and Weber, which are learned, or else a network on top of them."""

    pair: StillingerWeberPairConfig
    three_body: ThreeBodyConfig
    network: NetworkConfig | None = None


class RunConfig(Config):
    """How to simulate; ``friction_per_ps`` is that of the Langevin thermostat.

    With ``replicas``, each of them has so many frames.
    """

    timestep_fs: Time = Field(gt=0.0)
    every: int = Field(gt=0)  # steps between frames
    n_equilibration: int = Field(ge=0)  # frames
    n_frames: int = Field(gt=0)
    friction_per_ps: float = Field(default=20.0, gt=0.0)
    skin: float = Field(default=0.3, ge=0.0)
    replicas: int | None = Field(default=None, ge=1)


class TrainingConfig(RunConfig):
    """Deviations that count as one, and how the Gauss–Newton steps are bounded and averaged.

    ``direct_every``, ``ridge``, ``keep_fraction`` and ``descend`` are those of `mosaicmd.difftre`.
    """

    n_updates: int = Field(gt=0)
    tolerance_gpa: float = Field(gt=0.0)  # of elastic constants
    tolerance_pressure: Pressure = Field(gt=0.0)  # eV/Å³
    max_divergence: float = Field(gt=0.0)
    ridge: float = Field(default=1.0e-10, gt=0.0)
    descend: bool = False
    keep_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    direct_every: int = Field(default=1, ge=1)
    average_last: int = Field(gt=0)


class MatchingConfig(Config):
    """Force matching to the model that another preset learns, as a start for this one.

    Forces and stresses are those of ``n_cells`` cells of 64 atoms, strained (standard deviation of
    components ``strain``) and rattled (of coordinates ``displacement``), a tenth of them held out;
    ``stress`` is the weight of squared deviations in eV/Å³, forces have 1 in eV/Å. Adam's learning
    rate falls along a half cosine.
    """

    preset: str
    n_cells: int = Field(ge=10)
    strain: float = Field(ge=0.0, lt=0.1)
    displacement: Length = Field(gt=0.0)
    n_steps: int = Field(gt=0)
    batch_size: int = Field(default=4, gt=0)
    learning_rate: float = Field(gt=0.0)
    stress: float = Field(ge=0.0)


class DiamondConfig(Config):
    seed: int
    repeats: int = Field(gt=0)  # cubic cells of eight atoms along each edge
    temperature_kelvin: Temperature = Field(gt=0.0)
    density: Density = Field(gt=0.0)  # u/Å³
    model: ModelConfig
    matching: MatchingConfig | None = None
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


def lattice(config: DiamondConfig, repeats: int) -> System:
    """The ideal lattice at the measured density."""
    atoms = ase.build.bulk("C", "diamond", a=config.edge, cubic=True)
    return from_ase(atoms.repeat(repeats))


def crystal(config: DiamondConfig) -> System:
    """What is simulated, in float32."""
    return lattice(config, config.repeats).astype(jnp.float32)


def build_potential(config: ModelConfig) -> Potential:
    classical = stillinger_weber_pair(config.pair), three_body(config.three_body)
    if config.network is None:
        return sum_potentials(*classical)
    network = dimenet(DimeNetConfig(**config.network.model_dump(exclude={"energy_unit"})))
    return sum_potentials(*map(fixed, classical), scaled(network, config.network.energy_unit))


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


def energies_by_bond(potential: Potential, params: Any, bonds: np.ndarray) -> np.ndarray:
    """Energy per atom of ideal crystals with these bond lengths (Å), eV, from the lowest."""

    def one(bond: float) -> float:
        atoms = ase.build.bulk("C", "diamond", a=bond * 4.0 / np.sqrt(3.0))
        system = from_ase(atoms)
        graph = host_graph(system, potential.cutoff)
        return float(total_energy(potential.energy, params, system, graph)) / len(atoms)

    energies = np.array([one(bond) for bond in bonds])
    return energies - energies.min()

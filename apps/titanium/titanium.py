"""The problem: titanium in its measured cells, the model, and what is learned from."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, field_validator

from mosaicmd.difftre import Target
from mosaicmd.gnn_models import (
    PairSplineConfig,
    SoftRepulsionConfig,
    SplineEmbeddingConfig,
    ThreeBodyConfig,
    pair_spline,
    soft_repulsion,
    spline_embedding,
    three_body,
)
from mosaicmd.kernel import units
from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.config import Config, Pressure, Temperature, Time
from mosaicmd.kernel.data import labels_of, read_structures, read_table
from mosaicmd.kernel.elastic_tensors import point_group
from mosaicmd.kernel.elasticity import athermal_elasticity
from mosaicmd.kernel.examples import Example, make_examples
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.integrators import Integrator, langevin
from mosaicmd.kernel.label_errors import MatchingLoss
from mosaicmd.kernel.observables import Observable, elastic_constants, elastic_terms
from mosaicmd.kernel.potentials import Potential, sum_potentials
from mosaicmd.kernel.reference_energies import fit_reference_energies
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import System, from_ase

DATA = Path(__file__).with_name("data")
TITANIUM = 22
CONSTANTS = ("c11", "c12", "c13", "c33", "c44")
OFF_TREND_KELVIN = 73.0  # its cell is interpolated, as the table says: never learned from
_ENTRIES = np.array([0, 0, 0, 2, 3]), np.array([0, 1, 2, 2, 3])  # in Voigt's matrix


class ModelConfig(Config):
    repulsion: SoftRepulsionConfig
    pair: PairSplineConfig
    embedding: SplineEmbeddingConfig
    three_body: tuple[ThreeBodyConfig, ...]


class Reference(NamedTuple):
    """Where labels come from, and what is known of it besides."""

    source: str
    bcc_mev: float | None  # energy per atom of bcc above hcp


REFERENCES = {
    "meam": Reference(
        "the reference potential, Hennig et al., Phys. Rev. B 78, 054121 (2008)", 111.0
    ),
    "pbe": Reference("density functional theory, PBE", None),
}


class LabelsConfig(Config):
    """Force matching by least squares, on the labels in ``data/FILE.extxyz.gz``.

    Weights are of squared deviations in eV (per atom), eV/Å and eV/Å³.
    """

    file: Literal["meam", "pbe"] = "meam"
    n_test: int = Field(gt=0)  # structures held out
    n_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    energy: float = Field(ge=0.0)
    forces: float = Field(ge=0.0)
    stress: float = Field(ge=0.0)
    tie: float = Field(default=0.0, ge=0.0)  # of squared changes of parameters, beside these

    @property
    def reference(self) -> Reference:
        return REFERENCES[self.file]

    @property
    def loss(self) -> MatchingLoss:
        return MatchingLoss(energy=self.energy, forces=self.forces, stress=self.stress)


class RunConfig(Config):
    """How to simulate; ``friction_per_ps`` is that of the Langevin thermostat."""

    timestep_fs: Time = Field(gt=0.0)
    every: int = Field(gt=0)  # steps between frames
    n_equilibration: int = Field(ge=0)  # frames
    n_frames: int = Field(gt=0)
    friction_per_ps: float = Field(default=5.0, gt=0.0)
    skin: float = Field(default=0.4, ge=0.0)


class ExperimentConfig(RunConfig):
    """Deviations that count as one; least squares at rest, then DiffTRe: how steps are bounded.

    ``tie`` keeps the model that knows experiment alone near the start while it learns at rest: half
    its square times the square sum of all changes of parameters is added to the loss.
    """

    temperatures_kelvin: tuple[Temperature, ...]
    tolerance: float = Field(gt=0.0)  # of elastic constants, relative
    tolerance_pressure: Pressure = Field(gt=0.0)  # eV/Å³
    n_rest: int = Field(gt=0)
    tie: float = Field(gt=0.0)
    direct_every: int = Field(gt=0)
    max_divergence: float = Field(gt=0.0)
    ridge: float = Field(gt=0.0)
    n_updates: int = Field(gt=0)
    average_last: int = Field(gt=0)

    @field_validator("temperatures_kelvin")
    @classmethod
    def _measured_cells(cls, kelvin: tuple[float, ...]) -> tuple[float, ...]:
        if OFF_TREND_KELVIN in kelvin:
            raise ValueError(f"the cell at {OFF_TREND_KELVIN:g} K is interpolated")
        return kelvin


class FusionConfig(Config):
    """Rounds of one update by experiment and steps of force matching.

    There the stress of labels has a weight of its own: experiment knows better.
    """

    stress: float = Field(ge=0.0)
    n_rounds: int = Field(gt=0)
    label_steps: int = Field(gt=0)  # per round
    label_rate: float = Field(gt=0.0)  # of Adam
    label_weight: float = Field(ge=0.0)  # of the loss of all labels, beside experiment
    tie: float = Field(default=0.0, ge=0.0)  # to the model of labels alone, as in ``experiment``


class ExpansionConfig(RunConfig):
    temperatures_kelvin: tuple[Temperature, ...]


class ValidationConfig(RunConfig):
    temperatures_kelvin: tuple[Temperature, ...]
    expansion: ExpansionConfig  # at constant pressure
    stability: RunConfig  # at the highest temperature


class TitaniumConfig(Config):
    seed: int
    repeats: tuple[int, int, int]  # of the hexagonal cell of two atoms
    model: ModelConfig
    labels: LabelsConfig
    experiment: ExperimentConfig
    fusion: FusionConfig
    validation: ValidationConfig

    @property
    def heldout_kelvin(self) -> list[float]:
        """Validated at, and never learned from."""
        learned = self.experiment.temperatures_kelvin
        return [t for t in self.validation.temperatures_kelvin if t not in learned]


class Measured(NamedTuple):
    """What was measured at one temperature."""

    kelvin: float
    a: float  # Å
    c: float  # Å
    constants: np.ndarray  # [5], GPa, C11, C12, C13, C33, C44

    @property
    def kT(self) -> float:
        """eV."""
        return self.kelvin * units.KELVIN


def measured() -> dict[float, Measured]:
    """Everything in the table, by temperature, K."""
    table = read_table(DATA / "measured.csv")
    constants = np.stack([table[f"{name}_GPa"] for name in CONSTANTS], axis=1)
    rows = zip(table["kelvin"], table["a_A"], table["c_A"], constants, strict=True)
    return {float(t): Measured(float(t), float(a), float(c), row) for t, a, c, row in rows}


def terms(config: ModelConfig) -> tuple[Potential, ...]:
    """Of the potential."""
    return (
        soft_repulsion(config.repulsion),
        pair_spline(config.pair),
        spline_embedding(config.embedding),
        *map(three_body, config.three_body),
    )


def build_potential(config: ModelConfig) -> Potential:
    return sum_potentials(*terms(config))


def crystal(config: TitaniumConfig, point: Measured) -> System:
    """The ideal lattice in the measured cell, in float32."""
    atoms = ase.build.bulk("Ti", "hcp", a=point.a, c=point.c).repeat(config.repeats)
    return from_ase(atoms).astype(jnp.float32)


def thermostat(run: RunConfig, kT: float) -> Integrator:
    timestep = run.timestep_fs * units.FEMTOSECOND
    return langevin(timestep, run.friction_per_ps / units.PICOSECOND, kT)


def simulation(
    run: RunConfig, potential: Potential, integrator: Integrator, **options: Any
) -> Simulation:
    shape = {"cutoff": potential.cutoff, "skin": run.skin, "every": run.every}
    return Simulation(potential.energy, integrator, chunk_frames=100, **shape, **options)


def labelled(config: TitaniumConfig, potential: Potential) -> Batches:
    """Structures to learn from."""
    examples, _ = _examples(config, potential)
    return Batches(examples[: -config.labels.n_test], config.labels.batch_size, seed=config.seed)


def held_out(config: TitaniumConfig, potential: Potential) -> dict[str, Batches]:
    """Structures of the test, all of them and those of each phase."""
    examples, phases = _examples(config, potential)
    chosen = range(len(examples) - config.labels.n_test, len(examples))
    groups = {"all": list(chosen)}
    for phase in dict.fromkeys(phases[k] for k in chosen):
        groups[phase] = [k for k in chosen if phases[k] == phase]
    size = config.labels.batch_size
    return {
        name: Batches([examples[k] for k in group], size, shuffle=False)
        for name, group in sorted(groups.items())
    }


def _examples(config: TitaniumConfig, potential: Potential) -> tuple[list[Example], list[str]]:
    """All labelled structures, in float32, and their phases.

    Energies are those above the mean per atom of the structures to learn from, so that the zero of
    a functional or of a pseudopotential does not matter.
    """
    structures = read_structures(DATA / f"{config.labels.file}.extxyz.gz")
    data = [(from_ase(atoms), labels_of(atoms)) for atoms in structures]
    shift, _ = fit_reference_energies(data[: -config.labels.n_test])
    examples = make_examples(data, potential.cutoff, reference_energies=shift, dtype=np.float32)
    return examples, [str(atoms.info["phase"]) for atoms in structures]


def elasticity(potential: Potential, point: Measured, system: System) -> Observable:
    """C11, C12, C13, C33, C44 and the pressure, ``[6]``, GPa.

    What it keeps of a frame does not depend on the temperature, so that one simulation can
    record it at any: the last number is that of an ideal gas at kT = 1 eV.
    """
    about = {"cutoff": potential.cutoff, "rotations": point_group(system)}
    full = elastic_constants(potential.energy, kT=point.kT, **about)
    stored = elastic_constants(potential.energy, kT=1.0, **about)
    assert full.combine is not None
    constants = full.combine

    def combine(values: jax.Array, weights: jax.Array) -> jax.Array:
        values = values.at[:, -1].multiply(point.kT)
        stress = elastic_terms(values, weights, kT=point.kT).stress
        pressure = -jnp.mean(stress[:3], keepdims=True) / units.GPA
        return jnp.concatenate([constants(values, weights)[_ENTRIES], pressure])

    return dataclasses.replace(stored, name="elasticity", combine=combine)


def target(config: ExperimentConfig, observable: Observable, point: Measured) -> Target:
    """Measured constants, and no pressure in the measured cell."""
    pressure = config.tolerance_pressure / units.GPA
    return Target(
        observable=observable,
        value=np.append(point.constants, 0.0),
        tolerance=np.append(config.tolerance * point.constants, pressure),
    )


def at_rest(config: ExperimentConfig, potential: Potential) -> Callable[[Any], jax.Array]:
    """Deviations of the crystal at rest from the coldest one measured, in tolerances.

    Elastic constants and pressure without motion, in the measured cell at 4 K. There the ideal
    lattice is at rest by symmetry, and its sublattices are free to move under strain.
    """
    point = measured()[4.0]
    system = from_ase(ase.build.bulk("Ti", "hcp", a=point.a, c=point.c))
    graph = host_graph(system, potential.cutoff)
    pressure = config.tolerance_pressure / units.GPA
    wanted = jnp.asarray(np.append(point.constants, 0.0))
    tolerance = jnp.asarray(np.append(config.tolerance * point.constants, pressure))

    def residuals(params: Any) -> jax.Array:
        found = athermal_elasticity(potential.energy, params, system, graph)
        pressure = -jnp.mean(found.stress_gpa[:3], keepdims=True)
        values = jnp.concatenate([found.relaxed_gpa[_ENTRIES], pressure])
        return (values - wanted) / tolerance / np.sqrt(len(wanted))

    return residuals

"""The problem: alanine dipeptide as ten beads, its reference, and what is measured on it."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from mosaicmd.difftre import aggregate_forces, optimal_force_map
from mosaicmd.gnn_models import (
    HarmonicAngleConfig,
    HarmonicBondConfig,
    HarmonicImproperConfig,
    ListedRepulsionConfig,
    PeriodicDihedralConfig,
    TorsionMapConfig,
    dihedral_prior,
    harmonic_angle,
    harmonic_bond,
    harmonic_improper,
    harmonic_prior,
    listed_repulsion,
    periodic_dihedral,
    torsion_map,
)
from mosaicmd.kernel import units
from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.config import Config, Energy, Length, Temperature, Time
from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.integrators import langevin
from mosaicmd.kernel.observables.internal_coordinates import (
    Coordinate,
    bond_angle,
    bond_length,
    dihedral,
)
from mosaicmd.kernel.potentials import Potential, sum_potentials
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import System, make_system
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

DATA = Path(__file__).with_name("data")
CH3, CH, C, O, N = range(1, 6)
SPECIES = np.array([CH3, C, O, N, CH, CH3, C, O, N, CH3])
MASSES = {CH3: 15.035, CH: 13.019, C: 12.011, O: 15.999, N: 15.015}  # u, with their hydrogens
BONDS = ((0, 1), (1, 2), (1, 3), (3, 4), (4, 5), (4, 6), (6, 7), (6, 8), (8, 9))
# with the impropers a complete set: the third angle at 1, 4 and 6 follows from the others
ANGLES = ((0, 1, 2), (0, 1, 3), (1, 3, 4), (3, 4, 5), (3, 4, 6), (4, 6, 7), (4, 6, 8), (6, 8, 9))
PHI, PSI = (1, 3, 4, 6), (3, 4, 6, 8)
# both peptide bonds, both planar carbons, and which hand the middle has
IMPROPERS = ((0, 1, 3, 4), (4, 6, 8, 9), (0, 1, 3, 2), (4, 6, 8, 7), (3, 4, 6, 5))
FAR = tuple(
    (i, j) for i, j in ((0, 5), (0, 6), (0, 7), (0, 8), (0, 9), (1, 7), (1, 8), (1, 9),
                        (2, 5), (2, 6), (2, 7), (2, 8), (2, 9), (3, 9), (5, 9))
)  # fmt: skip
NEAR = ((2, 3), (5, 6), (7, 8))  # the third angles: impropers hold them, but not near collinear
N_BINS = 60
REACH = 0.1  # Å, of graphs that no term reads


class PriorConfig(Config):
    multiplicities: tuple[int, ...]  # of the dihedrals
    epsilon: Energy = Field(gt=0.0)  # of the repulsion
    sigma: Length = Field(gt=0.0)
    near_sigma: Length = Field(gt=0.0)  # of beads two bonds apart whose angle no term holds
    exponent: float = 12.0


class MatchingConfig(Config):
    """Force matching with Adam, whose learning rate falls along a half cosine."""

    force_map: Literal["basic", "optimal"] = "optimal"
    n_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0.0)


class RunConfig(Config):
    """How to simulate all replicas."""

    replicas: int = Field(gt=0)
    timestep_fs: Time = Field(gt=0.0)
    friction_per_ps: float = Field(gt=0.0)
    every: int = Field(gt=0)  # steps between frames
    n_equilibration: int = Field(ge=0)  # frames
    n_frames: int = Field(gt=0)  # of each replica


class EntropyConfig(RunConfig):
    """Relative entropy by natural gradients, alone and after force matching."""

    n_updates_alone: int = Field(gt=0)
    n_updates: int = Field(gt=0)  # after force matching
    gain: float = Field(gt=0.0)
    max_divergence: float = Field(gt=0.0)
    ridge: float = Field(gt=0.0)
    average_last: int = Field(gt=0)


class AlanineConfig(Config):
    seed: int
    data: str | None = None  # folder of the reference; by default the one shipped here
    every: int = Field(default=1, gt=0)  # frames of the reference that are learned from
    temperature_kelvin: Temperature = Field(default=300.0, gt=0.0)
    n_points: int = Field(gt=3)  # of the map of both dihedrals, per turn
    prior: PriorConfig
    matching: MatchingConfig
    entropy: EntropyConfig
    validation: RunConfig

    @property
    def kT(self) -> float:
        """eV."""
        return self.temperature_kelvin * units.KELVIN


class Reference(NamedTuple):
    """Beads of the explicit-water simulation."""

    positions: np.ndarray  # [n_frames, 10, 3], Å
    forces: np.ndarray  # [n_frames, 10, 3], eV/Å, each bead with its hydrogens
    replica: np.ndarray  # [n_frames]
    record: dict[str, Any]  # how it was made

    def halves(self) -> tuple[slice, slice]:
        """The first half of the frames, and the second; only one replica may be in both."""
        middle = len(self.positions) // 2
        return slice(None, middle), slice(middle, None)


def load_reference(folder: Path = DATA) -> Reference:
    """The reference from what ``generate.py collect`` wrote."""
    paths = sorted(folder.glob("reference-*.npz"))
    if not paths:
        raise ValueError(f"there is no `reference-*.npz` in {folder}; make it by generate.py")
    positions, forces, replica = [], [], []
    for path in paths:
        with np.load(path) as part:
            positions.append(1e-3 * part["position_milliangstrom"].astype(float))
            forces.append(part["force"].astype(float))
        replica.append(np.full(len(positions[-1]), int(path.stem.split("-")[1])))
    record = json.loads((folder / "reference.json").read_text())
    joined = [np.concatenate(rows) for rows in (positions, forces, replica)]
    return Reference(joined[0], joined[1], joined[2], record)


def mapped_forces(reference: Reference, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Forces of the beads, eV/Å, and the map that they come from, ``[10, 11]``.

    Every hydrogen is constrained to a bead, so the basic map is the only one that takes
    forces of the peptide alone. What is left to optimise is a share of the net force of the
    water, the eleventh column, which is minus that of the peptide.
    """
    water = -reference.forces.sum(axis=1, keepdims=True)
    everything = np.concatenate([reference.forces, water], axis=1)
    chosen = np.eye(10, 11)
    if kind == "optimal":
        chosen = optimal_force_map(everything, range(10))
    return aggregate_forces(chosen, everything), chosen


def beads(positions: np.ndarray) -> System:
    """One structure, in float32."""
    masses = np.array([MASSES[int(one)] for one in SPECIES])
    return make_system(positions, SPECIES, masses=masses).astype(jnp.float32)


def frames(positions: np.ndarray, kT: float) -> Trajectory:
    """Many structures as a trajectory, in float32."""
    cells = jnp.zeros((len(positions), 3, 3), jnp.float32)
    systems = beads(positions[0])._replace(
        positions=jnp.asarray(positions, jnp.float32), cell=cells
    )
    return Trajectory(systems, {}, StatePoint(kT))


def coordinates(positions: np.ndarray) -> dict[str, np.ndarray]:
    """Bonds (Å), angles, impropers, phi and psi (rad) of every frame, ``[n_frames, n]``."""
    kinds = {
        "bonds": bond_length(BONDS, r_max=np.inf),
        "angles": bond_angle(ANGLES),
        "impropers": dihedral(IMPROPERS),
        "torsions": dihedral((PHI, PSI)),
    }
    return values_of(kinds, positions)


def values_of(kinds: dict[str, Coordinate], positions: np.ndarray) -> dict[str, np.ndarray]:
    """Internal coordinates of every frame of a molecule, ``[n_frames, n]`` of each kind."""
    start = make_system(positions[0], C, dtype=jnp.float32)

    @jax.jit
    def measure(frames: jax.Array) -> dict[str, jax.Array]:
        one = lambda r: {k: c.values(start._replace(positions=r)) for k, c in kinds.items()}  # noqa: E731
        return jax.vmap(one)(frames)

    found = measure(jnp.asarray(positions, jnp.float32))
    return {name: np.asarray(values, float) for name, values in found.items()}


def build_potential(config: AlanineConfig, reference: Reference) -> Potential:
    """Priors by Boltzmann inversion of the reference, which stay, and a map, which learns."""
    found, kT, prior = coordinates(reference.positions), config.kT, config.prior
    bond = harmonic_prior(found["bonds"], kT)
    angle = harmonic_prior(found["angles"], kT)
    improper = harmonic_prior(found["impropers"], kT, periodic=True)
    phi, psi = (dihedral_prior(found["torsions"][:, k], kT, prior.multiplicities) for k in (0, 1))
    fixed: dict[str, Any] = {"learnable": False}
    rows = lambda *values: tuple(tuple(row.tolist()) for row in values)  # noqa: E731
    potential = sum_potentials(
        harmonic_bond(
            HarmonicBondConfig(
                atoms=BONDS, stiffness=tuple(bond.stiffness), length=tuple(bond.center), **fixed
            )
        ),
        harmonic_angle(
            HarmonicAngleConfig(
                atoms=ANGLES, stiffness=tuple(angle.stiffness), angle=tuple(angle.center), **fixed
            )
        ),
        harmonic_improper(
            HarmonicImproperConfig(
                atoms=IMPROPERS,
                stiffness=tuple(improper.stiffness),
                angle=tuple(improper.center),
                **fixed,
            )
        ),
        periodic_dihedral(
            PeriodicDihedralConfig(
                atoms=(PHI, PSI),
                multiplicities=prior.multiplicities,
                amplitude=rows(phi.amplitude, psi.amplitude),
                phase=rows(phi.phase, psi.phase),
                **fixed,
            )
        ),
        listed_repulsion(
            ListedRepulsionConfig(
                atoms=FAR + NEAR,
                epsilon=prior.epsilon,
                sigma=(prior.sigma,) * len(FAR) + (prior.near_sigma,) * len(NEAR),
                exponent=prior.exponent,
            )
        ),
        torsion_map(TorsionMapConfig(first=(PHI,), second=(PSI,), n_points=config.n_points)),
    )
    return alone(potential)


def alone(potential: Potential) -> Potential:
    """The same, compiled for a molecule without periodic images, which are costly to compare."""
    free = np.zeros(3, bool)

    def energy(params: Any, system: System, graph: Any) -> jax.Array:
        return potential.energy(params, system._replace(pbc=free), graph)

    return dataclasses.replace(potential, energy=energy)


def labelled(config: AlanineConfig, reference: Reference) -> Batches:
    """Frames with mapped forces to learn from."""
    forces, _ = mapped_forces(reference, config.matching.force_map)
    # no term needs a graph, so all frames share the empty one of the first
    first = (beads(reference.positions[0]), Labels(forces=forces[0]))
    (like,) = make_examples([first], REACH, dtype=np.float32)
    examples = [
        like._replace(
            system=like.system._replace(positions=r), targets=like.targets._replace(forces=f)
        )
        for r, f in zip(
            reference.positions[:: config.every].astype(np.float32),
            forces[:: config.every].astype(np.float32),
            strict=True,
        )
    ]
    size = config.matching.batch_size
    return Batches(examples, size, seed=config.seed, separate=True)


def simulation(run: RunConfig, potential: Potential, kT: float) -> Simulation:
    """No term needs a graph, so its cutoff reaches no bead."""
    timestep = run.timestep_fs * units.FEMTOSECOND
    bath = langevin(timestep, run.friction_per_ps / units.PICOSECOND, kT)
    return Simulation(
        potential.energy, bath, cutoff=REACH, skin=0.5, every=run.every, chunk_frames=run.n_frames
    )


def starts(config: AlanineConfig, reference: Reference, count: int, seed: int) -> System:
    """Frames of the reference as a batch of replicas."""
    rng = np.random.default_rng([config.seed, seed])
    chosen = rng.choice(len(reference.positions), count, replace=count > len(reference.positions))
    one = beads(reference.positions[chosen[0]])
    batch = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), one)
    return batch._replace(positions=jnp.asarray(reference.positions[chosen], jnp.float32))

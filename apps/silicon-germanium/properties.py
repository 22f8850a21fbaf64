"""What was not learned from: crystals, defects, the liquid, and how long dynamics stay sane."""

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
from reference import crystal, potential_of
from settings import HotConfig, SyntheticElement

from mosaicmd.kernel import units
from mosaicmd.kernel.elasticity import athermal_elasticity, relaxed_structure
from mosaicmd.kernel.graphs import host_graph, pad_graph
from mosaicmd.kernel.integrators import langevin
from mosaicmd.kernel.minimize import minimize
from mosaicmd.kernel.model_files import load_model
from mosaicmd.kernel.observables import diffusion_coefficient, rdf
from mosaicmd.kernel.phonons import force_constants, frequencies_thz
from mosaicmd.kernel.potentials import Params, Potential, build_potential, evaluate
from mosaicmd.kernel.systems import System, from_ase, stack_systems, to_ase
from mosaicmd.kernel.trajectory import StatePoint, Trajectory, map_frames
from mosaicmd.transfer import Lasting, Sanity, lasting

UNITS = {
    "lattice_constant": "Å",
    "c11": "GPa",
    "c12": "GPa",
    "c44": "GPa",
    "optical_phonon": "THz",
    "acoustic_phonon_x": "THz",
    "vacancy_energy": "eV",
    "surface_energy": "meV/Å²",
}
R_MAX, N_BINS = 5.2, 52  # of radial distributions, Å
DISTRIBUTION = rdf(r_max=R_MAX, n_bins=N_BINS, pairs="all")
EVERY = 25  # steps between frames
SMALLEST = 32  # atoms of a structure to start dynamics from


class PropertyJob(NamedTuple):
    """Properties of a model, or, without one, of the synthetic element itself."""

    element: dict[str, Any]
    model: str | None


def properties(job: PropertyJob) -> dict[str, float]:
    """The properties in :data:`UNITS`; nan where the crystal does not relax."""
    element = SyntheticElement(**job.element)
    potential, params = loaded(job.element, job.model)
    try:
        system = relaxed_structure(
            potential.energy,
            params,
            from_ase(crystal(element, 1)),
            cutoff=potential.cutoff,
            tolerance=1e-5,
        )
    except RuntimeError:
        return dict.fromkeys(UNITS, float("nan"))
    a = float(np.mean(np.linalg.norm(np.asarray(system.cell), axis=1)))
    graph = host_graph(system, potential.cutoff)
    matrix = np.asarray(athermal_elasticity(potential.energy, params, system, graph).relaxed_gpa)
    primitive = from_ase(ase.build.bulk(element.symbol, "diamond", a=a))
    force = force_constants(potential.energy, params, primitive, (2, 2, 2), cutoff=potential.cutoff)
    branches = np.asarray(frequencies_thz(force, np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0]])))
    bulk = energy_of(potential, params, system) / system.n_atoms
    return {
        "lattice_constant": a,
        "c11": float(matrix[0, 0]),
        "c12": float(matrix[0, 1]),
        "c44": float(matrix[3, 3]),
        "optical_phonon": float(branches[0].max()),
        "acoustic_phonon_x": float(branches[1].min()),
        "vacancy_energy": vacancy_energy(element, potential, params, a, bulk),
        "surface_energy": surface_energy(element, potential, params, a, bulk),
    }


def vacancy_energy(
    element: SyntheticElement, potential: Potential, params: Params, a: float, bulk: float
) -> float:
    """Energy to take one of 64 atoms out, relaxed in the cell of the crystal, eV."""
    atoms = ase.build.bulk(element.symbol, "diamond", a=a, cubic=True).repeat(2)
    del atoms[0]
    found = minimize(potential.energy, params, from_ase(atoms), cutoff=potential.cutoff)
    return float(found.energy) - len(atoms) * bulk


def surface_energy(
    element: SyntheticElement, potential: Potential, params: Params, a: float, bulk: float
) -> float:
    """Energy of cleaving at (100), unrelaxed, meV/Å²."""
    slab = ase.build.diamond100(element.symbol, (1, 1, 8), a=a, vacuum=potential.cutoff)
    slab.pbc = True
    energy = energy_of(potential, params, from_ase(slab)) - len(slab) * bulk
    area = np.linalg.norm(np.cross(*slab.cell.array[:2]))
    return 1e3 * float(energy) / (2.0 * float(area))


def energy_of(potential: Potential, params: Params, system: System) -> float:
    graph = pad_graph(host_graph(system, potential.cutoff), n_atoms=system.n_atoms)
    energy = jax.jit(evaluate, static_argnames=("energy_fn",))
    return float(energy(potential.energy, params, system, graph).energy)


def loaded(
    element: dict[str, Any] | None, model: str | None, dtype: str = "float64"
) -> tuple[Potential, Params]:
    """A model or, without one, the synthetic element."""
    if model is not None:
        potential, params = load_model(model, dtype=dtype)
    else:
        potential = potential_of(SyntheticElement(**(element or {})))
        params = potential.init(jax.random.key(0))
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    return _rebuilt(*named(potential)), params


def named(potential: Potential) -> tuple[str, str]:
    return potential.architecture, json.dumps(potential.config, sort_keys=True)


@functools.lru_cache(maxsize=16)
def _rebuilt(architecture: str, config: str) -> Potential:
    """One potential for all models of a kind, so that programs serve them all."""
    return build_potential(architecture, json.loads(config))


class HotJob(NamedTuple):
    """Dynamics of one model, or of the synthetic element, from structures of the test set."""

    model: str | None
    element: dict[str, Any] | None
    structures: str  # file
    settings: dict[str, Any]
    seed: int


def hot(job: HotJob) -> dict[str, Any]:
    """How long replicas stay sane and, of the sane part, structure and diffusion of the liquid.

    Insane is a pair of atoms closer than ``min_distance``, an atom with half as many neighbors
    again as any had at the start, energies that are not finite, or three times the temperature.
    ``g`` and ``diffusion`` (Å²/ps) are those of the first half, of which replicas that do not
    last so long know nothing: there they are nan.
    """
    settings = HotConfig(**job.settings)
    potential, params = loaded(job.element, job.model, "float32")
    starts = starting_structures(job.structures, settings.group, settings.replicas)
    dynamics = _dynamics(*named(potential), json.dumps(job.settings, sort_keys=True))
    found = dynamics(params, starts, jax.random.key(job.seed))
    first = jax.tree.map(lambda leaf: leaf[0], starts)
    if n := int(found.n_frames[0]):
        first = first._replace(positions=jnp.asarray(found.positions[0, n - 1]))
    last = to_ase(first)
    result = {
        "stable_ps": 1e-3 * settings.timestep_fs * found.steps.astype(float),
        "failed": found.failed,
        "positions": last.get_positions(wrap=True),
        "cell": np.asarray(last.cell),
        "numbers": np.asarray(last.numbers),
    }
    return result | (liquid(found, starts, settings) if settings.liquid else {})


def starting_structures(path: str, group: str | None, replicas: int) -> System:
    """A batch of structures of a file, of equal size and in turn; the same for all models."""
    frames = [
        atoms
        for atoms in ase.io.iread(path, ":")
        if len(atoms) >= SMALLEST and group in (None, atoms.info.get("group"))
    ]
    if not frames:
        raise ValueError(f"{path} has no structure of {SMALLEST} atoms in {group!r}")
    alike = [atoms for atoms in frames if len(atoms) == len(frames[0])]
    chosen = [alike[k % len(alike)] for k in range(replicas)]
    return stack_systems([from_ase(atoms, dtype="float32") for atoms in chosen])


@functools.lru_cache(maxsize=4)
def _dynamics(
    architecture: str, config: str, text: str
) -> Callable[[Params, System, jax.Array], Lasting]:
    """Compiled dynamics of all models of a kind."""
    potential = _rebuilt(architecture, config)
    settings = HotConfig(**json.loads(text))
    kT = settings.temperature_kelvin * units.KELVIN
    n_frames = round(1e3 * settings.duration_ps / (settings.timestep_fs * EVERY))
    return lasting(
        potential.energy,
        langevin(settings.timestep_fs * units.FEMTOSECOND, 1.0 / (100.0 * units.FEMTOSECOND), kT),
        Sanity(settings.min_distance, 3.0 * settings.temperature_kelvin),
        cutoff=potential.cutoff,
        n_steps=n_frames * EVERY,
        every=EVERY,
    )


def liquid(found: Lasting, starts: System, settings: HotConfig) -> dict[str, np.ndarray]:
    """Radial distribution and diffusion by replica, from a tenth of the time to a half."""
    replicas, total = found.positions.shape[:2]
    g, diffusion = np.full((replicas, N_BINS), np.nan), np.full(replicas, np.nan)
    skipped, half = total // 10, total // 2
    for k in np.flatnonzero(found.n_frames >= half):
        system = jax.tree.map(lambda leaf, k=k: leaf[k], starts)
        frames = jnp.asarray(found.positions[k, skipped:half])
        system = system._replace(
            positions=frames, cell=jnp.broadcast_to(system.cell, (len(frames), 3, 3))
        )
        trajectory = Trajectory(
            system,
            {},
            StatePoint(settings.temperature_kelvin * units.KELVIN),
            time=jnp.arange(len(frames)) * (EVERY * settings.timestep_fs * units.FEMTOSECOND),
        )
        g[k] = np.mean(map_frames(_distribution, trajectory), axis=0)
        value, _ = diffusion_coefficient(trajectory)
        diffusion[k] = float(value) * 1e3 * units.FEMTOSECOND
    return {"g": g, "diffusion": diffusion}


def _distribution(system: System) -> jax.Array:
    return DISTRIBUTION.per_frame(None, system, None, None)

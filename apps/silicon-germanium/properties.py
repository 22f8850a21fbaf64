"""What was not learned from: crystals, defects, the liquid, and how long dynamics stay sane."""

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
from mosaicmd.kernel.potentials import Params, Potential, evaluate
from mosaicmd.kernel.simulation import ContactError, Simulation, SimulationError
from mosaicmd.kernel.systems import System, from_ase, to_ase
from mosaicmd.kernel.trajectory import Trajectory

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
EVERY = 25  # steps between frames


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
        return load_model(model, dtype=dtype)
    potential = potential_of(SyntheticElement(**(element or {})))
    return potential, jax.tree.map(
        lambda x: jnp.asarray(x, dtype), potential.init(jax.random.key(0))
    )


class HotJob(NamedTuple):
    """Dynamics of one model, or of the synthetic element, from one structure of the test set."""

    model: str | None
    element: dict[str, Any] | None
    structures: str  # file
    settings: dict[str, Any]
    seed: int


def hot(job: HotJob) -> dict[str, Any]:
    """How long dynamics stay sane and, of the sane part, structure and diffusion of the liquid.

    Insane is a pair of atoms closer than ``min_distance``, or energies that are not finite or a
    temperature that explodes. ``g`` and ``diffusion`` (Å²/ps) are nan where less than
    half of the time was sane.
    """
    settings = HotConfig(**job.settings)
    potential, params = loaded(job.element, job.model, "float32")
    frames = [
        atoms
        for atoms in ase.io.iread(job.structures, ":")
        if len(atoms) >= 32 and settings.group in (None, atoms.info.get("group"))
    ]
    if not frames:
        raise ValueError(f"{job.structures} has no structure of 32 atoms in {settings.group!r}")
    distribution = rdf(r_max=R_MAX, n_bins=N_BINS, pairs="all")
    simulation = Simulation(
        potential.energy,
        langevin(
            settings.timestep_fs * units.FEMTOSECOND,
            1.0 / (100.0 * units.FEMTOSECOND),
            settings.temperature_kelvin * units.KELVIN,
        ),
        cutoff=potential.cutoff,
        every=EVERY,
        chunk_frames=20,
        observe=distribution if settings.liquid else None,
    )
    frame_ps = 1e-3 * EVERY * settings.timestep_fs
    total = EVERY * round(settings.duration_ps / frame_ps)
    system = from_ase(frames[job.seed % len(frames)], dtype="float32")
    steps, trajectory = total, None
    try:
        state = simulation.start(jax.random.key(job.seed), params, system)
        _, trajectory = simulation.run(params, state, total, progress=False)
    except SimulationError as error:
        trajectory, steps = error.trajectory, error.step
    except ContactError:
        steps = 0
    n_frames = 0 if trajectory is None else trajectory.n_frames
    sane = n_frames
    for index in range(n_frames):
        assert trajectory is not None
        if shortest(trajectory.frame(index)) < settings.min_distance:
            sane, steps = index, (index + 1) * EVERY
            break
    last = to_ase(system if trajectory is None else trajectory.frame(max(sane, 1) - 1))
    found = {
        "stable_ps": min(1e-3 * steps * settings.timestep_fs, settings.duration_ps),
        "positions": last.get_positions(wrap=True),
        "cell": np.asarray(last.cell),
        "numbers": np.asarray(last.numbers),
    }
    if settings.liquid:
        found |= liquid(trajectory, sane, total // EVERY)
    return found


def shortest(system: System) -> float:
    """The shortest distance between two atoms at their nearest image, Å."""
    cell = np.asarray(system.cell, float)
    fractional = np.asarray(system.positions, float) @ np.linalg.inv(cell)
    first, second = np.triu_indices(len(fractional), 1)
    between = fractional[first] - fractional[second]
    between = (between - np.round(between)) @ cell
    return float(np.sqrt(np.min(np.sum(between**2, axis=1))))


def liquid(trajectory: Trajectory | None, sane: int, wanted: int) -> dict[str, Any]:
    """Radial distribution and diffusion of the sane frames after the first fifth."""
    skipped = wanted // 5
    if trajectory is None or sane < max(wanted // 2, skipped + 10):
        return {"g": np.full(N_BINS, np.nan), "diffusion": float("nan")}
    frames = first_frames(trajectory, sane).skip(skipped)
    diffusion, _ = diffusion_coefficient(frames)
    return {
        "g": np.mean(np.asarray(frames.quantities["rdf"], float), axis=0),
        "diffusion": float(diffusion) * 1e3 * units.FEMTOSECOND,
    }


def first_frames(trajectory: Trajectory, n: int) -> Trajectory:
    systems = trajectory.systems
    systems = systems._replace(positions=systems.positions[:n], cell=systems.cell[:n])
    quantities = {name: rows[:n] for name, rows in trajectory.quantities.items()}
    assert trajectory.time is not None
    return trajectory._replace(systems=systems, quantities=quantities, time=trajectory.time[:n])

"""Dynamics of charged clusters at constant energy, and the cost of a step in a crystal."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.build
import jax
import numpy as np
from evaluation import labels
from settings import CostConfig, DynamicsConfig

from mosaicmd.kernel import units
from mosaicmd.kernel.integrators import nve
from mosaicmd.kernel.neighbors import neighbor_list
from mosaicmd.kernel.potentials import Params, Potential, build_potential, evaluate
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import from_ase
from mosaicmd.qeq_longrange import plan_coulomb


class Conservation(NamedTuple):
    """Total energy along a run."""

    time_ps: np.ndarray
    energy: np.ndarray  # meV/atom, less the first
    kinetic: np.ndarray  # meV/atom
    drift: float  # meV/atom/ps
    drift_error: float  # of the least-squares line


def conservation(
    settings: DynamicsConfig, model: tuple[Potential, Params], atoms: Any, folder: Path, seed: int
) -> Conservation:
    """Total energy of dynamics from a structure; the same call again resumes."""
    potential, params = model
    simulation = Simulation(
        potential.energy,
        nve(settings.timestep_fs * units.FEMTOSECOND, fixed_degrees=6),
        cutoff=potential.cutoff,
        every=settings.every,
    )
    kT = settings.temperature_kelvin * units.KELVIN
    start = ase.Atoms(atoms.numbers, atoms.positions)
    start.info["total_charge"] = atoms.info["total_charge"]
    system = from_ase(start, dtype="float64")
    state = simulation.start(jax.random.key(seed), params, system, kT=kT)
    n_frames = round(1000.0 * settings.duration_ps / settings.timestep_fs / settings.every)
    n_steps = max(3, n_frames) * settings.every
    _, run = simulation.run(params, state, n_steps, directory=folder)
    scale = 1e3 / len(start)
    kinetic = scale * np.asarray(run.quantities["kinetic_energy"], float)
    energy = scale * np.asarray(run.quantities["energy"], float) + kinetic
    times = np.asarray(run.time, float) / units.PICOSECOND
    (slope, _), covariance = np.polyfit(times, energy, 1, cov=True)
    return Conservation(
        times, energy - energy[0], kinetic, float(slope), float(np.sqrt(covariance[0, 0]))
    )


def crystal(settings: CostConfig, frames: Sequence[Any], repeats: int) -> Any:
    """Rock salt, or copies of the first of the frames that is neutral, if any.

    Atoms have initial charges, and small displacements so that no force vanishes.
    """
    if settings.lattice_constant is not None:
        cell = ase.build.bulk("NaCl", "rocksalt", a=settings.lattice_constant, cubic=True)
        cell.set_initial_charges(np.where(cell.numbers == 11, 0.5, -0.5))
    else:
        one = min(frames, key=lambda atoms: abs(atoms.info["total_charge"]))
        centered = one.positions - one.positions.mean(axis=0)
        along = centered @ np.linalg.svd(centered)[2].T
        box = np.ptp(along, axis=0) + settings.gap
        charges = labels([one]).charges
        cell = ase.Atoms(
            one.numbers, along, cell=box, pbc=True, charges=None if charges is None else charges[0]
        )
    atoms = cell.repeat(repeats)
    atoms.rattle(0.05, seed=0)
    return atoms


def in_crystals(potential: Potential, atoms: Any, accuracy: float) -> Potential:
    """The same model with a sum over periodic images and an iterative solution.

    Parameters stay those of the cluster; reference energies, which forces do not see, too.
    """
    config: Any = potential.config
    terms = config["terms"] if potential.architecture == "sum" else [config]
    inner = dict(terms[0]["config"] if potential.architecture == "sum" else config)
    plan = plan_coulomb(
        from_ase(atoms, dtype="float32"),
        accuracy=accuracy,
        charges=atoms.get_initial_charges(),
        widths=np.full(len(atoms), 1.0),
    )
    inner |= {"plan": plan.model_dump(mode="json")}
    inner |= {"solver": {"method": "iterative", "tolerance": 1e-5}}
    if potential.architecture != "sum":
        return build_potential(potential.architecture, inner)
    first = {"architecture": terms[0]["architecture"], "config": inner}
    return build_potential("sum", {"terms": [first, *terms[1:]]})


def seconds_per_step(
    potential: Potential, params: Params, system: Any, steps: int
) -> tuple[float, float]:
    """Energy and forces, in float32: wall time and processor time of one evaluation, the least.

    Neighbor lists are kept as long as dynamics keep them, and are not in the time.
    """
    params = jax.tree.map(lambda leaf: leaf.astype("float32"), params)
    plan = neighbor_list(system, potential.cutoff, skin=0.0)
    graph = jax.jit(lambda system: plan.build(system).graph)(system)
    program = jax.jit(lambda *args: evaluate(potential.energy, *args).forces)
    program(params, system, graph).block_until_ready()
    found = []
    for _ in range(steps):
        began, used = time.perf_counter(), time.process_time()
        program(params, system, graph).block_until_ready()
        found.append((time.perf_counter() - began, time.process_time() - used))
    wall, processor = np.array(found).min(axis=0)
    return float(wall), float(processor)


def cost(
    settings: CostConfig, models: dict[str, tuple[Potential, Params]], frames: Sequence[Any]
) -> dict[int, dict[str, tuple[float, float]]]:
    """Seconds per evaluation by number of atoms and model."""
    table: dict[int, dict[str, tuple[float, float]]] = {}
    for repeats in settings.repeats:
        atoms = crystal(settings, frames, repeats)
        system = from_ase(atoms, dtype="float32")
        table[len(atoms)] = row = {}
        for name, (potential, params) in models.items():
            used = potential
            if name == "celli":
                used = in_crystals(potential, atoms, settings.accuracy)
            row[name] = seconds_per_step(used, params, system, settings.steps)
    return table

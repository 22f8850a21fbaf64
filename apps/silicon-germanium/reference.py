"""Synthetic elements: structures of Stillinger–Weber crystals and melts with their labels."""

import io
from pathlib import Path

import ase.build
import ase.io
import jax
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from settings import DynamicsConfig, ElementFiles, SyntheticElement

from mosaicmd.gnn_models import stillinger_weber
from mosaicmd.kernel import units
from mosaicmd.kernel.files import atomic_write_text
from mosaicmd.kernel.graphs import host_graph, pad_graph
from mosaicmd.kernel.integrators import langevin
from mosaicmd.kernel.potentials import Params, Potential, evaluate
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import from_ase, to_ase

EVALUATE = jax.jit(evaluate, static_argnames=("energy_fn", "stress"))


def potential_of(element: SyntheticElement) -> Potential:
    return stillinger_weber(epsilon=element.epsilon, sigma=element.sigma, strength=element.strength)


def crystal(element: SyntheticElement, repeats: int) -> ase.Atoms:
    return ase.build.bulk(element.symbol, "diamond", a=element.a, cubic=True).repeat(repeats)


def generate(
    element: SyntheticElement, dynamics: DynamicsConfig, seed: int, folder: Path
) -> ElementFiles:
    """Training and test structures in ``folder``, made once."""
    paths = {part: folder / f"{element.symbol}_{part}.extxyz" for part in ("train", "test")}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        parts: dict[str, list[ase.Atoms]] = {"train": [], "test": []}
        for k, temperature in enumerate(dynamics.temperatures_kelvin):
            for part, frames in sample(element, dynamics, temperature, seed + k).items():
                parts[part] += frames
        for part, path in paths.items():
            write(path, parts[part])
    return ElementFiles(**{part: str(path.resolve()) for part, path in paths.items()})


def sample(
    element: SyntheticElement, dynamics: DynamicsConfig, temperature: float, seed: int
) -> dict[str, list[ase.Atoms]]:
    """Labelled structures of one temperature, from cells under random strain.

    Those to test with come from cells of their own: neighbors in time are never divided.
    """
    potential, rng = potential_of(element), np.random.default_rng(seed)
    params = potential.init(jax.random.key(0))
    thermostat = langevin(
        dynamics.timestep_fs * units.FEMTOSECOND,
        1.0 / (100.0 * units.FEMTOSECOND),
        temperature * units.KELVIN,
    )
    simulation = Simulation(
        potential.energy, thermostat, cutoff=potential.cutoff, every=dynamics.every
    )
    parts: dict[str, list[ase.Atoms]] = {"train": [], "test": []}
    wanted = {"train": dynamics.n_train, "test": dynamics.n_test}
    for cell in range(2 * dynamics.n_cells):
        part, place = ("train", "test")[cell % 2], cell // 2
        count = wanted[part] // dynamics.n_cells + (place < wanted[part] % dynamics.n_cells)
        atoms = crystal(element, dynamics.repeats)
        strain = dynamics.strain * rng.uniform(-1.0, 1.0, size=(3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        if not count:
            continue
        key = jax.random.fold_in(jax.random.key(seed), cell)
        state = simulation.start(key, params, from_ase(atoms))
        total = dynamics.every * (dynamics.n_equilibration + count)
        _, trajectory = simulation.run(params, state, total, progress=False)
        for index in range(dynamics.n_equilibration, dynamics.n_equilibration + count):
            frame = labelled(potential, params, to_ase(trajectory.frame(index)))
            frame.info["group"] = f"{temperature:g} K"
            parts[part].append(frame)
    return parts


def labelled(potential: Potential, params: Params, atoms: ase.Atoms) -> ase.Atoms:
    """The structure with energy, forces and stress of the potential."""
    system = from_ase(atoms)
    graph = pad_graph(host_graph(system, potential.cutoff), n_atoms=system.n_atoms)
    found = EVALUATE(potential.energy, params, system, graph, stress=True)
    stress = np.asarray(found.stress)
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=float(found.energy),
        forces=np.asarray(found.forces, float),
        stress=stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]].astype(float),
    )
    return atoms


def write(path: Path, frames: list[ase.Atoms]) -> None:
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    atomic_write_text(path, text.getvalue())

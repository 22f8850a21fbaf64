"""Synthetic elements: structures of Stillinger–Weber crystals and melts with their labels."""

import io
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from settings import DynamicsConfig, ElementFiles, SyntheticElement

from mosaicmd.gnn_models import stillinger_weber
from mosaicmd.kernel import units
from mosaicmd.kernel.files import atomic_write_text
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.integrators import langevin
from mosaicmd.kernel.potentials import Params, Potential, evaluate
from mosaicmd.kernel.replicas import split_replicas
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import System, from_ase, to_ase
from mosaicmd.kernel.trajectory import Trajectory


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

    def labels(params: Params, system: System, graph: Graph, momenta: Any) -> dict[str, Any]:
        found = evaluate(potential.energy, params, system, graph, stress=True)
        return {"forces": found.forces, "stress": found.stress}

    simulation = Simulation(
        potential.energy,
        thermostat,
        cutoff=potential.cutoff,
        every=dynamics.every,
        observe=labels,
    )
    cells = []
    for _ in range(2 * dynamics.n_cells):
        atoms = crystal(element, dynamics.repeats)
        strain = dynamics.strain * rng.uniform(-1.0, 1.0, size=(3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        cells.append(from_ase(atoms))
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cells)
    n_frames = -(-max(dynamics.n_train, dynamics.n_test) // dynamics.n_cells)
    state = simulation.start(jax.random.key(seed), params, together)
    total = dynamics.every * (dynamics.n_equilibration + n_frames)
    _, trajectory = simulation.run(params, state, total, progress=False)
    runs = split_replicas(trajectory.skip(dynamics.n_equilibration))
    parts: dict[str, list[ase.Atoms]] = {}
    for part, wanted, own in (
        ("train", dynamics.n_train, runs[: dynamics.n_cells]),
        ("test", dynamics.n_test, runs[dynamics.n_cells :]),
    ):
        per_cell = -(-wanted // dynamics.n_cells)
        places = np.linspace(0, n_frames - 1, per_cell).round().astype(int)
        parts[part] = [labelled(run, int(place)) for place in places for run in own][:wanted]
        for atoms in parts[part]:
            atoms.info["group"] = f"{temperature:g} K"
    return parts


def labelled(run: Trajectory, index: int) -> ase.Atoms:
    """A frame with energy, forces and stress of the potential that drove it."""
    atoms = to_ase(run.frame(index))
    stress = np.asarray(run.quantities["stress"][index], float)
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=float(run.quantities["energy"][index]),
        forces=np.asarray(run.quantities["forces"][index], float),
        stress=stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
    )
    return atoms


def write(path: Path, frames: list[ase.Atoms]) -> None:
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    atomic_write_text(path, text.getvalue())

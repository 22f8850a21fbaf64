"""Files, settings and a stand-in architecture for tests of the command line."""

import json
from importlib.metadata import EntryPoint, EntryPoints

import ase.io
import matching_data
import yaml
from ase.calculators.singlepoint import SinglePointCalculator

from mosaicmd.kernel.systems import to_ase

SETTINGS = {
    "data": {"train": "all.extxyz", "validation": 0.25, "test": 0.25},
    "potential": {"architecture": "pair"},
    "loss": {"energy": 1.0, "forces": {"weight": 1.0, "huber": 5.0}, "stress": 10.0},
    "reference_energies": {"1": -1.5, "O": -2.5},
    "optimizer": {"learning_rate": 0.01, "schedule": {"name": "cosine_decay"}},
    "average_decay": 0.9,
    "batch_size": 4,
    "steps": 12,
}


def build_pair(config):
    """The pair potential of `matching_data` by its name."""
    if config:
        raise ValueError(f"has no settings, got {config}")
    return matching_data.PAIR


def entry_points(*more):
    """In place of `importlib.metadata.entry_points`, with the pair potential and more."""
    pair = EntryPoint("pair", "cli_runs:build_pair", "mosaicmd.potentials")
    energies = EntryPoint(
        "atomic_energies", "mosaicmd.kernel.reference_energies:build", "mosaicmd.potentials"
    )
    products = EntryPoint(
        "bfloat16_products", "mosaicmd.kernel.precision:build", "mosaicmd.potentials"
    )
    every = EntryPoints([pair, energies, products, *more])
    return lambda **selection: every.select(**selection)


def write_data(path, n=12, sign=1.0, **columns):
    """Structures whose total energies hold -1.5 eV per H and -2.5 eV per O."""
    frames = []
    for system, labels in matching_data.labelled(n):
        atoms = to_ase(system)
        shift = sum(-1.5 if number == 1 else -2.5 for number in atoms.numbers)
        atoms.info |= columns
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=labels.energy + shift,
            forces=labels.forces,
            stress=sign * labels.stress,
        )
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


def write_settings(folder, **changes):
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | changes))
    return path


def results(folder):
    return json.loads((folder / "results.json").read_text())

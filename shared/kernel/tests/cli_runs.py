"""Files, settings and a stand-in architecture for tests of the command line."""

import dataclasses
import json
from importlib.metadata import EntryPoint, EntryPoints

import ase.io
import jax.numpy as jnp
import matching_data
import numpy as np
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

from mosaicmd.kernel.cli.commands import build_app
from mosaicmd.kernel.graphs import edge_vectors, host_graph, sum_edges
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


def charges(params, system, graph):
    """Proportional to the number of neighbors, less 20."""
    squared = jnp.sum(edge_vectors(system, graph) ** 2, axis=1)
    near = (squared < matching_data.CUTOFF**2).astype(squared.dtype)
    count = sum_edges(near, graph, system.n_atoms)
    return params["per_neighbor"].astype(count.dtype) * (count - 20.0) * system.mask


def build_charged(config):
    """The pair potential, with charges of one more parameter."""
    return dataclasses.replace(
        matching_data.PAIR,
        architecture="charged",
        config=config,
        init=lambda key: matching_data.params_of(matching_data.START | {"per_neighbor": 0.0}),
        charges=charges,
    )


def entry_points(*more):
    """In place of `importlib.metadata.entry_points`, with the pair potential and more."""
    pair = EntryPoint("pair", "cli_runs:build_pair", "mosaicmd.potentials")
    energies = EntryPoint(
        "atomic_energies", "mosaicmd.kernel.reference_energies:build", "mosaicmd.potentials"
    )
    products = EntryPoint(
        "bfloat16_products", "mosaicmd.kernel.precision:build", "mosaicmd.potentials"
    )
    d3bj = EntryPoint("d3bj", "mosaicmd.kernel.dispersion:build", "mosaicmd.potentials")
    charged = EntryPoint("charged", "cli_runs:build_charged", "mosaicmd.potentials")
    every = EntryPoints([pair, charged, energies, products, d3bj, *more])
    return lambda **selection: every.select(**selection)


def write_data(path, n=12, sign=1.0, per_neighbor=None, **columns):
    """Structures whose total energies hold -1.5 eV per H and -2.5 eV per O.

    With ``per_neighbor`` they have charges.
    """
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
        if per_neighbor is not None:
            graph = host_graph(system, matching_data.CUTOFF)
            true = charges({"per_neighbor": jnp.asarray(per_neighbor)}, system, graph)
            atoms.calc.results["charges"] = np.asarray(true)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


def write_settings(folder, **changes):
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | changes))
    return path


def run(*arguments, code=0):
    """The output of the command, which must end with this code."""
    found = CliRunner().invoke(build_app(), [str(one) for one in arguments])
    assert found.exit_code == code, found.output
    return found.output


def results(folder):
    return json.loads((folder / "results.json").read_text())

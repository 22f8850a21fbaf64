"""The side of LAMMPS that is Python: owned and ghost atoms, room, and the plugin's compiler.

Runs of LAMMPS itself are among the tests of the whole.
"""

import ase.build
import jax.numpy as jnp
import numpy as np
import pytest
from deploy_potentials import lennard_jones

from mosaicmd.kernel.deploy import ase_calculator, export_model
from mosaicmd.kernel.deploy.exported import ExportError
from mosaicmd.kernel.deploy.lammps import PluginError, plugin_path
from mosaicmd.kernel.deploy.lammps_pair import LocalModel
from mosaicmd.kernel.graphs import edge_components, gather_senders, sum_edges
from mosaicmd.kernel.potentials import Potential

CUTOFF = 4.5


def second_neighbors(reach=CUTOFF):
    """An energy of neighbors' densities, as after two layers of message passing."""

    def energy(params, system, graph):
        x, y, z = edge_components(system, graph)
        square = x * x + y * y + z * z
        inside = square < reach**2
        weight = jnp.where(inside, (1.0 - jnp.where(inside, square, 0.0) / reach**2) ** 3, 0.0)
        density = sum_edges(weight, graph, system.n_atoms)
        density = density * jnp.where(system.species == 10, 1.5, 1.0).astype(density.dtype)
        around = sum_edges(weight * gather_senders(density**2, graph), graph, system.n_atoms)
        return jnp.where(system.mask, params["scale"] * around, 0.0)

    return Potential(
        architecture="second_neighbors",
        config={},
        init=lambda key: {"scale": jnp.asarray(0.01)},
        energy=energy,
        cutoff=reach,
        species=(10, 18),
    )


def crystal():
    atoms = ase.build.bulk("Ar", "fcc", a=5.3, cubic=True) * (3, 2, 2)
    atoms.numbers[::3] = 10
    shear = np.array([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [-0.7, 0.9, 0.0]])
    atoms.set_cell(atoms.cell.array + shear, scale_atoms=True)
    atoms.rattle(0.15, seed=3)
    return atoms


def parts(atoms, cutoff, hops, n_parts):
    """Slabs of the cell with their ghosts and edges, as domain decomposition has them.

    Yields positions, numbers, indices in the cell, senders, receivers and how many are owned.
    """
    shifts = np.indices((5, 5, 5)).reshape(3, -1).T - 2
    images = (atoms.positions + (shifts @ atoms.cell.array)[:, None]).reshape(-1, 3)
    index = np.tile(np.arange(len(atoms)), len(shifts))
    home = np.repeat((shifts == 0).all(axis=1), len(atoms))
    slab = np.tile((atoms.get_scaled_positions()[:, 0] * n_parts).astype(int), len(shifts))
    for part in range(n_parts):
        owned = np.flatnonzero(home & (slab == part))
        apart = np.linalg.norm(images[:, None] - images[owned], axis=-1).min(axis=1)
        ghosts = np.flatnonzero((apart < hops * cutoff) & (apart > 0.0))
        use = np.concatenate([owned, ghosts])
        distance = np.linalg.norm(images[use][:, None] - images[use], axis=-1)
        receivers, senders = np.nonzero((distance < cutoff) & (distance > 0.0))
        edges = senders.astype(np.int32), receivers.astype(np.int32)
        yield images[use], atoms.numbers[index[use]], index[use], *edges, len(owned)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parts_with_ghosts_sum_to_the_whole(tmp_path, dtype):
    """Energies of owned atoms, and forces sent home by ghosts, against the calculator."""
    atoms, potential = crystal(), second_neighbors()
    params = potential.init(None)
    path = export_model((potential, params), tmp_path / "model.mosaicmd", dtype=dtype)
    model = LocalModel(path, "Ar Ne")
    assert (model.hops, model.cutoff) == (2, CUTOFF)
    energies, forces, n_parts = np.zeros(len(atoms)), np.zeros((len(atoms), 3)), 0
    for positions, numbers, home, senders, receivers, n_own in parts(atoms, CUTOFF, 2, 3):
        elements = np.where(numbers == 18, 0, 1).astype(np.int32)
        found = model(positions, elements, senders, receivers, n_own)
        assert not np.any(found[0][n_own:])
        np.add.at(energies, home, found[0])
        np.add.at(forces, home, found[1])
        n_parts += 1
    assert n_parts == 3
    assert model.n_programs <= 2
    atoms.calc = ase_calculator((potential, params), dtype="float64")
    tolerance = {"float32": 2e-6, "float64": 1e-12}[dtype]
    for ours, theirs in (
        (energies, atoms.get_potential_energies()),
        (forces, atoms.get_forces()),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=tolerance * np.abs(theirs).max())


def test_a_program_is_compiled_when_there_is_no_room_and_not_per_step(tmp_path):
    potential, _ = lennard_jones(cutoff=6.0, species=(18,), smooth=True)
    model = LocalModel(
        export_model((potential, potential.init(None)), tmp_path / "model.mosaicmd"), "Ar"
    )
    rng = np.random.default_rng(0)

    def evaluate(n_atoms, n_edges):
        positions = np.arange(3.0 * n_atoms).reshape(-1, 3)
        receivers = np.sort(rng.integers(n_atoms, size=n_edges)).astype(np.int32)
        senders = (receivers + 1) % n_atoms
        model(positions, np.zeros(n_atoms, np.int32), senders, receivers, n_atoms // 2)

    for _ in range(20):
        evaluate(rng.integers(98, 103), rng.integers(490, 511))
    assert model.n_programs == 1
    evaluate(300, 1500)
    evaluate(310, 1450)
    assert model.n_programs == 2
    evaluate(5, 0)
    assert model.n_programs == 3


def test_atoms_on_top_of_each_other_are_an_error(tmp_path):
    potential, _ = lennard_jones(cutoff=6.0, species=(18,))
    model = LocalModel(
        export_model((potential, potential.init(None)), tmp_path / "model.mosaicmd"), "18"
    )
    edges = np.array([1, 0], np.int32), np.array([0, 1], np.int32)
    with pytest.raises(FloatingPointError, match="energies or forces are not finite"):
        model(np.zeros((2, 3)), np.zeros(2, np.int32), *edges, 2)


def test_models_that_lammps_cannot_run_are_refused(tmp_path):
    potential, _ = lennard_jones(cutoff=6.0, species=(18,))
    path = export_model((potential, potential.init(None)), tmp_path / "model.mosaicmd")
    with pytest.raises(ValueError, match=r"element 'Xx' is unknown to the model, made for \(18,\)"):
        LocalModel(path, "Ar Xx")
    with pytest.raises(ExportError, match=r"is a directory; `mosaicmd export"):
        LocalModel(tmp_path, "Ar")
    with pytest.raises(ExportError, match="no exported model that can be read"):
        LocalModel(tmp_path / "missing.mosaicmd", "Ar")

    def energy(params, system, graph):
        return jnp.mean(system.positions[:, 0]) ** 2 * jnp.where(system.mask, 1.0, 0.0)

    whole = Potential(
        architecture="whole",
        config={},
        init=lambda key: {},
        energy=energy,
        cutoff=3.0,
        species=(18,),
    )
    with pytest.raises(ExportError, match="depends on atoms at any distance"):
        LocalModel(export_model((whole, {}), tmp_path / "whole.mosaicmd"), "Ar")


def test_what_a_plugin_needs_is_named(tmp_path, monkeypatch):
    with pytest.raises(PluginError, match=r"no headers of LAMMPS in .*pair\.h is missing"):
        plugin_path(include=tmp_path, cache=tmp_path / "cache")
    (tmp_path / "pair.h").write_text("#error not the real one\n")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PluginError, match=r"'no-such-compiler' cannot be run .*install one"):
        plugin_path(include=tmp_path, cache=tmp_path / "cache")
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(PluginError, match=r"false could not compile lammps_pair\.cpp"):
        plugin_path(include=tmp_path, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_plugin_is_compiled_once(tmp_path, monkeypatch):
    """By a compiler that notes its calls."""
    (tmp_path / "pair.h").touch()
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\necho "$@" >> "${0}.log"\nfor last; do :; done\n: > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    cache = tmp_path / "cache"
    first = plugin_path(include=tmp_path, cache=cache)
    assert first == plugin_path(include=tmp_path, cache=cache)
    assert first.name.endswith("plugin.so")
    (tmp_path / "pair.h").write_text("// of another version\n")
    assert plugin_path(include=tmp_path, cache=cache) != first
    assert (tmp_path / "compiler.log").read_text().count("lammps_pair.cpp") == 2
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == [first.name] * 2

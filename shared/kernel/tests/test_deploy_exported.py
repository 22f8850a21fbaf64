"""Exported programs: equal to the model, without the code of the model."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deploy_potentials import lennard_jones

from mosaicmd.kernel.deploy import export_model, load_exported
from mosaicmd.kernel.deploy.exported import ExportError
from mosaicmd.kernel.graphs import (
    edge_components,
    gather_senders,
    host_graph,
    pad_graph,
    sum_edges,
)
from mosaicmd.kernel.potentials import Potential, evaluate
from mosaicmd.kernel.systems import pad_system, volume
from mosaicmd.kernel.testing import random_system

KEY = jax.random.key(0)
TOLERANCES = {"float32": 1e-6, "float64": 1e-12}
LOADER = """
import sys
sys.modules["mosaicmd"] = None  # importing it is an error from here on
import json, jax, jax.export
import numpy as np
jax.config.update("jax_enable_x64", sys.argv[3] == "float64")
data = open(sys.argv[1], "rb").read()
n = 8 + int.from_bytes(data[:8], "little")
header = json.loads(data[8:n])
start, end = header["program"]["data_offsets"]
info = json.loads(header["__metadata__"]["mosaicmd"])
program = jax.export.deserialize(bytearray(data[n + start : n + end]))
cases = np.load(sys.argv[2])
found = {}
for case in sorted({name.split("/")[0] for name in cases.files}):
    arguments = [cases[case + "/" + name] for name in info["inputs"]]
    for name, value in zip(info["outputs"], jax.jit(program.call)(*arguments), strict=True):
        found[case + "/" + name] = np.asarray(value)
np.savez(sys.argv[4], **found)
assert not [name for name in sys.modules if name.startswith("mosaicmd.")]
"""


def cases(dtype, cutoff, species):
    """Systems of several sizes, periodic and not, with and without padding."""
    for n_atoms, pbc, padding in ((5, True, 0), (24, True, 7), (11, False, 3)):
        system = random_system(n_atoms, n_atoms=n_atoms, species=species, min_distance=2.0, pbc=pbc)
        system = pad_system(system.astype(dtype), n_atoms + padding)
        graph = host_graph(system, cutoff)
        if padding:
            graph = pad_graph(graph, graph.n_edges + 5 * padding, n_atoms=system.n_atoms)
        yield system, graph


def two_species():
    """A pair potential that depends on the species of both ends."""
    plain, _ = lennard_jones(cutoff=4.5, species=(8, 1), smooth=True)

    def energy(params, system, graph):
        scale = jnp.where(system.species == 8, 2.0, 0.5).astype(system.positions.dtype)
        return scale * plain.energy(params, system, graph)

    params = {"epsilon": jnp.asarray(0.4), "sigma": jnp.asarray(2.2)}
    return Potential(
        architecture="two",
        config={},
        init=lambda key: params,
        energy=energy,
        cutoff=4.5,
        species=(8, 1),
    )


def assert_close(found, wanted, tolerance):
    scale = max(float(np.abs(wanted).max()), 1e-3)
    np.testing.assert_allclose(found, wanted, rtol=0.0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_process_without_our_code_computes_what_the_model_does(tmp_path, dtype):
    potential = two_species()
    params = potential.init(KEY)
    path = export_model((potential, params), tmp_path / "two.mosaicmd", dtype=dtype)
    loaded, arguments, wanted = load_exported(path), {}, {}
    assert loaded.species == (8, 1)
    assert loaded.cutoff == 4.5
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    reference = jax.jit(
        lambda system, graph: (
            potential.energy(params, system, graph),
            evaluate(potential.energy, params, system, graph, stress=True),
        )
    )
    for i, (system, graph) in enumerate(cases(dtype, 4.5, (1, 8))):
        wanted[f"{i}/energies"], result = reference(system, graph)
        wanted[f"{i}/forces"] = result.forces
        if bool(system.pbc.all()):
            wanted[f"{i}/virial"] = result.stress * volume(system)
        values = {
            "positions": system.positions,
            "cell": system.cell,
            "species_index": np.where(np.asarray(system.species) == 1, 1, 0).astype(np.int32),
            "senders": graph.senders,
            "receivers": graph.receivers,
            "shifts": graph.shifts,
            "atom_mask": system.mask,
            "own_mask": system.mask,
            "edge_mask": graph.mask,
        }
        arguments |= {f"{i}/{name}": np.asarray(value) for name, value in values.items()}
        outputs = loaded.evaluate(system, graph)
        for name, value in outputs._asdict().items():
            if f"{i}/{name}" in wanted:
                assert_close(value, np.asarray(wanted[f"{i}/{name}"]), TOLERANCES[dtype])
    np.savez(tmp_path / "cases.npz", **arguments)
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    command = [sys.executable, "-W", "error", script, path, tmp_path / "cases.npz", dtype]
    done = subprocess.run(
        [*command, tmp_path / "found.npz"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    for name, value in wanted.items():
        assert found[name].dtype == dtype
        assert_close(found[name], np.asarray(value), TOLERANCES[dtype])


def test_the_header_says_what_the_program_is(tmp_path):
    path = export_model((two_species(), two_species().init(KEY)), tmp_path / "two.mosaicmd")
    info = load_exported(path).info
    assert info["dtype"] == "float32"
    assert info["platforms"] == ["cpu", "cuda"]
    assert info["model"]["architecture"] == "two"
    assert info["inputs"]["positions"] == {"shape": "n, 3", "dtype": "float32"}
    json.dumps(info)


def chained(n_hops):
    """Densities of densities: energies that feel atoms `n_hops` edges away."""

    def energy(params, system, graph):
        x, y, z = edge_components(system, graph)
        inside = (square := x * x + y * y + z * z) < 9.0
        weight = jnp.where(inside, (1.0 - jnp.where(inside, square, 0.0) / 9.0) ** 3, 0.0)
        values = jnp.ones_like(system.positions[:, 0])
        for _ in range(n_hops):
            values = sum_edges(weight * gather_senders(values, graph), graph, system.n_atoms)
        return params["scale"] * values

    return Potential(
        architecture="chained",
        config={},
        init=lambda key: {"scale": jnp.asarray(0.1)},
        energy=energy,
        cutoff=3.0 if n_hops else 1.0,
        species=(14,),
    )


@pytest.mark.parametrize("n_hops", [0, 1, 3])
def test_the_header_says_how_far_an_energy_reaches(tmp_path, n_hops):
    potential = chained(n_hops)
    path = export_model((potential, potential.init(KEY)), tmp_path / "model.mosaicmd")
    assert load_exported(path).hops == n_hops


def test_an_energy_of_all_atoms_has_no_reach(tmp_path):
    def energy(params, system, graph):
        return jnp.mean(system.positions[:, 0]) ** 2 * jnp.where(system.mask, 1.0, 0.0)

    potential = dataclasses.replace(chained(1), energy=energy)
    path = export_model((potential, potential.init(KEY)), tmp_path / "model.mosaicmd")
    assert load_exported(path).hops is None


def test_any_species_must_be_named(tmp_path):
    potential, _ = lennard_jones(species=None)
    model = (potential, potential.init(KEY))
    with pytest.raises(ValueError, match="takes any species; give `species`"):
        export_model(model, tmp_path / "any.mosaicmd")
    path = export_model(model, tmp_path / "any.mosaicmd", species=[18, 10])
    assert load_exported(path).species == (18, 10)
    with pytest.raises(ValueError, match=r"\[1\] are unknown to the program"):
        load_exported(path).evaluate(*next(cases("float32", 8.0, (1,))))


def test_a_potential_that_needs_more_is_refused(tmp_path):
    def energy(params, system, graph):
        return system.charges * 1.0

    potential = Potential(
        architecture="charged",
        config={},
        init=lambda key: {},
        energy=energy,
        cutoff=3.0,
        species=(1,),
    )
    with pytest.raises(ExportError, match="'charged' potential cannot be exported"):
        export_model((potential, {}), tmp_path / "charged.mosaicmd")
    with pytest.raises(ValueError, match="`species` \\[2\\] are unknown"):
        export_model((potential, {}), tmp_path / "charged.mosaicmd", species=[2])
    with pytest.raises(ValueError, match="`dtype` must be float32 or float64"):
        export_model((potential, {}), tmp_path / "charged.mosaicmd", dtype="float16")


def test_files_that_are_no_programs_are_named(tmp_path):
    path = tmp_path / "broken.mosaicmd"
    with pytest.raises(ExportError, match="no exported model that can be read"):
        load_exported(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ExportError, match="no exported model that can be read"):
        load_exported(path)
    potential = two_species()
    good = export_model((potential, potential.init(KEY)), path, dtype="float64").read_bytes()
    path.write_bytes(good[:-100])
    with pytest.raises(ExportError, match="no exported model that can be read"):
        load_exported(path)
    older = good.replace(b'\\"format_version\\": 2', b'\\"format_version\\": 1')
    assert older != good
    path.write_bytes(older)
    with pytest.raises(ExportError, match="version 2 is known; export the model again"):
        load_exported(path)
    path.write_bytes(good)
    with jax.enable_x64(False), pytest.raises(ExportError, match="JAX is in 32-bit mode"):
        load_exported(path)

import ase.build
import ase.io
import cli_runs
import jax
import jax.numpy as jnp
import matching_data
import numpy as np
import pytest
from cli_runs import entry_points, results, run, write_data, write_settings

from mosaicmd.kernel import potentials
from mosaicmd.kernel.deploy import ase_calculator
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.model_files import load_model, read_model_record, save_model
from mosaicmd.kernel.potentials import Potential, evaluate
from mosaicmd.kernel.precision import (
    array_type,
    build,
    weights_type,
    with_precision,
)
from mosaicmd.kernel.stored_runs import read_run
from mosaicmd.kernel.systems import make_system

KEY = jax.random.key(0)


def linear_energy(params, system, graph):
    """Energies ``x w``, by a product in the precision of the day and one in full."""
    del graph
    return system.positions @ params["low"] + jnp.matmul(
        system.positions, params["high"], precision="highest"
    )


def linear():
    def init(key):
        del key
        return {"low": jnp.zeros(3), "high": jnp.zeros(3)}

    return Potential(architecture="linear", config={}, init=init, energy=linear_energy, cutoff=1.0)


def program(potential, dtype):
    """Of the energy and its derivatives in positions."""
    system = make_system(np.ones((2, 3)), 1, dtype=dtype)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), potential.init(KEY))
    graph = host_graph(system, 1.0)
    return str(jax.make_jaxpr(lambda p: evaluate(potential.energy, p, system, graph))(params))


def test_accelerators_are_asked_for_bfloat16_where_no_precision_is_given(monkeypatch):
    """In the energy and in its derivative; the other two products are in full."""
    rounded = with_precision(linear(), "bfloat16")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = program(rounded, array_type("bfloat16"))
    assert found.count("precision=BF16_BF16_F32") == 2
    assert found.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 2
    assert "BF16" not in program(linear(), "float32")


def test_cpus_which_have_no_such_products_are_asked_for_nothing():
    before = jax.config.jax_default_matmul_precision
    assert "BF16" not in program(with_precision(linear(), "bfloat16"), "float32")
    assert jax.config.jax_default_matmul_precision == before


def test_a_precision_replaces_another():
    plain = matching_data.PAIR
    assert with_precision(plain, "float64") is plain
    rounded = with_precision(plain, "bfloat16")
    assert (rounded.architecture, rounded.cutoff) == ("bfloat16_products", plain.cutoff)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(potentials, "entry_points", entry_points())
        assert with_precision(rounded, "float32").architecture == "pair"
        again = with_precision(rounded, "bfloat16")
        assert again.config == rounded.config == {"architecture": "pair", "config": {}}
        assert build(rounded.config).architecture == rounded.architecture


def test_weights_tell_their_type():
    assert weights_type({"a": jnp.ones(2, "float32"), "n": jnp.ones(2, "int32")}) == "float32"
    assert weights_type([jnp.ones(2, "float32"), np.ones(2)]) == "float64"
    assert weights_type({"n": np.ones(2, "int32"), "rate": 0.5}) is None


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """`precision -> folder` of a short training, which holds ``run/model``."""
    monkeypatch.setattr(potentials, "entry_points", entry_points())
    write_data(tmp_path / "all.extxyz", 4)

    def train(precision, name="run", **changes):
        settings = write_settings(tmp_path, precision=precision, steps=1, **changes)
        run("train", settings, "--out", tmp_path / name, "--quiet")
        return tmp_path

    return train


def architectures(model):
    return [term["architecture"] for term in read_model_record(model)["config"]["terms"]]


def test_a_model_trained_in_float64_is_used_in_float64(trained):
    folder = trained("float64", data={"train": "all.extxyz", "validation": 0.0})
    model, data = folder / "run" / "model", folder / "all.extxyz"
    assert read_model_record(model)["training"]["config"]["precision"] == "float64"
    assert weights_type(load_model(model)[1]) == "float64"
    assert ase_calculator(model).dtype == "float64"
    assert ase_calculator(model, dtype="float32").dtype == "float32"
    run("evaluate", model, data, "--out", folder / "same")
    ours, same = (
        results(folder / name)["metrics"][metric]["value"]
        for name, metric in (("run", "train_mae_forces"), ("same", "all_mae_forces"))
    )
    assert same == pytest.approx(ours, rel=1e-12)


def test_a_model_trained_with_bfloat16_says_so_until_it_is_trained_otherwise(trained, monkeypatch):
    model = trained("bfloat16") / "run" / "model"
    assert architectures(model) == ["bfloat16_products", "atomic_energies"]
    potential, params = load_model(model)
    assert weights_type(params) == "float32"
    assert ase_calculator(model).dtype == "float32"
    assert ase_calculator(model).potential.config == potential.config
    monkeypatch.delitem(cli_runs.SETTINGS, "potential")
    again = trained("float32", "more", init_from=str(model), reference_energies="keep")
    assert architectures(again / "more" / "model") == ["pair", "atomic_energies"]


def test_dynamics_run_in_the_type_of_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(potentials, "entry_points", entry_points())
    params = matching_data.params_of(matching_data.START, "float64")
    save_model(tmp_path / "model", matching_data.PAIR, params)
    atoms = ase.build.bulk("O", "fcc", a=3.8, cubic=True).repeat(3)
    ase.io.write(tmp_path / "crystal.extxyz", atoms)
    steps = ("--temperature", "30 K", "--steps", 2, "--every", 1, "--quiet")
    common = ("md", tmp_path / "model", tmp_path / "crystal.extxyz", *steps)
    run(*common, "--out", tmp_path / "md")
    assert read_run(tmp_path / "md" / "run").systems.positions.dtype == "float64"


def test_an_unknown_precision_is_named(tmp_path):
    write_data(tmp_path / "all.extxyz")
    output = run("train", write_settings(tmp_path, precision="float16"), "--dry-run", code=1)
    assert "precision: got 'float16'" in output

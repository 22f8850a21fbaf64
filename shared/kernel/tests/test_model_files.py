"""Model directories: bit-exact round trips, and files that are refused without harm."""

import hashlib
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.model_files import ModelFileError, load_model, read_model_record, save_model
from mosaicmd.kernel.potentials import Potential, sum_potentials
from mosaicmd.kernel.tensors import pack


def harmonic(config):
    """Atoms on springs, with parameters of every kind that a model may have."""
    size = config["size"]
    if not isinstance(size, int):
        raise ValueError(f"`size` must be an integer, got {size!r}")

    def init(key):
        return {
            "stiffness": jax.random.normal(key, (size, 3)),
            "layers": [
                (jnp.zeros((2, size), jnp.float32), jnp.zeros(size, jnp.bfloat16)),
                {"count": jnp.zeros(2, jnp.int32), "on": jnp.array([True, False])},
            ],
            "empty": ({}, [], None),
            "scale": 0.1,
            "unit": jnp.asarray(2.0),
            "order": 3,
        }

    def energy(params, system, graph):
        return params["stiffness"][0, 0] * jnp.sum(system.positions**2, axis=1)

    return Potential(
        architecture="harmonic",
        config=config,
        init=init,
        energy=energy,
        cutoff=config["cutoff"],
        species=tuple(config["species"]),
    )


ARCHITECTURES = {"harmonic": harmonic}
CONFIG = {"size": 4, "cutoff": 5.5, "species": [1, 8]}


def load(directory, **keywords):
    return load_model(directory, architectures=ARCHITECTURES, **keywords)


@pytest.fixture(scope="module")
def potential():
    return harmonic(CONFIG)


@pytest.fixture(scope="module")
def params(potential):
    params = potential.init(jax.random.key(0))
    awkward = np.array([-0.0, np.nan, 5e-324, np.inf])
    return params | {"stiffness": params["stiffness"].at[:, 0].set(awkward), "scale": 1 / 3}


@pytest.fixture(scope="module")
def original(tmp_path_factory, potential, params):
    directory = tmp_path_factory.mktemp("original") / "model"
    return save_model(directory, potential, params, training={"data": "water", "n": 3})


@pytest.fixture
def model(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def snapshot(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_round_trip_is_exact_in_bits_dtypes_and_structure(model, potential, params):
    loaded, restored = load(model)
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(params), strict=True):
        assert type(one) is type(other)
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert getattr(one, "weak_type", None) == getattr(other, "weak_type", None)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert (loaded.architecture, loaded.config) == ("harmonic", CONFIG)
    assert (loaded.cutoff, loaded.species) == (potential.cutoff, potential.species)


def test_record_says_what_the_model_is_and_was_made_with(model):
    record = read_model_record(model)
    assert record["units"] == {
        "energy": "eV",
        "length": "angstrom",
        "mass": "u",
        "charge": "e",
    }
    assert record["training"] == {"data": "water", "n": 3}
    assert record["species"] == [1, 8]
    assert record["packages"]["jax"] == jax.__version__
    assert "mosaicmd-kernel" in record["packages"]


def test_saving_what_was_loaded_gives_the_same_files(model, tmp_path):
    again = save_model(tmp_path / "again", *load(model), training={"data": "water", "n": 3})
    assert snapshot(again) == snapshot(model)


def test_sum_of_potentials_is_rebuilt_term_by_term(tmp_path, potential):
    total = sum_potentials(potential, harmonic(CONFIG | {"size": 2}))
    params = total.init(jax.random.key(1))
    loaded, restored = load(save_model(tmp_path / "m", total, params))
    assert loaded.architecture == "sum"
    assert isinstance(restored, tuple)
    assert restored[1]["stiffness"].shape == (2, 3)


def test_folders_on_the_way_to_a_model_are_made(tmp_path, potential, params):
    """Nothing that was learned is lost for want of one."""
    found = load(save_model(tmp_path / "a" / "b" / "m", potential, params))[1]
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_an_existing_model_is_replaced_only_on_request(model, potential, params):
    before = snapshot(model)
    changed = params | {"scale": 2.0}
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_model(model, potential, changed)
    assert snapshot(model) == before
    save_model(model, potential, changed, overwrite=True)
    assert load(model)[1]["scale"] == 2.0
    assert os.listdir(model.parent) == ["model"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stiffness": np.zeros((5, 3))}, r"`stiffness` has shape \(5, 3\), expected \(4, 3\)"),
        ({"extra": 1.0}, r"`extra` has shape \(\), expected absent"),
        ({"empty": ([], [], None)}, "structure"),
    ],
)
def test_params_of_another_potential_are_refused(tmp_path, potential, params, change, message):
    with pytest.raises(ValueError, match=message):
        save_model(tmp_path / "m", potential, params | change)
    assert os.listdir(tmp_path) == []


def test_training_must_be_json(tmp_path, potential, params):
    with pytest.raises(ValueError, match="`training` cannot be stored as JSON"):
        save_model(tmp_path / "m", potential, params, training={"loss": float("nan")})


def test_dtype_casts_the_floating_point_weights_alone(model):
    _, params = load(model, dtype=jnp.float32)
    assert params["stiffness"].dtype == jnp.float32
    assert params["layers"][1]["count"].dtype == jnp.int32


def test_64_bit_weights_are_not_rounded_in_silence(model):
    with jax.enable_x64(False):
        refused(model, "JAX is in 32-bit mode", "dtype='float32'")
        assert load(model, dtype=jnp.float32)[1]["stiffness"].dtype == jnp.float32


def test_an_architecture_is_found_among_installed_entry_points(model, monkeypatch):
    """The file's name selects an entry point; what the entry point loads was installed."""

    class Entry:
        name = "harmonic"

        def load(self):
            return harmonic

    monkeypatch.setattr("mosaicmd.kernel.potentials.entry_points", lambda group: [Entry()])
    assert load_model(model)[0].config == CONFIG


# Damaged and hostile files.


def refused(model, *fragments, **keywords):
    with pytest.raises(ModelFileError) as caught:
        load(model, **keywords)
    message = str(caught.value)
    for fragment in (str(model), *fragments):
        assert fragment in message
    return message


def edit(model, **changes):
    path = model / "model.json"
    record = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del record[key]
        else:
            record[key] = value
    path.write_text(json.dumps(record))


def put_weights(model, data, structure=None):
    (model / "weights.safetensors").write_bytes(data)
    old = json.loads((model / "model.json").read_text())["weights"]["structure"]
    digest = hashlib.sha256(data).hexdigest()
    edit(model, weights={"sha256": digest, "structure": structure or old})


def test_missing_parts_are_named(model, tmp_path):
    refused(tmp_path / "elsewhere", "does not exist")
    (model / "weights.safetensors").unlink()
    refused(model, "weights.safetensors is missing")
    (model / "model.json").unlink()
    refused(model, "model.json is missing")


def test_an_interrupted_replacement_is_pointed_out(model):
    model.rename(model.with_name(".model.previous"))
    refused(model, ".model.previous, rename it")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_files_are_noticed(model, keep):
    path = model / "weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    refused(model, "weights.safetensors", "damaged")
    path.write_bytes(whole)
    path = model / "model.json"
    path.write_bytes(path.read_bytes().rstrip()[:keep])
    refused(model, "model.json is no valid JSON")


def test_any_flipped_bit_in_the_weights_is_noticed(model):
    path = model / "weights.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), 37):
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(changed)
        refused(model, "SHA-256")


def test_weights_of_another_model_are_noticed(model, tmp_path, potential):
    other = save_model(tmp_path / "other", potential, potential.init(jax.random.key(9)))
    (model / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    refused(model, "belongs to another model.json")


@pytest.mark.parametrize(
    "key",
    ["architecture", "config", "species", "cutoff", "units", "packages", "training", "weights"],
)
def test_missing_keys_are_named(model, key):
    edit(model, **{key: None})
    refused(model, key, "Field required")


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"format_version": 2}, "upgrade mosaicmd-kernel"),
        ({"format_version": "1"}, "format_version"),
        ({"format": None}, "is not a model"),
        ({"extra": 1}, "extra"),
        ({"cutoff": "5.5"}, "cutoff"),
        ({"cutoff": 6.0}, "records cutoff 6.0, but its configuration gives 5.5"),
        ({"species": [1]}, "records species (1,)"),
        ({"species": [1.5]}, "species.0"),
        ({"config": []}, "config"),
        ({"config": {}}, "cannot be built from its configuration"),
        ({"config": CONFIG | {"size": "4"}}, "`size` must be an integer"),
        ({"config": CONFIG | {"size": 3}}, "do not fit 'harmonic'"),
        ({"units": {"energy": "kcal/mol"}}, "expected {'energy': 'eV'"),
        ({"architecture": "harmonik"}, "did you mean `harmonic`?"),
        ({"architecture": "os.system"}, "not provided by any installed package"),
        ({"architecture": "sum"}, "cannot be built"),
        ({"architecture": "sum", "config": {"terms": 3}}, "cannot be built"),
        ({"weights": {"sha256": "0" * 64, "structure": None}}, "SHA-256"),
        ({"weights": {"sha256": 3}}, "weights.sha256"),
    ],
)
def test_altered_record_is_refused(model, changes, fragment):
    edit(model, **changes)
    refused(model, fragment)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"format": "mosaicmd-model", "format": "mosaicmd-model"}',
        b'{"format": "mosaicmd-model", "format_version": 1, "cutoff": NaN}',
        b'{"format": "mosaicmd-model", "format_version": 1, "cutoff": -Infinity}',
        b'{"format": "mosaicmd-model", "format_version": 1, "cutoff": 1e999}',
        b'{"format": "mosaicmd-model", "format_version": ' + b"9" * 10_000 + b"}",
        b"\x80\x04\x95cos\nsystem\n(S'echo'\ntR.",  # a pickle
    ],
)
def test_hostile_json_is_refused(model, text):
    (model / "model.json").write_bytes(text)
    refused(model, "model.json")


@pytest.mark.parametrize(
    "data",
    [
        (2**62).to_bytes(8, "little") + b"{}",
        (90_000_000).to_bytes(8, "little") + b"{}",
        b"\x80\x04\x95cos\nsystem\n(S'echo'\ntR.",
        pack({"params/stiffness": np.zeros((4, 3))}),
        pack({}),
    ],
)
def test_hostile_weights_with_a_matching_checksum_are_refused(model, data):
    put_weights(model, data)
    refused(model, "weights.safetensors:")


def test_deeply_nested_structure_is_refused(model):
    text = (model / "model.json").read_text()
    start = text.index('"structure":')
    nested = '{"list":[' * 20_000 + "null" + "]}" * 20_000
    (model / "model.json").write_text(text[:start] + '"structure":' + nested + "}}")
    refused(model)


def test_links_out_of_the_directory_are_refused(model, tmp_path):
    secret = tmp_path / "secret.safetensors"
    path = model / "weights.safetensors"
    path.rename(secret)
    path.symlink_to(secret)
    refused(model, "weights.safetensors is a link that leads out")
    path.unlink()
    path.symlink_to("../secret.safetensors")
    refused(model, "leads out")
    path.unlink()
    path.symlink_to("weights.safetensors")
    refused(model, "weights.safetensors")


def test_special_files_are_refused_without_waiting(model):
    (model / "weights.safetensors").unlink()
    os.mkfifo(model / "weights.safetensors")
    refused(model, "no ordinary file")
    os.unlink(model / "weights.safetensors")
    (model / "weights.safetensors").mkdir()
    refused(model, "no ordinary file")


def test_a_huge_record_is_not_read(model):
    with open(model / "model.json", "wb") as stream:
        stream.truncate(2**40)  # sparse
    refused(model, "which is no model")


def test_names_in_the_record_reach_no_file(model):
    """A path in place of an array name is just a name that no array has."""
    put_weights(model, pack({"x": np.zeros(1)}), {"array": "../../etc/passwd"})
    refused(model, "missing or used twice")

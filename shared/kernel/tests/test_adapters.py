"""Adapters: nothing at first, the best of their rank after training, everything at full rank."""

import dataclasses
from importlib.metadata import EntryPoint

import cli_runs
import jax
import jax.numpy as jnp
import matching_data
import numpy as np
import optax
import pytest
from cli_runs import entry_points, run, write_data, write_settings

from mosaicmd.kernel import potentials
from mosaicmd.kernel.adapters import low_rank_adapters, merge_adapters
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.model_files import load_model, save_model

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def params():
    return {
        "layers": ({"weight": jnp.asarray(RNG.normal(size=(6, 4))), "bias": jnp.ones(4)},),
        "stack": jnp.asarray(RNG.normal(size=(3, 5, 2))),
        "scale": jnp.asarray(2.0),
    }


def test_they_start_at_the_model_bit_for_bit_and_have_their_rank():
    model = params()
    adapters = low_rank_adapters(model, ["layers", "stack"], rank=3, key=KEY)
    shapes = {name: {k: v.shape for k, v in one.items()} for name, one in adapters.items()}
    assert shapes == {
        "layers/0/weight": {"in": (6, 3), "out": (3, 4)},
        "stack": {"in": (3, 5, 2), "out": (3, 2, 2)},
    }
    merged = merge_adapters(model, adapters)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    jax.tree.map(np.testing.assert_array_equal, merged, model)


def test_full_rank_can_be_any_change():
    """``A B = D`` for any ``D``: with ``A = D`` and ``B = 1``, and with the ``A`` that is drawn."""
    for n_in, n_out in ((6, 4), (3, 7)):
        model = {"w": jnp.asarray(RNG.normal(size=(n_in, n_out)))}
        change = RNG.normal(size=(n_in, n_out))
        adapters = low_rank_adapters(model, ["w"], rank=10, key=KEY)
        rank = adapters["w"]["in"].shape[1]
        assert rank == min(n_in, n_out)
        if rank == n_in:
            adapters["w"]["out"] = jnp.linalg.solve(adapters["w"]["in"], change)
        else:
            adapters["w"] = {"in": jnp.asarray(change), "out": jnp.eye(rank)}
        merged = merge_adapters(model, adapters)
        np.testing.assert_allclose(merged["w"] - model["w"], change, rtol=1e-10)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_training_finds_the_best_change_of_that_rank(rank):
    """Eckart & Young (1936): what is left are the other singular values, squared."""
    model = params()
    weight = model["layers"][0]["weight"]
    change = RNG.normal(size=(6, 4))

    def loss(adapters):
        merged = merge_adapters(model, adapters)
        return jnp.sum((merged["layers"][0]["weight"] - weight - change) ** 2)

    adapters = low_rank_adapters(model, ["layers/*/weight"], rank=rank, key=KEY)
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def step(adapters, state):
        value, slope = value_and_grad(adapters, state=state)
        move, state = optimizer.update(
            slope, state, adapters, value=value, grad=slope, value_fn=loss
        )
        return optax.apply_updates(adapters, move), state

    state = optimizer.init(adapters)
    for _ in range(120):
        adapters, state = step(adapters, state)
    singular = np.linalg.svd(change, compute_uv=False)
    assert float(loss(adapters)) == pytest.approx(np.sum(singular[rank:] ** 2), rel=1e-6, abs=1e-8)


def build_matrix(config):
    """The pair potential with its two parameters behind a matrix, and a constant that matters."""

    def energy(params, system, graph):
        epsilon, sigma = params["shift"] + params["weight"] @ jnp.ones(3, params["shift"].dtype)
        return matching_data.energy({"epsilon": epsilon, "sigma": sigma}, system, graph)

    def init(key):
        del key
        shift = jnp.asarray([matching_data.START["epsilon"], matching_data.START["sigma"]])
        return {"shift": shift, "weight": jnp.zeros((2, 3))}

    return dataclasses.replace(
        matching_data.PAIR, architecture="matrix", config=config, init=init, energy=energy
    )


def test_the_command_trains_adapters_and_saves_an_ordinary_model(tmp_path, monkeypatch):
    """The weight moves, by a change of rank one; the rest stays bit for bit."""
    matrix = EntryPoint("matrix", "test_adapters:build_matrix", "mosaicmd.potentials")
    monkeypatch.setattr(potentials, "entry_points", entry_points(matrix))
    potential = build_matrix({})
    before = potential.init(KEY)
    save_model(tmp_path / "start", potential, before)
    write_data(tmp_path / "all.extxyz", 2)
    monkeypatch.delitem(cli_runs.SETTINGS, "potential")
    changes = {
        "data": {"train": "all.extxyz", "validation": 0.0},
        "init_from": "start",
        "adapters": {"rank": 1},
        "precision": "float64",
        "optimizer": {"learning_rate": 0.01},
    }
    settings = write_settings(tmp_path, **changes)
    run("train", settings, "--out", tmp_path / "run", "--quiet")
    loaded, params = load_model(tmp_path / "run" / "model")
    after = params[0]
    assert [term["architecture"] for term in loaded.config["terms"]] == [
        "matrix",
        "atomic_energies",
    ]
    np.testing.assert_array_equal(after["shift"], before["shift"])
    singular = np.linalg.svd(after["weight"], compute_uv=False)
    assert singular[0] > 1e-3
    assert singular[1] < 1e-12 * singular[0]
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.9 * losses[0]

    bad = write_settings(tmp_path, **changes | {"adapters": {"rank": 1, "patterns": ["shift"]}})
    assert "adapters: 'shift' matches no matrix" in run("train", bad, "--dry-run", code=1)
    bad = write_settings(tmp_path, **changes | {"freeze": ["shift"]})
    assert "`adapters` change the model of `init_from`" in run("train", bad, "--dry-run", code=1)


def test_what_has_no_matrix_is_named():
    with pytest.raises(ValueError, match="`rank` must be at least 1, got 0"):
        low_rank_adapters(params(), ["stack"], rank=0, key=KEY)
    for pattern in ("scale", "layers/0/bias"):
        with pytest.raises(ValueError, match=f"'{pattern}' matches no matrix"):
            low_rank_adapters(params(), [pattern], rank=1, key=KEY)
    with pytest.raises(ValueError, match="'nothing' matches no parameter"):
        low_rank_adapters(params(), ["stack", "nothing"], rank=1, key=KEY)
    adapters = low_rank_adapters(params(), ["stack"], rank=1, key=KEY)
    with pytest.raises(ValueError, match=r"there are no \['stack'\]"):
        merge_adapters({"other": jnp.ones((2, 2))}, adapters)

"""Rescaled potentials against Stillinger–Weber, for which rescaling is exact."""

import dataclasses
import json

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models import PaiNNConfig, painn, stillinger_weber
from mosaicmd.kernel.elasticity import athermal_elasticity
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.potentials import build_potential, evaluate
from mosaicmd.kernel.systems import from_ase
from mosaicmd.kernel.testing import check_padding, check_precision, random_system
from mosaicmd.transfer import rescaled

SILICON = stillinger_weber(epsilon=2.16826, sigma=2.0951, species=(14,))
LENGTH, ENERGY = 2.181 / 2.0951, 1.93 / 2.16826
GERMANIUM = stillinger_weber(epsilon=1.93, sigma=2.181, species=(32,))  # of silicon's lambda


def germanium(seed: int = 0):
    atoms = ase.build.bulk("Ge", a=5.431 * LENGTH, cubic=True)
    atoms.rattle(0.1, seed=seed)
    atoms.set_cell(atoms.cell @ np.array([[1.02, 0.0, 0.0], [0.03, 0.99, 0.0], [0.0, 0.05, 1.0]]))
    return from_ase(atoms)


def test_stillinger_weber_of_equal_lambda_is_a_rescaling():
    moved = rescaled(SILICON, length=LENGTH, energy=ENERGY, species={32: 14})
    assert moved.species == (32,)
    assert moved.cutoff == pytest.approx(GERMANIUM.cutoff, rel=1e-14)
    system = germanium()
    graph = host_graph(system, moved.cutoff + 0.1)
    params = moved.init(jax.random.key(0))
    found = evaluate(moved.energy, params, system, graph, stress=True)
    expected = evaluate(
        GERMANIUM.energy, GERMANIUM.init(jax.random.key(0)), system, graph, stress=True
    )
    for name in ("energy", "forces", "stress"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-11
        )


def test_elastic_constants_scale_as_energy_over_length_cubed():
    """Cowley's constants of Stillinger–Weber silicon, 151.42, 76.42 and 56.45 GPa, rescaled.

    Cowley, Phys. Rev. Lett. 60, 2379 (1988).
    """
    moved = rescaled(SILICON, length=LENGTH, energy=ENERGY)
    system = from_ase(ase.build.bulk("Si", a=5.43094977 * LENGTH, cubic=True))
    graph = host_graph(system, moved.cutoff)
    found = athermal_elasticity(moved.energy, moved.init(jax.random.key(0)), system, graph)
    matrix = np.asarray(found.relaxed_gpa)
    ratio = ENERGY / LENGTH**3
    expected = np.array([151.42, 76.42, 56.45]) * ratio
    np.testing.assert_allclose([matrix[0, 0], matrix[0, 1], matrix[3, 3]], expected, rtol=3e-4)


def test_padding_and_precision_of_a_network():
    network = painn(PaiNNConfig(species=(1, 8), cutoff=3.5, n_features=8, n_layers=1, n_radial=4))
    moved = rescaled(network, length=1.2, energy=0.5)
    args = (moved, moved.init(jax.random.key(0)), random_system(0, n_atoms=10))
    check_padding(*args)
    check_precision(*args)


def test_charges_are_those_of_the_shrunk_structure():
    """Charges fall with the distance to the first atom, so that 1 Å there is ``LENGTH`` here."""

    def charges(params, system, graph):
        distance = jnp.linalg.norm(system.positions - system.positions[:1], axis=-1)
        return jnp.exp(-distance)

    source = dataclasses.replace(SILICON, charges=charges)
    moved = rescaled(source, length=LENGTH, species={32: 14})
    system = germanium()
    found = moved.charges(None, system, host_graph(system, moved.cutoff))
    distance = np.linalg.norm(np.asarray(system.positions - system.positions[:1]), axis=-1)
    np.testing.assert_allclose(found, np.exp(-distance / LENGTH), rtol=1e-12)
    assert rescaled(SILICON).charges is None


def test_model_file_rebuilds_it(tmp_path):
    moved = rescaled(SILICON, length=LENGTH, energy=ENERGY, species={32: 14, 6: 14})
    params = moved.init(jax.random.key(0))
    save_model(tmp_path / "model", moved, params)
    potential, again = load_model(tmp_path / "model")
    assert potential.species == (6, 32)
    system = germanium()
    graph = host_graph(system, moved.cutoff)
    np.testing.assert_array_equal(
        potential.energy(again, system, graph), moved.energy(params, system, graph)
    )
    rebuilt = build_potential("rescaled", json.loads(json.dumps(moved.config)))
    assert rebuilt.config == moved.config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0.0}, "`length` must be positive and finite, got 0.0"),
        ({"energy": float("inf")}, "`energy` must be positive and finite"),
        ({"species": {32: 6}}, r"`species` maps to \[6\], which the source"),
        ({"species": {}}, "`species` is empty"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        rescaled(SILICON, **settings)

"""Networks with something between their layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models.layered import layered
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential
from mosaicmd.kernel.testing import random_system

SMALL = {
    "allegro": {"n_scalars": 8, "n_tensors": 3, "l_max": 1, "n_layers": 3},
    "mace": {"n_channels": 4, "hidden_l_max": 1, "l_max": 1, "correlation": 2, "n_layers": 3},
    "nequip": {"n_features": 4, "n_layers": 3},
    "painn": {"n_features": 8, "n_layers": 3, "n_radial": 5},
}
SYSTEM = random_system(3, n_atoms=8)


def parts(name):
    config = {"species": [1, 8], "cutoff": 4.0, **SMALL[name]}
    network = layered(name, config)
    params = network.init(jax.random.key(0))
    return network, params, build_potential(name, config), host_graph(SYSTEM, 4.0)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_looking_changes_nothing_and_a_change_reaches_only_later_layers(name):
    """Atoms that see the changed one within the layers that follow, and no others, react."""
    network, params, potential, graph = parts(name)
    seen = []

    def look(k, scalars, carry):
        seen.append(k)
        return None, (*carry, scalars)

    def energies(change):
        def between(k, scalars, carry):
            assert scalars.shape == (8, network.n_scalars)
            return (change if k == 1 else None), carry

        return network.energy(params, SYSTEM, graph, between, None)[0]

    @jax.jit
    def all_of_them(change):
        plain = potential.energy(params, SYSTEM, graph)
        looked, scalars = network.energy(params, SYSTEM, graph, look, ())
        return plain, looked, scalars, energies(change), energies(0.0 * change)

    change = jnp.zeros((8, network.n_changes)).at[0].set(0.5)
    plain, looked, scalars, changed, same = all_of_them(change)
    assert seen == [0, 1]
    assert len(scalars) == 2
    np.testing.assert_allclose(looked, plain, rtol=1e-12)
    np.testing.assert_allclose(same, plain, rtol=1e-12)
    # one layer is left: what stands beside atom 0 may react, no other atom
    beside = np.zeros(8, bool)
    beside[np.asarray(graph.receivers)[np.asarray(graph.senders) == 0]] = True
    beside[0] = True
    moved = np.abs(np.asarray(changed - plain)) > 1e-12
    assert moved[beside].all()
    assert not moved[~beside].any()


def test_others_have_no_layers_to_look_between():
    with pytest.raises(ValueError, match="no layers to put something between"):
        layered("lennard_jones", {})
    with pytest.raises(ConfigError, match="cutoff"):
        layered("painn", {"species": [1], "cutoff": -1.0})

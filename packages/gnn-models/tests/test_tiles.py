"""Tiles: the same energies and derivatives as of the whole, in the memory of a tile."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from mosaicmd.gnn_models import AllegroConfig, tiles
from mosaicmd.gnn_models.allegro import allegro_layers
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.neighbors import neighbor_list
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.testing import random_system

CUTOFF = 3.5


def network(**changes):
    small = {"n_scalars": 5, "n_tensors": 2, "n_radial": 4, "mean_neighbors": 8.0}
    small |= {"two_body_widths": (6,), "latent_widths": (7,), "readout_widths": (3,)}
    return allegro_layers(AllegroConfig(species=(8, 1), cutoff=CUTOFF, **small | changes))


def between(k, scalars, carry):
    """All atoms see each other, and something is carried out."""
    wave = jnp.sin(1.0 + jnp.arange(50.0)).reshape(5, 10)
    change = jnp.tanh(scalars @ wave) - jnp.mean(scalars)
    return change, (0.0 if carry is None else carry) + jnp.sum(scalars**2)


def everything(network, params, system, graph, between):
    """Energies, derivatives by atoms and parameters, and those of the forces by parameters."""

    def total(params, positions):
        moved = system._replace(positions=positions)
        energies, carry = network.energy(params, moved, graph, between, None)
        weighted = jnp.sum(energies * jnp.arange(1.0, 1.0 + system.n_atoms))
        return weighted + (0.0 if carry is None else carry), energies

    @jax.jit
    def compute(params, positions):
        first, energies = jax.grad(total, argnums=(0, 1), has_aux=True)(params, positions)

        def forces(params):
            return jax.grad(total, argnums=1, has_aux=True)(params, positions)[0]

        return energies, first, jax.grad(lambda params: jnp.sum(forces(params) ** 2))(params)

    return [np.asarray(ravel_pytree(part)[0]) for part in compute(params, system.positions)]


@pytest.mark.parametrize(
    ("changes", "others"),
    [({"n_layers": 1}, None), ({"n_layers": 2}, None), ({"n_layers": 3, "l_max": 1}, between)],
)
def test_tiles_give_what_the_whole_gives(monkeypatch, changes, others):
    """23 atoms in six tiles of four, and in a flat graph that is not divided."""
    system = random_system(3, n_atoms=23)
    rows = neighbor_list(system, CUTOFF).build(system).graph
    monkeypatch.setattr(tiles, "_n_cores", lambda: 1)
    monkeypatch.setattr(tiles, "_EDGES_PER_CORE", 4 * rows.row_length)
    assert tiles.tiles_of(rows, 23) == (23, 6, 4)
    model = network(**changes)
    params = model.init(jax.random.key(0))
    graphs = (rows, host_graph(system, CUTOFF))
    found, wanted = (everything(model, params, system, graph, others) for graph in graphs)
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10 * np.abs(other).max())


def test_forward_mode_works_where_graphs_allow_it(monkeypatch):
    monkeypatch.setattr(tiles, "_EDGES_PER_CORE", 1)
    system = random_system(3, n_atoms=8)
    rows = neighbor_list(system, CUTOFF).build(system).graph
    plain = dataclasses.replace(rows, reverse=None)
    model = network(n_layers=1)
    params = model.init(jax.random.key(0))

    def energies(graph):
        return lambda params: model.energy(params, system, graph)[0]

    ones = jax.tree.map(jnp.ones_like, params)
    values, change = jax.jit(lambda p: jax.jvp(energies(plain), (p,), (ones,)))(params)
    tiled, pull = jax.vjp(jax.jit(energies(rows)), params)
    np.testing.assert_allclose(tiled, values, rtol=1e-9)
    backwards = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(pull(jnp.ones(8))[0]))
    np.testing.assert_allclose(jnp.sum(change), backwards, rtol=1e-9)


def test_replicas_and_masked_atoms(monkeypatch):
    monkeypatch.setattr(tiles, "_n_cores", lambda: 1)
    monkeypatch.setattr(tiles, "_EDGES_PER_CORE", 100)
    system = random_system(1, n_atoms=20)
    system = system._replace(mask=system.mask.at[-3:].set(False))
    moved = system.positions + 0.1 * jnp.sin(system.positions)
    positions = jnp.stack([system.positions, moved])
    model = network()
    params = model.init(jax.random.key(0))

    def forces(positions, graph):
        def total(positions):
            return jnp.sum(model.energy(params, system._replace(positions=positions), graph)[0])

        return jax.grad(total)(positions)

    plan = neighbor_list(system._replace(positions=positions), CUTOFF)
    together = plan.build(system._replace(positions=positions)).graph
    assert tiles.tiles_of(jax.tree.map(lambda leaf: leaf[0], together), 20) is not None
    found = jax.jit(jax.vmap(forces))(positions, together)
    for one, own in zip(found, positions, strict=True):
        graph = host_graph(system._replace(positions=own), CUTOFF)
        np.testing.assert_allclose(one, jax.jit(forces)(own, graph), rtol=1e-9, atol=1e-12)
        assert not np.any(one[-3:])


def test_memory_of_forces_is_that_of_the_edges_and_a_tile(monkeypatch):
    """Beside the whole of 19 times fewer atoms: all that is kept of an edge are a few vectors."""
    monkeypatch.setattr(tiles, "_n_cores", lambda: 1)
    model = network(n_scalars=32, n_tensors=8)
    params = jax.tree.map(jnp.float32, model.init(jax.random.key(0)))
    needed = {}
    for n, n_edges in ((6, 10**9), (16, 256)):
        monkeypatch.setattr(tiles, "_EDGES_PER_CORE", n_edges)
        grid = np.indices((n, n, n)).reshape(3, -1).T * 2.2
        system = make_system(grid, 8, cell=2.2 * n).astype(jnp.float32)
        plan = neighbor_list(system, CUTOFF, skin=0.0)
        graph = jax.jit(lambda system, plan=plan: plan.build(system).graph)(system)

        def total(positions, graph, system=system):
            return jnp.sum(model.energy(params, system._replace(positions=positions), graph)[0])

        compiled = jax.jit(jax.grad(total)).lower(system.positions, graph).compile()
        needed[n] = compiled.memory_analysis().temp_size_in_bytes / graph.n_edges
    assert needed[16] < 100.0  # bytes per edge; its tensors alone are 288 in every layer
    assert needed[16] < 0.25 * needed[6]

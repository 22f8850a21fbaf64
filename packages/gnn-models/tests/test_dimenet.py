"""DimeNet++: chemtrain's numbers, the equations triplet by triplet, and the contract."""

import dataclasses
import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import eval_legendre, spherical_jn

from mosaicmd.gnn_models import DimeNetConfig, dimenet, triplets
from mosaicmd.gnn_models.spherical_bessel import spherical_bessel_roots
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph, pad_graph
from mosaicmd.kernel.potentials import build_potential, evaluate, total_energy
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.testing import check_potential, in_rows, random_system

module = importlib.import_module("mosaicmd.gnn_models.dimenet")  # `dimenet` is a function

SMALL = DimeNetConfig(
    species=(8, 1),
    cutoff=3.5,
    n_features=6,
    n_blocks=2,
    n_radial=3,
    n_spherical=4,
    n_output_layers=1,
    species_features=3,
    triplet_features=4,
    basis_features=5,
    output_features=7,
)


# Nine atoms in a periodic box as chemtrain 0.2.0 (jax 0.4.37, float64) sees them, in eV and eV/Å:
# its `DimeNetPP` with the sizes of PEER on `sparse_graph_from_neighborlist`, weights as drawn in
# the test, its dense layer before the first messages (which is linear) set to the identity, and
# its roots of Bessel functions and sums, which it rounds to float32, kept in float64.
PEER = DimeNetConfig(
    species=(8, 1),
    cutoff=3.5,
    n_features=8,
    n_blocks=2,
    n_radial=6,
    n_spherical=7,
    n_output_layers=2,
    species_features=3,
    triplet_features=4,
    basis_features=5,
    output_features=6,
)
BOX = np.array([7.3, 7.6, 7.1])
KINDS = np.array([8, 1, 1, 8, 1, 8, 1, 1, 8])
PLACES = np.array(
    [
        [4.6, 6.8, 5.5],
        [1.6, 2.3, 6.2],
        [0.0, 6.2, 5.7],
        [3.4, 2.3, 2.0],
        [1.9, 3.4, 3.6],
        [4.5, 7.5, 1.5],
        [1.2, 4.7, 0.3],
        [0.3, 3.9, 3.3],
        [3.6, 1.9, 0.1],
    ]
)


CHEMTRAIN_ENERGIES = [
    -0.076675878331,
    -0.084044933630,
    -0.085283384258,
    -0.068243317721,
    0.009126327864,
    -0.085643218053,
    -0.085605413459,
    0.021291909295,
    -0.068683569000,
]
CHEMTRAIN_FORCES = [
    [0.040511220225, -0.013319898237, -0.008802990285],
    [-0.104189141656, 0.063494674552, -0.060200620491],
    [-0.031753193459, -0.000175757293, 0.008693051042],
    [-0.011231709943, 0.010227221059, 0.286422392323],
    [-0.347296248381, 0.094148182344, -0.047640089165],
    [-0.048146186186, 0.107602285642, -0.012722180964],
    [-0.001519991030, -0.022276893886, -0.029452784545],
    [0.350101592967, -0.110873120068, 0.067927925610],
    [0.153523657464, -0.128826694115, -0.204224703525],
]


def peer_parameters(potential):
    params = potential.init(jax.random.key(0))
    rng = np.random.default_rng(5)
    drawn = jax.tree.map(lambda leaf: rng.normal(scale=0.4, size=leaf.shape), params)
    return {**drawn, "frequencies": params["frequencies"]}


def with_biases(potential, seed=0):
    """Initial parameters with random biases, so that no term of the network is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape), potential.init(jax.random.key(1))
    )


@pytest.mark.slow
def test_contract():
    sizes = {
        "n_blocks": 1,
        "n_spherical": 3,
        "n_radial": 2,
        "n_residual_after": 1,
    }  # to compile fast
    potential = dimenet(SMALL.model_copy(update=sizes))
    check_potential(potential, with_biases(potential), random_system(0))


@pytest.mark.parametrize("most_neighbors", [None, 16])
def test_chemtrain_has_the_same_energies_and_forces(most_neighbors):
    """Summed over moments, and over pairs."""
    potential = dimenet(PEER.model_copy(update={"most_neighbors": most_neighbors}))
    params = peer_parameters(potential)
    system = make_system(PLACES, KINDS, cell=BOX)
    graph = host_graph(system, 3.5)

    @jax.jit
    def energies_and_gradient(positions):
        def energies(positions):
            return potential.energy(params, system._replace(positions=positions), graph)

        values, pullback = jax.vjp(energies, positions)
        return values, pullback(jnp.ones_like(values))[0]

    energies, gradient = energies_and_gradient(system.positions)
    np.testing.assert_allclose(energies, CHEMTRAIN_ENERGIES, atol=1e-11)
    np.testing.assert_allclose(-gradient, CHEMTRAIN_FORCES, atol=1e-11)


def silu(x):
    return x / (1.0 + np.exp(-x))


def dense(params, x):
    return silu(x @ params["weight"] + params["bias"])


def residual(params, x):
    return x + dense(params["out"], dense(params["hidden"], x))


def triplet_by_triplet(config, params, system, graph):
    """The equations of the paper in loops, with angles from their cosines."""
    params = jax.tree.map(np.asarray, params)
    c, p = config.cutoff, config.envelope_power
    kinds = [config.species.index(int(label)) for label in system.species]
    ends = [np.asarray(a) for a in (graph.receivers, graph.senders, graph.shifts)]
    roots = spherical_bessel_roots(config.n_spherical, config.n_radial)
    edges, e, m = [], [], []
    for i, j, shift in zip(*ends, strict=True):
        vector = np.asarray(system.positions[j] + shift @ system.cell - system.positions[i])
        d = np.linalg.norm(vector)
        x = d / c
        u = 1.0 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1)
        u -= p * (p + 1) / 2 * x ** (p + 2)
        u = u if x < 1.0 else 0.0
        basis = np.sqrt(2.0 / c) * np.sin(params["frequencies"] * x) / d * u
        table = params["embedding"]["species"]
        known = np.concatenate([table[kinds[i]], table[kinds[j]], basis])
        edges.append((i, j, shift, vector / d, x, u))
        e.append(basis)
        m.append(dense(params["embedding"], known))

    def output(params):
        total = np.zeros((system.n_atoms, config.n_features))
        for edge, basis, message in zip(edges, e, m, strict=True):
            total[edge[0]] += (basis @ params["radial"]) * message
        t = total @ params["up"]
        for layer in params["layers"]:
            t = dense(layer, t)
        return (t @ params["energy"])[:, 0]

    energies = output(params["outputs"][0])
    for block, head in zip(params["blocks"], params["outputs"][1:], strict=True):
        sent = []
        for basis, message in zip(e, m, strict=True):
            filtered = dense(block["source"], message) * (
                basis @ block["radial"]["in"] @ block["radial"]["out"]
            )
            sent.append(silu(filtered @ block["down"]))
        new = []
        for (i, j, shift, unit, _, _), message in zip(edges, m, strict=True):
            heard = np.zeros(config.triplet_features)
            for (j2, k, back, to_k, x, u), arriving in zip(edges, sent, strict=True):
                if j2 != j or (k == i and (back == -shift).all()):
                    continue
                cosine = to_k @ -unit
                a = [
                    np.sqrt(2.0 / spherical_jn(l + 1, root) ** 2)
                    * spherical_jn(l, root * min(x, 1.0))
                    * np.sqrt((2 * l + 1) / (4 * np.pi))
                    * eval_legendre(l, cosine)
                    * u
                    for l in range(config.n_spherical)
                    for root in roots[l]
                ]
                spherical = block["spherical"]
                heard += arriving * (np.array(a) @ spherical["in"] @ spherical["out"])
            hidden = dense(block["target"], message) + silu(heard @ block["up"])
            for layer in block["before"]:
                hidden = residual(layer, hidden)
            hidden = message + dense(block["skip"], hidden)
            for layer in block["after"]:
                hidden = residual(layer, hidden)
            new.append(hidden)
        m = new
        energies = energies + output(head)
    return energies


@pytest.mark.parametrize("n_atoms", [3, 8])
def test_energies_are_those_of_the_equations_triplet_by_triplet(n_atoms):
    """With three atoms, cells are smaller than a cutoff: atoms are their own neighbors."""
    potential = dimenet(SMALL)
    params = with_biases(potential)
    system = random_system(3, n_atoms=n_atoms)
    graph = host_graph(system, 3.7)
    expected = triplet_by_triplet(SMALL, params, system, graph)
    assert np.ptp(expected) > 0.01
    found = jax.jit(potential.energy)(params, system, graph)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


TINY = SMALL.model_copy(  # to compile fast
    update={"n_blocks": 1, "n_spherical": 3, "n_radial": 2, "n_residual_after": 0}
)


@pytest.mark.parametrize("ghosts", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pairs_and_moments_give_the_same_energies_forces_and_parameter_gradients(ghosts):
    """To rounding; with ghosts, edges have no opposite, and the graph does not say which have."""
    system = random_system(3, n_atoms=8)
    graph = host_graph(system, 3.5, reverse=True)
    most = int(np.bincount(np.asarray(graph.receivers)).max())
    if ghosts:
        kept = np.asarray(graph.receivers) != 3
        names = ("senders", "receivers", "shifts", "mask")
        cut = {name: getattr(graph, name)[kept] for name in names}
        graph = dataclasses.replace(graph, reverse=None, **cut)
    params = with_biases(dimenet(TINY))

    def results(params, graph, energy):
        def loss(params):
            found = evaluate(energy, params, system, graph)
            return jnp.sum(found.forces**2) + found.energy, found

        (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return found.energy, found.forces, found.stress, gradient

    both = []
    for given in (None, most):
        potential = dimenet(TINY.model_copy(update={"most_neighbors": given}))
        function = jax.jit(functools.partial(results, energy=potential.energy))
        both.append(jax.tree.leaves(function(params, graph)))
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * np.abs(other).max())


def test_energies_may_start_from_nothing():
    """And are learned from there: their derivative in the last weights is not zero."""
    system = random_system(3, n_atoms=8)
    graph = host_graph(system, TINY.cutoff)
    potential = dimenet(TINY.model_copy(update={"zero_energy": True}))
    params = potential.init(jax.random.key(0))
    slope = jax.grad(functools.partial(total_energy, potential.energy))(params, system, graph)
    assert not np.any(potential.energy(params, system, graph))
    assert all(np.any(output["energy"]) for output in slope["outputs"])


@pytest.fixture(params=[True, False], ids=["on a CPU", "as on a GPU"])
def device(request, monkeypatch):
    """Forms of the sums for both kinds of devices, computed on this one."""
    for where in (module, triplets):
        monkeypatch.setattr(where, "on_cpu", lambda: request.param)


@pytest.mark.parametrize(
    ("most", "mean"), [(10, None), (12, None), (12, 8.5), (None, 9.0), (10, 9.5)]
)
@pytest.mark.usefixtures("device")
def test_edges_beyond_the_cutoff_are_left_out_of_long_rows(most, mean):
    """A list of 5 Å in rows, by pairs and by moments, in rows and not, beside the exact graph."""
    system = random_system(3, n_atoms=8)
    graph, rows = (host_graph(system, c, reverse=True) for c in (TINY.cutoff, 5.0))
    rows = in_rows(rows, 8)
    plain = dimenet(TINY)
    params = with_biases(plain)
    promises = {"most_neighbors": most, "most_edges_per_atom": mean}
    potential = dimenet(TINY.model_copy(update=promises))
    assert (most or mean) < rows.row_length
    wanted, found = (
        jax.jit(functools.partial(evaluate, energy, stress=True))(params, system, edges)
        for energy, edges in ((plain.energy, graph), (potential.energy, rows))
    )
    for name in ("energy", "forces", "stress"):
        one, other = getattr(found, name), getattr(wanted, name)
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("promise", ["most_neighbors", "most_edges_per_atom", "both"])
def test_broken_promises_are_not_silent(promise):
    """One neighbor less than there are, or a little less on average."""
    system = random_system(3, n_atoms=8)
    graph = host_graph(system, 3.5, reverse=True)
    count = np.bincount(np.asarray(graph.receivers))
    promises = {"most_neighbors": int(count.max()) - 1, "most_edges_per_atom": count.mean() - 0.2}
    if promise == "both":
        promises["most_edges_per_atom"] = count.mean() + 0.2
        graph = in_rows(host_graph(system, 5.0, reverse=True), 8)
    else:
        promises = {promise: promises[promise]}
        graph = graph if promise == "most_neighbors" else in_rows(graph, 8)
    potential = dimenet(TINY.model_copy(update=promises))
    energies = jax.jit(potential.energy)(with_biases(potential), system, graph)
    assert np.isnan(energies).all()


def test_short_rows_of_simulations_sum_over_pairs_in_forward_mode_too():
    """Derivatives along a direction, pushed forward and pulled back, beside those of moments."""
    system = random_system(3, n_atoms=8)
    graph = host_graph(system, 2.2, reverse=True)
    rows = in_rows(graph, 8)
    graph = dataclasses.replace(graph, reverse=None)
    assert rows.row_length <= module._FEW_NEIGHBORS
    potential = dimenet(TINY)
    params = with_biases(potential)
    tangent = jax.random.normal(jax.random.key(2), (8, 3))

    def energies(positions, graph):
        return potential.energy(params, system._replace(positions=positions), graph)

    @jax.jit
    def derivatives(graph):
        of = functools.partial(energies, graph=graph)
        value, pushed = jax.jvp(of, (system.positions,), (tangent,))
        pulled = jax.grad(lambda positions: jnp.sum(of(positions)))(system.positions)
        return value, jnp.sum(pushed), jnp.sum(pulled * tangent)

    found, expected = derivatives(dataclasses.replace(rows, reverse=None)), derivatives(graph)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    for derivative in (*found[1:], expected[1]):
        np.testing.assert_allclose(derivative, expected[2], rtol=1e-11)


def test_graphs_of_one_bucket_need_one_program():
    """Of whatever number of edges, by moments and by pairs."""
    params = with_biases(dimenet(TINY))
    for most in (None, 12):
        potential = dimenet(TINY.model_copy(update={"most_neighbors": most}))
        energy = jax.jit(functools.partial(total_energy, potential.energy))
        numbers = set()
        for seed in range(4):
            system = random_system(seed, n_atoms=8)
            graph = host_graph(system, 2.6, reverse=True)
            numbers.add(graph.n_edges)
            value = energy(params, system, pad_graph(graph, 96, n_atoms=8))
            assert np.isfinite(value)
        assert len(numbers) > 1
        assert energy._cache_size() == 1


@pytest.mark.parametrize("n_blocks", [0, 1])
def test_energies_reach_one_cutoff_farther_than_there_are_blocks(n_blocks):
    """A chain with neighbors 0.9 cutoffs apart: force on atom k from the energy of atom 0.

    The chain is straight, so this is also a test of forces where angles are 180 degrees.
    """
    potential = dimenet(SMALL.model_copy(update={"n_blocks": n_blocks}))
    params = with_biases(potential)
    system = make_system(np.arange(5)[:, None] * [[0.9 * 3.5, 0.0, 0.0]], 8)
    graph = host_graph(system, 3.5)

    @jax.jit
    @jax.grad
    def gradient(positions):
        return potential.energy(params, system._replace(positions=positions), graph)[0]

    felt = np.abs(gradient(system.positions)).max(axis=1)
    assert (felt[: n_blocks + 2] > 0.0).all()
    assert (felt[n_blocks + 2 :] == 0.0).all()


def test_every_parameter_matters():
    """No weight is without effect on energies, so none is stored in vain."""
    potential = dimenet(SMALL)
    params = with_biases(potential)
    system = random_system(0)
    graph = host_graph(system, 3.5)
    gradient = jax.jit(jax.grad(lambda p: total_energy(potential.energy, p, system, graph)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert (np.abs(leaf) > 0.0).all(), jax.tree_util.keystr(path)


def test_folded_triplets_have_finite_forces_and_parameter_gradients():
    """Two images of one neighbor, and two atoms behind each other: angles of 0 and 180 degrees."""
    potential = dimenet(SMALL.model_copy(update={"n_blocks": 1}))
    params = with_biases(potential)
    places = [[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [2.4, 0.0, 0.0]]
    system = make_system(np.array(places), np.array([8, 1, 1]), cell=[3.6, 9.0, 9.0])
    graph = host_graph(system, 3.5)

    def loss(params):
        return jnp.sum(evaluate(potential.energy, params, system, graph).forces ** 2)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_weights_start_with_the_variance_of_glorot_and_orthogonal():
    params = dimenet(DimeNetConfig(species=(1,), cutoff=5.0, n_features=32)).init(jax.random.key(0))
    weight = params["blocks"][0]["skip"]["weight"]
    np.testing.assert_allclose(weight.T @ weight, np.eye(32), atol=1e-12)
    weight = params["outputs"][0]["up"]
    assert weight.shape == (32, 64)
    np.testing.assert_allclose(np.mean(weight**2), 2.0 / 96.0)


def test_configuration_round_trip():
    potential = dimenet(SMALL)
    again = build_potential("dimenet", json.loads(json.dumps(potential.config)))
    assert again.config == potential.config
    assert (again.cutoff, again.species) == (3.5, (8, 1))
    system = random_system(0)
    args = (potential.init(jax.random.key(0)), system, host_graph(system, 3.5))
    np.testing.assert_array_equal(jax.jit(again.energy)(*args), jax.jit(potential.energy)(*args))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"species": [1, 1]}, "distinct positive labels"),
        ({"cutoff": 0.0}, "cutoff: got 0.0"),
        ({"n_spherical": 0}, "n_spherical: got 0"),
        ({"envelope_power": 0}, "envelope_power: got 0"),
        ({"n_feature": 8}, "did you mean `n_features`"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_potential("dimenet", {"species": [1], "cutoff": 5.0, **change})

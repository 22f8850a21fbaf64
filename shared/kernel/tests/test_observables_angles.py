"""Angle distributions and tetrahedral order against direct counts and known structures."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.graphs import Graph, host_graph, pad_graph
from mosaicmd.kernel.neighbors import neighbor_list
from mosaicmd.kernel.observables import adf, tetrahedral_order
from mosaicmd.kernel.systems import from_ase, make_system, pad_system

TRICLINIC = np.array([[10.0, 0.0, 0.0], [2.5, 9.5, 0.0], [-2.0, 3.0, 9.0]])


def random_system(n_atoms=60, seed=0):
    rng = np.random.default_rng(seed)
    positions = rng.uniform(size=(n_atoms, 3)) @ TRICLINIC
    return make_system(positions, rng.integers(1, 4, n_atoms), cell=TRICLINIC, masses=1.0)


def value(observable, system, radius=None):
    graph = host_graph(system, observable.cutoff if radius is None else radius)
    return np.asarray(jax.jit(observable.per_frame)(None, system, graph, None))


def in_rows(graph, n_atoms, row_length):
    """The same edges, scattered over rows with gaps."""
    receivers = np.asarray(graph.receivers)
    rng = np.random.default_rng(3)
    slot = np.empty(graph.n_edges, int)
    for i in range(n_atoms):
        mine = np.flatnonzero(receivers == i)
        slot[mine] = i * row_length + rng.permutation(row_length)[: len(mine)]
    own = np.repeat(np.arange(n_atoms), row_length)
    senders, shifts, mask = own.copy(), np.zeros((len(own), 3), int), np.zeros(len(own), bool)
    senders[slot], shifts[slot], mask[slot] = graph.senders, graph.shifts, True
    return Graph(
        senders=jnp.asarray(senders, jnp.int32),
        receivers=jnp.asarray(own, jnp.int32),
        shifts=jnp.asarray(shifts, jnp.int32),
        mask=jnp.asarray(mask),
        overflow=jnp.zeros((), bool),
        row_length=row_length,
    )


def angles_directly(system, species, r_max):
    atoms, found = np.asarray(system.species), []
    positions, cell = np.asarray(system.positions), np.asarray(system.cell)
    images = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    for i in range(len(atoms)):
        vectors = (positions[:, None] - positions[i] + images @ cell).reshape(-1, 3)
        labels = np.repeat(atoms, len(images))
        distance = np.linalg.norm(vectors, axis=1)
        near = np.flatnonzero((distance < r_max) & (distance > 1e-9))
        for m, j in enumerate(near):
            for k in near[m + 1 :]:
                ends = sorted((labels[j], labels[k]))
                if species and (atoms[i] != species[1] or ends != sorted(species[::2])):
                    continue
                cosine = vectors[j] @ vectors[k] / distance[j] / distance[k]
                found.append(np.arccos(np.clip(cosine, -1.0, 1.0)))
    return np.array(found)


@pytest.mark.parametrize("species", [None, (1, 2, 1), (1, 2, 3), (3, 2, 1)])
def test_adf_equals_a_direct_count(species):
    system = random_system()
    expected = np.histogram(angles_directly(system, species, 3.3), 24, (0.0, np.pi))[0]
    expected = expected / expected.sum() / (np.pi / 24)
    observable = adf(species, r_max=3.3, n_bins=24, max_neighbors=30)
    np.testing.assert_allclose(value(observable, system), expected, rtol=1e-12)
    np.testing.assert_allclose(value(observable, system, radius=4.5), expected, rtol=1e-12)


@pytest.mark.parametrize("row_length", [28, 60])
def test_layout_of_the_graph_does_not_matter(row_length):
    """Rows shorter than ``max_neighbors`` are used as they are, longer ones are packed."""
    system = random_system()
    graph = host_graph(system, 3.3)
    rows = in_rows(graph, system.n_atoms, row_length)
    padded = pad_graph(graph, graph.n_edges + 50, n_atoms=system.n_atoms)
    for observable in (
        adf(r_max=3.3, n_bins=24, max_neighbors=30),
        tetrahedral_order(r_max=3.3),
    ):
        frame = jax.jit(observable.per_frame)
        expected = frame(None, system, graph, None)
        for other in (rows, padded):
            found = frame(None, system, other, None)
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_diamond_has_one_angle_and_perfect_order():
    system = from_ase(ase.build.bulk("C", "diamond", a=3.567, cubic=True).repeat(2))
    found = value(adf(r_max=2.0, n_bins=180), system)
    (occupied,) = np.flatnonzero(found)
    assert occupied == int(np.degrees(np.arccos(-1.0 / 3.0)))
    np.testing.assert_allclose(found[occupied], 180.0 / np.pi)
    np.testing.assert_allclose(value(tetrahedral_order(r_max=3.0), system), 1.0, rtol=1e-13)


def test_simple_cubic_lattice_has_right_and_straight_angles():
    """Of 15 angles 12 are right and 3 straight; the straight ones reach the last bin."""
    system = from_ase(ase.build.bulk("Po", "sc", a=3.0, cubic=True).repeat(3))
    found = value(adf(r_max=3.5, n_bins=9), system) * np.pi / 9
    np.testing.assert_allclose(found[4] + found[5], 0.8, rtol=1e-12)
    np.testing.assert_allclose(found[8], 0.2, rtol=1e-12)


def test_ideal_gas_has_sine_distribution_and_no_order():
    """z-scores over 64 frames; ``<q> = 1 - 3/8 * 6 * (1/3 + 1/9) = 0``."""
    angle = adf(r_max=3.0, n_bins=12)
    order = tetrahedral_order(r_max=6.0, max_neighbors=60)
    expected = 0.5 * -np.diff(np.cos(np.linspace(0.0, np.pi, 13))) / (np.pi / 12)
    positions = jax.random.uniform(jax.random.key(0), (64, 200, 3), maxval=20.0)
    system = make_system(positions[0], 1, cell=20.0, masses=1.0)
    batch = system._replace(positions=positions, cell=jnp.tile(system.cell, (64, 1, 1)))
    plan = neighbor_list(batch, 6.0, skin=0.0)

    @jax.jit
    def frame(positions):
        moved = system._replace(positions=positions)
        graph = plan.build(moved).graph
        return [o.per_frame(None, moved, graph, None) for o in (angle, order)]

    angles, orders = (np.asarray(values) for values in jax.lax.map(frame, positions))
    z = (angles.mean(axis=0) - expected) / (angles.std(axis=0, ddof=1) / 8.0)
    assert np.abs(z).max() < 4.0
    assert abs(orders.mean() / (orders.std(ddof=1) / 8.0)) < 4.0


def test_order_of_a_square():
    """Four neighbors in a plane: two angles with ``(2 / 3)²`` and four with ``1 / 9``."""
    positions = np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0.0]])
    system = make_system(positions, [6, 1, 1, 1, 1])
    with_center_only = tetrahedral_order(r_max=1.2)
    np.testing.assert_allclose(
        value(with_center_only, system), 1 - 0.375 * (2 * 4 / 9 + 4 / 9), atol=1e-14
    )


def test_smooth_adf_is_normalised_and_has_the_gradient_of_finite_differences():
    system = random_system(30)
    observable = adf(r_max=3.6, n_bins=18, smoothing=0.1)
    graph = host_graph(system, 3.6)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=18))
    np.testing.assert_allclose(value(observable, system).sum() * np.pi / 18, 1.0, rtol=1e-12)

    def loss(positions):
        moved = system._replace(positions=positions)
        return weights @ observable.per_frame(None, moved, graph, None)

    loss = jax.jit(loss)
    gradient = jax.jit(jax.grad(loss))(system.positions)
    step = jnp.asarray(np.random.default_rng(2).normal(size=(30, 3)))
    numeric = (loss(system.positions + 1e-6 * step) - loss(system.positions - 1e-6 * step)) / 2e-6
    np.testing.assert_allclose(jnp.sum(gradient * step), numeric, rtol=1e-6)


def test_padding_and_single_precision_change_nothing():
    system = random_system(30)
    padded = pad_system(system, 41)
    for observable in (adf((1, 2, 3), r_max=4.0, n_bins=6), tetrahedral_order(r_max=5.0)):
        np.testing.assert_allclose(value(observable, padded), value(observable, system))
        single = value(observable, system.astype(jnp.float32))
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, value(observable, system), rtol=1e-4, atol=1e-5)


def test_too_many_neighbors_and_too_few_are_nan():
    system = random_system()
    assert np.isnan(value(adf(r_max=4.0, n_bins=6, max_neighbors=3), system)).all()
    assert np.isnan(value(tetrahedral_order(r_max=0.5), system))
    alone = make_system(np.zeros((1, 3)), 1, cell=9.0, masses=1.0)
    np.testing.assert_array_equal(value(adf(r_max=4.0, n_bins=6), alone), 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adf(r_max=-1.0, n_bins=5), "`r_max` must be positive"),
        (lambda: adf(r_max=3.0, n_bins=0), "`n_bins` must be at least 1"),
        (lambda: adf(r_max=3.0, n_bins=5, smoothing=-1.0), "`smoothing` must be positive"),
        (lambda: adf((8, 8), r_max=3.0, n_bins=5), "three labels"),  # type: ignore[arg-type]
        (lambda: tetrahedral_order(r_max=0.0), "`r_max` must be positive"),
        (lambda: tetrahedral_order(r_max=3.0, max_neighbors=3), "must be at least 4"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Radial distribution functions against a direct count, ASE and the ideal gas."""

import itertools

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.neighbors import NeighborList
from mosaicmd.kernel.observables import coordination_number, rdf, shell_volumes
from mosaicmd.kernel.systems import from_ase, make_system, pad_system

CUBE = np.diag([9.0, 9.0, 9.0])
TRICLINIC = np.array([[10.0, 0.0, 0.0], [2.5, 9.5, 0.0], [-2.0, 3.0, 9.0]])


def random_system(n_atoms, cell, seed=0, n_species=2):
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-1.0, 2.0, (n_atoms, 3)) @ cell  # not wrapped
    species = rng.integers(1, n_species + 1, n_atoms)
    return make_system(positions, species, cell=cell, masses=1.0)


def value(observable, system):
    graph = None if observable.cutoff is None else host_graph(system, observable.cutoff)
    return np.asarray(jax.jit(observable.per_frame)(None, system, graph, None))


def counted_directly(system, a, b, r_max, n_bins, *, itself):
    """Ordered pair counts over all images within reach, by brute force."""
    positions, cell = np.asarray(system.positions), np.asarray(system.cell)
    species = np.asarray(system.species)
    images = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), -1).reshape(-1, 3)
    counts = np.zeros(n_bins)
    for i in np.flatnonzero((species == a) | (a is None)):
        for j in np.flatnonzero((species == b) | (b is None)):
            distance = np.linalg.norm(positions[j] - positions[i] + images @ cell, axis=1)
            if i == j:
                distance = distance[distance > 1e-9] if itself else distance[:0]
            counts += np.histogram(distance, n_bins, (0.0, r_max))[0]
    return counts


def normalised(counts, n_pairs, system, r_max):
    edges = np.linspace(0.0, r_max, len(counts) + 1)
    shells = 4.0 / 3.0 * np.pi * (edges[1:] ** 3 - edges[:-1] ** 3)
    return counts * abs(np.linalg.det(np.asarray(system.cell))) / (n_pairs * shells)


@pytest.mark.parametrize("cell", [CUBE, TRICLINIC], ids=["cube", "triclinic"])
@pytest.mark.parametrize(("a", "b"), [(None, None), (1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("r_max", [3.6, 11.0])
def test_rdf_equals_a_direct_count(cell, a, b, r_max):
    system = random_system(25, cell)
    n = {None: 25, 1: int((system.species == 1).sum()), 2: int((system.species == 2).sum())}
    n_pairs = n[a] * (n[a] - 1) if a == b else n[a] * n[b]
    expected = normalised(
        counted_directly(system, a, b, r_max, 40, itself=False), n_pairs, system, r_max
    )
    np.testing.assert_allclose(
        value(rdf(a, b, r_max=r_max, n_bins=40), system), expected, rtol=1e-12
    )
    if r_max < 4.0:
        every = rdf(a, b, r_max=r_max, n_bins=40, pairs="all")
        np.testing.assert_allclose(value(every, system), expected, rtol=1e-12)


def test_images_of_atoms_themselves_belong_to_a_crystal():
    """Two atoms of diamond with ``finite_size=False`` give the g of 512 atoms."""
    large = from_ase(ase.build.bulk("C", "diamond", a=3.567, cubic=True).repeat(4))
    small = from_ase(ase.build.bulk("C", "diamond", a=3.567))
    g = {"r_max": 5.0, "n_bins": 47, "finite_size": False}
    np.testing.assert_allclose(value(rdf(**g), small), value(rdf(**g), large), rtol=1e-12)


@pytest.mark.parametrize("n_atoms", [24, 25])
def test_every_pair_counts_once(n_atoms):
    """Even and odd numbers of atoms close the ring of pairs differently."""
    system = random_system(n_atoms, CUBE, n_species=1)
    settings = {"r_max": 4.0, "n_bins": 10}
    np.testing.assert_allclose(
        value(rdf(**settings, pairs="all"), system), value(rdf(**settings), system), rtol=1e-12
    )


@pytest.mark.parametrize("pairs", ["neighbors", "all"])
def test_rdf_agrees_with_ase(pairs):
    from ase.geometry.rdf import get_rdf

    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(3)
    atoms.rattle(0.2, seed=1)
    theirs, _ = get_rdf(atoms, 8.0, 50, elements=(11, 17))
    ours = value(rdf(11, 17, r_max=8.0, n_bins=50, pairs=pairs), from_ase(atoms))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize(
    ("pairs", "smoothing"), [("neighbors", None), ("neighbors", 0.15), ("all", None)]
)
def test_ideal_gas_is_one_in_every_bin(pairs, smoothing):
    """z-scores of all bins over 1000 independent frames of 12 atoms, where 1 / N is 8 %."""
    observable = rdf(r_max=4.0, n_bins=12, pairs=pairs, smoothing=smoothing)
    system = make_system(np.zeros((12, 3)), 1, cell=CUBE, masses=1.0)
    plan = NeighborList(
        cutoff=4.75, skin=0.0, row_length=26, pbc=(True,) * 3, images=(1, 1, 1)
    )  # every pair, each with two images

    @jax.jit
    def frame(positions):
        moved = system._replace(positions=positions)
        return observable.per_frame(None, moved, plan.build(moved).graph, None)

    positions = jax.random.uniform(jax.random.key(7), (1000, 12, 3), maxval=9.0)
    values = np.asarray(jax.lax.map(frame, positions))
    z = (values.mean(axis=0) - 1.0) / (values.std(axis=0, ddof=1) / np.sqrt(1000))
    assert np.abs(z[1:]).max() < 4.0  # the first bin holds too few pairs for a z-score


def test_blurred_shells_are_the_blurred_count_of_uniform_points():
    """Against quadrature over r of the unblurred density 4 pi r²."""
    edges, s = np.linspace(0.0, 3.0, 11), 0.3
    r = np.linspace(0.0, 6.0, 20001)
    from scipy.special import ndtr

    density = 4.0 * np.pi * r**2
    expected = [
        np.trapezoid(density * (ndtr((high - r) / s) - ndtr((low - r) / s)), r)
        for low, high in itertools.pairwise(edges)
    ]
    np.testing.assert_allclose(shell_volumes(edges, s), expected, rtol=1e-6)


def test_smoothing_narrows_to_the_hard_histogram():
    """With centred distances, a blur far below the bin width changes nothing."""
    atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True).repeat(3)
    system = from_ase(atoms)
    hard = value(rdf(r_max=5.3, n_bins=30), system)
    soft = value(rdf(r_max=5.3, n_bins=30, smoothing=1e-3), system)
    np.testing.assert_allclose(soft, hard, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("pairs", ["neighbors", "all"])
def test_smooth_rdf_has_the_gradient_of_finite_differences(pairs):
    system = random_system(10, np.diag([12.0, 12.0, 12.0]), n_species=1)
    observable = rdf(r_max=5.0, n_bins=10, smoothing=0.15, pairs=pairs)
    graph = host_graph(system, 5.75)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=10))

    def loss(positions):
        moved = system._replace(positions=positions)
        return weights @ observable.per_frame(None, moved, graph, None)

    loss = jax.jit(loss)
    gradient = jax.jit(jax.grad(loss))(system.positions)
    step = jnp.asarray(np.random.default_rng(2).normal(size=(10, 3)))
    numeric = (loss(system.positions + 1e-5 * step) - loss(system.positions - 1e-5 * step)) / 2e-5
    np.testing.assert_allclose(jnp.sum(gradient * step), numeric, rtol=1e-6)


@pytest.mark.parametrize("pairs", ["neighbors", "all"])
def test_padding_changes_nothing(pairs):
    system = random_system(15, CUBE)
    padded = pad_system(system, 21)
    for a, b in [(None, None), (1, 2), (2, 2)]:
        observable = rdf(a, b, r_max=4.4, n_bins=9, pairs=pairs)
        np.testing.assert_allclose(value(observable, padded), value(observable, system))


def test_coordination_number_counts_neighbors():
    """fcc: 12 neighbors at a / sqrt 2, 6 more at a."""
    system = from_ase(ase.build.bulk("Cu", "fcc", a=3.6, cubic=True).repeat(3))
    observable = rdf(r_max=5.2, n_bins=52, pairs="all")
    g, n = jnp.asarray(value(observable, system)), system.n_atoms
    density = (n - 1) / np.linalg.det(system.cell)
    assert observable.axis is not None
    np.testing.assert_allclose(
        coordination_number(g, observable.axis, density, r_max=3.0), 12.0, rtol=1e-12
    )
    assert system.cell[0, 0] / 2 > 4.0
    np.testing.assert_allclose(
        coordination_number(g, observable.axis, density, r_max=4.0), 18.0, rtol=1e-12
    )


def test_single_precision_stays():
    system = random_system(15, CUBE).astype(jnp.float32)
    for pairs in ("neighbors", "all"):
        observable = rdf(r_max=4.0, n_bins=8, pairs=pairs)
        found = value(observable, system)
        assert found.dtype == np.float32
        np.testing.assert_allclose(
            found, value(observable, system.astype(jnp.float64)), rtol=1e-5, atol=1e-6
        )


def test_what_cannot_be_computed_is_nan():
    system = random_system(15, CUBE)
    assert np.isnan(value(rdf(r_max=4.6, n_bins=5, pairs="all"), system)).all()
    free = system._replace(pbc=jnp.zeros(3, bool))
    assert np.isnan(value(rdf(r_max=4.0, n_bins=5), free)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r_max": 0.0, "n_bins": 5}, "`r_max` must be positive"),
        ({"r_max": 4.0, "n_bins": 0}, "`n_bins` must be at least 1"),
        ({"r_max": 4.0, "n_bins": 5, "smoothing": 0.0}, "`smoothing` must be positive"),
        ({"r_max": 4.0, "n_bins": 5, "species_b": 3}, "`species_a` is not given"),
        ({"r_max": 4.0, "n_bins": 5, "pairs": "half"}, "`pairs` must be 'neighbors' or 'all'"),
        ({"r_max": 4.0, "n_bins": 5, "pairs": "all", "finite_size": False}, "counts images"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        rdf(**settings)


def test_a_missing_graph_is_named():
    with pytest.raises(ValueError, match="`rdf` needs a graph of radius 4"):
        rdf(r_max=4.0, n_bins=5).per_frame(None, random_system(5, CUBE), None, None)

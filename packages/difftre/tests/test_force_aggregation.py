"""Maps of forces against closed forms, and against the mean force of a harmonic molecule."""

import numpy as np
import pytest

from mosaicmd.difftre import aggregate_forces, basic_force_map, optimal_force_map


def test_the_basic_map_adds_what_is_constrained():
    """Methane-like 0-1, 0-2 and a free atom 4; 3 is a site alone."""
    found = basic_force_map([0, 3], 5, [(0, 1), (2, 1)])
    np.testing.assert_array_equal(found, [[1, 1, 1, 0, 0], [0, 0, 0, 1, 0]])


def test_without_free_groups_the_optimal_map_is_the_basic_one():
    forces = np.random.default_rng(0).normal(size=(50, 4, 3))
    pairs = [(0, 1), (2, 3)]
    found = optimal_force_map(forces, [0, 2], pairs)
    np.testing.assert_array_equal(found, basic_force_map([0, 2], 4, pairs))


def test_the_optimal_coefficient_is_that_of_least_squares():
    """f_0 = a - 2 b, f_1 = b with independent a, b: the map adds twice the free atom."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 100_000, 3))
    found = optimal_force_map(np.stack([a - 2.0 * b, b], axis=1), [0])
    np.testing.assert_allclose(found, [[1.0, 2.0]], atol=4.0 / np.sqrt(3e5))
    mapped = aggregate_forces(found, np.stack([a - 2.0 * b, b], axis=1))
    assert np.mean(mapped**2) == pytest.approx(1.0, rel=0.02)


def test_both_maps_have_the_mean_force_of_a_chain():
    """Springs 0-1, 1-2, sites 0 and 2: given those, atom 1 is Gaussian about their middle.

    The mean force on site 0 is that of springs in series, ``k / 2 (x_2 - x_0)``. The optimal
    map adds half of atom 1 to each, which removes all noise.
    """
    rng, k, kT = np.random.default_rng(2), 3.0, 0.5
    ends = rng.normal(size=(20_000, 2, 3))
    middle = ends.mean(axis=1) + np.sqrt(0.5 * kT / k) * rng.normal(size=(20_000, 3))
    left, right = k * (middle - ends[:, 0]), k * (ends[:, 1] - middle)
    forces = np.stack([left, right - left, -right], axis=1)
    mean = 0.5 * k * (ends[:, 1] - ends[:, 0])
    mean = np.stack([mean, -mean], axis=1)
    best = optimal_force_map(forces, [0, 2])
    np.testing.assert_allclose(best, [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]], atol=0.01)
    np.testing.assert_allclose(aggregate_forces(best, forces), mean, atol=0.2)
    basic = aggregate_forces(basic_force_map([0, 2], 3), forces)
    noise = basic - mean
    assert np.mean(noise**2) == pytest.approx(0.5 * kT * k, rel=0.05)
    for along in (ends[:, 0], ends[:, 1]):  # the noise knows nothing of the sites
        assert abs(np.mean(noise[:, 0] * along)) < 4.0 * np.std(noise) / np.sqrt(6e4)


def test_the_rest_of_a_system_as_one_more_atom_takes_out_the_net_force():
    """With equal coefficients; where all noise is in the net force, the map is exact."""
    rng = np.random.default_rng(3)
    inner = rng.normal(size=(5000, 1, 3)) * np.array([1.0, -1.0])[None, :, None]
    push = rng.normal(size=(5000, 1, 3))
    forces = inner + push
    rest = -forces.sum(axis=1, keepdims=True)
    found = optimal_force_map(np.concatenate([forces, rest], axis=1), [0, 1])
    np.testing.assert_allclose(found, [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]], atol=0.03)


@pytest.mark.parametrize(
    ("sites", "constraints", "message"),
    [
        ([0, 5], [], "`sites` must name atoms from 0 to 4"),
        ([0, 0], [], "distinct"),
        ([0, 1], [(0, 2), (2, 1)], r"hold the sites \[0, 1\] together"),
        ([0], [(0, 9)], "`constraints` must name atoms"),
    ],
)
def test_maps_that_cannot_be_are_refused(sites, constraints, message):
    with pytest.raises(ValueError, match=message):
        basic_force_map(sites, 5, constraints)
    with pytest.raises(ValueError, match=message):
        optimal_force_map(np.zeros((2, 5, 3)), sites, constraints)

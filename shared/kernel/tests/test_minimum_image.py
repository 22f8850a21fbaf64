"""Nearest images against ASE and against a search over all images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.geometry import find_mic

from mosaicmd.kernel.minimum_image import minimum_image


@pytest.mark.parametrize("skew", [0.0, 1.3, 7.9])
@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (True, False, False)])
def test_nearest_image_is_nearest_however_skewed_the_cell(pbc, skew):
    """As ASE finds it in periodic cells, and a search over all images in layers and rods."""
    cell = np.array([[4.0, 0.0, 0.0], [4.0 * skew, 5.0, 0.0], [-3.0 * skew, 2.0 * skew, 6.0]])
    vectors = np.random.default_rng(1).normal(size=(10, 3)) * 15.0
    found = jax.jit(minimum_image)(jnp.asarray(vectors), jnp.asarray(cell), jnp.asarray(pbc))
    if all(pbc):
        expected = find_mic(vectors, cell, pbc)[1]
    else:
        ranges = [np.arange(-150, 151) if one else np.zeros(1) for one in pbc]
        shifts = np.stack(np.meshgrid(*ranges), axis=-1).reshape(-1, 3) @ cell
        expected = [np.linalg.norm(vector + shifts, axis=1).min() for vector in vectors]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), expected, atol=1e-9)
    moved = (np.asarray(found) - vectors) @ np.linalg.inv(cell)
    np.testing.assert_allclose(moved, np.round(moved) * np.array(pbc), atol=1e-9)


def test_without_periodic_directions_nothing_is_computed():
    """With directions that are known while tracing, the program is empty."""
    vectors = np.random.default_rng(2).normal(size=(5, 3))
    none = np.zeros(3, bool)
    program = jax.make_jaxpr(lambda v: minimum_image(v, np.zeros((3, 3)), none))(vectors)
    assert not program.eqns
    traced = jax.jit(minimum_image)(jnp.asarray(vectors), jnp.zeros((3, 3)), jnp.asarray(none))
    np.testing.assert_array_equal(traced, vectors)
    np.testing.assert_array_equal(minimum_image(vectors, np.eye(3), none), vectors)

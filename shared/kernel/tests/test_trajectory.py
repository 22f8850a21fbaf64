"""Frames of one system, maps over them, and pieces put together."""

import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.systems import make_system, volume
from mosaicmd.kernel.trajectory import StatePoint, Trajectory, concatenate, map_frames


def trajectory(n_frames=5, first=0):
    system = make_system(np.zeros((3, 3)), [1, 8, 1], cell=10.0)
    index = first + jnp.arange(n_frames, dtype=float)
    systems = system._replace(
        positions=index[:, None, None] + jnp.zeros((n_frames, 3, 3)),
        cell=(10.0 + index)[:, None, None] * jnp.eye(3)[None],
    )
    return Trajectory(systems, {"energy": index}, StatePoint(0.025), time=2.0 * index)


def test_a_frame_is_a_system():
    frame = trajectory().frame(3)
    np.testing.assert_array_equal(frame.positions, np.full((3, 3), 3.0))
    np.testing.assert_array_equal(frame.species, [1, 8, 1])
    assert float(volume(frame)) == pytest.approx(13.0**3)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_maps_see_every_frame_with_its_extras(batch_size):
    frames = trajectory()
    found = map_frames(
        lambda system, extra: {"v": volume(system), "s": jnp.sum(system.positions) + extra},
        frames,
        10.0 * frames.quantities["energy"],
        batch_size=batch_size,
    )
    np.testing.assert_allclose(found["v"], (10.0 + np.arange(5)) ** 3)
    np.testing.assert_allclose(found["s"], 19.0 * np.arange(5))


def test_pieces_join_in_order():
    whole = concatenate([trajectory(2), trajectory(3, first=2)])
    expected = trajectory(5)
    assert whole.n_frames == 5
    np.testing.assert_array_equal(whole.systems.positions, expected.systems.positions)
    np.testing.assert_array_equal(whole.quantities["energy"], expected.quantities["energy"])
    np.testing.assert_array_equal(whole.time, expected.time)
    np.testing.assert_array_equal(whole.systems.species, [1, 8, 1])
    with pytest.raises(ValueError, match="at least one trajectory"):
        concatenate([])


def test_frames_of_equilibration_are_left_out():
    rest, expected = trajectory(5).skip(2), trajectory(3, first=2)
    assert rest.n_frames == 3
    np.testing.assert_array_equal(rest.systems.positions, expected.systems.positions)
    np.testing.assert_array_equal(rest.systems.cell, expected.systems.cell)
    np.testing.assert_array_equal(rest.quantities["energy"], expected.quantities["energy"])
    np.testing.assert_array_equal(rest.time, expected.time)
    assert rest.momenta is None


def test_inverse_temperature():
    assert StatePoint(0.025).beta == 40.0

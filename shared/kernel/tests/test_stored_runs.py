"""Run directories as trajectories: what the run returned, and files that follow it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.integrators import langevin
from mosaicmd.kernel.simulation import Simulation, split_replicas
from mosaicmd.kernel.stored_runs import export_run, read_run
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.trajectory_files import read_trajectory, write_trajectory

pytestmark = pytest.mark.filterwarnings(
    # ASE and mdtraj set the shape of arrays in place, which NumPy 2.5 deprecates.
    "ignore:Setting the shape:DeprecationWarning",
)


def simulation(**options):
    def energy(params, system, graph):
        return 0.5 * params * jnp.sum((system.positions - 5.0) ** 2, axis=1)

    return Simulation(
        energy,
        langevin(0.1, 0.1, 0.025),
        cutoff=3.0,
        every=2,
        chunk_frames=3,
        store_momenta=True,
        **options,
    )


def atoms():
    positions = 5.0 + np.array([[-1.0, 0, 0], [1.0, 0, 0], [0, 1.5, 0], [0, 0, 1.5]])
    return make_system(positions, 18, cell=10.0, dtype="float32")


def test_a_run_directory_becomes_a_trajectory_and_a_file(tmp_path):
    """What `run` returned, bit for bit; and a file that follows the run as it is extended."""
    run = simulation()
    start = run.start(jax.random.key(0), jnp.float32(0.05), atoms())
    _, frames = run.run(jnp.float32(0.05), start, 16, directory=tmp_path / "run")
    found = read_run(tmp_path / "run")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(frames), strict=True):
        np.testing.assert_array_equal(one, other)
    assert export_run(tmp_path / "run", tmp_path / "a.traj") == 8
    assert export_run(tmp_path / "run", tmp_path / "a.traj") == 0
    _, frames = run.run(jnp.float32(0.05), start, 30, directory=tmp_path / "run")
    assert export_run(tmp_path / "run", tmp_path / "a.traj") == 7
    found = read_trajectory(tmp_path / "a.traj", dtype="float32")
    np.testing.assert_array_equal(found.systems.positions, frames.systems.positions)
    np.testing.assert_array_equal(found.momenta, frames.momenta)
    np.testing.assert_array_equal(found.time, frames.time)
    np.testing.assert_array_equal(found.quantities["step"], 2 * np.arange(1, 16))
    for name, value in frames.quantities.items():
        np.testing.assert_array_equal(found.quantities[name], value)
    assert found.state_point.kT == pytest.approx(0.025)


def test_replicas_are_exported_one_by_one(tmp_path):
    run = simulation()
    start = run.start(jax.random.key(1), jnp.float32(0.05), atoms(), replicas=2)
    _, frames = run.run(jnp.float32(0.05), start, 6, directory=tmp_path / "run")
    expected = split_replicas(frames)[1]
    found = read_run(tmp_path / "run", replica=1)
    np.testing.assert_array_equal(found.systems.positions, expected.systems.positions)
    np.testing.assert_array_equal(found.quantities["energy"], expected.quantities["energy"])
    export_run(tmp_path / "run", tmp_path / "a.dcd", replica=1)
    again = read_trajectory(tmp_path / "a.dcd", atoms(), dtype="float32")
    np.testing.assert_array_equal(again.systems.positions, expected.systems.positions)
    for replica in (None, 2):
        with pytest.raises(ValueError, match=f"a run of 2 replicas, but `replica` is {replica}"):
            read_run(tmp_path / "run", replica=replica)
    with pytest.raises(ValueError, match="take replicas apart by `split_replicas`"):
        write_trajectory(tmp_path / "b.dcd", frames)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no run"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        read_run(tmp_path)

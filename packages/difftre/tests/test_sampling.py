"""Samplers by molecular dynamics: one that is killed goes on where it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from difftre_ensembles import KT, harmonic_energy

from mosaicmd.difftre import dynamics_sampler
from mosaicmd.kernel.integrators import langevin
from mosaicmd.kernel.simulation import Simulation
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.trajectory import StatePoint

PARAMS = {"k": jnp.asarray(1.0)}


class KilledError(Exception):
    """In place of a signal."""


@pytest.fixture
def make(monkeypatch):
    """`directory -> sampler`, and how many chunks may be run, and were."""
    chunks = {"left": 10**6, "done": 0}
    advance = Simulation._advanced

    def counted(self, *arguments):
        if chunks["left"] == 0:
            raise KilledError
        chunks["left"] -= 1
        chunks["done"] += 1
        return advance(self, *arguments)

    monkeypatch.setattr(Simulation, "_advanced", counted)
    grid = 0.4 * np.stack(np.meshgrid(*[range(2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    system = make_system(grid, 1, masses=1.0)
    simulation = Simulation(
        harmonic_energy,
        langevin(0.5, 0.1, KT),
        cutoff=1.0,
        every=5,
        chunk_frames=2,
        min_distance=0.0,
    )

    def sampler(directory=None, replicas=None):
        return dynamics_sampler(
            simulation,
            system,
            StatePoint(KT),
            n_equilibration=20,
            n_production=40,
            key=jax.random.key(1),
            replicas=replicas,
            directory=directory,
        )

    return sampler, chunks


def positions(trajectory):
    return np.asarray(trajectory.systems.positions)


def test_a_killed_simulation_goes_on_where_it_was(make, tmp_path):
    """Six chunks of ten steps; killed after the fourth, two of them are left."""
    sampler, chunks = make
    undisturbed = sampler()
    state, first = undisturbed.sample(PARAMS, undisturbed.init())
    _, second = undisturbed.sample(PARAMS, state)
    assert chunks["done"] == 12

    killed = sampler(tmp_path)
    chunks |= {"left": 4, "done": 0}
    with pytest.raises(KilledError):
        killed.sample(PARAMS, killed.init())
    chunks |= {"left": 10**6, "done": 0}
    state, again = sampler(tmp_path).sample(PARAMS, killed.init())
    assert chunks["done"] == 2
    np.testing.assert_array_equal(positions(again), positions(first))
    _, again = sampler(tmp_path).sample(PARAMS, state)
    np.testing.assert_array_equal(positions(again), positions(second))


def test_only_the_last_simulation_is_kept(make, tmp_path):
    sampler, _ = make
    one = sampler(tmp_path)
    _, first = one.sample(PARAMS, one.init())
    (folder,) = tmp_path.iterdir()
    _, other = one.sample({"k": jnp.asarray(1.1)}, one.init())
    assert folder not in tmp_path.iterdir()
    assert len([*tmp_path.iterdir()]) == 1
    assert not np.array_equal(positions(first), positions(other))


def test_replicas_add_their_frames_one_after_another(make, tmp_path):
    """Three of eight frames; each goes on from its own end, and a kill changes nothing."""
    sampler, chunks = make
    one = sampler(replicas=3)
    assert one.n_frames == 24
    state, first = one.sample(PARAMS, one.init())
    assert state.positions.shape == (3, 8, 3)
    _, second = one.sample(PARAMS, state)
    found = positions(first).reshape(3, 8, 8, 3)
    np.testing.assert_array_equal(found[:, -1], state.positions)
    assert not np.allclose(found[0], found[1])
    ends = state._replace(positions=state.positions[::-1], momenta=state.momenta[::-1])
    _, swapped = one.sample(PARAMS, ends)
    assert not np.array_equal(positions(second), positions(swapped))
    _, same = sampler(replicas=3).sample(PARAMS, state)
    np.testing.assert_array_equal(positions(second), positions(same))
    assert first.time is None
    assert first.state_point == StatePoint(KT)

    killed = sampler(tmp_path, replicas=3)
    chunks["left"] = 4
    with pytest.raises(KilledError):
        killed.sample(PARAMS, killed.init())
    chunks["left"] = 10**6
    _, again = killed.sample(PARAMS, killed.init())
    np.testing.assert_array_equal(positions(again), positions(first))


def test_replicas_sample_the_canonical_ensemble(make):
    """<x²> = kT / k within 4 standard errors, 18 times the damping time after the start."""
    sampler, _ = make
    one = sampler(replicas=400)
    state = one.init()
    for _ in range(6):
        state, trajectory = one.sample(PARAMS, state)
    by_replica = positions(trajectory).reshape(400, 8, 8, 3)[:, -1].reshape(400, -1)
    squares = np.mean(by_replica**2, axis=1)
    error = squares.std(ddof=1) / np.sqrt(len(squares))
    assert abs(squares.mean() - KT) < 4.0 * error

"""Time to the first unphysical event: of atoms that fly freely, collapse, or are a real crystal."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.gnn_models import stillinger_weber
from mosaicmd.kernel import units
from mosaicmd.kernel.graphs import edge_components
from mosaicmd.kernel.integrators import langevin, nve
from mosaicmd.kernel.systems import from_ase, stack_systems
from mosaicmd.transfer import Sanity, lasting

TIMESTEP = 2.0 * units.FEMTOSECOND
SANITY = Sanity(min_distance=1.6, max_temperature_kelvin=1e4)
CUTOFF = 3.5


def free(params, system, graph):
    """No forces, but they depend on what a potential does."""
    x, y, z = edge_components(system, graph)
    return params * jnp.zeros(system.n_atoms).at[graph.receivers].add(x * y * z)


def starts(n, rattle=0.05):
    found = []
    for seed in range(n):
        atoms = ase.build.bulk("Ge", a=5.66, cubic=True).repeat((2, 2, 1))
        atoms.rattle(rattle, seed=seed)
        found.append(from_ase(atoms))
    return stack_systems(found)


def ballistic(temperature):
    return langevin(TIMESTEP, 1e-9, temperature * units.KELVIN)


def shortest(positions, cell):
    first, second = np.triu_indices(len(positions), 1)
    between = (positions[first] - positions[second]) @ np.linalg.inv(cell)
    between = (between - np.round(between)) @ cell
    return np.sqrt((between**2).sum(axis=1)).min()


def test_free_flight_ends_at_the_step_before_the_first_collision():
    """Straight lines tell where the next step leads: there, and only there, two atoms collide.

    A start that collides at once leaves the other replicas as they are, to the last bit.
    """
    systems = starts(3)
    of = lasting(free, ballistic(2000.0), SANITY, cutoff=CUTOFF, n_steps=200, every=1)
    found = of(jnp.zeros(()), systems, jax.random.key(0))
    assert found.failed.all()
    assert len(set(found.steps.tolist())) == 3
    np.testing.assert_array_equal(found.n_frames, found.steps)
    cell = np.asarray(systems.cell[0])
    for steps, frames in zip(found.steps, found.positions, strict=True):
        assert steps > 5
        assert min(shortest(frame, cell) for frame in frames[:steps]) >= 1.6
        assert shortest(2.0 * frames[steps - 1] - frames[steps - 2], cell) < 1.6
        np.testing.assert_array_equal(frames[steps:], 0.0)
    start = systems.positions.at[1, 0].set(systems.positions[1, 1] + 0.5)
    other = of(jnp.zeros(()), systems._replace(positions=start), jax.random.key(0))
    np.testing.assert_array_equal(other.positions[[0, 2]], found.positions[[0, 2]])
    assert other.steps.tolist() == [found.steps[0], 0, found.steps[2]]
    assert other.failed[1]


@pytest.mark.slow
def test_what_is_sane_lasts_and_is_censored():
    """Germanium of its own potential at 600 K, 0.4 ps; frames spread as in a crystal."""
    germanium = stillinger_weber(epsilon=1.93, sigma=2.181, strength=31.0, species=(32,))
    integrator = langevin(TIMESTEP, 0.1, 600.0 * units.KELVIN)
    of = lasting(
        germanium.energy, integrator, SANITY, cutoff=germanium.cutoff, n_steps=200, every=20
    )
    found = of(germanium.init(jax.random.key(0)), starts(2), jax.random.key(1))
    np.testing.assert_array_equal(found.steps, 200)
    assert not found.failed.any()
    assert found.positions.shape == (2, 10, 32, 3)
    moved = found.positions[:, -1] - np.asarray(starts(2).positions)
    assert 0.05 < np.sqrt(np.mean(moved**2)) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("energy", "change"),
    [
        (lambda p, s, g: -50.0 * jnp.sum(s.positions**2, axis=1) + p, {}),  # explodes
        (lambda p, s, g: jnp.full(s.n_atoms, jnp.nan) + 0.0 * p, {}),
        (free, {"max_temperature_kelvin": 10.0}),
        (free, {"crowding": 1.0, "min_distance": 0.01}),  # one more neighbor than at the start
    ],
)
def test_other_events(energy, change):
    sanity = SANITY._replace(**{"max_temperature_kelvin": 1e6} | change)
    of = lasting(energy, ballistic(3000.0), sanity, cutoff=CUTOFF, n_steps=100, every=10)
    found = of(jnp.zeros(()), starts(2, rattle=0.0), jax.random.key(3))
    assert found.failed.all()
    assert (found.steps < 100).all()


def test_bad_settings_are_refused():
    args, rest = (free, ballistic(300.0)), {"cutoff": CUTOFF, "n_steps": 20, "every": 5}
    with pytest.raises(ValueError, match="`min_distance` must be positive and finite, got 0"):
        lasting(*args, SANITY._replace(min_distance=0.0), **rest)
    with pytest.raises(ValueError, match=r"`crowding` must be at least 1, got 0\.5"):
        lasting(*args, SANITY._replace(crowding=0.5), **rest)
    with pytest.raises(ValueError, match="`n_steps` 20 must be a positive multiple of `every` 6"):
        lasting(*args, SANITY, **rest | {"every": 6})
    with pytest.raises(ValueError, match="needs a thermostat"):
        lasting(free, nve(TIMESTEP), SANITY, **rest)
    single = jax.tree.map(lambda leaf: leaf[0], starts(1))
    of = lasting(*args, SANITY, **rest)
    with pytest.raises(ValueError, match="must be a batch of replicas"):
        of(jnp.zeros(()), single, jax.random.key(0))

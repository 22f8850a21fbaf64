"""Batches: every structure once, one shape, and joined structures as if each were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matching_data import CUTOFF, TRUE, energy, labelled, params_of

from mosaicmd.kernel.batches import Batches, prefetch
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.label_errors import predict


@pytest.fixture(scope="module")
def examples():
    return make_examples(labelled(14), CUTOFF)


def energies_in(batch):
    real = np.asarray(batch.n_atoms) > 0
    return np.asarray(batch.targets.energy)[real]


@pytest.mark.parametrize("options", [{}, {"n_slots": 3}, {"separate": True}])
def test_an_epoch_has_every_structure_once_in_batches_of_one_shape(examples, options):
    batches = Batches(examples, 4, seed=3, **options)
    assert batches.steps_per_epoch == 4
    for epoch in range(2):
        seen, shapes = [], set()
        for index in range(4):
            batch = batches(4 * epoch + index + 1)
            seen.append(energies_in(batch))
            shapes.add(str(jax.tree.map(jnp.shape, batch)))
        assert len(shapes) == 1
        assert {len(found) for found in seen} <= {3, 4}
        expected = np.sort([labels.energy for _, labels in labelled(14)])
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), expected)


def test_batches_follow_from_seed_and_step_alone(examples):
    one, other = Batches(examples, 4, seed=1), Batches(examples, 4, seed=1)
    later = other(11)  # without the ten before
    for step in range(1, 11):
        one(step)
    jax.tree.map(np.testing.assert_array_equal, one(11), later)
    assert not np.array_equal(energies_in(one(1)), energies_in(one(5)))  # another epoch
    assert not np.array_equal(energies_in(one(1)), energies_in(Batches(examples, 4, seed=2)(1)))
    fixed = Batches(examples, 4, shuffle=False)
    np.testing.assert_array_equal(energies_in(fixed(1)), energies_in(fixed(5)))


@pytest.mark.parametrize("n_slots", [1, 2])
def test_padding_is_bounded_by_the_spread_of_a_single_structure(examples, n_slots):
    """Sizes of strata telescope, see the module; slots are balanced and rounded up to 8."""
    batches = Batches(examples, 7, n_slots=n_slots)
    sizes = np.array([example.graph.n_edges for example in examples])
    slots = np.asarray(batches(1).graph.senders).size
    mean = 7 * sizes.mean()
    assert slots <= mean + np.ptp(sizes) + 1 + 7 + (n_slots - 1) * sizes.max()
    assert batches.padding == pytest.approx(slots / mean)


@pytest.mark.parametrize("options", [{"n_slots": 1}, {"n_slots": 3}, {"separate": True}])
def test_joined_structures_are_as_if_each_were_alone(examples, options):
    """Energy, forces and stress of every structure against those of `evaluate`, the labels."""
    batch = Batches(examples, 14, shuffle=False, **options)(1)
    alone = {given.energy: given for _, given in labelled(14)}
    labels = ("energy", "forces", "stress")
    of_slot = jax.jit(lambda slot: predict(energy, params_of(TRUE), slot, labels))
    n_seen = 0
    for k in range(batch.owner.shape[0]):
        slot = jax.tree.map(lambda leaf, k=k: leaf[k], batch)
        found = of_slot(slot)
        for i in np.flatnonzero(slot.n_atoms):
            wanted = alone[float(slot.targets.energy[i])]
            own = np.asarray(slot.owner) == i
            np.testing.assert_allclose(found.energy[i], wanted.energy, rtol=1e-12)
            np.testing.assert_allclose(found.forces[own], wanted.forces, atol=1e-11)
            np.testing.assert_allclose(found.stress[i], wanted.stress, atol=1e-13)
            n_seen += 1
        assert np.all(found.forces[np.asarray(slot.owner) == len(slot.n_atoms)] == 0.0)
    assert n_seen == 14


def test_weights_of_each_label_add_up_to_the_number_of_structures():
    data = [
        (system, labels if index % 3 else labels._replace(stress=None))
        for index, (system, labels) in enumerate(labelled(14))
    ]
    examples = make_examples(data, CUTOFF, weights={"energy": np.arange(14.0)})
    batches = Batches(examples, 4)
    total = {"energy": 0.0, "forces": 0.0, "stress": 0.0, "charges": 0.0}
    for batch in batches.epoch():
        for label in total:
            total[label] += float(jnp.sum(batch.targets.weight(label)))
    assert total == pytest.approx({"energy": 14.0, "forces": 14.0, "stress": 14.0, "charges": 0.0})
    assert batch.labels == ("energy", "forces", "stress")


def test_more_than_there_are_is_one_batch_of_all(examples):
    batches = Batches(examples[:3], 50)
    assert (batches.batch_size, batches.steps_per_epoch) == (3, 1)
    assert len(energies_in(batches(1))) == 3


def test_batches_take_the_shapes_of_others(examples):
    """A subset in the shapes of all: the same structures, and one program for both."""
    every = Batches(examples, 4)
    few = Batches(examples[:5], 4, like=every)
    shapes = [str(jax.tree.map(jnp.shape, batches(1))) for batches in (every, few)]
    assert shapes[0] == shapes[1]
    found = np.concatenate([energies_in(batch) for batch in few.epoch()])
    expected = np.concatenate([energies_in(batch) for batch in Batches(examples[:5], 4).epoch()])
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))
    single = Batches(examples[:1], 4, like=every)
    assert str(jax.tree.map(jnp.shape, single(1))) == shapes[0]
    larger = Batches(examples, 4, like=few)
    np.testing.assert_array_equal(energies_in(larger(1)), energies_in(every(1)))


def test_prefetching_changes_nothing(examples):
    batches = Batches(examples, 4)
    ahead = prefetch(batches, 3)
    for step in (1, 2, 3, 9, 10, 2):
        jax.tree.map(np.testing.assert_array_equal, ahead(step), batches(step))


def test_prefetching_passes_errors_on():
    def batches(step):
        if step == 3:
            raise OSError("disk")
        return step

    ahead = prefetch(batches)
    assert [ahead(1), ahead(2)] == [1, 2]
    with pytest.raises(OSError, match="disk"):
        ahead(3)
    assert ahead(4) == 4


def test_settings_are_checked(examples):
    with pytest.raises(ValueError, match="`examples` is empty"):
        Batches([], 4)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        Batches(examples, 0)
    with pytest.raises(ValueError, match="`n_slots` must be at least 1, got 0"):
        Batches(examples, 4, n_slots=0)
    with pytest.raises(ValueError, match="`n_ahead` must be at least 1, got 0"):
        prefetch(Batches(examples, 4), 0)

"""Labels as masked arrays, and faults that are named by structure and label."""

import numpy as np
import pytest

from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.examples import labels_present, make_examples
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.systems import make_system, pad_system
from mosaicmd.kernel.testing import random_system

SYSTEM = random_system(0, n_atoms=5)
FORCES = np.arange(15.0).reshape(5, 3)


def refused(labels, match, system=SYSTEM, **options):
    with pytest.raises(ValueError, match=match):
        make_examples([(SYSTEM, Labels()), (system, labels)], 3.0, **options)


def test_labels_that_are_absent_have_no_weight_and_no_nan():
    full = Labels(energy=2.0, forces=FORCES, stress=np.eye(3), charges=np.ones(5))
    first, second = make_examples([(SYSTEM, full), (SYSTEM, Labels())], 3.0)
    for label in ("energy", "forces", "stress", "charges"):
        np.testing.assert_array_equal(getattr(first.targets, label), getattr(full, label))
        assert np.all(first.targets.weight(label) == 1.0)
        assert np.all(getattr(second.targets, label) == 0.0)
        assert np.all(second.targets.weight(label) == 0.0)
    assert labels_present([first]) == ("energy", "forces", "stress", "charges")
    assert labels_present([second]) == ()


def test_graphs_are_those_of_the_host_list_in_the_asked_precision():
    (example,) = make_examples([(SYSTEM, Labels(energy=1.0))], 4.0, dtype=np.float32)
    expected = host_graph(SYSTEM, 4.0, reverse=True)
    np.testing.assert_array_equal(example.graph.senders, expected.senders)
    np.testing.assert_array_equal(example.graph.reverse, expected.reverse)
    assert example.system.positions.dtype == example.targets.forces.dtype == np.float32
    assert isinstance(example.system.positions, np.ndarray)


def test_masked_atoms_have_no_weight():
    padded = pad_system(SYSTEM, 7)
    forces = np.concatenate([FORCES, np.zeros((2, 3))])
    (example,) = make_examples([(padded, Labels(forces=forces))], 3.0)
    np.testing.assert_array_equal(example.targets.forces_weight, [1, 1, 1, 1, 1, 0, 0])


def test_weights_multiply():
    data = [(SYSTEM, Labels(energy=1.0, forces=FORCES))] * 2
    atoms = np.arange(5.0)
    _, example = make_examples(data, 3.0, weights=[1.0, 2.0], atom_weights=[None, atoms])
    assert example.targets.energy_weight == 2.0
    np.testing.assert_array_equal(example.targets.forces_weight, 2.0 * atoms)
    _, example = make_examples(data, 3.0, weights={"energy": [1.0, 3.0]})
    assert example.targets.energy_weight == 3.0
    np.testing.assert_array_equal(example.targets.forces_weight, 1.0)


def test_faults_are_named():
    with pytest.raises(ValueError, match="`data` is empty"):
        make_examples([], 3.0)
    refused(Labels(forces=FORCES[:4]), r"structure 1: `forces` must have shape \(5, 3\)")
    refused(Labels(energy=np.nan), "structure 1: `energy` is not finite")
    refused(Labels(stress=np.ones(6)), r"structure 1: `stress` must have shape \(3, 3\)")
    free = make_system(np.zeros((1, 3)), 1)
    refused(Labels(stress=np.eye(3)), "structure 1 has a `stress` but is not periodic", free)
    refused(Labels(), "`weights` of energy must be 2 finite numbers", weights=[1.0])
    refused(Labels(), "`weights` of stress .* not negative", weights={"stress": [1.0, -1.0]})
    refused(Labels(), r"`weights` names \['virial'\]", weights={"virial": [1.0, 1.0]})
    refused(Labels(), "`atom_weights` has 1 entries for 2", atom_weights=[None])
    refused(Labels(), "structure 1: `atom_weights` must be 5", atom_weights=[None, np.ones(4)])

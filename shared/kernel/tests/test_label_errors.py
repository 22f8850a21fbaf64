"""Losses and metrics by hand, and the labels that a loss must not forget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matching_data import CUTOFF, START, energy, labelled, params_of

from mosaicmd.kernel import units
from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.label_errors import (
    MatchingLoss,
    Predictions,
    Term,
    error_metrics,
    predict,
    sum_errors,
    weighted_loss,
)
from mosaicmd.kernel.systems import make_system


def two_structures(weights=None, atom_weights=None):
    """Two atoms with every label, and one atom with an energy only."""
    cell = np.diag([8.0, 9.0, 10.0])
    first = make_system(np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), 1, cell=cell)
    second = make_system(np.zeros((1, 3)), 1, cell=cell)
    labels = Labels(
        energy=1.0,
        forces=np.array([[0.5, 0.0, 0.0], [0.0, -1.0, 0.0]]),
        stress=np.diag([0.1, 0.2, 0.3]),
        charges=np.array([0.25, -0.25]),
    )
    data = [(first, labels), (second, Labels(energy=-2.0))]
    examples = make_examples(data, 1.0, weights=weights, atom_weights=atom_weights)
    batch = Batches(examples, 2, n_slots=1, shuffle=False)(1)
    slot = jax.tree.map(lambda leaf: leaf[0], batch)
    assert np.asarray(slot.n_atoms).tolist() in ([2, 1], [1, 2])
    return slot


def zeros(slot):
    return Predictions(
        energy=jnp.zeros_like(slot.targets.energy),
        forces=jnp.zeros_like(slot.targets.forces),
        stress=jnp.zeros_like(slot.targets.stress),
        charges=jnp.zeros_like(slot.targets.charges),
    )


def loss_at_zero(loss, slot):
    return float(weighted_loss(loss, sum_errors(loss, zeros(slot), slot, loss.labels)))


def test_squared_deviations_by_hand():
    """Twice the mean over the data set (two structures), of which one has an energy only."""
    slot = two_structures()
    by_label = {
        "energy": 2.0 * np.mean([0.5**2, 2.0**2]),  # eV/atom
        "forces": 2.0 * np.mean([0.25, 0.0, 0.0, 0.0, 1.0, 0.0]),
        "stress": 2.0 * (0.01 + 0.04 + 0.09) / 9.0,
        "charges": 2.0 * 0.0625,
    }
    for label, expected in by_label.items():
        assert loss_at_zero(MatchingLoss(**{label: 1.0}), slot) == pytest.approx(
            expected, rel=1e-14
        )
    both = MatchingLoss(energy=2.0, forces=Term(3.0), stress=0.0)
    expected = 2.0 * by_label["energy"] + 3.0 * by_label["forces"]
    assert loss_at_zero(both, slot) == pytest.approx(expected, rel=1e-14)


def test_huber_is_linear_beyond_its_bound():
    """d² within, bound (2 |d| - bound) beyond, per component."""
    slot = two_structures()
    expected = 2.0 / 6.0 * (0.5**2 + 0.6 * (2.0 * 1.0 - 0.6))
    loss = MatchingLoss(forces=Term(1.0, huber=0.6))
    assert loss_at_zero(loss, slot) == pytest.approx(expected, rel=1e-14)


def test_weights_of_structures_and_atoms():
    """Weighted means; their normalisation makes a common factor drop out."""
    slot = two_structures(weights=[3.0, 1.0], atom_weights=[np.array([1.0, 4.0]), None])
    expected = 2.0 * (3.0 * 0.25 + 1.0 * 4.0) / 4.0
    assert loss_at_zero(MatchingLoss(energy=1.0), slot) == pytest.approx(expected, rel=1e-14)
    expected = 2.0 * (1.0 * 0.25 / 3.0 + 4.0 * 1.0 / 3.0) / 5.0
    assert loss_at_zero(MatchingLoss(forces=1.0), slot) == pytest.approx(expected, rel=1e-14)


def test_metrics_by_hand():
    """Errors do not depend on weights, only on which labels there are."""
    slot = two_structures(weights=[3.0, 1.0])
    loss = MatchingLoss(energy=1.0, forces=1.0, stress=1.0, charges=1.0)
    metrics = error_metrics(sum_errors(loss, zeros(slot), slot, loss.labels))
    assert metrics == pytest.approx(
        {
            "mae_energy_mev_per_atom": 1e3 * np.mean([0.5, 2.0]),
            "rmse_energy_mev_per_atom": 1e3 * np.sqrt(np.mean([0.25, 4.0])),
            "mae_forces_mev_per_angstrom": 1e3 * 1.5 / 6.0,
            "rmse_forces_mev_per_angstrom": 1e3 * np.sqrt(1.25 / 6.0),
            "mae_stress_gpa": 0.6 / 9.0 / units.GPA,
            "rmse_stress_gpa": np.sqrt(0.14 / 9.0) / units.GPA,
            "mae_charges_e": 0.25,
            "rmse_charges_e": 0.25,
        },
        rel=1e-14,
    )
    assert error_metrics(sum_errors(loss, zeros(slot), slot, ())) == {}


def test_only_what_is_asked_for_is_predicted():
    batch = Batches(make_examples(labelled()[:2], CUTOFF), 2, n_slots=1)(1)
    slot = jax.tree.map(lambda leaf: leaf[0], batch)
    found = predict(energy, params_of(START), slot, ("energy",))
    assert (found.forces, found.stress, found.charges) == (None, None, None)
    with pytest.raises(ValueError, match="give `charges_fn`"):
        predict(energy, params_of(START), slot, ("charges",))


def test_labels_that_no_loss_uses_are_named():
    present = ("energy", "forces", "stress")
    with pytest.raises(ValueError, match=r"labels \['stress'\] that the loss does not use"):
        MatchingLoss(energy=1.0, forces=1.0).check(present)
    MatchingLoss(energy=1.0, forces=1.0, stress=0.0).check(present)
    with pytest.raises(ValueError, match=r"weights for \['charges'\], but no structure"):
        MatchingLoss(energy=1.0, forces=1.0, stress=0.0, charges=1.0).check(present)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="weight of `forces` must not be negative, got -1"):
        MatchingLoss(forces=-1.0)
    with pytest.raises(ValueError, match="`huber` of `energy` must be positive, got 0"):
        MatchingLoss(energy=Term(1.0, huber=0.0))
    with pytest.raises(ValueError, match="at least one label"):
        MatchingLoss(energy=0.0)

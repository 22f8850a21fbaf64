"""A potential times a constant, or one constant per species."""

import json

import jax
import numpy as np
import pytest

from mosaicmd.gnn_models import MorseConfig, morse, scaled
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential, sum_potentials
from mosaicmd.kernel.systems import pad_system
from mosaicmd.kernel.testing import check_padding, check_precision, random_system

MORSE = morse(MorseConfig(depth=0.4, distance=2.6, width=0.7, cutoff=5.0, species=(1, 8)))


def test_padding_and_precision():
    potential = scaled(MORSE, {1: 0.5, 8: 2.0})
    args = (potential, potential.init(jax.random.key(0)), random_system(0, n_atoms=10))
    check_padding(*args)
    check_precision(*args)


@pytest.mark.parametrize("scale", [2.5, {8: 2.0, 1: 0.5}])
def test_energies_are_multiplied_and_a_model_file_knows(scale):
    system = pad_system(random_system(0), 30)
    args = (MORSE.init(jax.random.key(0)), system, host_graph(system, 5.0))
    expected = np.asarray(MORSE.energy(*args))
    if isinstance(scale, dict):
        expected = expected * np.where(system.species == 8, 2.0, 0.5)
    else:
        expected = 2.5 * expected
    potential = scaled(MORSE, scale)
    again = build_potential("scaled", json.loads(json.dumps(potential.config)))
    for one in (potential, again):
        np.testing.assert_allclose(one.energy(*args), expected, rtol=1e-14)
        assert (one.cutoff, one.species) == (5.0, (1, 8))
    assert again.config == potential.config


def test_sums_of_scaled_potentials_are_rebuilt():
    total = sum_potentials(scaled(sum_potentials(MORSE, MORSE), 0.25), MORSE)
    again = build_potential(total.architecture, json.loads(json.dumps(total.config)))
    system = random_system(0)
    params = again.init(jax.random.key(0))
    energies = [p.energy(params, system, host_graph(system, 5.0)) for p in (total, again)]
    np.testing.assert_array_equal(*energies)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (0.0, "`scale` must be positive and finite, got 0.0"),
        ({1: 1.0, 8: float("nan")}, "must be positive and finite"),
        ({1: 1.0}, r"`scale` lacks species \[8\]"),
        ({}, "must be positive and finite"),
    ],
)
def test_bad_scales_are_refused(scale, message):
    with pytest.raises(ValueError, match=message):
        scaled(MORSE, scale)

"""A potential that has nothing left to learn."""

import json

import jax
import numpy as np

from mosaicmd.gnn_models import MorseConfig, fixed, morse
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential, sum_potentials
from mosaicmd.kernel.testing import check_padding, check_precision, random_system

MORSE = morse(MorseConfig(depth=0.4, distance=2.6, width=0.7, cutoff=5.0, species=(1, 8)))


def test_padding_and_precision():
    args = (fixed(MORSE), {}, random_system(0, n_atoms=10))
    check_padding(*args)
    check_precision(*args)


def test_it_has_the_energies_of_the_start_and_no_parameters_and_a_model_file_knows():
    total = sum_potentials(fixed(MORSE), MORSE)
    again = build_potential(total.architecture, json.loads(json.dumps(total.config)))
    system = random_system(0)
    graph = host_graph(system, 5.0)
    expected = MORSE.energy(MORSE.init(jax.random.key(0)), system, graph)
    for one in (total, again):
        params = one.init(jax.random.key(1))
        assert jax.tree.leaves(params[0]) == []
        np.testing.assert_allclose(one.energy(params, system, graph), 2.0 * expected, rtol=1e-14)
        assert (one.cutoff, one.species) == (5.0, (1, 8))
